"""What of [0, 1] the values of a data set span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from patchguard.config import DataConfig
from patchguard.data.stack import Stack

OUTSIDE = 0.001
"""Share of the values that may lie below, and above, what counts as darkest and brightest."""
FLAT = 0.5
"""Of [0, 1]: images that span less are stretched; others are left as they are."""
LEAST = 0.05
"""Of [0, 1], however little the images span: below that it is noise that would be stretched."""
_LOOKED_AT = 64
_VALUES = 4096


def ranged(config: DataConfig, images: Sequence[np.ndarray] | Stack) -> DataConfig:
    """The settings with the range of these images, where they name none and the images are flat."""
    low, high = span_of(images)
    if config.anomalies.range or high - low >= FLAT:
        return config
    return replace(config, anomalies=replace(config.anomalies, range=[low, high]))


def span_of(images: Sequence[np.ndarray] | Stack) -> tuple[float, float]:
    """The darkest and the brightest value of normal images [N, H, W, 3], without outliers.

    Quantiles over images from all over them, so that a reflection or a dead pixel sets no scale.
    """
    chosen = np.linspace(0, len(images) - 1, min(len(images), _LOOKED_AT)).round().astype(int)
    values = []
    for index in chosen:
        pixels = images[index].reshape(-1, 3)  # all channels, whatever the step
        values.append(pixels[:: max(1, 3 * len(pixels) // _VALUES)].ravel())
    low, high = np.quantile(np.concatenate(values), [OUTSIDE, 1 - OUTSIDE])
    short = max(0.0, LEAST - (high - low)) / 2
    low = min(max(0.0, low - short), 1 - LEAST)
    high = min(1.0, max(high + short, low + LEAST))
    return round(float(low), 4), round(float(high), 4)
