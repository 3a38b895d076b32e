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

    def highest_score(self, images: Tensor, eps: float) -> Tensor:
        """Largest score within linf distance eps and [0, 1]."""
        raised = torch.where(self.weight > 0, images + eps, images - eps).clamp(0, 1)
        return (raised * self.weight).sum((1, 2, 3))

    def lowest_score(self, images: Tensor, eps: float) -> Tensor:
        """Smallest score within linf distance eps and [0, 1]."""
        lowered = torch.where(self.weight > 0, images - eps, images + eps).clamp(0, 1)
        return (lowered * self.weight).sum((1, 2, 3))
