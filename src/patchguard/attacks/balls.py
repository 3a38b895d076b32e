"""Threat models: what may be done to an image, always within [0, 1]."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Ball(Protocol):
    """A norm ball around each image of a batch, cut by the box [0, 1]."""

    name: str

    def random(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        """A random point [B, 3, H, W] of each ball of radius ``eps``, in the box."""
        ...

    def direction(self, gradient: Tensor) -> Tensor:
        """The step of unit norm along which a linear function with this gradient grows most."""
        ...

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        """The nearest point of ball and box, in the Euclidean sense."""
        ...

    def size(self, perturbation: Tensor) -> Tensor:
        """The norm [B] of perturbations [B, 3, H, W]."""
        ...


class Linf:
    """Every value of every pixel changes by at most eps."""

    name = "linf"

    def random(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        noise = torch.empty_like(images).uniform_(-1, 1, generator=generator)
        return self.project(images + eps * noise, images, eps)

    def direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign()

    def project(self, attacked: Tensor, images: Tensor, eps: float) -> Tensor:
        ball = torch.minimum(torch.maximum(attacked, images - eps), images + eps)
        return ball.clamp(0, 1)

    def size(self, perturbation: Tensor) -> Tensor:
        return perturbation.abs().flatten(1).amax(1)


LINF = Linf()
