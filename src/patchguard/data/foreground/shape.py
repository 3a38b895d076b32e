"""From scores to a mask: Otsu's threshold, closing, holes, components, size."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from patchguard.arrays import BoolArray, FloatArray

_BINS = 256
_LEAST_COMPONENT = 0.1


def otsu_threshold(values: FloatArray) -> float:
    """Threshold with the largest variance between the classes (Otsu, 1979), over 256 bins."""
    counts, edges = np.histogram(values, _BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below, mass = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    between = (mass[-1] * below - below[-1] * mass) ** 2 / np.maximum(below * above, 1)
    return float(edges[1 + np.argmax(between)])


def clean_mask(mask: BoolArray, *, closing: int) -> BoolArray:
    """Close gaps of up to twice ``closing`` pixels, fill holes, keep the large components.

    Large: at least a tenth of the area of the largest, so that several objects stay.
    """
    return _large_components(_fill_holes(_close(mask, closing)))


def resize_mask(mask: BoolArray, shape: tuple[int, ...]) -> BoolArray:
    """Resize `[h, w]` to `[H, W]` = ``shape``: True where bilinear coverage is at least half."""
    height, width = shape
    coverage = Image.fromarray(mask.astype(np.float32))
    resized = coverage.resize((width, height), Image.Resampling.BILINEAR)
    at_least_half: BoolArray = np.asarray(resized) >= 0.5
    return at_least_half


def _close(mask: BoolArray, radius: int) -> BoolArray:
    """Closing by a disk, by distances; the outside of the image counts as background."""
    if not mask.any():
        return mask
    padded = np.pad(mask, radius + 1)
    dilated = ndimage.distance_transform_edt(~padded) <= radius
    closed = ndimage.distance_transform_edt(dilated) > radius
    inner = slice(radius + 1, -radius - 1)
    unpadded: BoolArray = closed[inner, inner]
    return unpadded


def _fill_holes(mask: BoolArray) -> BoolArray:
    """Fill what is not connected to the image's edge (faster than scipy's propagation)."""
    background, count = ndimage.label(~mask)
    outside = np.zeros(count + 1, bool)
    for side in (background[0], background[-1], background[:, 0], background[:, -1]):
        outside[side] = True
    filled: BoolArray = mask | ~outside[background]
    return filled


def _large_components(mask: BoolArray) -> BoolArray:
    components, _ = ndimage.label(mask)
    areas = np.bincount(components.ravel())
    areas[0] = 0
    kept: BoolArray = (areas >= max(1, _LEAST_COMPONENT * areas.max()))[components]
    return kept
