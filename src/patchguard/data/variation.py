"""A normal image as it might also have been taken: moved a little, in slightly other light."""

from __future__ import annotations

from math import cos, radians, sin

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchguard.config import AXES, DataConfig, VariationConfig
from patchguard.data.windows import Box


def flipped(
    image: np.ndarray, foreground: np.ndarray, rng: np.random.Generator, config: DataConfig
) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """A normal image flipped at random, as training does before it varies it.

    Args:
        image: float32 [H, W, 3] in [0, 1].
        foreground: bool [H, W].
        rng: source of all randomness.
        config: which flips, each half of the time.

    Returns:
        The image and its foreground, and whether they were flipped vertically and horizontally.
    """
    flips = [axis in config.flips and rng.random() < 0.5 for axis in AXES]
    axes = tuple(axis for axis, turned in enumerate(flips) if turned)
    return np.flip(image, axes), np.flip(foreground, axes), flips


def vary(
    image: np.ndarray,
    foreground: np.ndarray,
    rng: np.random.Generator,
    config: VariationConfig,
    box: Box | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A random variation of a normal image, and its foreground moved likewise.

    Shift, turn, zoom, in this order, then light. Every magnitude is uniform up to what the settings
    allow (of the logarithm, for factors). What comes in from outside the image is its reflection.

    Args:
        image: float32 [H, W, 3] in [0, 1].
        foreground: bool [H, W].
        rng: source of all randomness; nothing is drawn when nothing may vary.
        config: how far.
        box: the part of the result that is wanted; all of it when absent.

    Returns:
        An image and a foreground of the same types and ranges, of the box.
    """
    box = box or Box(0, 0, *image.shape[:2])
    middle = image.mean(dtype=np.float32)
    if config.moves:
        turn, zoom, *shift = rng.uniform(-1, 1, 4)
        grid = _grid(
            radians(config.rotation * turn),
            (1 + config.zoom) ** zoom,
            [2 * config.shift * part for part in shift],
            image.shape[:2],
            box,
        )
        image = _sampled(image, grid, "bicubic")
        mask = foreground[..., None].astype(np.float32)
        foreground = _sampled(mask, grid, "nearest")[..., 0] > 0.5
    else:
        image, foreground = box.of(image), box.of(foreground)
    if config.lights:
        contrast, brightness = rng.uniform(-1, 1, 2)
        gain = np.float32((1 + config.contrast) ** contrast)
        image = (image - middle) * gain + middle + np.float32(config.brightness * brightness)
    return np.clip(image, 0, 1), foreground


def _grid(
    angle: float, zoom: float, shift: list[float], shape: tuple[int, ...], box: Box
) -> Tensor:
    """Where each pixel of a box is taken from, [1, h, w, 2], the sides of the image at -1 and 1.

    The turn is one of pixels, whatever the aspect ratio; the shift is relative to each side.
    """
    across, down = shift
    height, width = shape
    y = (2 * (torch.arange(box.height) + box.top) + 1)[:, None] / height - 1
    x = (2 * (torch.arange(box.width) + box.left) + 1)[None] / width - 1
    from_x = cos(angle) / zoom * x - sin(angle) / zoom * height / width * y + across
    from_y = sin(angle) / zoom * width / height * x + cos(angle) / zoom * y + down
    return torch.stack([from_x, from_y], dim=-1)[None]


def _sampled(image: np.ndarray, grid: Tensor, mode: str) -> np.ndarray:
    """An image [H, W, C] at the points of a grid."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    sampled = functional.grid_sample(
        planes, grid, mode=mode, padding_mode="reflection", align_corners=False
    )
    return sampled[0].permute(1, 2, 0).numpy()
