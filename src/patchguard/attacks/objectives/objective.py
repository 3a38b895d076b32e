"""What an objective is, and what the objectives share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from patchguard.detector import Inspection

Objective = Callable[[Inspection, Tensor, Tensor, float], Tensor]


def patch_labels(masks: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Patch labels [B, h, w] in {0., 1.}: 1 where any pixel of the patch is anomalous.

    Args:
        masks: [B, H, W], 0 where normal.
        grid: how many patches, (h, w).
    """
    return torch.nn.functional.adaptive_max_pool2d((masks[:, None] > 0).float(), grid)[:, 0]


def local_scores(seen: Inspection) -> Tensor:
    """Patch logits [B, h, w]; the pixels [B, H, W] of the map where a detector shows no logits."""
    return seen.anomaly_map if seen.patch_logits is None else seen.patch_logits
