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

from patchguard.config import AXES, Axis, DataConfig, VariationConfig
from patchguard.data.images import resize_image
from patchguard.data.stack import Stack
from patchguard.data.variation import vary
from patchguard.data.windows import Box, box_around

MOST_IMAGES = 64
"""More are not compared: distances grow with their square."""
FEWEST_IMAGES = 4
"""Of fewer nothing is said, and everything allowed."""
_SIDE = 64
_DRAWS = 4
_PLACES = 4
_MOST_PIXELS = 2**24
_MOVEMENT = ("rotation", "zoom", "shift")
_LIGHT = ("contrast", "brightness")
_STRENGTHS = [tenths / 10 for tenths in range(10, 0, -1)]


def suited(
    config: DataConfig, images: Sequence[np.ndarray] | Stack, boxes: Sequence[Box] = ()
) -> DataConfig:
    """The settings with those flips, and as much of the variation, as the images leave room for.

    A changed image may lie ``config.stray`` times as far (Euclidean, at the area of 64x64 px) from
    the nearest other normal image as the image itself does: the median over images. Each flip, the
    movement and the light are judged by themselves. Movement and light are weakened in steps of a
    tenth, and left out where a tenth is too much.

    Args:
        config: what is asked for.
        images: normal images to train on, float32 [H, W, 3] in [0, 1]. Equal ones count once.
        boxes: squares of one size; a change must leave what each of them shows near enough. All of
            an image when absent.

    Returns:
        The settings unchanged when ``config.stray`` is 0 or fewer than 4 images differ.
    """
    if not config.stray:
        return config
    normals, boxes = _compared(images, boxes)
    if len(normals) < FEWEST_IMAGES:
        return config
    shown = [np.stack([box.of(image) for image in normals]) for box in boxes]
    apart = [_nearest(each, each) for each in shown]

    def near(*changes: Sequence[np.ndarray]) -> bool:
        """Of each change, what it leaves in each of the boxes: near in all of them."""
        for place, unchanged in enumerate(shown):
            found = torch.stack([_nearest(change[place], unchanged) for change in changes]).mean(0)
            # What is the same in two images, such as nothing, leaves room for no change of it.
            ratio = (found / apart[place]).nan_to_num(1.0, posinf=1e9)
            if float(ratio.quantile(0.5)) > config.stray:
                return False
        return True

    def flipped(axis: Axis) -> list[np.ndarray]:
        turned = np.flip(normals, 1 + AXES.index(axis))
        return [np.stack([box.of(image) for image in turned]) for box in boxes]

    def weakened(names: Sequence[str]) -> dict[str, float]:
        """As much of these changes together as there is room for."""
        asked = {name: getattr(config.variation, name) for name in names}
        for strength in _STRENGTHS if any(asked.values()) else ():
            most = {name: round(strength * value, 3) for name, value in asked.items()}
            if near(*_varied(normals, boxes, VariationConfig(**most))):
                return most
        return {}

    flips = [axis for axis in config.flips if near(flipped(axis))]
    variation = VariationConfig(**weakened(_MOVEMENT), **weakened(_LIGHT))
    return replace(config, flips=flips, variation=variation)


def boxes_on(foregrounds: Sequence[np.ndarray] | Stack, window: int) -> list[Box]:
    """Squares where normal images are compared window by window: mostly where their objects are.

    Args:
        foregrounds: bool [H, W] of each image.
        window: side of the squares in pixels.
    """
    rng = np.random.default_rng(0)
    chosen = np.linspace(0, len(foregrounds) - 1, _PLACES).round().astype(int)
    return [box_around(foregrounds[index], window, rng) for index in chosen]


def _compared(
    images: Sequence[np.ndarray] | Stack, boxes: Sequence[Box]
) -> tuple[np.ndarray, list[Box]]:
    """Those of the images that differ, at most 64 from all over them, small, and the boxes in them.

    [N, h, w, 3]. What is compared has the area of 64x64 px. Images of their own aspect ratio, as a
    turn of a squashed one shears what is in it.
    """
    height, width = images[0].shape[:2]
    area = boxes[0].height * boxes[0].width if boxes else height * width
    scale = min(1.0, _SIDE / math.sqrt(area)) if boxes else _SIDE / math.sqrt(area)
    shape = max(1, round(scale * height)), max(1, round(scale * width))
    most = max(FEWEST_IMAGES, min(MOST_IMAGES, _MOST_PIXELS // math.prod(shape)))
    chosen = np.linspace(0, len(images) - 1, min(len(images), most)).round().astype(int)
    small = [resize_image(images[index], shape) for index in chosen]
    normals = np.stack(list({image.tobytes(): image for image in small}.values()))
    whole = [Box(0, 0, *shape)]
    return normals, [_scaled(box, scale, shape) for box in boxes] or whole


def _scaled(box: Box, scale: float, shape: tuple[int, int]) -> Box:
    height, width = (
        min(round(scale * side), most)
        for side, most in zip((box.height, box.width), shape, strict=True)
    )
    top, left = (
        min(round(scale * begin), most - side)
        for begin, most, side in zip((box.top, box.left), shape, (height, width), strict=True)
    )
    return Box(top, left, height, width)


def _varied(
    images: np.ndarray, boxes: Sequence[Box], config: VariationConfig
) -> list[list[np.ndarray]]:
    """In each of the boxes all images, varied several times; the same draws every time."""
    nowhere = np.zeros(images.shape[1:3], dtype=bool)
    return [
        [
            np.stack(
                [
                    vary(image, nowhere, np.random.default_rng([draw, index]), config, box)[0]
                    for index, image in enumerate(images)
                ]
            )
            for box in boxes
        ]
        for draw in range(_DRAWS)
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
