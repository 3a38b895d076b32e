"""How much normal images may be changed in training and still look like normal images.

A changed image should lie among the normal images, not beside them. Parts that all lie alike leave
little room: turned by 10 degrees a plate is like no other plate. Heads differ so much among
themselves that a head turned by 10 degrees is just another head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from patchguard.config import AXES, DataConfig, VariationConfig
from patchguard.data.variation import vary

MOST_IMAGES = 64
"""More are not compared: distances grow with their square."""
_MOVEMENT = ("rotation", "zoom", "shift")
_LIGHT = ("contrast", "brightness")
_STRENGTHS = [tenths / 10 for tenths in range(10, 0, -1)]


def suited(config: DataConfig, images: Sequence[np.ndarray], seed: int) -> DataConfig:
    """The settings with those flips, and as much of the variation, as the images leave room for.

    Changed images may lie ``config.stray`` times as far from the nearest other normal image as
    normal images do: the medians, Euclidean. Each flip, the movement and the light are judged by
    themselves; movement and light are weakened in steps of a tenth.

    Args:
        config: what is asked for.
        images: normal images to train on, float32 [S, S, 3] in [0, 1], at least 2.
        seed: of the variation that is tried.

    Returns:
        The settings unchanged when ``config.stray`` is 0.
    """
    if not config.stray:
        return config
    chosen = np.linspace(0, len(images) - 1, min(len(images), MOST_IMAGES)).round().astype(int)
    normals = np.stack([images[index] for index in chosen])
    farthest = config.stray * _nearest(normals, normals)

    def near(changed: np.ndarray) -> bool:
        return _nearest(changed, normals) <= farthest

    def weakened(names: Sequence[str]) -> dict[str, float]:
        """As much of these changes together as there is room for."""
        for strength in _STRENGTHS:
            most = {name: round(strength * getattr(config.variation, name), 3) for name in names}
            if near(_varied(normals, VariationConfig(**most), seed)):
                return most
        return {}

    flips = [axis for axis in config.flips if near(np.flip(normals, 1 + AXES.index(axis)))]
    variation = VariationConfig(**weakened(_MOVEMENT), **weakened(_LIGHT))
    return replace(config, flips=flips, variation=variation)


def _varied(images: np.ndarray, config: VariationConfig, seed: int) -> np.ndarray:
    """Each image varied once, by draws that depend on the seed alone."""
    rng = np.random.default_rng(seed)
    nowhere = np.zeros(images.shape[1:3], dtype=bool)
    return np.stack([vary(image, nowhere, rng, config)[0] for image in images])


def _nearest(images: np.ndarray, normals: np.ndarray) -> float:
    """Median distance to the nearest normal image that an image was not made of."""
    changed, unchanged = (
        torch.from_numpy(part.reshape(len(part), -1)) for part in (images, normals)
    )
    distances = torch.cdist(changed, unchanged).fill_diagonal_(torch.inf)
    return float(distances.amin(1).quantile(0.5))
