"""A normal image as it might also have been taken: moved a little, in slightly other light."""

from __future__ import annotations

from math import cos, radians, sin

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from patchguard.config import AXES, DataConfig, VariationConfig


def varied(
    image: np.ndarray, foreground: np.ndarray, rng: np.random.Generator, config: DataConfig
) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """A normal image flipped and varied at random, as training does.

    Args:
        image: float32 [H, W, 3] in [0, 1].
        foreground: bool [H, W].
        rng: source of all randomness.
        config: which flips, each half of the time, and how much variation.

    Returns:
        An image and a foreground of the same shapes, types and ranges, and whether they were
        flipped vertically and horizontally.
    """
    flips = [axis in config.flips and rng.random() < 0.5 for axis in AXES]
    axes = tuple(axis for axis, flipped in enumerate(flips) if flipped)
    image, foreground = np.flip(image, axes), np.flip(foreground, axes)
    return *vary(image, foreground, rng, config.variation), flips


def vary(
    image: np.ndarray, foreground: np.ndarray, rng: np.random.Generator, config: VariationConfig
) -> tuple[np.ndarray, np.ndarray]:
    """A random variation of a normal image, and its foreground moved likewise.

    Shift, turn, zoom, in this order, then light. Every magnitude is uniform up to what the settings
    allow (of the logarithm, for factors). What comes in from outside the image is its reflection.

    Args:
        image: float32 [H, W, 3] in [0, 1].
        foreground: bool [H, W].
        rng: source of all randomness; nothing is drawn when nothing may vary.
        config: how far.

    Returns:
        An image and a foreground of the same shapes, types and ranges.
    """
    if config.moves:
        turn, zoom, *shift = rng.uniform(-1, 1, 4)
        grid = _grid(
            radians(config.rotation * turn),
            (1 + config.zoom) ** zoom,
            [2 * config.shift * part for part in shift],
            image.shape[:2],
        )
        image = _sampled(image, grid, "bicubic")
        mask = foreground[..., None].astype(np.float32)
        foreground = _sampled(mask, grid, "nearest")[..., 0] > 0.5
    if config.lights:
        contrast, brightness = rng.uniform(-1, 1, 2)
        gain = np.float32((1 + config.contrast) ** contrast)
        middle = image.mean(dtype=np.float32)
        image = (image - middle) * gain + middle + np.float32(config.brightness * brightness)
    return np.clip(image, 0, 1), foreground


def _grid(angle: float, zoom: float, shift: list[float], shape: tuple[int, ...]) -> Tensor:
    """Where each pixel is taken from, [1, H, W, 2], with the sides of the image at -1 and 1.

    The turn is one of pixels, whatever the aspect ratio; the shift is relative to each side.
    """
    across, down = shift
    height, width = shape
    theta = [
        [cos(angle) / zoom, -sin(angle) / zoom * (height / width), across],
        [sin(angle) / zoom * (width / height), cos(angle) / zoom, down],
    ]
    to_input = torch.tensor([theta], dtype=torch.float32)
    return functional.affine_grid(to_input, [1, 1, height, width], align_corners=False)


def _sampled(image: np.ndarray, grid: Tensor, mode: str) -> np.ndarray:
    """An image [H, W, C] at the points of a grid."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    sampled = functional.grid_sample(
        planes, grid, mode=mode, padding_mode="reflection", align_corners=False
    )
    return sampled[0].permute(1, 2, 0).numpy()
