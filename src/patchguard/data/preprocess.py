"""From an image as it was captured to what a detector takes, and back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from patchguard.arrays import FloatArray
from patchguard.data.images import ImageSource, Pixels, resize_map, sources_in
from patchguard.detector import to_tensor


@dataclass(frozen=True)
class Preprocessor:
    """What happens to every image before a detector sees it, in training and afterwards.

    Args:
        shape: height and width in pixels of the images that the detector takes.
        full_scale: the value that counts as white in images of more than 8 bits; None for the
            largest that their format holds.
    """

    shape: tuple[int, int]
    full_scale: float | None = None

    def sources(self, path: Path) -> tuple[ImageSource, ...]:
        """The images of a file; raises as :func:`patchguard.data.images.sources_in`."""
        return sources_in(path, self.full_scale)

    def __call__(self, image: Pixels) -> Tensor:
        """[3, H, W] in [0, 1], as the detector takes it."""
        return to_tensor(image.resized(self.shape))

    def back(self, anomaly_map: FloatArray, shape: tuple[int, int]) -> FloatArray:
        """A map [h, w] at the resolution of the image, [H, W] = ``shape``."""
        return resize_map(anomaly_map, shape)
