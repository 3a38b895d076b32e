"""The one seam of the house: what a detector is, to everything that judges or deploys it."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Detection(NamedTuple):
    """What a detector says of a batch of images.

    Attributes:
        score: image scores [B], raw and unbounded, higher is more anomalous.
        anomaly_map: pixel scores [B, H, W] at the resolution of the images, raw.
    """

    score: Tensor
    anomaly_map: Tensor


class Inspection(NamedTuple):
    """A detection with the internals that an adaptive attack can use; None where there are none.

    Attributes:
        score: as in :class:`Detection`.
        anomaly_map: as in :class:`Detection`.
        patch_logits: raw scores [B, h, w] of the patches that score and map are made of.
        features: features [B, N, C] of the patches, in which normal images lie close together.
    """

    score: Tensor
    anomaly_map: Tensor
    patch_logits: Tensor | None = None
    features: Tensor | None = None


class Detector(nn.Module):
    """An anomaly detector.

    ``forward`` takes float images [B, 3, H, W] in [0, 1] and returns a :class:`Detection`,
    differentiable with respect to the images. Normalisation lives inside; nothing in the graph
    clamps or squashes the scores.
    """

    def forward(self, images: Tensor) -> Detection:
        raise NotImplementedError

    def inspect(self, images: Tensor) -> Inspection:
        """The detection and, where a detector overrides this, internals, from one forward pass."""
        return Inspection(*self(images))

    def decided_by(self, images: Tensor) -> list[str] | None:
        """The view with the highest score of each image [B, 3, H, W]; None with a single view."""
        return None

    def at_once(self, height: int, width: int) -> int | None:
        """How many images of that size a pass should hold; None where any number is as good."""
        return None

    def __call__(self, images: Tensor) -> Detection:
        return super().__call__(images)  # type: ignore[no-any-return]


def to_tensor(image: np.ndarray) -> Tensor:
    """An image [H, W, 3] as a tensor [3, H, W], float32."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))


def device_of(detector: Detector) -> torch.device:
    """The device of the detector's weights; the CPU for one without any."""
    tensors = itertools.chain(detector.parameters(), detector.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
