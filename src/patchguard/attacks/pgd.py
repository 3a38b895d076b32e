"""Projected gradient ascent (Madry et al. 2018), and its relative for training.

There is one PGD in the house: adversarial training runs it too.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from patchguard.attacks.attack import FORWARD, Attack, Best, Problem, Start
from patchguard.attacks.balls import LINF, Ball
from patchguard.attacks.objectives import Objective


class PGD(Attack):
    """Steps of constant length along the steepest direction.

    Args:
        objective: what is climbed, per image.
        judge: by what the best image is chosen; the objective itself when absent.
        ball: the threat model.
        starts: how each restart begins; one random start when absent.
        start: radius of random starts as a multiple of eps; 0 starts at the image.
        steps: gradient steps per restart.
        step_size: step as a multiple of eps / steps; that of the ball when absent.
        keep_best: return the best iterate, not the last one.
        eval_mode: attack the detector in eval mode (dropout off).
    """

    def __init__(
        self,
        objective: Objective,
        *,
        judge: Objective | None = None,
        ball: Ball = LINF,
        starts: Sequence[Start] | None = None,
        start: float = 1.0,
        steps: int = 20,
        step_size: float | None = None,
        keep_best: bool = True,
        eval_mode: bool = True,
    ) -> None:
        super().__init__(objective, judge=judge, ball=ball, starts=starts, eval_mode=eval_mode)
        self.start = start
        self.steps = steps
        self.step_size = ball.step_size if step_size is None else step_size
        self.keep_best = keep_best

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        noisy = self.ball.random(images, self.start * eps, generator)
        return self.project(noisy, images, eps)

    def search(
        self,
        problem: Problem,
        first: Tensor,
        eps: float,
        best: Best,
        generator: torch.Generator | None,
    ) -> Tensor:
        attacked = first
        for step in range(self.steps):
            gradient, _, judged = problem.gradient(attacked, step / self.steps)
            if self.keep_best:
                best.update(attacked, judged)
            stride = self.step_size * eps / self.steps
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
