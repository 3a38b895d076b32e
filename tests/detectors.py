"""Detectors whose worst case is known in closed form."""

import torch
from torch import Tensor, nn

from patchguard.detector import Detection, Detector


class Linear(Detector):
    """Score w·x and map w∘x summed over channels; the worst score in a ball is closed-form."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Detection:
        anomaly_map = (images * self.weight).sum(1)
        return Detection(anomaly_map.sum((1, 2)), anomaly_map)

    def highest_score(self, images: Tensor, eps: float, norm: str = "linf") -> Tensor:
        """Largest score [B] within distance eps and [0, 1]."""
        return _highest(self.weight.detach(), images, eps, norm)

    def lowest_score(self, images: Tensor, eps: float, norm: str = "linf") -> Tensor:
        """Smallest score [B] within distance eps and [0, 1]."""
        return -_highest(-self.weight.detach(), images, eps, norm)


def _highest(weight: Tensor, images: Tensor, eps: float, norm: str) -> Tensor:
    """Largest w.x in ball and box, in float64: linf moves all values alike, l2 in proportion to
    their weights, each until it meets the box; l1 fills the steepest values first."""
    slope = weight.abs().double().flatten()
    room = torch.where(weight > 0, 1 - images, images).double().flatten(1)
    if norm == "linf":
        moved = room.clamp_max(eps)
    elif norm == "l2":
        low, high = torch.zeros(len(images), 1).double(), torch.full((len(images), 1), 1e6).double()
        for _ in range(60):
            middle = (low + high) / 2
            inside = torch.minimum(middle * slope, room).norm(dim=1, keepdim=True) <= eps
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        moved = torch.minimum(low * slope, room)
    else:
        order = slope.argsort(descending=True)
        slope, room = slope[order], room[:, order]
        before = room.cumsum(1) - room
        moved = torch.minimum((eps - before).clamp_min(0), room)
    clean = (images.double() * weight).sum((1, 2, 3))
    return (clean + (moved * slope).sum(1)).float()
