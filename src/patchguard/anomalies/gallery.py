"""Pictures that show what a detector is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from patchguard.anomalies.paste import make_pseudo_anomaly, sample_rng
from patchguard.arrays import FloatArray
from patchguard.config import DataConfig
from patchguard.data.images import eight_bit
from patchguard.data.variation import varied
from patchguard.errors import PatchGuardError
from patchguard.files import whole_file

GALLERY_MARK = b"Software\0PatchGuard"
"""What every file of a gallery says near its start."""

_GREEN = (0.1, 0.8, 0.3)
_RED = (1.0, 0.15, 0.1)
_GAP = 2


def gallery(
    images: Sequence[FloatArray],
    foregrounds: Sequence[NDArray[np.bool_]],
    config: DataConfig,
    *,
    seed: int,
    columns: int = 4,
) -> FloatArray:
    """One row per image: itself, its foreground outlined, pseudo-anomalies with outlined twins.

    Args:
        images: normal images float32 `[H, W, 3]` in [0, 1], all of one size.
        foregrounds: `[H, W]` of each image.
        config: how images are flipped and varied, and pseudo-anomalies made from them.
        seed: equal seeds give equal pictures.
        columns: pictures per row: two, and two for each pseudo-anomaly of the image.

    Returns:
        Grid float32 `[rows, cols, 3]` in [0, 1], white between the pictures.

    Raises:
        PatchGuardError: no image, or `columns` odd or below 4.
    """
    if not images:
        raise PatchGuardError("gallery: no images, give at least one.")
    if columns < 4 or columns % 2:
        raise PatchGuardError(f"gallery: columns={columns}, choose an even number of at least 4.")
    rows = []
    for index, (image, foreground) in enumerate(zip(images, foregrounds, strict=True)):
        row = [image, outlined(image, foreground, _GREEN)]
        for draw in range((columns - 2) // 2):
            rng = sample_rng(seed, draw, index)
            normal, its_foreground, _ = varied(image, foreground, rng, config)
            anomaly, mask = make_pseudo_anomaly(normal, its_foreground, rng, config.anomalies)
            row += [anomaly, outlined(anomaly, mask, _RED)]
        rows.append(row)
    return _tiled(rows)


def write_gallery(path: Path, grid: FloatArray) -> None:
    """Write a gallery as a PNG that says who made it.

    Raises:
        PatchGuardError: it cannot be written.
    """
    text = PngInfo()
    text.add_text("Software", "PatchGuard")
    with whole_file(path) as partial:
        Image.fromarray(eight_bit(grid)).save(partial, format="PNG", pnginfo=text)


def outlined(
    image: FloatArray, mask: NDArray[np.bool_], colour: tuple[float, float, float]
) -> FloatArray:
    """Copy of `image` `[H, W, 3]` with the pixels just outside the mask `[H, W]` coloured."""
    edge = ndimage.binary_dilation(mask, iterations=max(1, min(mask.shape) // 200)) & ~mask
    drawn = image.copy()
    drawn[edge] = colour
    return drawn


def _tiled(rows: list[list[FloatArray]]) -> FloatArray:
    """Pictures of one size in a grid with thin white gaps."""
    height, width = rows[0][0].shape[:2]
    cell_height, cell_width = height + _GAP, width + _GAP
    grid = np.ones(
        (len(rows) * cell_height + _GAP, len(rows[0]) * cell_width + _GAP, 3), dtype=np.float32
    )
    for top, row in enumerate(rows):
        for left, picture in enumerate(row):
            y, x = top * cell_height + _GAP, left * cell_width + _GAP
            grid[y : y + height, x : x + width] = picture
    return grid
