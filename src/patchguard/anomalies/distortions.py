"""Distortions that turn a crop of a normal image into something abnormal.

Each takes a crop float32 `[h, w, 3]` in [0, 1] of at least one pixel and a generator, and returns
a new crop of the same shape and range. A grey crop stays grey. The levels and what each may draw
are PatchGuard's (Nafez et al., CVPR 2025); the strengths are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from patchguard.anomalies.noise import perlin
from patchguard.arrays import FloatArray

Distortion = Callable[[FloatArray, np.random.Generator], FloatArray]


def bilinear(
    crop: FloatArray, rows: NDArray[np.floating], cols: NDArray[np.floating]
) -> FloatArray:
    """Sample `crop` `[h, w, 3]` at fractional `rows` and `cols` `[...]`, clamped to its edge.

    Returns:
        Colours `[..., 3]`.
    """
    height, width = crop.shape[:2]
    rows = np.clip(rows, 0, height - 1)
    cols = np.clip(cols, 0, width - 1)
    top = rows.astype(np.intp)
    left = cols.astype(np.intp)
    down = (rows - top).astype(np.float32)[..., None]
    right = (cols - left).astype(np.float32)[..., None]
    below = np.minimum(top + 1, height - 1) * width
    beside = np.minimum(left + 1, width - 1)
    top *= width
    flat = crop.reshape(-1, crop.shape[2])
    upper = flat[top + left] * (1 - right) + flat[top + beside] * right
    lower = flat[below + left] * (1 - right) + flat[below + beside] * right
    sampled: FloatArray = upper * (1 - down) + lower * down
    return sampled


def colour(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Change hue, saturation, contrast and brightness."""
    mixing = _hue_rotation(rng.uniform(-np.pi / 4, np.pi / 4)) @ _saturation(rng.uniform(0.4, 1.6))
    contrast = rng.uniform(0.5, 1.5)
    brightness = rng.uniform(-0.3, 0.3)
    mean = crop.mean(axis=(0, 1))
    # One affine map: contrast pivots on the crop's mean colour.
    shift = mixing @ mean * (1 - contrast) + brightness
    # One product over all pixels: a stack of one per row is several times slower.
    mixed = crop.reshape(-1, 3) @ (mixing.T * contrast).astype(np.float32)
    return _bounded(mixed.reshape(crop.shape) + shift.astype(np.float32))


def blur(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Gaussian blur."""
    sigma = rng.uniform(0.5, 2.5)
    return _bounded(ndimage.gaussian_filter(crop, (sigma, sigma, 0), mode="nearest", truncate=3))


def elastic(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Displace every pixel along a smooth random field."""
    height, width = crop.shape[:2]
    period = rng.uniform(0.25, 0.6) * max(height, width)
    amplitude = rng.uniform(0.3, 0.8) * period
    rows, cols = _grid(crop)
    rows = rows + amplitude * perlin(height, width, period, rng)
    cols = cols + amplitude * perlin(height, width, period, rng)
    return _bounded(bilinear(crop, rows, cols))


def swirl(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Twist around a point near the middle, less with distance from it."""
    height, width = crop.shape[:2]
    rows, cols = _grid(crop)
    down = rows - rng.uniform(0.35, 0.65) * (height - 1)
    right = cols - rng.uniform(0.35, 0.65) * (width - 1)
    radius = rng.uniform(0.3, 0.7) * max(height, width)
    twist = rng.choice((-1, 1)) * rng.uniform(1, 5)
    angle = np.float32(twist) * np.exp(-np.hypot(down, right) / np.float32(radius))
    sin, cos = np.sin(angle), np.cos(angle)
    shift_down = cos * down - sin * right - down
    shift_right = sin * down + cos * right - right
    return _bounded(bilinear(crop, rows + shift_down, cols + shift_right))


def jpeg(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Compress hard: blocks and ringing."""
    buffer = BytesIO()
    pixels = Image.fromarray((crop * 255 + 0.5).astype(np.uint8))
    pixels.save(buffer, "JPEG", quality=int(rng.integers(4, 25)))
    return _bounded(np.asarray(Image.open(buffer), dtype=np.float32) / 255)


def torn_lines(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Shift a few bands of rows or columns sideways and shade each tear."""
    torn = crop.copy()
    # A view, so that writing rows of it writes columns of the crop.
    lines = torn.swapaxes(0, 1) if rng.random() < 0.5 else torn
    for _ in range(rng.integers(1, 5)):
        first = rng.integers(len(lines))
        band = lines[first : first + rng.integers(1, max(2, len(lines) // 5) + 1)]
        band[:] = np.roll(band, rng.integers(1, band.shape[1] + 1), axis=1)
        band[0] += np.float32(shade(rng))
    return _bounded(torn)


def blotches(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Lighten or darken where Perlin noise is high."""
    height, width = crop.shape[:2]
    noise = perlin(height, width, rng.uniform(0.15, 0.6) * max(height, width), rng)
    weight = np.clip((noise - rng.uniform(-0.1, 0.2)) * 6, 0, 1)
    return _bounded(crop + np.float32(shade(rng)) * weight[..., None])


def erase(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Fill a rectangle with one colour (random erasing, Zhong et al., AAAI 2020)."""
    height, width = crop.shape[:2]
    rows = int(np.ceil(rng.uniform(0.2, 0.6) * height))
    cols = int(np.ceil(rng.uniform(0.2, 0.6) * width))
    top = rng.integers(height - rows + 1)
    left = rng.integers(width - cols + 1)
    erased = crop.copy()
    erased[top : top + rows, left : left + cols] = crop.mean(axis=(0, 1)) + np.float32(shade(rng))
    return _bounded(erased)


DISTORTIONS: dict[str, Distortion] = {
    "colour": colour,
    "blur": blur,
    "elastic": elastic,
    "swirl": swirl,
    "jpeg": jpeg,
    "torn_lines": torn_lines,
    "blotches": blotches,
    "erase": erase,
}


class Level(NamedTuple):
    """How strongly a crop is distorted.

    Args:
        probability: share of the crops distorted at this level.
        most: most distortions after the colour change.
        names: distortions these are drawn from, without repetition.
    """

    probability: float
    most: int
    names: tuple[str, ...]


_MILD = ("blur", "elastic", "swirl", "jpeg")
LEVELS: dict[str, Level] = {
    "light": Level(0.2, 1, _MILD),
    "medium": Level(0.2, 2, _MILD),
    "heavy": Level(0.6, 4, (*_MILD, "torn_lines", "blotches", "erase")),
}
_CUMULATIVE = np.cumsum([level.probability for level in LEVELS.values()])[:-1]


def draw_distortions(rng: np.random.Generator) -> tuple[str, list[str]]:
    """Draw a level and the names of its distortions in the order they are applied."""
    name = list(LEVELS)[int(np.searchsorted(_CUMULATIVE, rng.random(), side="right"))]
    level = LEVELS[name]
    order = rng.permutation(len(level.names))[: rng.integers(level.most + 1)]
    return name, ["colour", *(level.names[index] for index in order)]


def distort(crop: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Apply a colour change and the further distortions of a random level."""
    for name in draw_distortions(rng)[1]:
        crop = DISTORTIONS[name](crop, rng)
    return crop


def shade(rng: np.random.Generator) -> float:
    """A brightness offset of either sign that is never small."""
    return float(rng.choice((-1, 1)) * rng.uniform(0.15, 0.6))


def _bounded(crop: NDArray[np.floating]) -> FloatArray:
    bounded: FloatArray = np.clip(crop, 0, 1, dtype=np.float32)
    return bounded


def _grid(crop: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Row numbers `[h, 1]` and column numbers `[1, w]`."""
    height, width = crop.shape[:2]
    rows = np.arange(height, dtype=np.float32)[:, None]
    return rows, np.arange(width, dtype=np.float32)[None, :]


def _saturation(factor: float) -> NDArray[np.float64]:
    """Matrix that scales the distance from the grey of equal luma (ITU-R BT.601)."""
    luma = np.array([0.299, 0.587, 0.114])
    return factor * np.eye(3) + (1 - factor) * luma


def _hue_rotation(angle: float) -> NDArray[np.float64]:
    """Matrix that turns colours around the grey axis by `angle` radians (Rodrigues' formula)."""
    cross = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / np.sqrt(3)
    turned = np.cos(angle) * np.eye(3) + np.sin(angle) * cross
    rotation: NDArray[np.float64] = turned + (1 - np.cos(angle)) / 3
    return rotation
