"""Where the windows of an image lie, how they are cut out, and how their logits become one map."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import ParamSpec, cast

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn import functional

from patchguard.data.windows import Box, place_of

P = ParamSpec("P")


def first_patches(patches: int, window: int, stride: int) -> list[int]:
    """Where windows begin that cover an axis evenly, at most ``stride`` apart.

    Args:
        patches: along the axis, at least ``window``.
        window: patches that a window covers.
        stride: most patches between the beginnings of neighbours.
    """
    last = patches - window
    gaps = math.ceil(last / stride)
    return [round(number * last / max(1, gaps)) for number in range(gaps + 1)]


def windows_over(shape: tuple[int, int], window: int, patch: int, stride: int) -> int:
    """How many windows cover an image of height and width ``shape`` in pixels."""
    counts = [
        len(first_patches(max(math.ceil(side / patch), window // patch), window // patch, stride))
        for side in shape
    ]
    return math.prod(counts)


def padded(images: Tensor, window: int, patch: int) -> Tensor:
    """Images [B, 3, H, W] mirrored below and to the right to whole patches, at least a window."""
    for axis in (2, 3):
        length = images.shape[axis]
        wanted = max(window, math.ceil(length / patch) * patch)
        if wanted > length:
            at = torch.arange(wanted, device=images.device) % (2 * length)
            images = images.index_select(axis, torch.minimum(at, 2 * length - 1 - at))
    return images


def cut(images: Tensor, rows: list[int], cols: list[int], window: int) -> Tensor:
    """Windows [B, R, C, 3, w, w] of images [B, 3, H, W], from their first rows and columns."""
    down, right = (_covered(tuple(axis), window, images.device) for axis in (rows, cols))
    strips = images.index_select(2, down).index_select(3, right)
    split = strips.reshape(*strips.shape[:2], len(rows), window, len(cols), window)
    return split.permute(0, 2, 4, 1, 3, 5)


def averaged(logits: Tensor, rows: list[int], cols: list[int], grid: tuple[int, int]) -> Tensor:
    """One map [B, h, w] of window logits [B, R, C, g, g]: the mean wherever windows overlap.

    Args:
        logits: of each window's patches.
        rows: the first patch row of each window.
        cols: the first patch column of each.
        grid: h and w, the patches of the map; those beyond it are left out.
    """
    side = logits.shape[-1]
    across = logits.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)
    down = _mean_of(tuple(rows), side, grid[0], across.device)
    right = _mean_of(tuple(cols), side, grid[1], across.device)
    return down.to(across.dtype) @ across @ right.to(across.dtype).T


def _kept(make: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """What a look at an image needs each time: made once for a device, fit for gradients."""

    def made(*arguments: P.args, **named: P.kwargs) -> Tensor:
        with torch.inference_mode(False):
            return make(*arguments, **named)

    return cast(Callable[P, Tensor], lru_cache(maxsize=64)(made))


@_kept
def _covered(first: tuple[int, ...], window: int, device: torch.device) -> Tensor:
    """The rows or columns that windows cover, one window after the other."""
    begins = torch.tensor(first, device=device)
    return (begins[:, None] + torch.arange(window, device=device)).flatten()


@_kept
def places(
    rows: tuple[int, ...],
    cols: tuple[int, ...],
    window: int,
    shape: tuple[int, int],
    device: torch.device,
) -> Tensor:
    """The places [R, C, 4] of windows, from their first rows and columns, in an image of ``shape``.

    See :func:`patchguard.data.windows.place_of`.
    """
    return torch.tensor(
        [[place_of(Box(row, col, window, window), shape) for col in cols] for row in rows],
        device=device,
    )


@_kept
def _mean_of(first: tuple[int, ...], side: int, length: int, device: torch.device) -> Tensor:
    """The matrix [length, n·side] that averages what n windows say of each patch of an axis."""
    matrix = np.zeros((length, len(first) * side), dtype=np.float32)
    for number, begin in enumerate(first):
        for offset in range(min(side, length - begin)):
            matrix[begin + offset, number * side + offset] = 1
    return torch.from_numpy(matrix / matrix.sum(1, keepdims=True)).to(device)


@_kept
def spreading(whole: int, patches: int, patch: int, pixels: int, device: torch.device) -> Tensor:
    """The matrix [patches, whole] from an axis of what sees the whole to one of finer patches.

    Linear between the centres. ``pixels`` are the image's, which the whole spans; patches beyond it
    have what its last one has.
    """
    centres = (np.arange(patches) + 0.5) * patch / pixels * whole - 0.5
    weights = 1 - np.abs(np.clip(centres, 0, whole - 1)[:, None] - np.arange(whole))
    return torch.from_numpy(np.maximum(weights, 0).astype(np.float32)).to(device)


@_kept
def smoothing(
    patches: int, patch: int, pixels: int, sigma: float, radius: int, device: torch.device
) -> Tensor:
    """The matrix [pixels, patches] from an axis of patch logits to one of a smooth pixel map.

    Bilinear, then Gaussian blur with symmetric borders (scipy's ``reflect``); both are linear and
    separable. What the patches cover beyond the image is cut off.
    """
    bilinear = functional.interpolate(
        torch.eye(patches, dtype=torch.float64)[None], size=patches * patch, mode="linear"
    )[0].T[:pixels]
    blurred = gaussian_filter1d(bilinear.numpy(), sigma, axis=0, radius=radius, mode="reflect")
    return torch.from_numpy(np.ascontiguousarray(blurred, dtype=np.float32)).to(device)
