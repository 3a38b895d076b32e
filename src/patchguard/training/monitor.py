"""Catastrophic overfitting of single-step training, seen before it has done its harm.

A single-step attack can be learned instead of resisted: the loss bends so that the one step finds
nothing, and robustness to every longer attack is gone within an epoch (Wong, Rice, Kolter, ICLR
2020). Two signs of it: PGD-10 finds far more loss than the training attack, and gradients of
neighbouring points disagree (Andriushchenko and Flammarion, NeurIPS 2020).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from patchguard.attacks.attack import Attack, Problem, attackable, uniform
from patchguard.attacks.objectives import Objective
from patchguard.attacks.pgd import PGD
from patchguard.detector import Detector

LARGEST_GAP = 2.0
STEPS = 10


@dataclass(frozen=True)
class Reading:
    """What a look at a batch shows.

    Attributes:
        gap: the mean loss under PGD-10 over that under the training attack, which is about 1 or
            less while the latter is honest.
        cosine: of the gradients at an image and at a random point of its ball, mean over images.
    """

    gap: float
    cosine: float

    @property
    def overfits(self) -> bool:
        return self.gap > LARGEST_GAP


def look(
    detector: Detector,
    attack: Attack,
    batch: tuple[Tensor, Tensor, Tensor],
    eps: float,
    generator: torch.Generator,
) -> Reading:
    """Compare the training attack with PGD-10 on images that are not trained on.

    Args:
        detector: in whatever mode; it is attacked in eval mode.
        attack: the single-step attack.
        batch: images [B, 3, H, W], labels [B] and masks [B, H, W].
        eps: radius of the ball, above 0.
        generator: of all random draws.
    """
    strong = PGD(attack.objective, steps=STEPS, keep_best=False)
    images, labels, masks = batch
    problem = Problem(detector, images, labels, masks, attack.objective, attack.objective)
    with attackable(detector):
        losses = [
            problem.judged(each(detector, images, labels, masks, eps=[eps], generator=generator)[0])
            for each in (strong, attack)
        ]
        near = uniform(strong, problem, eps, generator)
        here, there = (problem.gradient(at, 1.0)[0].flatten(1) for at in (images, near))
    found, trained = (float(loss.mean()) for loss in losses)
    return Reading(
        gap=found / max(trained, torch.finfo(torch.float32).tiny),
        cosine=float(functional.cosine_similarity(here, there).mean()),
    )


def replacement(objective: Objective) -> PGD:
    """The attack that takes the place of one that is overfitted to: PGD-2."""
    return PGD(objective, steps=2, step_size=1.25, keep_best=False)
