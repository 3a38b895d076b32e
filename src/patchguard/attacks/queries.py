"""Attacks by queries alone: SimBA, NES and random noise, on detectors without gradients too.

They climb the judge, and only by calling the detector: ``objective`` is what the judge is when
none is given. On a sound detector they are weaker than attacks by gradients; where they are
stronger, its gradients are masked.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from patchguard.attacks.attack import FORWARD, Attack, Best, Problem, Start, at_image
from patchguard.attacks.balls import LINF, Ball
from patchguard.attacks.objectives import Objective
from patchguard.attacks.pgd import PGD
from patchguard.errors import PatchGuardError


class SimBA(Attack):
    """Steps along single pixels or frequencies, kept where the true value grows.

    Each image has its own random order of the basis; each vector is tried both ways, and the
    better way is kept if it improves (Guo et al. 2019).

    Args:
        objective: the judge, when there is no other.
        judge: what is climbed and by what the best image is chosen.
        ball: the threat model.
        starts: how each restart begins; one at the image when absent.
        basis: single values of single pixels, or the low frequencies of the cosine transform.
        frequencies: lowest frequencies of each axis that the basis has, for ``dct``.
        step: largest change that one step makes to a value, as a multiple of eps; 1 for pixels
            and 0.35 for frequencies, which share their pixels, when absent.
        queries: forward passes per restart.
        eval_mode: attack the detector in eval mode (dropout off).
    """

    def __init__(
        self,
        objective: Objective,
        *,
        judge: Objective | None = None,
        ball: Ball = LINF,
        starts: Sequence[Start] | None = None,
        basis: Literal["pixel", "dct"] = "dct",
        frequencies: int = 28,
        step: float | None = None,
        queries: int = 5000,
        eval_mode: bool = True,
    ) -> None:
        super().__init__(
            objective, judge=judge, ball=ball, starts=starts or (at_image,), eval_mode=eval_mode
        )
        self.basis = basis
        self.frequencies = frequencies
        self.step = (1.0 if basis == "pixel" else 0.35) if step is None else step
        self.queries = queries

    def search(
        self,
        problem: Problem,
        first: Tensor,
        eps: float,
        best: Best,
        generator: torch.Generator | None,
    ) -> Tensor:
        current = Best(first)
        current.update(first, problem.judged(first))
        rows, columns = (self._axis(length, first) for length in first.shape[-2:])
        vectors = 3 * len(rows) * len(columns)
        draws = torch.rand(len(first), vectors, generator=generator, device=first.device)
        order = draws.argsort(1)
        for pair in range((self.queries - 1) // 2):
            chosen = order[:, pair % vectors]
            channel, place = chosen % 3, chosen // 3
            row, column = rows[place // len(columns)], columns[place % len(columns)]
            wave = (row[:, :, None] * column[:, None, :])[:, None]
            vector = wave * torch.eye(3, device=first.device)[channel][:, :, None, None]
            origin = current.images
            for sign in (-1, 1):
                moved = origin + sign * self.step * eps * vector
                proposal = self.project(moved, problem.images, eps)
                current.update(proposal, problem.judged(proposal))
        best.update(current.images, current.values)
        return current.images

    def cost(self) -> float:
        return FORWARD * self.queries

    def _axis(self, length: int, like: Tensor) -> Tensor:
        """One factor [F, length] of the basis vectors along an axis, its largest value near 1."""
        place = torch.arange(length, device=like.device)
        if self.basis == "pixel":
            return torch.eye(length, device=like.device)
        frequency = place[: self.frequencies, None]
        return torch.cos(math.pi / length * frequency * (place + 0.5))


@dataclass(frozen=True)
class _Estimated(Problem):
    """A problem whose gradient is estimated from true values, now and before."""

    samples: int
    sigma: float
    momentum: float
    generator: torch.Generator | None
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


class NES(PGD):
    """PGD on a gradient estimated by antithetic finite differences (Ilyas et al. 2018).

    Args:
        objective: the judge, when there is no other.
        judge: what is climbed and by what the best image is chosen.
        ball: the threat model.
        starts: how each restart begins; one random start when absent.
        steps: steps per restart, each of ``samples`` + 1 forward passes.
        step_size: step as a multiple of eps / steps; that of the ball when absent.
        samples: forward passes of one estimate, two for each direction; even, at least 2.
        sigma: standard deviation of the directions, in pixel space; larger than the steps of a
            detector that rounds.
        momentum: weight of the estimates before, in [0, 1): they too point the way, with noise of
            their own.
        eval_mode: attack the detector in eval mode (dropout off).

    Raises:
        PatchGuardError: an odd number of samples, or none.
    """

    def __init__(
        self,
        objective: Objective,
        *,
        judge: Objective | None = None,
        ball: Ball = LINF,
        starts: Sequence[Start] | None = None,
        steps: int = 100,
        step_size: float | None = None,
        samples: int = 50,
        sigma: float = 1e-3,
        momentum: float = 0.9,
        eval_mode: bool = True,
    ) -> None:
        super().__init__(
            objective,
            judge=judge,
            ball=ball,
            starts=starts,
            steps=steps,
            step_size=step_size,
            eval_mode=eval_mode,
        )
        if samples < 2 or samples % 2:
            raise PatchGuardError(f"samples is {samples}; it must be even and at least 2")
        self.samples = samples
        self.sigma = sigma
        self.momentum = momentum

    def search(
        self,
        problem: Problem,
        first: Tensor,
        eps: float,
        best: Best,
        generator: torch.Generator | None,
    ) -> Tensor:
        estimated = _Estimated(
            **vars(problem),
            samples=self.samples,
            sigma=self.sigma,
            momentum=self.momentum,
            generator=generator,
            memory=torch.zeros_like(first),
        )
        return super().search(estimated, first, eps, best, generator)

    def cost(self) -> float:
        return FORWARD * (self.steps * (self.samples + 1) + 1)


class RandomNoise(Attack):
    """The best of many random points: every other one a corner of the ball.

    Args:
        objective: the judge, when there is no other.
        judge: by what the best image is chosen.
        ball: the threat model.
        draws: points.
        eval_mode: attack the detector in eval mode (dropout off).
    """

    def __init__(
        self,
        objective: Objective,
        *,
        judge: Objective | None = None,
        ball: Ball = LINF,
        draws: int = 100,
        eval_mode: bool = True,
    ) -> None:
        super().__init__(objective, judge=judge, ball=ball, starts=(at_image,), eval_mode=eval_mode)
        self.draws = draws

    def search(
        self,
        problem: Problem,
        first: Tensor,
        eps: float,
        best: Best,
        generator: torch.Generator | None,
    ) -> Tensor:
        point = first
        for draw in range(self.draws):
            if draw % 2:
                noise = torch.empty_like(first).normal_(generator=generator)
                corner = problem.images + self.normalise(noise, problem.images, eps)
                point = self.project(corner, problem.images, eps)
            else:
                point = self.random_start(problem.images, eps, generator)
            best.update(point, problem.judged(point))
        return point

    def cost(self) -> float:
        return FORWARD * self.draws
