"""Projected gradient ascent (Madry et al. 2018), and its relative for training.

There is one PGD in the house: adversarial training runs it too.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from patchguard.attacks.attack import FORWARD, Attack, Best, Problem
from patchguard.constraints import Count, NotNegative, Positive


@dataclass(kw_only=True)
class PGD(Attack):
    """Steps of constant length along the steepest direction.

    Args:
        start: radius of random starts as a multiple of eps; 0 starts at the image.
        steps: gradient steps per restart.
        step_size: step as a multiple of eps / steps; that of the ball when absent.
        keep_best: return the best iterate, not the last one.
    """

    start: NotNegative = 1.0
    steps: Count = 20
    step_size: Positive | None = None
    keep_best: bool = True

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        noisy = self.ball.random(images, self.start * eps, generator)
        return self.project(noisy, images, eps)

    def stride(self, eps: float) -> float:
        """Length of a step."""
        multiple = self.ball.step_size if self.step_size is None else self.step_size
        return multiple * eps / self.steps

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        attacked, stride = first, self.stride(eps)
        for step in range(self.steps):
            gradient, _, judged = problem.gradient(attacked, step / self.steps)
            if self.keep_best:
                best.update(attacked, judged)
            moved = attacked + self.normalise(gradient, attacked, stride)
            attacked = self.project(moved, problem.images, eps)
        if self.keep_best:
            best.update(attacked, problem.judged(attacked))
        return attacked

    def cost(self) -> float:
        return self.steps + (FORWARD if self.keep_best else 0)


class NFGSM(PGD):
    """Noise larger than eps and a step that is not clipped to the ball (de Jorge et al. 2022).

    For training only: its images leave the eps ball (never [0, 1]).
    """

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        return attacked.clamp(0, 1)
