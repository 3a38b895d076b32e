"""Projected gradient ascent in the linf ball (Madry et al. 2018), and its relatives.

:meth:`PGD.ascend` is the template; a relative overrides its hooks. There is one PGD in the
house: adversarial training runs it too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from patchguard.attacks.objectives import Objective
from patchguard.detector import Detector


class PGD:
    """PGD on any detector, towards a larger objective. It never stops early or skips an image.

    Args:
        objective: what is maximised, per image.
        steps: gradient steps per restart.
        step_size: step as a multiple of eps / steps.
        start: radius of the uniform random start as a multiple of eps; 0 starts at the image.
        restarts: independent random starts; the best of all is kept.
        keep_best: return the iterate with the largest objective, not the last one.
        eval_mode: attack the detector in eval mode (dropout off).
    """

    def __init__(
        self,
        objective: Objective,
        *,
        steps: int = 20,
        step_size: float = 2.5,
        start: float = 1.0,
        restarts: int = 1,
        keep_best: bool = True,
        eval_mode: bool = True,
    ) -> None:
        self.objective = objective
        self.steps = steps
        self.step_size = step_size
        self.start = start
        self.restarts = restarts
        self.keep_best = keep_best
        self.eval_mode = eval_mode

    def __call__(
        self,
        detector: Detector,
        images: Tensor,
        labels: Tensor,
        masks: Tensor,
        *,
        eps: Sequence[float],
        generator: torch.Generator | None = None,
    ) -> list[Tensor]:
        """Attacked images [B, 3, H, W], one batch for each eps.

        With ``keep_best`` the result of a smaller eps is a starting point and a candidate of
        every larger one, so that the objective never falls along an ascending sweep.

        Args:
            detector: the detector attacked, in whatever mode; its mode is restored.
            images: [B, 3, H, W] in [0, 1].
            labels: [B] bool, True = anomalous.
            masks: [B, H, W], anomalous fraction of each pixel in [0, 1].
            eps: radii in pixel space, ascending.
            generator: source of the random starts.
        """
        results: list[Tensor] = []
        with _attackable(detector, self.eval_mode):
            best = _Best(images)
            if self.keep_best:
                with torch.no_grad():
                    best.update(images, self.objective(detector, images, labels, masks))
            for radius in eps:
                for restart in range(self.restarts):
                    warm = self.keep_best and restart == 0 and bool(results)
                    first = best.images if warm else self.random_start(images, radius, generator)
                    last = self.ascend(detector, images, labels, masks, first, radius, best)
                results.append(best.images if self.keep_best else last)
        return results

    def ascend(
        self,
        detector: Detector,
        images: Tensor,
        labels: Tensor,
        masks: Tensor,
        first: Tensor,
        eps: float,
        best: _Best,
    ) -> Tensor:
        """The last iterate from ``first``; with ``keep_best``, ``best`` sees every iterate."""
        attacked = first
        for _ in range(self.steps):
            attacked = attacked.detach().requires_grad_()
            value = self.objective(detector, attacked, labels, masks)
            (gradient,) = torch.autograd.grad(value.sum(), attacked)
            if self.keep_best:
                best.update(attacked.detach(), value.detach())
            step = self.step_size * eps / self.steps
            attacked = self.project(attacked + step * self.normalise(gradient), images, eps)
        if self.keep_best:
            with torch.no_grad():
                best.update(attacked, self.objective(detector, attacked, labels, masks))
        return attacked.detach()

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        """A uniform point of the ball of radius ``start`` · eps, in [0, 1]."""
        if self.start == 0:
            return images
        noise = torch.empty_like(images).uniform_(-1, 1, generator=generator)
        return self.project(images + self.start * eps * noise, images, eps)

    def normalise(self, gradient: Tensor) -> Tensor:
        """The steepest direction of unit linf norm."""
        return gradient.sign()

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        """Onto the ball around ``images`` and into [0, 1]."""
        ball = torch.minimum(torch.maximum(attacked, images - eps), images + eps)
        return ball.clamp(0, 1)


class NFGSM(PGD):
    """Noise larger than eps and a step that is not clipped to the ball (de Jorge et al. 2022).

    For training only: its images leave the eps ball (never [0, 1]).
    """

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        return attacked.clamp(0, 1)


class _Best:
    """The best iterate so far of each image of a batch, by its objective."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.values = torch.full((len(images),), -torch.inf, device=images.device)

    def update(self, images: Tensor, values: Tensor) -> None:
        better = values > self.values
        self.images = torch.where(better[:, None, None, None], images, self.images)
        self.values = torch.where(better, values, self.values)


@contextmanager
def _attackable(detector: nn.Module, eval_mode: bool) -> Iterator[None]:
    """Gradients on, parameters frozen, and eval mode if asked for; all restored afterwards."""
    modes = {module: module.training for module in detector.modules()}
    frozen = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    if eval_mode:
        detector.eval()
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)
        for module, mode in modes.items():
            module.training = mode
