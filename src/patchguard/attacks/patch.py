"""A localised patch: one square of the image, of any content (Brown et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from patchguard.attacks.attack import FORWARD, Attack, Best, Problem
from patchguard.attacks.balls import Ball, kept_worth, to_the_end
from patchguard.attacks.square import square_at, squares
from patchguard.constraints import Count, Natural, Positive


class Patch:
    """One square of at most the share eps of the image's area changes, to anything."""

    name = "patch"
    step_size = 1.0
    sparse = True

    def side(self, images: Tensor, eps: float) -> int:
        """Of the square, in pixels; 0 where the area is less than a pixel."""
        height, width = images.shape[-2:]
        # A share such as (5 / 32)^2 means five pixels, whatever its last digit.
        return min(int(math.sqrt(eps * height * width) + 1e-5), height, width)

    def random(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        """A random square of random pixels."""
        content = torch.empty_like(images).uniform_(generator=generator)
        return torch.where(squares(images, self.side(images, eps), generator), content, images)

    def step(self, gradient: Tensor, attacked: Tensor, stride: float | Tensor) -> Tensor:
        """The square of area ``stride`` where a linear function has most to gain, to the end of
        the box."""
        change = to_the_end(gradient, attacked)
        gains = (gradient * change).sum(1)
        areas = torch.as_tensor(stride).flatten().expand(len(gains)).tolist()
        windows = [self.window(gain[None], area) for gain, area in zip(gains, areas, strict=True)]
        return change * torch.cat(windows)

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        inside = attacked.clamp(0, 1)
        worth = kept_worth(attacked, images, inside)
        return torch.where(self.window(worth, eps), inside, images)

    def size(self, perturbation: Tensor) -> Tensor:
        """Area of the smallest square around all that changes, as a share of the image."""
        changed = (perturbation != 0).any(1)
        spans = torch.stack([_span(changed.any(2)), _span(changed.any(1))])
        return spans.amax(0) ** 2 / changed[0].numel()

    def window(self, gains: Tensor, eps: float) -> Tensor:
        """The square with the largest sum of ``gains`` [B, H, W]: bool [B, 1, H, W]."""
        side = self.side(gains, eps)
        if side == 0:
            return torch.zeros_like(gains, dtype=torch.bool)[:, None]
        top, left = _argmax(_window_sums(gains, side))
        return square_at(gains, top, left, side)


PATCH_BALL = Patch()


@dataclass(kw_only=True)
class LocalPatch(Attack):
    """A square whose place is searched and whose content is then climbed by signs of gradients.

    Candidate places are that of the start, if it changes anything, those with most to gain by the
    gradient at the image, apart from each other, and random ones. Each is filled and climbed for a
    few steps; the best of them, image by image, is climbed to the end.

    Args:
        steps: gradient steps at the chosen place.
        places: candidates ranked by the gradient.
        random_places: random candidates.
        probes: gradient steps at each candidate.
        stride: the first step, in pixel space; it shortens to 0.
    """

    ball: Ball = field(default=PATCH_BALL, init=False)
    steps: Count = 50
    places: Natural = 4
    random_places: Natural = 2
    probes: Natural = 4
    stride: Positive = 0.5

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        images, probed = problem.images, Best(first)
        gradient, _, _ = problem.gradient(images, 0.0)
        filled = torch.where(gradient > 0, 1.0, torch.where(gradient < 0, 0.0, images))
        gains = gradient * (filled - images)
        changed = (first != images).flatten(1).any(1)[:, None, None, None]
        if changed.any():
            inside = changed & self._around(first, images, eps, gains)
            self._climb(problem, first, inside, self.probes, probed)
        for inside in self._candidates(gains, eps, problem.generator):
            start = torch.where(inside, filled, images)
            self._climb(problem, start, inside, self.probes, probed)
        best.update(probed.images, probed.values)
        inside = self._around(probed.images, images, eps, gains)
        return self._climb(problem, probed.images, inside, self.steps, best)

    def cost(self) -> float:
        candidates = 1 + self.places + self.random_places
        return 1 + candidates * (self.probes + FORWARD) + self.steps + FORWARD

    def _around(self, attacked: Tensor, images: Tensor, eps: float, gains: Tensor) -> Tensor:
        """A square around all that changes; of several, that with most of ``gains`` >= 0."""
        changed = (attacked != images).any(1).float()
        gains = gains.sum(1)
        total = gains.sum((1, 2), keepdim=True).clamp_min(torch.finfo(gains.dtype).tiny)
        # All gains together count less than a pixel that changes.
        return PATCH_BALL.window(changed + gains / (2 * total), eps)

    def _candidates(
        self, gains: Tensor, eps: float, generator: torch.Generator | None
    ) -> Iterator[Tensor]:
        """Candidate squares, bool [B, 1, H, W], by what the pixels [B, 3, H, W] have to gain."""
        side = PATCH_BALL.side(gains, eps)
        for _ in range(self.random_places):
            yield squares(gains, side, generator)
        if side == 0:
            return
        sums = _window_sums(gains.sum(1), side)
        reach = side // 2 + 1
        for _ in range(self.places):
            top, left = _argmax(sums)
            yield square_at(gains, top, left, side)
            # The next one overlaps this one by less than half along an axis.
            near = square_at(sums, top - reach + 1, left - reach + 1, 2 * reach - 1)
            sums = sums.masked_fill(near[:, 0], -torch.inf)

    def _climb(
        self, problem: Problem, attacked: Tensor, inside: Tensor, steps: int, best: Best
    ) -> Tensor:
        for step in range(steps):
            gradient, _, judged = problem.gradient(attacked, step / steps)
            best.update(attacked, judged)
            stride = self.stride * (1 - step / steps)
            moved = (attacked + stride * gradient.sign()).clamp(0, 1)
            attacked = torch.where(inside, moved, problem.images)
        best.update(attacked, problem.judged(attacked))
        return attacked


def _window_sums(gains: Tensor, side: int) -> Tensor:
    """Sums over all squares of this side, by first row and column: [B, H - side + 1, ...]."""
    return avg_pool2d(gains[:, None], side, stride=1)[:, 0] * side**2


def _argmax(values: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column, [B] each, of the largest value [B, H, W]."""
    place = values.flatten(1).argmax(1)
    return place // values.shape[2], place % values.shape[2]


def _span(marked: Tensor) -> Tensor:
    """From the first to the last mark [B, L], both included; 0 without any."""
    place = torch.arange(1, marked.shape[1] + 1, device=marked.device)
    last = (marked * place).amax(1)
    first = (marked * place.flip(0)).amax(1)
    return (last + first - marked.shape[1]).clamp_min(0).float()
