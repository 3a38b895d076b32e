"""Attacks by queries alone: SimBA, NES and random noise, on detectors without gradients too.

They climb the judge, and only by calling the detector: ``objective`` is what the judge is when
none is given. On a sound detector they are weaker than attacks by gradients; where they are
stronger, its gradients are masked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from patchguard.attacks.attack import FORWARD, Attack, Best, Problem, Starts, at_image
from patchguard.attacks.pgd import PGD
from patchguard.constraints import Count, Positive


@dataclass(kw_only=True)
class SimBA(Attack):
    """Steps along single pixels or frequencies, kept where the true value grows.

    Each image has its own random order of the basis; each vector is tried both ways, and the
    better way is kept if it improves (Guo et al. 2019).

    Args:
        basis: single values of single pixels, or the low frequencies of the cosine transform.
        frequencies: lowest frequencies of each axis that the basis has, for ``dct``.
        step: largest change that one step makes to a value, as a multiple of eps; 1 for pixels
            and 0.35 for frequencies, which share their pixels, when absent.
        queries: forward passes per restart.
    """

    starts: Starts = (at_image,)
    basis: Literal["pixel", "dct"] = "dct"
    frequencies: Count = 28
    step: Positive | None = None
    queries: Count = 5000

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        current = Best(first)
        current.update(first, problem.judged(first))
        step = self._step()
        rows, columns = (self._axis(length, first) for length in first.shape[-2:])
        vectors = 3 * len(rows) * len(columns)
        draws = torch.rand(len(first), vectors, generator=problem.generator, device=first.device)
        order = draws.argsort(1)
        for pair in range((self.queries - 1) // 2):
            chosen = order[:, pair % vectors]
            channel, place = chosen % 3, chosen // 3
            row, column = rows[place // len(columns)], columns[place % len(columns)]
            wave = (row[:, :, None] * column[:, None, :])[:, None]
            vector = wave * torch.eye(3, device=first.device)[channel][:, :, None, None]
            origin = current.images
            for sign in (-1, 1):
                moved = origin + sign * step * eps * vector
                proposal = self.project(moved, problem.images, eps)
                current.update(proposal, problem.judged(proposal))
        best.update(current.images, current.values)
        return current.images

    def cost(self) -> float:
        return FORWARD * self.queries

    def _step(self) -> float:
        if self.step is not None:
            return self.step
        return 1.0 if self.basis == "pixel" else 0.35

    def _axis(self, length: int, like: Tensor) -> Tensor:
        """One factor [F, length] of the basis vectors along an axis, its largest value near 1."""
        place = torch.arange(length, device=like.device)
        if self.basis == "pixel":
            return torch.eye(length, device=like.device)
        frequency = place[: self.frequencies, None]
        return torch.cos(math.pi / length * frequency * (place + 0.5))


@dataclass(frozen=True, kw_only=True)
class _Estimated(Problem):
    """A problem whose gradient is estimated from true values, now and before."""

    samples: int
    sigma: float
    momentum: float
    memory: Tensor

    def gradient(self, attacked: Tensor, progress: float) -> tuple[Tensor, Tensor, Tensor]:
        gradient = self.memory.mul_(self.momentum)
        for _ in range(self.samples // 2):
            noise = torch.empty_like(attacked).normal_(generator=self.generator)
            # Queries are images too: a detector may refuse, or round, what leaves [0, 1].
            ahead, behind = (
                self.judged((attacked + way * noise).clamp(0, 1))
                for way in (self.sigma, -self.sigma)
            )
            gradient += (ahead - behind)[:, None, None, None] * noise
        value = self.judged(attacked)
        return gradient, value, value


@dataclass(kw_only=True)
class NES(PGD):
    """PGD on a gradient estimated by antithetic finite differences (Ilyas et al. 2018).

    Args:
        steps: steps per restart, each of ``samples`` + 1 forward passes.
        step_size: step as a multiple of eps / steps; that of the ball when absent.
        samples: forward passes of one estimate, two for each direction.
        sigma: standard deviation of the directions, in pixel space; larger than the steps of a
            detector that rounds.
        momentum: weight of the estimates before: they too point the way, with noise of
            their own.
    """

    start: float = field(default=1.0, init=False)
    steps: Count = 100
    keep_best: bool = field(default=True, init=False)
    samples: Annotated[int, Field(ge=2, multiple_of=2)] = 50
    sigma: Positive = 1e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        estimated = _Estimated(
            **vars(problem),
            samples=self.samples,
            sigma=self.sigma,
            momentum=self.momentum,
            memory=torch.zeros_like(first),
        )
        return super().search(estimated, first, eps, best)

    def cost(self) -> float:
        return FORWARD * (self.steps * (self.samples + 1) + 1)


@dataclass(kw_only=True)
class RandomNoise(Attack):
    """The best of many random points: every other one a corner of the ball.

    Args:
        draws: points.
    """

    starts: Starts = field(default=(at_image,), init=False)
    draws: Count = 100

    def search(self, problem: Problem, first: Tensor, eps: float, best: Best) -> Tensor:
        point = first
        for draw in range(self.draws):
            if draw % 2:
                noise = torch.empty_like(first).normal_(generator=problem.generator)
                corner = problem.images + self.normalise(noise, problem.images, eps)
                point = self.project(corner, problem.images, eps)
            else:
                point = self.random_start(problem.images, eps, problem.generator)
            best.update(point, problem.judged(point))
        return point

    def cost(self) -> float:
        return FORWARD * self.draws
