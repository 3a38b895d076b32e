"""Adversarial training: what a step does, and the schedule that drives it."""

from __future__ import annotations

import math
from copy import copy, deepcopy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from patchguard.attacks.objectives import legacy
from patchguard.attacks.pgd import NFGSM, PGD
from patchguard.config import InnerAttackConfig, TrainingConfig, parse_eps
from patchguard.models.attention import attention_degrees
from patchguard.models.patchguard import PatchGuard, Placed
from patchguard.training.awp import WeightPerturbation
from patchguard.training.batches import Batch
from patchguard.training.loss import PatchLoss, training_loss
from patchguard.training.monitor import replacement
from patchguard.training.persistent import Perturbations

LoggedQuantities = dict[str, Tensor]
"""What a step measures for the logs, by name."""

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


def defended_eps(config: TrainingConfig, contrast: float) -> float:
    """The radius to train against on images whose values span ``contrast`` of [0, 1].

    Where that is less than half, the radius that a recipe names would be a large part of all there
    is to see, and shrinks in proportion.
    """
    return parse_eps(config.attack.eps) * min(1.0, 2 * contrast)


def images_of(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Windows [2B, 3, w, w], normals first, their labels [2B] and masks [2B, w, w]."""
    images = torch.cat([batch["normal"], batch["anomalous"]])
    masks = torch.cat([torch.zeros_like(batch["mask"]), batch["mask"]])
    return images, masks.flatten(1).any(1), masks


def places_of(batch: Batch) -> Tensor:
    """Where the windows of :func:`images_of` lie, [2B, 4]."""
    return batch["places"].transpose(0, 1).flatten(0, 1)


class AdversarialTraining(nn.Module):
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
        contrast: how much of [0, 1] their values span.

    Attributes:
        step: how many steps of the optimiser are behind it.
        elapsed: seconds that they took.
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
        contrast: float = 1.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.average = deepcopy(model) if config.ema else None
        self.config = config
        self.total_steps = total_steps
        self.seed = seed
        self.patch_loss = PatchLoss(config.anomalous_weight, config.least_cover)
        self.attack = inner_attack(self.patch_loss, config.attack)
        self.eps = defended_eps(config, contrast)
        self.perturbations = (
            Perturbations(images, model.config.window) if config.attack.persistent else None
        )
        self.weight_perturbation = WeightPerturbation(model)
        self.step = 0
        self.elapsed = 0.0
        self.switched_at: int | None = None
        self.midway = False

    @property
    def detector(self) -> PatchGuard:
        """The trained detector in eval mode: the averaged weights where there are any."""
        return (self.average or self.model).eval()

    def progress(self) -> float:
        """The fraction of the training that is done, in [0, 1]."""
        return self.progress_at(self.step)

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
        self.switched_at = self.step

    def optimizer(self) -> torch.optim.Optimizer:
        """A new one, of the model's weights."""
        return torch.optim.AdamW(
            self.model.parameters(),
            lr=self.config.lr,
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def begin_step(self, optimizer: torch.optim.Optimizer, rank: int = 0) -> None:
        """Set what depends on the step alone: random draws, learning rate, and what learns."""
        entropy = [self.seed, self.step, rank]
        torch.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1)[0]))
        for group in optimizer.param_groups:
            group["lr"] = self.current_lr()
        self.model.backbone.requires_grad_(self.progress() >= self.config.head_first)

    def forward(self, batch: Batch) -> tuple[Tensor, LoggedQuantities]:
        """The loss of a batch under attack, and what is measured of it now and then.

        With weight perturbation the weights are left at where the loss is larger; they go back
        once the gradients are there.
        """
        images, labels, masks = images_of(batch)
        placed = Placed(self.model, places_of(batch))
        attacked = self.attacked(placed, batch, images, labels, masks)
        measured: LoggedQuantities = {}
        if self._every(RARELY):
            measured |= self._attention_degrees(placed, attacked)
        if self.config.attack.keep_clean:
            attacked, masks = torch.cat([images, attacked]), torch.cat([masks, masks])
            placed = Placed(self.model, placed.places.repeat(2, 1))
        if self.config.awp and self.current_eps():
            size = self.config.awp * self.current_eps() / self.eps
            loss = torch.stack(self._losses(placed, attacked, masks)).sum()
            self.weight_perturbation.push(loss, size)
        patches, attention = self._losses(placed, attacked, masks)
        if self._every(LOG_EVERY):
            measured |= self._measured(patches, attention)
        return patches + attention, measured

    def end_step(self, elapsed: float) -> None:
        """Settle what follows a step of the optimiser; the steps took ``elapsed`` seconds."""
        self.update_average()
        self.step += 1
        self.elapsed = elapsed

    def attacked(
        self, placed: Placed, batch: Batch, images: Tensor, labels: Tensor, masks: Tensor
    ) -> Tensor:
        """The images of a batch under the inner attack at the current eps."""
        eps = self.current_eps()
        if eps == 0:
            return images
        if self.perturbations is None:
            return self.attack(placed, images, labels, masks, eps=[eps])[0]
        index, flips = batch["index"], batch["flips"]
        attack = copy(self.attack)
        attack.starts = (self.perturbations.start(index, flips),)
        attacked = attack(placed, images, labels, masks, eps=[eps])[0]
        self.midway = True
        self.perturbations.keep(index, flips, (attacked - images)[: len(index)])
        return attacked

    def _losses(self, placed: Placed, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Patch loss and attention term; of the latter nothing while the backbone rests."""
        learns = self.progress() >= self.config.head_first
        weights = self.config.attention if learns else {}
        return training_loss(placed, images, masks, self.patch_loss, weights)

    @torch.no_grad()
    def update_average(self) -> None:
        """The exponential moving average of the weights, if there is one; the first step sets it.

        As torch's ``AveragedModel``, which counts on the GPU and so waits for it at every step.
        """
        if self.average is None:
            return
        blend = get_ema_multi_avg_fn(self.config.ema if self.step else 0.0)  # type: ignore[no-untyped-call]
        blend(list(self.average.parameters()), list(self.model.parameters()), 0)

    def state(self) -> dict[str, Any]:
        """All that a resumed run needs besides the state of the optimiser."""
        return {
            "weights": self.state_dict(),
            "step": self.step,
            "elapsed": self.elapsed,
            "switched_at": self.switched_at,
            "perturbations": self.perturbations and self.perturbations.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self.load_state_dict(state["weights"])
        self.step, self.elapsed = state["step"], state["elapsed"]
        if state["switched_at"] is not None:
            self.switch_attack()
            self.switched_at = state["switched_at"]
        if self.perturbations:
            self.perturbations.load_state_dict(state["perturbations"])

    def _attention_degrees(self, placed: Placed, images: Tensor) -> LoggedQuantities:
        """Of each block, where all have attention."""
        if not all(hasattr(block, "attn") for block in self.model.blocks):
            return {}
        degrees = attention_degrees(placed, images).mean(1)
        return {f"attention_degree_{number}": found for number, found in enumerate(degrees, 1)}

    def _measured(self, patches: Tensor, attention: Tensor) -> LoggedQuantities:
        measured = {
            "loss": (patches + attention).detach(),
            "patch_loss": patches.detach(),
            "attention_loss": attention.detach(),
            "eps": torch.tensor(self.current_eps()),
            "lr": torch.tensor(self.current_lr()),
        }
        if attention.requires_grad and self._every(RARELY):
            measured["attention_gradient_share"] = self._gradient_share(attention, patches)
        return measured

    def _every(self, steps: int) -> bool:
        """In the last of that many steps."""
        return self.step % steps == steps - 1

    def _gradient_share(self, part: Tensor, rest: Tensor) -> Tensor:
        """‖∇part‖ / (‖∇part‖ + ‖∇rest‖) over the model's parameters."""
        parameters = list(self.model.parameters())

        def norm(loss: Tensor) -> Tensor:
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            found: Tensor = torch.cat([g.flatten() for g in gradients if g is not None]).norm()
            return found

        share = norm(part)
        return share / (share + norm(rest))
