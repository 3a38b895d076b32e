"""How faint and how small a pseudo-anomaly a detector still finds: the ladder of faintness.

A self-test on pseudo-anomalies as training makes them says that training worked. It says nothing
about real defects, which may be fainter and smaller than any of them. The ladder says where the
detector's sight ends: the share of pseudo-anomalies found at the calibrated threshold, by contrast
and size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from patchguard.anomalies.paste import anomaly_in_window, sample_rng
from patchguard.arrays import FloatArray
from patchguard.config import AnomalyConfig
from patchguard.detector import device_of, to_tensor
from patchguard.models.patchguard import PatchGuard
from patchguard.training.prepare import Normals
from patchguard.training.views import in_batches

CONTRASTS = (0.2, 0.1, 0.05, 0.025)
"""Mean absolute change of an anomaly's pixels, as a fraction of what the data span."""
SIZES = {"small": (0.06, 0.12), "large": (0.25, 0.5)}
"""Shortest and longest side, as fractions of a window."""
FOUND = 0.5
"""Share of the anomalies of a rung that must be found for it to count as seen."""
_MOST_IMAGES = 16


def ladder(
    detector: PatchGuard,
    held_out: Normals,
    config: AnomalyConfig,
    threshold: float,
    seed: int,
) -> list[dict[str, Any]]:
    """The share of pseudo-anomalies whose score exceeds the threshold, rung by rung.

    Args:
        detector: trained and scored, in eval mode.
        held_out: normals that took no part in training.
        config: how pseudo-anomalies are made; sizes and contrast are those of the rungs.
        threshold: on image scores.
        seed: of the pseudo-anomalies.

    Returns:
        For each size and contrast, in this order, a dict of ``size``, ``contrast``, ``found`` (a
        share) and ``images``.
    """
    rungs = []
    for size, sides in SIZES.items():
        for contrast in CONTRASTS:
            images = list(_faint(held_out, config, detector.config.window, sides, contrast, seed))
            scores = in_batches(
                lambda batch: detector(batch).score, torch.stack(images), device_of(detector)
            )
            found = float((scores > threshold).mean())
            rungs.append(
                {"size": size, "contrast": contrast, "found": found, "images": len(images)}
            )
    return rungs


def told(rungs: list[dict[str, Any]]) -> str:
    """One line: how faint the pseudo-anomalies are of which at least half are found."""
    parts = []
    for size in SIZES:
        seen = [rung["contrast"] for rung in rungs if rung["size"] == size]
        found = {rung["contrast"]: rung["found"] for rung in rungs if rung["size"] == size}
        # From the plainest on: a fainter one that is found by chance does not count.
        last = None
        for contrast in seen:
            if found[contrast] < FOUND:
                break
            last = contrast
        parts.append(
            f"{size} ones down to a contrast of {last:g}" if last else f"{size} ones hardly at all"
        )
    return (
        f"of pseudo-anomalies it finds {' and '.join(parts)} (half of them or more; contrast in "
        "parts of what the images span): fainter and smaller defects than that are likely missed"
    )


def _faint(
    held_out: Normals,
    config: AnomalyConfig,
    window: int,
    sides: tuple[float, float],
    contrast: float,
    seed: int,
) -> Iterator[Tensor]:
    """One pseudo-anomaly of that size and contrast on each of some held-out normals."""
    low, high = config.range or (0.0, 1.0)
    config = replace(
        config, count_max=1, removals=0.0, curriculum=0.0, side_min=sides[0], side_max=sides[1]
    )
    count = min(_MOST_IMAGES, len(held_out.names))
    for index in np.linspace(0, len(held_out.names) - 1, count).round().astype(int):
        image = held_out.images[index]
        rng = sample_rng(seed, 1, int(index))
        made, mask, _ = anomaly_in_window(image, held_out.foregrounds[index], rng, config, window)
        yield to_tensor(_at_contrast(image, made, mask, contrast * (high - low)))


def _at_contrast(
    image: FloatArray, made: FloatArray, mask: np.ndarray, contrast: float
) -> FloatArray:
    """The change that a pseudo-anomaly makes, scaled to a mean of ``contrast``."""
    change = made - image
    size = np.abs(change[mask]).mean()
    scaled: FloatArray = np.clip(image + change * np.float32(contrast / size), 0, 1)
    return scaled
