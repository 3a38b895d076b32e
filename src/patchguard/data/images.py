"""Image files in and out: float32 arrays in [0, 1], whatever the file's format, depth or mode."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from patchguard.errors import PatchGuardError

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})

# Naming the decoders keeps Pillow from trying others on a foreign file (EPS runs Ghostscript).
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_LOSSY_FORMATS = ("JPEG", "MPO")
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0


def read_image(path: Path) -> FloatArray:
    """Read a PNG, JPEG, BMP or TIFF file as it is meant to be seen.

    EXIF orientation is applied. 8-bit values are divided by 255, 16-bit grey by 65535, 12-bit TIFF
    by 4095; 16-bit colour is read at 8 bits per channel (Pillow's limit). 32-bit integers must lie
    in 0..65535 and are read as 16-bit, floats must lie in [0, 1]. Grey becomes three equal
    channels. Transparent pixels are composited on white, so that colours hidden under them never
    reach a detector. Colour profiles are ignored. Of several frames or pages the first is read.

    Returns:
        `[H, W, 3]` in [0, 1].

    Raises:
        PatchGuardError: the file is missing, damaged, cut short, not an image, has more than
            twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, or values of no known range.
    """
    image = _decode(path)
    if _is_deep_grey(image):
        return np.repeat(_deep_grey(image, path)[..., None], 3, axis=2)
    return _eight_bit_rgb(image).astype(np.float32) / np.float32(255)


def read_mask(path: Path) -> BoolArray:
    """Read a mask at its own resolution; any value but zero marks a pixel, alpha does not count.

    In a JPEG only values above 127 count: compression rings around a region's edge, and counting
    those pixels would dilate the ground truth.

    Returns:
        `[H, W]`, True = marked.

    Raises:
        PatchGuardError: as :func:`read_image`, save for the range of the values.
    """
    image = _decode(path)
    marked: BoolArray
    if _is_deep_grey(image):
        marked = np.asarray(image) != 0
    else:
        # By way of RGBA, so that dropping the alpha leaves the colours as they are.
        colours = np.asarray(image.convert("RGBA").convert("RGB"))
        threshold = 127 if image.format in _LOSSY_FORMATS else 0
        marked = np.any(colours > threshold, axis=2)
    return marked


def resize_image(image: FloatArray, size: int) -> FloatArray:
    """Squash an image `[H, W, 3]` in [0, 1] to `[size, size, 3]`, antialiased bilinear.

    The aspect ratio is not kept. Computed in floating point: 16-bit images keep their depth.
    """
    channels = [_resize(image[..., channel], (size, size)) for channel in range(3)]
    return np.clip(np.stack(channels, axis=2), 0.0, 1.0)


def resize_map(anomaly_map: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Resize an anomaly map `[h, w]` to `[H, W]` = ``shape``, bilinear, antialiased when smaller.

    Pixel centres as in ``torch.nn.functional.interpolate(align_corners=False)``. Maps are brought
    to the resolution of the ground truth; ground truth itself is never resized.
    """
    return _resize(anomaly_map, shape)


def write_png(path: Path, array: FloatArray | BoolArray) -> None:
    """Write an 8-bit PNG, whole or not at all.

    Args:
        array: float `[H, W, 3]` or `[H, W]` in [0, 1] (clipped), or a bool mask `[H, W]`.

    Raises:
        PatchGuardError: the file cannot be written.
    """
    pixels = np.rint(np.clip(array.astype(np.float32), 0.0, 1.0) * 255).astype(np.uint8)
    # Hidden, so that a scan of the folder never meets a half-written image.
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        Image.fromarray(pixels).save(partial, format="PNG")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise PatchGuardError(f"{path}: cannot be written ({error.strerror or error})") from error


def _decode(path: Path) -> Image.Image:
    """Decode every pixel of the first frame and turn it upright."""
    try:
        # Given a path, Pillow maps uncompressed grey TIFFs into memory and scrambles rotated ones.
        with path.open("rb") as file:
            # A PNG's checksums, which decoding alone does not look at.
            Image.open(file, formats=_FORMATS).verify()
            image = Image.open(file, formats=_FORMATS)
            image.load()
            with suppress(SyntaxError):  # broken EXIF data is no fault of the pixels
                ImageOps.exif_transpose(image, in_place=True)
            return image.convert("LA") if image.mode == "La" else image
    except Exception as error:  # decoders raise whatever they stumble over
        raise PatchGuardError(f"{path}: {_fault(error)}") from error


def _fault(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return (
            "not a readable PNG, JPEG, BMP or TIFF image; "
            "replace it, or save it again as an 8-bit PNG"
        )
    if isinstance(error, Image.DecompressionBombError):
        return "too many pixels; crop it or cut it into tiles"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror})"
    cause = " ".join(str(error).split()) or type(error).__name__
    return f"damaged or cut short ({cause}); replace or remove it"


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _deep_grey(image: Image.Image, path: Path) -> FloatArray:
    """Grey of more than 8 bits as `[H, W]` in [0, 1]."""
    tags: Any = getattr(image, "tag_v2", {})
    if image.mode == "F":
        full_scale = 1
    elif image.mode == "I":
        full_scale = 65535
    else:
        full_scale = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    values = np.asarray(image)
    lowest, highest = values.min(), values.max()
    if not (lowest >= 0 and highest <= full_scale):
        raise PatchGuardError(
            f"{path}: values from {lowest:g} to {highest:g}, expected 0 to {full_scale}; "
            "save it as an 8- or 16-bit image"
        )
    grey = values.astype(np.float32) / np.float32(full_scale)
    # Pillow inverts such files at 8 bits but not above.
    return 1 - grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey


def _eight_bit_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _resize(channel: FloatArray, shape: tuple[int, int]) -> FloatArray:
    height, width = shape
    source = Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32))
    return np.array(source.resize((width, height), Image.Resampling.BILINEAR))
