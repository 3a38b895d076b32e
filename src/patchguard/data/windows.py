"""Windows of images in training: where they lie, and the whole squeezed into one."""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from patchguard.arrays import BoolArray, FloatArray

_Values = TypeVar("_Values", bound=np.generic)


class Box(NamedTuple):
    """A rectangle of pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, image: NDArray[_Values]) -> NDArray[_Values]:
        """What of an image [H, W, ...] lies in it."""
        return image[self.top : self.top + self.height, self.left : self.left + self.width]


WHOLE_PLACE = (0.0, 0.0, 1.0, 1.0)
"""The place of what shows the whole image: top, left, height and width as fractions of it."""


def place_of(box: Box, shape: tuple[int, ...]) -> tuple[float, float, float, float]:
    """The place of a box in an image of ``shape``."""
    height, width = shape
    return box.top / height, box.left / width, box.height / height, box.width / width


def squeezed(images: Tensor, window: int) -> Tensor:
    """Images [B, 3, H, W] squeezed to [B, 3, window, window], antialiased bilinear.

    Differentiable; those of that size already are returned as they are.
    """
    if images.shape[-2:] == (window, window):
        return images
    return functional.interpolate(
        images, (window, window), mode="bilinear", antialias=True, align_corners=False
    )


def squeezed_image(image: FloatArray, window: int) -> FloatArray:
    """:func:`squeezed` of an image [H, W, 3]."""
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))[None]
    return squeezed(planes, window)[0].permute(1, 2, 0).numpy()


def squeezed_mask(mask: BoolArray, window: int) -> BoolArray:
    """[H, W] to [window, window]: True wherever any of a pixel's area is."""
    area = functional.adaptive_avg_pool2d(torch.from_numpy(mask)[None].float(), window)[0]
    found: BoolArray = area.numpy() > 0
    return found


def box_around(
    mask: BoolArray, side: int, rng: np.random.Generator, *, anywhere: float = 0.0
) -> Box:
    """A square that shows a pixel of the mask near its middle, as far as the edges allow it.

    Args:
        mask: bool [H, W].
        side: of the square in pixels.
        rng: source of all randomness.
        anywhere: how often the square lies anywhere instead; always with an empty mask.
    """
    sides = [min(side, length) for length in mask.shape]
    inside = np.flatnonzero(mask)
    if not len(inside) or rng.random() < anywhere:
        begins = [rng.integers(room + 1) for room in np.array(mask.shape) - sides]
    else:
        pixel = np.unravel_index(inside[rng.integers(len(inside))], mask.shape)
        begins = [
            np.clip(at - rng.integers(part // 4, part - part // 4), 0, full - part)
            for at, full, part in zip(pixel, mask.shape, sides, strict=True)
        ]
    return Box(int(begins[0]), int(begins[1]), sides[0], sides[1])
