"""Square attack (Andriushchenko et al. 2020): random search over squares, without gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from patchguard.attacks.attack import FORWARD, Attack, Best, Problem
from patchguard.attacks.balls import LINF, Ball
from patchguard.constraints import Count, Share

# The published schedule: the share of the image that a square covers halves after each of these
# fractions of the queries.
_HALVINGS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8)


@dataclass(kw_only=True)
class Square(Attack):
    """Squares of one colour at the corners of the linf ball, kept where the true value grows.

    A random start is vertical stripes. Each query draws for every image its own square and,
    for each channel, its own sign; where that changes nothing, one channel takes the other sign.
    It climbs the judge: ``objective`` is what the judge is when none is given. It never stops
    early, so it costs ``queries`` forward passes for every start.

    Args:
        queries: forward passes per restart.
        area: share of the image that the first squares cover.
    """

    ball: Ball = field(default=LINF, init=False)
    queries: Count = 5000
    area: Share = 0.8

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        """Vertical stripes, one pixel wide, each at a random corner of the ball."""
        stripes = torch.empty_like(images[:, :, :1]).uniform_(-1, 1, generator=generator)
        return self.project(images + eps * stripes.sign(), images, eps)

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        images, current = problem.images, Best(first)
        low, high = (self.project(images + way * eps, images, eps) for way in (-1, 1))
        # The result of a smaller eps lies inside this ball; the squares live on its corners.
        stretched = torch.where(first > images, high, torch.where(first < images, low, images))
        for query in range(self.queries):
            if query < 2:
                proposal = (first, stretched)[query]
            else:
                side = self._side(query / self.queries, first.shape[-2:])
                proposal = _with_square(current.images, low, high, side, problem.generator)
            current.update(proposal, problem.judged(proposal))
        best.update(current.images, current.values)
        return current.images

    def cost(self) -> float:
        return FORWARD * self.queries

    def _side(self, progress: float, size: Sequence[int]) -> int:
        halved = sum(progress > halving for halving in _HALVINGS)
        side = round(math.sqrt(self.area / 2**halved * math.prod(size)))
        return min(max(side, 1), *size)


def _with_square(
    current: Tensor, low: Tensor, high: Tensor, side: int, generator: torch.Generator | None
) -> Tensor:
    """The current images, each with a square of its own at the low or high end of each channel."""
    inside = squares(current, side, generator)
    draws = torch.empty_like(current[:, :, :1, :1]).uniform_(-1, 1, generator=generator)
    up, size = draws > 0, draws.abs()
    proposal = torch.where(inside, torch.where(up, high, low), current)
    same = (proposal == current).flatten(1).all(1)[:, None, None, None]
    # The sizes of the draws tell nothing of their signs: the smallest is that of a random channel.
    up = up ^ (same & (size == size.amin(1, keepdim=True)))
    return torch.where(inside, torch.where(up, high, low), current)


def squares(images: Tensor, side: int, generator: torch.Generator | None) -> Tensor:
    """Where a random square lies in each image: bool [B, 1, H, W].

    Args:
        images: [B, 3, H, W].
        side: of the squares, in pixels, at most H and W.
        generator: source of the positions, on the device of the images.
    """
    top, left = (
        torch.randint(
            length - side + 1, images.shape[:1], generator=generator, device=images.device
        )
        for length in images.shape[-2:]
    )
    return square_at(images, top, left, side)


def square_at(images: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """The square of each image whose first row and column are ``top`` [B] and ``left`` [B].

    bool [B, 1, H, W].
    """
    height, width = images.shape[-2:]
    down = torch.arange(height, device=images.device) - top[:, None]
    right = torch.arange(width, device=images.device) - left[:, None]
    rows, columns = (down >= 0) & (down < side), (right >= 0) & (right < side)
    return (rows[:, :, None] & columns[:, None, :])[:, None]
