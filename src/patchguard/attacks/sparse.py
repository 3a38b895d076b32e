"""Sparse attacks: a few pixels, of any colour."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from patchguard.attacks.attack import FORWARD, Attack, Best, Problem
from patchguard.attacks.balls import Ball, kept_worth, to_the_end
from patchguard.constraints import Count, NotNegative, Positive


class L0:
    """At most eps pixels change, to any colour; a pixel is its three values."""

    name = "l0"
    step_size = 1.0
    sparse = True

    def random(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        """Random pixels of random colours."""
        colours = torch.empty_like(images).uniform_(generator=generator)
        draws = torch.empty_like(images[:, 0]).uniform_(generator=generator)
        return torch.where(_largest(draws, eps), colours, images)

    def step(self, gradient: Tensor, attacked: Tensor, stride: float | Tensor) -> Tensor:
        """The ``stride`` pixels where a linear function has most to gain, to the end of the box."""
        change = to_the_end(gradient, attacked)
        return change * _largest((gradient * change).sum(1), stride)

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        inside = attacked.clamp(0, 1)
        return torch.where(_largest(kept_worth(attacked, images, inside), eps), inside, images)

    def size(self, perturbation: Tensor) -> Tensor:
        """The number of pixels that change."""
        return changed_pixels(perturbation).float()


L0_BALL = L0()


@dataclass(kw_only=True)
class PGDL0(Attack):
    """PGD with a projection onto the pixels that change most (Croce & Hein 2019).

    The first step goes to the best pixels and colours of the linear score with the same gradient.
    The next ones shorten, so that the choice of pixels settles first and their colours later.

    Args:
        steps: gradient steps per restart.
        longest: of the steps after the first: the largest change of a value, in pixel space. Far
            more than 1 chooses pixels by their gradients alone.
        shortest: the last step, in pixel space.
    """

    ball: Ball = field(default=L0_BALL, init=False)
    steps: Count = 100
    longest: Positive = 100.0
    shortest: Positive = 0.05

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        attacked = first
        for step in range(self.steps):
            progress = step / self.steps
            gradient, _, judged = problem.gradient(attacked, progress)
            best.update(attacked, judged)
            if step == 0:
                moved = problem.images + self.normalise(gradient, problem.images, eps)
            else:
                stride = self.longest * (self.shortest / self.longest) ** progress
                moved = attacked + stride * _to_one(gradient)
            attacked = self.project(moved, problem.images, eps)
        best.update(attacked, problem.judged(attacked))
        return attacked

    def cost(self) -> float:
        return self.steps + FORWARD


@dataclass(kw_only=True)
class SigmaZero(Attack):
    """Steps on a smooth count of the pixels, with a threshold that adapts (Cinà et al. 2025).

    The published attack looks for the fewest pixels that flip a decision. This one has a budget
    of eps pixels: where it is exceeded, the count is pushed down as well and the threshold under
    which a pixel's change is dropped grows; where it is kept, the threshold falls. The points on
    the way may exceed the budget; their largest changes are judged.

    Args:
        steps: gradient steps per restart, each with one forward pass more.
        stride: the first step: the largest change of a value, in pixel space; a cosine from there
            to 0.
        sigma: squared change at which a pixel counts as one half.
        threshold: change of a pixel that is not dropped at first, in pixel space.
        adaption: by which fraction of the stride the threshold moves at each step.
    """

    ball: Ball = field(default=L0_BALL, init=False)
    steps: Count = 100
    stride: Positive = 3.0
    sigma: Positive = 1e-3
    threshold: Positive = 0.3
    adaption: NotNegative = 0.03

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        images, attacked, kept = problem.images, first, first
        threshold = torch.full((len(images), 1, 1, 1), self.threshold, device=images.device)
        for step in range(self.steps):
            stride = self.stride * (1 + math.cos(math.pi * step / self.steps)) / 2
            gradient, _, _ = problem.gradient(attacked, step / self.steps)
            over = (changed_pixels(attacked - images) > int(eps))[:, None, None, None]
            uphill = _to_one(gradient) - over * _to_one(self._count_gradient(attacked - images))
            change = (attacked + stride * uphill).clamp(0, 1) - images
            change = change * (_squared(change) >= threshold**2)
            over = (changed_pixels(change) > int(eps))[:, None, None, None]
            moved = torch.where(over, self.adaption, -self.adaption) * stride
            threshold = (threshold + moved).clamp_min(0)
            attacked = images + change
            kept = self.project(attacked, images, eps)
            best.update(kept, problem.judged(kept))
        return kept

    def cost(self) -> float:
        return self.steps * (1 + FORWARD)

    def _count_gradient(self, change: Tensor) -> Tensor:
        """Gradient of the sum over pixels of r^2 / (r^2 + sigma), r the length of their change."""
        return 2 * self.sigma * change / (_squared(change) + self.sigma) ** 2


def changed_pixels(perturbation: Tensor) -> Tensor:
    """How many pixels [B] a perturbation [B, 3, H, W] changes."""
    return (perturbation != 0).any(1).sum((1, 2))


def _largest(values: Tensor, count: float | Tensor) -> Tensor:
    """Where the largest values [B, H, W] of each image are, rounded down to whole pixels.

    Args:
        values: compared within each image.
        count: how many, one number for all images or [B, 1, 1, 1].

    Returns:
        bool [B, 1, H, W].
    """
    order = values.flatten(1).argsort(1, descending=True)
    rank = torch.empty_like(order)
    rank.scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    return rank.view_as(values)[:, None] + 1 <= count


def _squared(change: Tensor) -> Tensor:
    """Squared length [B, 1, H, W] of the change of each pixel."""
    return (change**2).sum(1, keepdim=True)


def _to_one(gradient: Tensor) -> Tensor:
    """Scaled to a largest value of 1 in each image; 0 where all is 0."""
    largest = gradient.abs().amax((1, 2, 3), keepdim=True)
    return gradient / largest.clamp_min(torch.finfo(gradient.dtype).tiny)
