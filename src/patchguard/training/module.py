"""Adversarial training as a Lightning module, and the schedule that drives it."""

from __future__ import annotations

import math
import time
from copy import copy, deepcopy
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from patchguard.attacks.objectives import legacy
from patchguard.attacks.pgd import NFGSM, PGD
from patchguard.config import InnerAttackConfig, TrainingConfig, parse_eps
from patchguard.models.attention import attention_degrees
from patchguard.models.patchguard import PatchGuard
from patchguard.training.awp import WeightPerturbation
from patchguard.training.batches import Batch
from patchguard.training.loss import PatchLoss, training_loss
from patchguard.training.monitor import replacement
from patchguard.training.persistent import Perturbations

LOG_EVERY = 10
RARELY = 10 * LOG_EVERY
"""Steps between two measurements that cost passes of their own."""


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


def images_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Images [2B, 3, H, W], normals first, their labels [2B] and masks [2B, H, W]."""
    images = torch.cat([batch["normal"], batch["anomalous"]])
    masks = torch.cat([torch.zeros_like(batch["mask"]), batch["mask"]])
    return images, masks.flatten(1).any(1), masks


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
        images: how many normal images there are.

    Attributes:
        switched_at: the step at which a single-step attack was given up for PGD-2, if it was.
        midway: the step at hand has begun to change what a resumed run starts from.
    """

    def __init__(
        self,
        model: PatchGuard,
        config: TrainingConfig,
        total_steps: int | None,
        seed: int,
        images: int,
    ) -> None:
        super().__init__()
        self.model = model
        self.average = deepcopy(model) if config.ema else None
        self.config = config
        self.total_steps = total_steps
        self.seed = seed
        self.patch_loss = PatchLoss(config.anomalous_weight, config.least_cover)
        self.attack = inner_attack(self.patch_loss, config.attack)
        self.switched_at: int | None = None
        self.eps = parse_eps(config.attack.eps)
        self.perturbations = (
            Perturbations(images, model.image_size) if config.attack.persistent else None
        )
        self.weight_perturbation = WeightPerturbation(model)
        self.midway = True
        self.elapsed = 0.0
        self._clock = 0.0

    @property
    def detector(self) -> PatchGuard:
        """The trained detector in eval mode: the averaged weights where there are any."""
        return (self.average or self.model).eval()

    def progress(self) -> float:
        """The fraction of the training that is done, in [0, 1]."""
        return self.progress_at(self.global_step)

    def progress_at(self, step: int) -> float:
        """The same at another step; what is known of it now when the length is in minutes."""
        if self.total_steps is not None:
            return min(1.0, step / self.total_steps)
        assert self.config.minutes is not None
        return min(1.0, self.elapsed / (60 * self.config.minutes))

    def current_eps(self) -> float:
        """The radius of the inner attack now: a linear ramp from 0, then constant."""
        ramp, progress = self.config.attack.ramp, self.progress()
        return self.eps if progress >= ramp else self.eps * progress / ramp

    def current_lr(self) -> float:
        """Cosine decay from ``lr`` to ``lr_final`` · ``lr``."""
        final = self.config.lr_final
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress()))
        return self.config.lr * (final + (1 - final) * cosine)

    def switch_attack(self) -> None:
        """From now on PGD-2 instead of the single step."""
        self.attack = replacement(self.attack)
        self.switched_at = self.global_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Lightning clips no gradients of a fused optimiser in mixed precision.
        return torch.optim.AdamW(
            self.model.parameters(),
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            fused=True if self.config.precision == "32" else None,
        )

    def on_train_start(self) -> None:
        self._clock = time.monotonic() - self.elapsed
        self.midway = False

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> int | None:
        if self.progress() >= 1:  # resumed where the last step had been made
            return -1
        entropy = [self.seed, self.global_step, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        for group in self.optimizers(use_pl_optimizer=False).param_groups:  # type: ignore[union-attr]
            group["lr"] = self.current_lr()
        self.model.backbone.requires_grad_(self.progress() >= self.config.head_first)
        return None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels, masks = images_of(batch)
        attacked = self.attacked(batch, images, labels, masks)
        if self._every(RARELY) and all(hasattr(block, "attn") for block in self.model.blocks):
            degrees = attention_degrees(self.model, attacked).mean(1)
            self.log_now({f"attention_degree_{n}": float(d) for n, d in enumerate(degrees, 1)})
        if self.config.attack.keep_clean:
            attacked, masks = torch.cat([images, attacked]), torch.cat([masks, masks])
        if self.config.awp and self.current_eps():
            size = self.config.awp * self.current_eps() / self.eps
            loss = torch.stack(self._losses(attacked, masks)).sum()
            self.weight_perturbation.push(loss, size)
        patches, attention = self._losses(attacked, masks)
        if self._every(LOG_EVERY):
            self._log_step(patches, attention)
        return patches + attention

    def on_after_backward(self) -> None:
        self.weight_perturbation.pop()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.midway = True

    def attacked(self, batch: Batch, images: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """The images of a batch under the inner attack at the current eps."""
        eps = self.current_eps()
        if eps == 0:
            return images
        if self.perturbations is None:
            return self.attack(self.model, images, labels, masks, eps=[eps])[0]
        index, flips = batch["index"], batch["flips"]
        attack = copy(self.attack)
        attack.starts = (self.perturbations.start(index, flips),)
        attacked = attack(self.model, images, labels, masks, eps=[eps])[0]
        self.midway = True
        self.perturbations.keep(index, flips, (attacked - images)[: len(index)])
        return attacked

    def _losses(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Patch loss and attention term; of the latter nothing while the backbone rests."""
        learns = self.progress() >= self.config.head_first
        weights = self.config.attention if learns else {}
        return training_loss(self.model, images, masks, self.patch_loss, weights)

    def optimizer_step(self, *arguments: Any, **keywords: Any) -> None:
        """One step, with everything a resumed run needs settled before any callback saves."""
        super().optimizer_step(*arguments, **keywords)
        self.update_average()
        self.elapsed = time.monotonic() - self._clock

    @torch.no_grad()
    def update_average(self) -> None:
        """The exponential moving average of the weights, if there is one; the first step sets it.

        As torch's ``AveragedModel``, which counts on the GPU and so waits for it at every step.
        """
        if self.average is None:
            return
        blend = get_ema_multi_avg_fn(self.config.ema if self.global_step else 0.0)  # type: ignore[no-untyped-call]
        blend(list(self.average.parameters()), list(self.model.parameters()), 0)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.midway = False
        if self.progress() >= 1:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # As Lightning counts at the end of a step, also where a step was broken off.
        epoch_loop = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]
        epoch_loop["_batches_that_stepped"] = self.global_step - 1
        checkpoint["elapsed"] = self.elapsed
        checkpoint["switched_at"] = self.switched_at
        if self.perturbations:
            checkpoint["perturbations"] = self.perturbations.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.elapsed = checkpoint["elapsed"]
        if checkpoint["switched_at"] is not None:
            self.switch_attack()
            self.switched_at = checkpoint["switched_at"]
        if self.perturbations:
            self.perturbations.load_state_dict(checkpoint["perturbations"])

    def _log_step(self, patches: Tensor, attention: Tensor) -> None:
        values: dict[str, Tensor | float] = {
            "loss": patches + attention,
            "patch_loss": patches,
            "attention_loss": attention,
            "eps": self.current_eps(),
            "lr": self.current_lr(),
        }
        self.log_dict(values)
        if attention.requires_grad and self._every(RARELY):
            self.log_now({"attention_gradient_share": self._gradient_share(attention, patches)})

    def log_now(self, values: dict[str, float]) -> None:
        """Log for this step alone; what Lightning logs it repeats until the next time."""
        for logger in self.loggers:
            logger.log_metrics(values, step=self.global_step)

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
