"""Arrays as files of images, whole or not at all, as predictions write them."""

from pathlib import Path

from patchguard.arrays import BoolArray, FloatArray
from patchguard.data.images import eight_bit, save_png
from patchguard.files import whole_file


def write_png(path: Path, array: FloatArray | BoolArray) -> None:
    """Write `[H, W, 3]` or `[H, W]`, floats in [0, 1] (clipped) or a mask."""
    with whole_file(path) as partial:
        save_png(partial, eight_bit(array))
