"""The one seam of the house: what a detector is, to everything that judges or deploys it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn


class Detection(NamedTuple):
    """What a detector says of a batch of images.

    Attributes:
        score: image scores [B], raw and unbounded, higher is more anomalous.
        anomaly_map: pixel scores [B, H, W] at the resolution of the images, raw.
    """

    score: Tensor
    anomaly_map: Tensor


class Detector(nn.Module):
    """An anomaly detector.

    ``forward`` takes float images [B, 3, H, W] in [0, 1] and returns a :class:`Detection`,
    differentiable with respect to the images. Normalisation lives inside; nothing in the graph
    clamps or squashes the scores.
    """

    def forward(self, images: Tensor) -> Detection:
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Detection:
        return super().__call__(images)  # type: ignore[no-any-return]
