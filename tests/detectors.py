"""Detectors whose worst case is known in closed form, and others that are hard to attack."""

import torch
from torch import Tensor, nn

from patchguard.detector import Detection, Detector, Inspection

BRIGHT = """
def bright(images):
    return images.mean((1, 2, 3)), images.mean(1)

bright.image_size = 32

def make():
    return bright
"""
"""A detector of somebody's own, as a Python file has it."""


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


class Wave(Linear):
    """A score that oscillates along the gradient: a search may well end below a smaller one."""

    def forward(self, images: Tensor) -> Detection:
        plain = super().forward(images)
        return plain._replace(score=torch.sin(5 * plain.score))


class Ripples(Linear):
    """A score that oscillates in every pixel: the gradient at an image misleads."""

    def forward(self, images: Tensor) -> Detection:
        plain = super().forward(images)
        return plain._replace(score=torch.sin(plain.anomaly_map).sum((1, 2)))


class Network(Detector):
    """A small random network with dropout: the score is the mean of the highest patch logits."""

    def __init__(self, seed: int = 1, highest: int = 3) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Dropout(0.5),
            nn.Conv2d(16, 1, 3, padding=1),
        )
        for parameter in self.parameters():
            parameter.data *= 2
        self.highest = highest

    def inspect(self, images: Tensor) -> Inspection:
        logits = self.layers(4 * images - 2)[:, 0]
        score = logits.flatten(1).topk(self.highest).values.mean(1)
        pixels = nn.functional.interpolate(logits[:, None], images.shape[2:])[:, 0]
        return Inspection(score, pixels, logits)

    def forward(self, images: Tensor) -> Detection:
        seen = self.inspect(images)
        return Detection(seen.score, seen.anomaly_map)


class Curved(Detector):
    """A smooth score that is far from linear."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(8, 1, 3, padding=1),
        )
        for parameter in self.parameters():
            parameter.data *= 2

    def forward(self, images: Tensor) -> Detection:
        maps = self.layers(4 * images - 2)[:, 0]
        return Detection(maps.flatten(1).logsumexp(1), maps)
