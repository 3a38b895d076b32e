"""Pictures that show what a detector is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import ndimage

from patchguard.arrays import FloatArray
from patchguard.data.images import eight_bit, resize_image, resize_map
from patchguard.files import whole_file
from patchguard.training.batches import Draw, TrainingImages

GALLERY_MARK = b"Software\0PatchGuard"
"""What every file of a gallery says near its start."""

_GREEN = (0.1, 0.8, 0.3)
_RED = (1.0, 0.15, 0.1)
_GAP = 2


def gallery(dataset: TrainingImages, *, images: int = 6, examples: int = 4) -> FloatArray:
    """One row per image: itself, foreground outlined, then pseudo-anomalies with outlined twins.

    The pseudo-anomalies are training examples of the end of a training: windows at the working
    resolution, and now and then the whole squeezed into one.

    Args:
        dataset: what training draws from.
        images: rows; fewer where there are fewer images.
        examples: pseudo-anomalies in a row.

    Returns:
        Grid float32 `[rows, cols, 3]` in [0, 1], white between the pictures.
    """
    rows = []
    for index in range(min(images, len(dataset))):
        row = [_fitted(dataset.images[index], dataset.foregrounds[index], dataset.window)]
        for draw in range(examples):
            item = dataset[Draw(draw, index, 1.0)]
            picture = item["anomalous"].permute(1, 2, 0).numpy()
            row += [picture, outlined(picture, item["mask"].numpy(), _RED)]
        rows.append(row)
    return _tiled(rows)


def _fitted(image: FloatArray, foreground: NDArray[np.bool_], side: int) -> FloatArray:
    """An image with its foreground outlined, its longer side ``side``, on a white square."""
    height, width = (
        max(1, round(side * length / max(image.shape[:2]))) for length in image.shape[:2]
    )
    small = resize_image(image, (height, width))
    shown = resize_map(foreground.astype(np.float32), (height, width)) > 0.5
    square = np.ones((side, side, 3), dtype=np.float32)
    square[:height, :width] = outlined(small, shown, _GREEN)
    return square


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
