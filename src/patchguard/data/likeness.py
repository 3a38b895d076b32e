"""How much normal images may be changed in training and still look like normal images.

A changed image should lie among the normal images, not beside them. Parts that all lie alike leave
little room: turned by 10 degrees a plate is like no other plate. Fabrics that are never in step
leave much. The rule knows distances only: where images differ for any reason, in light or in noise
too, they leave room for every change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from patchguard.config import AXES, DataConfig, VariationConfig
from patchguard.data.images import resize_image
from patchguard.data.stack import Stack
from patchguard.data.variation import vary

MOST_IMAGES = 64
"""More are not compared: distances grow with their square."""
FEWEST_IMAGES = 4
"""Of fewer nothing is said, and everything allowed."""
_SIDE = 64
_DRAWS = 4
_MOVEMENT = ("rotation", "zoom", "shift")
_LIGHT = ("contrast", "brightness")
_STRENGTHS = [tenths / 10 for tenths in range(10, 0, -1)]


def suited(config: DataConfig, images: Sequence[np.ndarray] | Stack) -> DataConfig:
    """The settings with those flips, and as much of the variation, as the images leave room for.

    A changed image may lie ``config.stray`` times as far (Euclidean, at the area of 64x64 px) from
    the nearest other normal image as the image itself does: the median over images. Each flip, the
    movement and the light are judged by themselves. Movement and light are weakened in steps of a
    tenth, and left out where a tenth is too much.

    Args:
        config: what is asked for.
        images: normal images to train on, float32 [H, W, 3] in [0, 1]. Equal ones count once.

    Returns:
        The settings unchanged when ``config.stray`` is 0 or fewer than 4 images differ.
    """
    if not config.stray:
        return config
    normals = _compared(images)
    if len(normals) < FEWEST_IMAGES:
        return config
    apart = _nearest(normals, normals)

    def near(*changed: np.ndarray) -> bool:
        distance = torch.stack([_nearest(each, normals) for each in changed]).mean(0)
        return float((distance / apart).quantile(0.5)) <= config.stray

    def weakened(names: Sequence[str]) -> dict[str, float]:
        """As much of these changes together as there is room for."""
        asked = {name: getattr(config.variation, name) for name in names}
        for strength in _STRENGTHS if any(asked.values()) else ():
            most = {name: round(strength * value, 3) for name, value in asked.items()}
            if near(*_varied(normals, VariationConfig(**most))):
                return most
        return {}

    flips = [axis for axis in config.flips if near(np.flip(normals, 1 + AXES.index(axis)))]
    variation = VariationConfig(**weakened(_MOVEMENT), **weakened(_LIGHT))
    return replace(config, flips=flips, variation=variation)


def _compared(images: Sequence[np.ndarray] | Stack) -> np.ndarray:
    """Those of the images that differ, at most 64 from all over them, small: [N, h, w, 3]."""
    chosen = np.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).round().astype(int)
    small = [_small(images[index]) for index in chosen]
    return np.stack(list({image.tobytes(): image for image in small}.values()))


def _small(image: np.ndarray) -> np.ndarray:
    """Of the image's own aspect ratio, as a turn of a squashed image shears what is in it."""
    height, width = image.shape[:2]
    scale = _SIDE / math.sqrt(height * width)
    return resize_image(image, (max(1, round(scale * height)), max(1, round(scale * width))))


def _varied(images: np.ndarray, config: VariationConfig) -> list[np.ndarray]:
    """All images, varied several times; the same draws every time."""
    rng = np.random.default_rng(0)
    nowhere = np.zeros(images.shape[1:3], dtype=bool)
    return [
        np.stack([vary(image, nowhere, rng, config)[0] for image in images]) for _ in range(_DRAWS)
    ]


def _nearest(images: np.ndarray, normals: np.ndarray) -> Tensor:
    """Distances [N] to the nearest of the normal images, but that which an image was made of."""
    changed, unchanged = (
        torch.from_numpy(part.reshape(len(part), -1)) for part in (images, normals)
    )
    distances = torch.cdist(
        changed, unchanged, compute_mode="donot_use_mm_for_euclid_dist"
    ).fill_diagonal_(torch.inf)
    return distances.amin(1)
