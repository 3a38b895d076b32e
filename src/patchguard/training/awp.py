"""Adversarial weight perturbation (Wu, Xia, Wang, NeurIPS 2020)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class WeightPerturbation:
    """Moves the weights to where the loss is larger, and back.

    The step of the optimiser then follows the gradient at the worst weights nearby, which
    flattens the loss around those that are kept. It costs one more pass.

    Args:
        model: whose weights are moved, those of norms and biases excepted.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._before: list[tuple[nn.Parameter, Tensor]] = []

    def push(self, loss: Tensor, size: float) -> None:
        """Move each weight by ``size`` times its norm along its gradient of the loss."""
        weights = [
            weight for weight in self.model.parameters() if weight.requires_grad and weight.ndim > 1
        ]
        gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                if gradient is None:
                    continue
                self._before.append((weight, weight.clone()))
                length = gradient.norm().clamp_min(torch.finfo(gradient.dtype).tiny)
                weight.add_(size * weight.norm() / length * gradient)

    def pop(self) -> None:
        """Put the weights back, exactly."""
        with torch.no_grad():
            for weight, before in self._before:
                weight.copy_(before)
        self._before.clear()
