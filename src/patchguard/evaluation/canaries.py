"""Detectors whose flaw is known: what the checks are checked with.

A check that stays quiet on the flaw it looks for is worth nothing, so the flawed detectors ship
with the library (Carlini et al. 2019, On evaluating adversarial robustness: "construct synthetic
intentionally-broken models"). All are a linear score with one flaw added; the linear one itself
has none, and its worst case is known in closed form.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from patchguard.detector import Detection, Detector
from patchguard.evaluation.test_set import TestSet


class Linear(Detector):
    """Score ``w . x`` and map ``w * x`` summed over channels, both relative to mid-grey.

    Args:
        weight: [3, H, W].
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Detection:
        anomaly_map = ((images - 0.5) * self.weight).sum(1)
        return Detection(anomaly_map.sum((1, 2)), anomaly_map)

    @torch.no_grad()
    def worst_scores(self, images: Tensor, labels: Tensor, eps: float) -> Tensor:
        """The worst score [B] within linf distance ``eps`` and [0, 1], exactly.

        Args:
            images: [B, 3, H, W].
            labels: [B] bool, True = anomalous: its score is lowered, a normal one's raised.
            eps: radius in pixel space.
        """
        towards = torch.where(labels[:, None, None, None], -self.weight, self.weight).sign()
        return self((images + eps * towards).clamp(0, 1)).score


class Saturated(Linear):
    """Squashes its score by a steep sigmoid, as a detector that outputs probabilities does."""

    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        return Detection(torch.sigmoid(1e3 * score), anomaly_map)


class Quantised(Linear):
    """Rounds its score, so that no small change of the image moves it."""

    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        return Detection(torch.round(4 * score) / 4, anomaly_map)


class Random(Linear):
    """Drops pixels at random in every forward pass, in eval mode too."""

    def forward(self, images: Tensor) -> Detection:
        return super().forward(0.5 + nn.functional.dropout(images - 0.5, 0.1, training=True))


class LeftInTraining(Linear):
    """Has a dropout layer, and nobody has called ``eval()``."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.dropout = nn.Dropout(0.1)
        self.train()

    def forward(self, images: Tensor) -> Detection:
        return super().forward(0.5 + self.dropout(images - 0.5))


class Jpeg(Linear):
    """Compresses every image before it looks at it, outside the graph."""

    def forward(self, images: Tensor) -> Detection:
        return super().forward(torch.stack([_compressed(image) for image in images]).to(images))


class Detached(Linear):
    """Cuts its outputs off from the images."""

    def forward(self, images: Tensor) -> Detection:
        return super().forward(images.detach())


class BatchDependent(Linear):
    """Standardises scores and stretches maps over the batch, whatever else is in it."""

    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        spread = score.std(correction=0) + 1e-6
        lowest, highest = anomaly_map.aminmax()
        return Detection(
            (score - score.mean()) / spread, (anomaly_map - lowest) / (highest - lowest)
        )


class Constant(Linear):
    """Gives every image the same score."""

    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        return Detection(0 * score, anomaly_map)


class Rugged(Linear):
    """Adds a ripple to its score, too fine for a gradient to tell which way leads up."""

    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        return Detection(score + 4 * torch.sin(100 * score), anomaly_map)


class Misleading(Linear):
    """Its gradient is right at images of 8 bits per channel and reversed everywhere else.

    A caricature of catastrophic overfitting: single-step attacks from the image succeed, stronger
    ones fail.
    """

    def forward(self, images: Tensor) -> Detection:
        levels = 255 * images.detach()
        off_grid = ((levels - levels.round()).abs() > 1e-2).flatten(1).any(1)
        return super().forward(_turned(images, off_grid))


class Brittle(Linear):
    """Its gradient is right on images with hardly more noise than :func:`specimens`, else reversed.

    Only attacks in small balls get anywhere.
    """

    def forward(self, images: Tensor) -> Detection:
        return super().forward(_turned(images, images.detach().flatten(1).std(1) > 0.033))


class Wary(Linear):
    """Remembers the images it saw last; its gradient is right only if they have crept a little.

    Only a search by short steps gets anywhere.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.seen: Tensor | None = None

    def forward(self, images: Tensor) -> Detection:
        known = self.seen if self.seen is not None and self.seen.shape == images.shape else images
        moved = (images.detach() - known).abs().flatten(1).amax(1)
        self.seen = images.detach().clone()
        crept = (moved > 0) & (moved < 0.03 / 255)
        return super().forward(_turned(images, ~crept))


CANARIES: Mapping[str, tuple[type[Linear], str]] = {
    "saturated": (Saturated, "S5"),
    "quantised": (Quantised, "S2"),
    "random": (Random, "S3"),
    "left in training": (LeftInTraining, "S3"),
    "jpeg": (Jpeg, "S2"),
    "detached": (Detached, "S2"),
    "batch-dependent": (BatchDependent, "S4"),
    "constant": (Constant, "S5"),
    "rugged": (Rugged, "S7"),
    "misleading": (Misleading, "S10"),
    "wary": (Wary, "S12"),
    "brittle": (Brittle, "S13"),
}
"""Each flawed detector, and the check that must flag it whatever others do."""


def weights(shape: tuple[int, int] = (16, 16), seed: int = 0) -> Tensor:
    """Weights [3, H, W] of a canary, [H, W] = ``shape``."""
    return torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed))


def specimens(weight: Tensor, *, each: int = 8, contrast: float = 0.1, seed: int = 1) -> TestSet:
    """Images of 8 bits that a linear detector tells apart: noise, and noise with a defect.

    The defect is the middle half of each side.

    Args:
        weight: [3, H, W] of the detector.
        each: images per class.
        contrast: change of the pixels inside the defect, towards a higher score.
        seed: of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 + 0.03 * torch.randn(2 * each, *weight.shape, generator=generator)
    mask = torch.zeros(weight.shape[1:])
    down, across = (length // 4 for length in mask.shape)
    mask[down : 3 * down, across : 3 * across] = 1
    images[each:] += contrast * mask * weight.sign()
    empty, defect = np.zeros(mask.shape, dtype=bool), mask.numpy().astype(bool)
    return TestSet(
        names=tuple(f"{number:03}" for number in range(2 * each)),
        kinds=("good",) * each + ("square",) * each,
        images=torch.round(255 * images.clamp(0, 1)) / 255,
        masks=(empty,) * each + (defect,) * each,
    )


def _compressed(image: Tensor) -> Tensor:
    """An image [3, H, W] after JPEG, detached."""
    levels = np.rint(image.detach().cpu().clamp(0, 1).numpy().transpose(1, 2, 0) * 255)
    file = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(file, format="JPEG", quality=90)
    decoded = np.asarray(Image.open(file), dtype=np.float32).transpose(2, 0, 1) / 255
    return torch.from_numpy(decoded)


def _turned(images: Tensor, reverse: Tensor) -> Tensor:
    """The images, with the gradient of those in ``reverse`` [B] turned round."""
    turned: Tensor = _Turn.apply(images, reverse)
    return turned


class _Turn(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, images: Tensor, reverse: Tensor) -> Tensor:
        context.save_for_backward(reverse)
        return images.clone()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (reverse,) = context.saved_tensors
        sign = torch.where(reverse, -1.0, 1.0).to(gradients[0])
        return gradients[0] * sign[:, None, None, None], None
