"""The smallest perturbation that carries an image's score across the threshold.

After Croce and Hein, "Minimally distorted adversarial examples with a fast adaptive boundary
attack" (FAB, ICML 2020), for the one boundary where the score is the threshold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from patchguard.attacks.attack import FORWARD, Problem, attackable
from patchguard.attacks.balls import LINF, NormBall
from patchguard.attacks.objectives import image_score
from patchguard.constraints import Count, Settings
from patchguard.detector import Detector


@dataclass(kw_only=True)
class MinimalEps(Settings):
    """An upper bound, often tight, of the eps at which an image changes sides.

    Each step linearises the score, goes to the nearest point where that is the threshold, a little
    beyond and with a bias towards the image, and then back towards the image whenever the boundary
    is crossed. At last the boundary is bisected on the way from the image to the best point, and
    on the shortest way by the score linearised there.

    It costs ``steps`` gradient passes and as many forward passes per restart, and 31 forward and
    one gradient pass at the end.

    Args:
        ball: whose norm measures the perturbation.
        steps: gradient passes per restart.
        restarts: the first begins at the image, the others on the way to a random one, at most
            half as far as the best point.
    """

    ball: NormBall = LINF
    steps: Count = 100
    restarts: Count = 1

    @property
    def passes(self) -> float:
        """About how many passes forward and backward it costs per image."""
        return self.restarts * self.steps * (1 + FORWARD) + 31 * FORWARD + 1

    def __call__(
        self,
        detector: Detector,
        images: Tensor,
        labels: Tensor,
        *,
        threshold: float,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The eps [B] and the images [B, 3, H, W] that have crossed.

        Normal images cross upwards, to where the score exceeds the threshold, and anomalous ones
        downwards. Eps is 0 for an image that is on the wrong side as it is, and inf, with the image
        unchanged, where no point was found.

        Args:
            detector: the detector attacked, in whatever mode; its mode is restored.
            images: [B, 3, H, W] in [0, 1].
            labels: [B] bool, True = anomalous.
            threshold: an image is called anomalous where its score is larger.
            generator: source of all random draws, on the device of the images.

        Raises:
            NotDifferentiable: the outputs are cut off from the images.
        """
        masks = torch.zeros_like(images[:, 0])
        problem = Problem(detector, images, labels, masks, image_score, image_score)
        with attackable(detector):
            nearest = _Nearest(problem, self.ball, threshold)
            for restart in range(self.restarts):
                first = self._near(problem.images, nearest.eps, generator) if restart else images
                self._search(problem, first, nearest)
            self._refine(problem, nearest)
        return nearest.eps, nearest.images

    def _near(self, images: Tensor, eps: Tensor, generator: torch.Generator | None) -> Tensor:
        """On the way to random images, at most half of eps [B] away."""
        way = torch.empty_like(images).uniform_(generator=generator) - images
        share = (eps / 2 / self.ball.size(way)).clamp_max(1)
        return images + share[:, None, None, None] * way

    def _search(self, problem: Problem, first: Tensor, nearest: _Nearest) -> None:
        """FAB from one start."""
        images, point = problem.images, first
        for step in range(self.steps):
            gradient, value, _ = problem.gradient(point, step / self.steps)
            gain = nearest.level - value
            near = self._reach(gradient, point, gain)
            far = self._reach(gradient, images, gain + _inner(gradient, point - images))
            near_size, far_size = self.ball.size(near), self.ball.size(far)
            bias = (near_size / (near_size + far_size)).nan_to_num(_BIAS).clamp_max(_BIAS)
            bias = bias[:, None, None, None]
            point = (1 - bias) * (point + _OVERSHOOT * near) + bias * (images + _OVERSHOOT * far)
            point = point.clamp(0, 1)
            crossed = nearest.offer(point)[:, None, None, None]
            point = torch.where(crossed, images + _BACK * (point - images), point)

    def _refine(self, problem: Problem, nearest: _Nearest) -> None:
        """Bisections on the straight way to the best point and on the shortest by its gradient."""
        images, straight = problem.images, nearest.images - problem.images
        nearest.bisect(lambda share: images + share * straight, 1.0)
        gradient, value, _ = problem.gradient(nearest.images, 1.0)
        gain = nearest.level - value + _inner(gradient, nearest.images - images)
        nearest.bisect(
            lambda share: images + self._reach(gradient, images, share.flatten() * gain), _OVERSHOOT
        )

    def _reach(self, gradient: Tensor, start: Tensor, gain: Tensor) -> Tensor:
        """The shortest step along which the linear function changes by ``gain``, up or down."""
        ways = gain.sign()[:, None, None, None]
        return self.ball.reach(ways * gradient, start, gain.abs())


class _Nearest:
    """The nearest point of each image that has crossed the boundary.

    Attributes:
        level: the value [B] of the objective on the boundary.
        eps: distance [B] of the nearest point.
        images: the nearest points [B, 3, H, W], the images themselves where there are none.
    """

    def __init__(self, problem: Problem, ball: NormBall, threshold: float) -> None:
        self.problem = problem
        self.ball = ball
        self.images = problem.images
        self.level = torch.where(problem.labels, -threshold, threshold).to(problem.images)
        self.eps = torch.full_like(self.level, torch.inf)
        self.offer(problem.images)

    def offer(self, points: Tensor) -> Tensor:
        """Which points [B] have crossed; those nearer than all before are kept."""
        value = self.problem.judged(points)
        # On the threshold an image is called normal.
        crossed = (value > self.level) | (self.problem.labels & (value == self.level))
        eps = self.ball.size(points - self.problem.images)
        nearer = crossed & (eps < self.eps)
        self.eps = torch.where(nearer, eps, self.eps)
        self.images = torch.where(nearer[:, None, None, None], points, self.images)
        return crossed

    def bisect(self, at: Callable[[Tensor], Tensor], end: float) -> None:
        """Offer points ``at(share)`` of a way from the images, its share [B, 1, 1, 1] <= end."""
        low = torch.zeros_like(self.level)[:, None, None, None]
        high = torch.full_like(low, end)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            crossed = self.offer(at(middle).clamp(0, 1))[:, None, None, None]
            low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)


def _inner(gradient: Tensor, change: Tensor) -> Tensor:
    return (gradient * change).sum((1, 2, 3))


_BIAS, _OVERSHOOT, _BACK = 0.1, 1.05, 0.9
_BISECTIONS = 15
