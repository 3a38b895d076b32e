"""Adversarial training as a Lightning module, and the schedule that drives it."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from patchguard.attacks.objectives import legacy
from patchguard.attacks.pgd import NFGSM, PGD
from patchguard.config import InnerAttackConfig, TrainingConfig, parse_eps
from patchguard.models.patchguard import PatchGuard
from patchguard.training.batches import Batch
from patchguard.training.loss import PatchLoss, training_loss

LOG_EVERY = 10


def inner_attack(loss: PatchLoss, config: InnerAttackConfig) -> PGD:
    """The PGD of :mod:`patchguard.attacks` with the settings of a recipe."""
    kind = PGD if config.project else NFGSM
    return kind(
        legacy if config.objective == "legacy" else loss,
        steps=config.steps,
        step_size=config.step_size,
        start=config.start,
        keep_best=False,
        eval_mode=not config.dropout,
    )


class AdversarialTraining(lightning.LightningModule):
    """Minimise the patch loss on attacked normals and pseudo-anomalies.

    Learning rate and eps follow :meth:`progress`, be the length given in steps or in minutes.
    Every random draw of a step comes from (seed, step, rank), so a resumed run repeats exactly
    what the uninterrupted run does.

    Args:
        model: the detector to train.
        config: optimisation settings.
        total_steps: length in steps, or None when ``config.minutes`` gives it.
        seed: of all randomness in the steps.
    """

    def __init__(
        self, model: PatchGuard, config: TrainingConfig, total_steps: int | None, seed: int
    ) -> None:
        super().__init__()
        self.model = model
        self.average = (
            AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema))  # type: ignore[no-untyped-call]
            if config.ema
            else None
        )
        self.config = config
        self.total_steps = total_steps
        self.seed = seed
        self.patch_loss = PatchLoss(config.anomalous_weight)
        self.attack = inner_attack(self.patch_loss, config.attack)
        self.eps = parse_eps(config.attack.eps)
        self.elapsed = 0.0
        self._clock = 0.0

    @property
    def detector(self) -> PatchGuard:
        """The trained detector in eval mode: the averaged weights where there are any."""
        averaged = self.average.module if self.average else self.model
        assert isinstance(averaged, PatchGuard)
        return averaged.eval()

    def progress(self) -> float:
        """The fraction of the training that is done, in [0, 1]."""
        if self.total_steps is not None:
            return min(1.0, self.global_step / self.total_steps)
        assert self.config.minutes is not None
        return min(1.0, self.elapsed / (60 * self.config.minutes))

    def current_eps(self) -> float:
        """The radius of the inner attack now: a linear ramp, then constant."""
        ramp = self.config.attack.ramp
        return self.eps * (min(1.0, self.progress() / ramp) if ramp else 1.0)

    def current_lr(self) -> float:
        """Cosine decay from ``lr`` to ``lr_final`` · ``lr``."""
        final = self.config.lr_final
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress()))
        return self.config.lr * (final + (1 - final) * cosine)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            self.model.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay
        )

    def on_train_start(self) -> None:
        self._clock = time.monotonic() - self.elapsed

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        entropy = [self.seed, self.global_step, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = self.current_lr()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images = torch.cat([batch["normal"], batch["anomalous"]])
        masks = torch.cat([torch.zeros_like(batch["mask"]), batch["mask"]])
        labels = masks.flatten(1).any(1)
        attacked = self.attacked(images, labels, masks)
        if self.config.attack.keep_clean:
            attacked, masks = torch.cat([images, attacked]), torch.cat([masks, masks])
        patches, attention = training_loss(
            self.model, attacked, masks, self.patch_loss, self.config.attention
        )
        if self._every(LOG_EVERY):
            self._log_step(patches, attention)
        return patches + attention

    def attacked(self, images: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """The images under the inner attack at the current eps."""
        eps = self.current_eps()
        if eps == 0:
            return images
        return self.attack(self.model, images, labels, masks, eps=[eps])[0]

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """One step, with everything a resumed run needs settled before any callback saves."""
        super().optimizer_step(*arguments, **keywords)
        if self.average:
            self.average.update_parameters(self.model)
        self.elapsed = time.monotonic() - self._clock

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.progress() >= 1:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["elapsed"] = self.elapsed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.elapsed = checkpoint["elapsed"]

    def _log_step(self, patches: Tensor, attention: Tensor) -> None:
        values: dict[str, Tensor | float] = {
            "loss": patches + attention,
            "patch_loss": patches,
            "attention_loss": attention,
            "eps": self.current_eps(),
            "lr": self.current_lr(),
        }
        if self.config.attention and self._every(10 * LOG_EVERY):
            values["attention_gradient_share"] = self._gradient_share(attention, patches)
        self.log_dict(values)

    def _every(self, steps: int) -> bool:
        """At the steps at which Lightning's loggers write."""
        return self.global_step % steps == steps - 1

    def _gradient_share(self, part: Tensor, rest: Tensor) -> float:
        """‖∇part‖ / (‖∇part‖ + ‖∇rest‖) over the model's parameters."""
        parameters = list(self.model.parameters())

        def norm(loss: Tensor) -> float:
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            return float(torch.cat([g.flatten() for g in gradients if g is not None]).norm())

        share = norm(part)
        return share / (share + norm(rest))
