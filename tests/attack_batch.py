"""The batch that attacks are tested on, and what they gain on it."""

import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.attack import Attack
from patchguard.detector import Detector

LABELS = torch.tensor([True, False] * 3)
MASKS = torch.zeros(6, 8, 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(height: int = 8, width: int = 8) -> Tensor:
    """As many as there are labels; some values lie on the box."""
    images = torch.rand(len(LABELS), 3, height, width, generator=generator(1))
    images[:, :, 0] = 0.0
    images[:, :, 1] = 1.0
    return images


def random_linear(height: int = 8, width: int = 8, *, seed: int = 0) -> Linear:
    return Linear(torch.randn(3, height, width, generator=generator(seed)))


def attacked(
    attack: Attack, detector: Detector, images: Tensor, eps: float, seed: int = 0
) -> Tensor:
    """The images under an attack at one radius."""
    masks = torch.zeros_like(images[:, 0])
    (found,) = attack(detector, images, LABELS, masks, eps=[eps], generator=generator(seed))
    return found


def gained(detector: Detector, found: Tensor, images: Tensor) -> Tensor:
    """Change [B] of the score towards each image's worst."""
    moved = (detector(found).score - detector(images).score).detach()
    return torch.where(LABELS, -moved, moved)


def most(linear: Linear, images: Tensor, eps: float, norm: str = "linf") -> Tensor:
    """The largest there is."""
    clean = linear(images).score.detach()
    lowest, highest = (f(images, eps, norm) for f in (linear.lowest_score, linear.highest_score))
    return torch.where(LABELS, clean - lowest, highest - clean)


def gains(linear: Linear, images: Tensor) -> Tensor:
    """What each pixel [B, H, W] of any colour can add."""
    uphill = torch.where(LABELS[:, None, None, None], -1, 1) * linear.weight.detach()
    return torch.where(uphill > 0, uphill * (1 - images), -uphill * images).sum(1)
