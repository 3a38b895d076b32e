"""Where a search may begin, beyond the image and a random point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from patchguard.attacks.attack import Attack, Problem, Start, at_image, uniform
from patchguard.detector import Inspection


class ODI:
    """Output-diversified initialisation (Tashiro, Song and Ermon, NeurIPS 2020).

    From a random point of the ball, steps of length eps towards larger ``w . z``, with ``z`` the
    patch logits and ``w`` random in [-1, 1]: starts that differ in what the detector sees, not
    only in pixels. Without patch logits, the map pooled to a grid takes their place.

    Args:
        steps: gradient passes per start.
    """

    def __init__(self, steps: int = 2) -> None:
        self.steps = steps

    def __call__(self, attack: Attack, problem: Problem, eps: float) -> Tensor:
        direction = _RandomDirection(problem.generator)
        diverse = replace(problem, objective=direction, judge=direction)
        point = attack.random_start(problem.images, eps, problem.generator)
        for _ in range(self.steps):
            gradient, _, _ = diverse.gradient(point, 0.0)
            stepped = point + attack.normalise(gradient, point, eps)
            point = attack.project(stepped, problem.images, eps)
        return point


class _RandomDirection:
    """An objective: a random linear function of what is seen, another for each image."""

    GRID = 16

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator
        self.weights: Tensor | None = None

    def __call__(self, seen: Inspection, labels: Tensor, masks: Tensor, progress: float) -> Tensor:
        logits = seen.patch_logits
        if logits is None:
            maps = seen.anomaly_map
            grid = min(self.GRID, maps.shape[1]), min(self.GRID, maps.shape[2])
            logits = adaptive_avg_pool2d(maps[:, None], grid)[:, 0]
        if self.weights is None:
            self.weights = torch.empty_like(logits).uniform_(-1, 1, generator=self.generator)
        return (self.weights * logits).sum((1, 2))


def decontraster(attack: Attack, problem: Problem, eps: float) -> Tensor:
    """As near to a flat image of the same mean colour as the ball allows.

    DeContraster of Meinke, Bitterwolf and Hein, "Provably adversarially robust detection of
    out-of-distribution data (almost) for free" (NeurIPS 2022).
    """
    images = problem.images
    flat = images.mean((2, 3), keepdim=True).expand_as(images)
    return attack.project(flat, images, eps)


STARTS: dict[str, Callable[[], Start]] = {
    "image": lambda: at_image,
    "uniform": lambda: uniform,
    "odi": ODI,
    "decontraster": lambda: decontraster,
}
