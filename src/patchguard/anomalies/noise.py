"""Smooth random fields."""

from __future__ import annotations

import numpy as np

from patchguard.arrays import FloatArray


def perlin(height: int, width: int, period: float, rng: np.random.Generator) -> FloatArray:
    """Gradient noise of zero mean (Perlin, "Improving Noise", SIGGRAPH 2002).

    Each pixel weighs the lattice nodes around it separably, so the whole field is two pairs of
    small matrix products.

    Args:
        height: rows of the field.
        width: columns of the field.
        period: pixels between lattice nodes.
        rng: draws the lattice's gradients and its offset against the pixels.

    Returns:
        Field `[height, width]` in [-1, 1].
    """
    row_weight, row_slope = _lattice(height, period, rng.random())
    col_weight, col_slope = _lattice(width, period, rng.random())
    angle = rng.uniform(0, 2 * np.pi, (row_weight.shape[1], col_weight.shape[1]))
    along_rows = row_slope @ np.sin(angle).astype(np.float32) @ col_weight.T
    along_cols = row_weight @ np.cos(angle).astype(np.float32) @ col_slope.T
    # The extreme of unit-gradient noise in the plane is sqrt(1/2).
    field: FloatArray = np.clip((along_rows + along_cols) * np.float32(np.sqrt(2)), -1, 1)
    return field


def _lattice(length: int, period: float, offset: float) -> tuple[FloatArray, FloatArray]:
    """Weight of each lattice node for each pixel, and the weight times their signed distance."""
    position = np.arange(length, dtype=np.float32) / np.float32(period) + np.float32(offset)
    nodes = np.arange(int(position[-1]) + 2, dtype=np.float32)
    distance = position[:, None] - nodes
    near = np.clip(1 - np.abs(distance), 0, 1)
    weight = near**3 * (near * (near * 6 - 15) + 10)
    return weight, weight * distance
