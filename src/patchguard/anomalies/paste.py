"""Pseudo-anomalies: a distorted, rotated piece of a normal image pasted onto its foreground.

The procedure is PatchGuard's (Nafez et al., CVPR 2025); outlines other than the rectangle,
blending, sizes relative to the foreground, the contrast floor, plain copies and removals are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from patchguard.anomalies.distortions import bilinear, distort, shade
from patchguard.anomalies.noise import perlin
from patchguard.arrays import BoolArray, FloatArray
from patchguard.config import AnomalyBlend, AnomalyConfig, AnomalyShape
from patchguard.data.windows import Box, box_around

# Shorter sides give a patch too few pixels to distort.
_MIN_SIDE = 4
_ATTEMPTS = 4


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Generator of one sample: equal triples give equal draws, whatever was drawn before."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(epoch, index)))


def make_pseudo_anomaly(
    image: FloatArray,
    foreground: BoolArray,
    rng: np.random.Generator,
    config: AnomalyConfig,
) -> tuple[FloatArray, BoolArray]:
    """Paste up to `config.count_max` patches onto the foreground of `image`.

    Each is a distorted piece of the image, a plain copy of one, or what takes something away.

    Args:
        image: normal image float32 `[H, W, 3]` in [0, 1]; not modified.
        foreground: `[H, W]`; patches stay inside :func:`usable_foreground` of it.
        rng: sole source of randomness.
        config: kinds, sizes, outlines, blending, number and least contrast of the patches.

    Returns:
        Pseudo-anomaly float32 `[H, W, 3]` in [0, 1], equal to `image` outside the mask; and the
        mask `[H, W]` of the pasted pixels, never empty.
    """
    if config.range:
        low, high = config.range
        stretched = np.clip((image - low) / np.float32(high - low), 0, 1)
        made, mask = _pasted(stretched, foreground, rng, config)
        anomaly = image.copy()
        anomaly[mask] = low + np.float32(high - low) * made[mask]
        return anomaly, mask
    return _pasted(image, foreground, rng, config)


def anomaly_in_window(
    image: FloatArray,
    foreground: BoolArray,
    rng: np.random.Generator,
    config: AnomalyConfig,
    window: int,
    anywhere: float = 0.0,
) -> tuple[FloatArray, BoolArray, Box]:
    """:func:`make_pseudo_anomaly` within a window, whose own side is what lengths are relative to.

    The window shows some foreground; in it the patches may lie anywhere, also across the edge of
    an object. On the object alone they would teach the network to suspect the object.

    Args:
        image: normal image float32 `[H, W, 3]` in [0, 1]; not modified.
        foreground: `[H, W]`.
        rng: sole source of randomness.
        config: as for :func:`make_pseudo_anomaly`.
        window: side of the window in pixels.
        anywhere: how often the window need not show foreground.

    Returns:
        Pseudo-anomaly and mask of the whole image, and the window.
    """
    box = box_around(foreground, window, rng, anywhere=anywhere)
    inside = box.of(image)
    made, made_mask = make_pseudo_anomaly(inside, np.ones(inside.shape[:2], bool), rng, config)
    anomaly, mask = image.copy(), np.zeros(foreground.shape, dtype=bool)
    box.of(anomaly)[:] = made
    box.of(mask)[:] = made_mask
    return anomaly, mask, box


def _pasted(
    image: FloatArray,
    foreground: BoolArray,
    rng: np.random.Generator,
    config: AnomalyConfig,
) -> tuple[FloatArray, BoolArray]:
    """:func:`make_pseudo_anomaly` on values that span [0, 1]."""
    foreground = usable_foreground(foreground)
    sums = _integral(foreground)
    sides = _sides(math.sqrt(sums[-1, -1]), config)
    anomaly = image.copy()
    mask = np.zeros(foreground.shape, dtype=bool)
    for _ in range(rng.integers(1, config.count_max + 1)):
        free = foreground & ~mask
        if not free.any():
            break
        patch = _visible_patch(image, sums, free, sides, rng, config)
        anomaly[patch.rows, patch.cols] = patch.colours
        mask[patch.rows, patch.cols] = True
    return anomaly, mask


def usable_foreground(foreground: BoolArray) -> BoolArray:
    """Where patches may lie: the foreground `[H, W]` grown by 2 % of the image's shorter side.

    The whole image when the foreground is empty or too small to hold a patch.
    """
    if np.count_nonzero(foreground) < _MIN_SIDE**2:
        return np.ones_like(foreground)
    # Defects reach over the edge of an object, and masks tend to stop short of it.
    radius = max(1, round(0.02 * min(foreground.shape)))
    return _widened(_widened(foreground, radius).T, radius).T


def _widened(mask: BoolArray, radius: int) -> BoolArray:
    """Dilate along the rows only."""
    wide = mask.copy()
    for shift in range(1, radius + 1):
        wide[shift:] |= mask[:-shift]
        wide[:-shift] |= mask[shift:]
    return wide


class _Patch(NamedTuple):
    """Pixels `[n]` of a patch and their final colours `[n, 3]`."""

    rows: NDArray[np.intp]
    cols: NDArray[np.intp]
    colours: FloatArray


def _visible_patch(
    image: FloatArray,
    sums: NDArray[np.int32],
    free: BoolArray,
    sides: tuple[float, float],
    rng: np.random.Generator,
    config: AnomalyConfig,
) -> _Patch:
    """Draw patches until one is visible; shade the image itself when none is.

    Args:
        image: normal image `[H, W, 3]`.
        sums: integral of the foreground, where sources lie.
        free: foreground `[H, W]` without earlier patches, where targets lie; not empty.
        sides: shortest and longest side in pixels.
        rng: source of randomness.
        config: how patches are made.
    """
    free_sums = _integral(free)
    for _ in range(_ATTEMPTS):
        target = _place(free_sums, *_draw_sides(*sides, rng), rng)
        if config.removals and rng.random() < config.removals:
            patch = _removal(image, target, free, config.contrast_floor)
        else:
            source = _place(sums, target.height, target.width, rng)
            patch = _draw_patch(image, source, target, free, rng, config)
        if _visible(image, patch, config.contrast_floor):
            return patch
    return _shaded_patch(image, target, config.contrast_floor)


def _sides(scale: float, config: AnomalyConfig) -> tuple[float, float]:
    """Shortest and longest side in pixels on a foreground of ``scale``² pixels."""
    return max(config.side_min * scale, _MIN_SIDE), max(config.side_max * scale, _MIN_SIDE)


def _draw_sides(low: float, high: float, rng: np.random.Generator) -> tuple[int, int]:
    """Height and width, log-uniform and independent."""
    height, width = np.exp(rng.uniform(np.log(low), np.log(high), 2)).round().astype(int)
    return int(height), int(width)


def _integral(mask: BoolArray) -> NDArray[np.int32]:
    """Sums `[H + 1, W + 1]` of the mask above and left of each pixel corner."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), dtype=np.int32)
    np.cumsum(mask, axis=0, dtype=np.int32, out=sums[1:, 1:])
    np.cumsum(sums[1:, 1:], axis=1, out=sums[1:, 1:])
    return sums


def _place(sums: NDArray[np.int32], height: int, width: int, rng: np.random.Generator) -> Box:
    """Draw a rectangle wholly on the mask that `sums` integrates, smaller where none fits."""
    height, width = min(height, sums.shape[0] - 1), min(width, sums.shape[1] - 1)
    while True:
        lower, upper = sums[height:], sums[: sums.shape[0] - height]
        covered = lower[:, width:] - lower[:, :-width] - upper[:, width:] + upper[:, :-width]
        corners = np.flatnonzero(covered == height * width)
        if len(corners):
            top, left = divmod(int(corners[rng.integers(len(corners))]), covered.shape[1])
            return Box(top, left, height, width)
        height, width = max(1, int(height * 0.8)), max(1, int(width * 0.8))


def _draw_patch(
    image: FloatArray,
    source: Box,
    target: Box,
    free: BoolArray,
    rng: np.random.Generator,
    config: AnomalyConfig,
) -> _Patch:
    """Distort the source, rotate it by -90 to 90 degrees and blend it into the target.

    Or neither distort nor rotate it, `config.copies` of the time: what belongs elsewhere is here,
    and what belongs here is missing.
    """
    copied = rng.random() < config.copies
    angle = 0.0 if copied else rng.uniform(-np.pi / 2, np.pi / 2)
    rows, cols = _rotated_extent(target, angle, free.shape)
    down, right = _unrotated(target, rows, cols, angle)
    shape: AnomalyShape = config.shapes[rng.integers(len(config.shapes))]
    inside = _SHAPES[shape](down, right, target.height, target.width, rng)
    inside &= free[np.ix_(rows, cols)]
    blend: AnomalyBlend = config.blends[rng.integers(len(config.blends))]
    opacity = _opacity(inside, blend, rng)

    row, col = np.nonzero(inside)
    colours = bilinear(
        source.of(image) if copied else distort(source.of(image), rng),
        down[row, col] + np.float32((target.height - 1) / 2),
        right[row, col] + np.float32((target.width - 1) / 2),
    )
    if shape == "line":
        # Also a copy: a sliver of a texture on the same texture would be lost in it.
        colours += np.float32(shade(rng))
    row, col, weight = rows[row], cols[col], opacity[row, col][:, None]
    below = image[row, col]
    return _Patch(row, col, np.clip(below + weight * (colours - below), 0, 1))


def _removal(image: FloatArray, target: Box, free: BoolArray, floor: float) -> _Patch:
    """Paint the target over with the colour around it; the patch is what this changes.

    Empty where there is nothing, or next to nothing, to take away.
    """
    crop = target.of(image)
    edge = np.concatenate([crop[0], crop[-1], crop[:, 0], crop[:, -1]])
    around = np.median(edge, axis=0)
    change = ndimage.uniform_filter(np.abs(around - crop).mean(axis=2), 3)
    rows, cols = np.nonzero((change >= floor) & target.of(free))
    if len(rows) < _MIN_SIDE**2:
        rows, cols = rows[:0], cols[:0]
    colours = np.tile(around, (len(rows), 1))
    return _Patch(rows + target.top, cols + target.left, colours)


def _rotated_extent(
    box: Box, angle: float, shape: tuple[int, ...]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the image that the rotated box can touch."""
    sin, cos = abs(np.sin(angle)), abs(np.cos(angle))
    half_height = (cos * box.height + sin * box.width) / 2
    half_width = (sin * box.height + cos * box.width) / 2
    middle_row, middle_col = box.top + box.height / 2, box.left + box.width / 2
    rows = np.arange(
        max(0, int(middle_row - half_height)), min(shape[0], int(middle_row + half_height) + 1)
    )
    cols = np.arange(
        max(0, int(middle_col - half_width)), min(shape[1], int(middle_col + half_width) + 1)
    )
    return rows, cols


def _unrotated(
    box: Box, rows: NDArray[np.intp], cols: NDArray[np.intp], angle: float
) -> tuple[FloatArray, FloatArray]:
    """Pixel offsets `[len(rows), len(cols)]` from the box's centre in its own axes."""
    row = (rows - (box.top + (box.height - 1) / 2)).astype(np.float32)[:, None]
    col = (cols - (box.left + (box.width - 1) / 2)).astype(np.float32)[None, :]
    sin, cos = np.float32(np.sin(angle)), np.float32(np.cos(angle))
    return cos * row - sin * col, sin * row + cos * col


def _rectangle(
    down: FloatArray, right: FloatArray, height: int, width: int, rng: np.random.Generator
) -> BoolArray:
    return (np.abs(down) <= height / 2) & (np.abs(right) <= width / 2)


def _ellipse(
    down: FloatArray, right: FloatArray, height: int, width: int, rng: np.random.Generator
) -> BoolArray:
    inside: BoolArray = _eccentricity(down, right, height, width) <= 1
    return inside


def _irregular(
    down: FloatArray, right: FloatArray, height: int, width: int, rng: np.random.Generator
) -> BoolArray:
    """Blobs: thresholded noise that fades out towards the rectangle's inscribed ellipse."""
    period = max(2.0, rng.uniform(0.3, 0.8) * min(height, width))
    field = perlin(down.shape[0], down.shape[1], period, rng)
    distance = _eccentricity(down, right, height, width)
    inside: BoolArray = (distance <= 1) & (field > distance * 1.4 - rng.uniform(0.5, 0.9))
    return inside


def _line(
    down: FloatArray, right: FloatArray, height: int, width: int, rng: np.random.Generator
) -> BoolArray:
    """A scratch: a thin sine along the longer side."""
    if height > width:
        down, right, height, width = right, down, width, height
    thickness = min(rng.uniform(1.2, 1.2 + 0.06 * width), height)
    swing = rng.uniform(0, 1) * (height - thickness) / 2
    bend = rng.uniform(0.5, 3) * np.pi / width
    centre = np.float32(swing) * np.sin(right * np.float32(bend) + rng.uniform(0, 2 * np.pi))
    inside: BoolArray = (np.abs(down - centre) <= thickness / 2) & (np.abs(right) <= width / 2)
    return inside


def _eccentricity(down: FloatArray, right: FloatArray, height: int, width: int) -> FloatArray:
    """Squared distance from the centre, 1 on the inscribed ellipse."""
    squared: FloatArray = (down * np.float32(2 / height)) ** 2
    squared += (right * np.float32(2 / width)) ** 2
    return squared


_SHAPES: dict[
    AnomalyShape, Callable[[FloatArray, FloatArray, int, int, np.random.Generator], BoolArray]
] = {"rectangle": _rectangle, "ellipse": _ellipse, "irregular": _irregular, "line": _line}


def _opacity(inside: BoolArray, blend: AnomalyBlend, rng: np.random.Generator) -> FloatArray:
    """Weight in (0, 1] of the patch at each pixel `[h, w]` inside it."""
    if blend == "soft":
        depth = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
        ramp = rng.uniform(0.2, 1) * depth.max()
        weight: FloatArray = np.minimum(1, depth / max(ramp, 1)).astype(np.float32)
        return weight
    constant = rng.uniform(0.4, 1) if blend == "transparent" else 1
    return np.full(inside.shape, constant, dtype=np.float32)


def _visible(image: FloatArray, patch: _Patch, floor: float) -> bool:
    """Whether the pixels change by `floor` on average, none counted for more than twice that.

    Without the cap, one bright corner would vouch for a patch that is otherwise unchanged.
    """
    change = np.abs(patch.colours - image[patch.rows, patch.cols]).mean(axis=1)
    return len(change) > 0 and float(np.minimum(change, 2 * floor).mean()) >= floor


def _shaded_patch(image: FloatArray, target: Box, floor: float) -> _Patch:
    """The target's own texture, brighter where it is dark and darker where it is bright.

    Moving a patch by `s` away from the nearer bound changes it by at least `s / 2` on average
    whatever the clipping takes, since `min(s, x) >= s x` for `s`, `x` in [0, 1] and the mean
    room `x` is at least 1/2.
    """
    rows, cols = np.mgrid[
        target.top : target.top + target.height, target.left : target.left + target.width
    ].reshape(2, -1)
    below = image[rows, cols]
    step = 2 * floor if below.mean() <= 0.5 else -2 * floor
    return _Patch(rows, cols, np.clip(below + np.float32(step), 0, 1))
