"""Scores and maps of many images."""

from __future__ import annotations

import torch
from torch import Tensor

from patchguard.attacks.attack import attackable
from patchguard.detector import Detector, device_of
from patchguard.evaluation.outcome import Scored
from patchguard.runtime import full_precision


def score_images(detector: Detector, images: Tensor, batch_size: int) -> Scored:
    """Scores and maps of images [N, 3, H, W], by the detector in eval mode on its device.

    In full precision, so that a threshold, a verdict and an evaluation rest on the same scores.
    """
    device = device_of(detector)
    with full_precision(), attackable(detector), torch.no_grad():
        found = [detector(batch.to(device)) for batch in torch.split(images, batch_size)]
    return Scored(
        torch.cat([detection.score for detection in found]).float().cpu().numpy(),
        torch.cat([detection.anomaly_map for detection in found]).float().cpu().numpy(),
    )
