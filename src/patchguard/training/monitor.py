"""Catastrophic overfitting of single-step training, seen before it has done its harm.

A single-step attack can be learned instead of resisted: the loss bends so that the one step finds
nothing, and robustness to every longer attack is gone within an epoch (Wong, Rice, Kolter, ICLR
2020). Two signs of it: PGD-10 finds far more loss than the training attack, and gradients of
neighbouring points disagree (Andriushchenko and Flammarion, NeurIPS 2020).

Both attacks are judged inside the ball: N-FGSM trains on images up to three eps away, where the
loss says nothing of the ball, so what it finds is projected. Projected it goes half as far along
the gradient as PGD: while the loss is straight, the gap stays below 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from patchguard.attacks.attack import Attack, Problem, attackable, uniform
from patchguard.attacks.balls import LINF
from patchguard.attacks.objectives import Objective
from patchguard.attacks.pgd import PGD
from patchguard.detector import Detector

LARGEST_GAP = 2.0
"""An honest N-FGSM training of a rendered plate had 1.03 to 1.21, growing with eps."""
LEAST_LOSS = math.log(2)
"""PGD-10 must find at least this much more loss an image: that of one undecided patch."""
STEPS = 10


@dataclass(frozen=True)
class Reading:
    """What a look at a batch shows.

    Attributes:
        found: the mean loss of an image under PGD-10.
        trained: that under the training attack, projected onto the ball; less than twice as low
            while the latter is honest.
        cosine: of the gradients at an image and at a random point of its ball, mean over images.
    """

    found: float
    trained: float
    cosine: float

    @property
    def gap(self) -> float:
        """How many times the loss of the training attack PGD-10 finds."""
        return self.found / max(self.trained, torch.finfo(torch.float32).tiny)

    @property
    def overfits(self) -> bool:
        return self.gap > LARGEST_GAP and self.found - self.trained > LEAST_LOSS


def look(
    detector: Detector,
    attack: Attack,
    loss: Objective,
    batch: tuple[Tensor, Tensor, Tensor],
    eps: float,
    generator: torch.Generator,
) -> Reading:
    """Compare the training attack with PGD-10 on its objective, by the loss.

    Args:
        detector: in whatever mode; it is attacked in eval mode.
        attack: the single-step attack.
        loss: of the training, not negative.
        batch: images [B, 3, H, W], labels [B] and masks [B, H, W].
        eps: radius of the ball, above 0.
        generator: of all random draws.
    """
    strong = PGD(attack.objective, steps=STEPS, keep_best=False)
    images, labels, masks = batch
    problem = Problem(detector, images, labels, masks, attack.objective, loss, generator)
    with attackable(detector):
        attacked = (
            each(detector, images, labels, masks, eps=[eps], generator=generator)[0]
            for each in (strong, attack)
        )
        losses = [problem.judged(LINF.project(found, images, eps)) for found in attacked]
        near = uniform(strong, problem, eps)
        here, there = (problem.gradient(at, 1.0)[0].flatten(1) for at in (images, near))
    found, trained = (float(loss.mean()) for loss in losses)
    return Reading(found, trained, float(functional.cosine_similarity(here, there).mean()))


def replacement(attack: Attack) -> PGD:
    """PGD-2, which takes the place of a single-step attack that is overfitted to."""
    return PGD(
        attack.objective, steps=2, step_size=1.25, keep_best=False, eval_mode=attack.eval_mode
    )
