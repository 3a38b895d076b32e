"""What an attack maximises: one value per image, from raw scores, maps or logits.

An objective takes ``(seen, labels, masks, progress)``: what the detector shows of attacked images
(:class:`~patchguard.detector.Inspection`), labels [B] bool (True = anomalous), masks [B, H, W]
(the anomalous fraction of each pixel, in [0, 1]; all 0 for a normal image), and the fraction of
the search that is done, in [0, 1], for those that anneal. It returns [B].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from patchguard.detector import Inspection

Objective = Callable[[Inspection, Tensor, Tensor, float], Tensor]


def image_score(seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0) -> Tensor:
    """Detection (AD): raise the deployed score of normal images, lower that of anomalous ones.

    Image AUROC depends on each score monotonically, so this is the optimal direction for it.
    """
    return torch.where(labels, -seen.score, seen.score)


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

    def __call__(
        self, seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0
    ) -> Tensor:
        normal = (1 - masks.float()) / (1 - self.anomalous_fraction)
        anomalous = masks.float() / self.anomalous_fraction
        return ((normal - anomalous) * seen.anomaly_map).mean((1, 2))


def legacy(seen: Inspection, labels: Tensor, masks: Tensor, progress: float = 1.0) -> Tensor:
    """The published attack: mean of the normal patch logits minus that of the anomalous ones.

    One attack for detection and localization. It is not adaptive for detection: in an anomalous
    image it pushes normal patches up, which raises the image score. On a detector without patch
    logits the pixels of its map take their place.
    """
    logits = seen.anomaly_map if seen.patch_logits is None else seen.patch_logits
    anomalous = patch_labels(masks, tuple(logits.shape[1:])).flatten(1)
    logits, normal = logits.flatten(1), 1 - anomalous
    raised = (logits * normal).sum(1) / normal.sum(1).clamp_min(1)
    lowered = (logits * anomalous).sum(1) / anomalous.sum(1).clamp_min(1)
    return raised - lowered


def patch_labels(masks: Tensor, grid: int | tuple[int, ...]) -> Tensor:
    """Patch labels [B, h, w] in {0., 1.}: 1 where any pixel of the patch is anomalous.

    Args:
        masks: [B, H, W], 0 where normal.
        grid: patches per side, or (h, w).
    """
    return torch.nn.functional.adaptive_max_pool2d((masks[:, None] > 0).float(), grid)[:, 0]
