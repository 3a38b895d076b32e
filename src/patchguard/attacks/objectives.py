"""What an attack maximises: one value per image, from raw scores, maps or logits.

An objective takes ``(detector, images, labels, masks)``: images [B, 3, H, W] in [0, 1], labels
[B] bool (True = anomalous), masks [B, H, W] (the anomalous fraction of each pixel, in [0, 1];
all 0 for a normal image), and returns [B].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from patchguard.detector import Detector

if TYPE_CHECKING:
    from patchguard.models.patchguard import PatchGuard

Objective = Callable[[Detector, Tensor, Tensor, Tensor], Tensor]


def image_score(detector: Detector, images: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
    """Detection (AD): raise the deployed score of normal images, lower that of anomalous ones.

    Image AUROC depends on each score monotonically, so this is the optimal direction for it.
    """
    score = detector(images).score
    return torch.where(labels, -score, score)


class PixelMap:
    """Localization (AL): raise normal pixels and lower anomalous ones of the deployed map.

    The linear surrogate of pooled pixel AUROC: the mean over all normal pixels of the data set
    minus the mean over all its anomalous pixels, of which an image contributes its share.

    Args:
        anomalous_fraction: anomalous pixels as a fraction of all pixels of the data set, in
            (0, 1).
    """

    def __init__(self, anomalous_fraction: float) -> None:
        self.anomalous_fraction = anomalous_fraction

    def __call__(self, detector: Detector, images: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        anomaly_map = detector(images).anomaly_map
        normal = (1 - masks.float()) / (1 - self.anomalous_fraction)
        anomalous = masks.float() / self.anomalous_fraction
        return ((normal - anomalous) * anomaly_map).mean((1, 2))


def legacy(detector: Detector, images: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
    """The published attack: mean of the normal patch logits minus that of the anomalous ones.

    One attack for detection and localization. It is not adaptive for detection: in an anomalous
    image it pushes normal patches up, which raises the image score. Needs a detector with patch
    logits: PatchGuard.
    """
    detector = cast("PatchGuard", detector)
    logits = detector.patch_logits(images).flatten(1)
    anomalous = patch_labels(masks, detector.grid).flatten(1)
    normal = 1 - anomalous
    raised = (logits * normal).sum(1) / normal.sum(1).clamp_min(1)
    lowered = (logits * anomalous).sum(1) / anomalous.sum(1).clamp_min(1)
    return raised - lowered


def patch_labels(masks: Tensor, grid: int) -> Tensor:
    """Patch labels [B, grid, grid] in {0., 1.}: 1 where any pixel of the patch is anomalous."""
    return torch.nn.functional.adaptive_max_pool2d((masks[:, None] > 0).float(), grid)[:, 0]
