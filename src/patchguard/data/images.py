"""Image files in and out: values in [0, 1], whatever the file's format, depth or mode."""

from __future__ import annotations

import hashlib
import math
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from patchguard.arrays import BoolArray, FloatArray
from patchguard.errors import PatchGuardError
from patchguard.files import printable

SUFFIXES = frozenset(
    (
        ".bmp",
        ".gif",
        ".j2k",
        ".jfif",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".jpx",
        ".pbm",
        ".pgm",
        ".png",
        ".pnm",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    )
)
UNREAD_SUFFIXES = frozenset(
    (
        ".arw",
        ".avi",
        ".avif",
        ".cr2",
        ".cr3",
        ".dcm",
        ".dng",
        ".eps",
        ".exr",
        ".hdr",
        ".heic",
        ".heif",
        ".ico",
        ".jxl",
        ".mkv",
        ".mov",
        ".mp4",
        ".nef",
        ".nii",
        ".pdf",
        ".pfm",
        ".psd",
        ".raw",
        ".svg",
        ".tga",
    )
)
"""Files that hold pictures, but none that are read here: said to be left out, one by one."""

# Naming the decoders keeps Pillow from trying others on a foreign file (EPS runs Ghostscript).
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM", "GIF")
_LOSSY_FORMATS = ("JPEG", "MPO", "WEBP", "JPEG2000")
_ANIMATED_FORMATS = ("GIF", "PNG", "WEBP")
_SUBFILE_TYPE, _BITS_PER_SAMPLE, _PHOTOMETRIC = 254, 258, 262
_THUMBNAIL_OR_MASK = 0b101
_WHITE_IS_ZERO = 0

# What a decoder thinks of a file is of no use to a user; what is wrong with it is an error here.
# libtiff still prints a line of its own on some damaged files, "tempfile.tif: ...", beside ours:
# Pillow silences libtiff's warnings, offers no way to its errors, and to turn standard error away
# meanwhile would swallow what other threads write to it.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, order=True)
class ImageSource:
    """Where an image lies: a file and, where it holds several, which of them.

    Args:
        path: the file.
        frame: page or frame of the file, from 0.
        part: which of several images of the file it is, for people; empty for the only one.
        full_scale: the value that counts as white in images of more than 8 bits; None for the
            largest that their format holds.
    """

    path: Path
    frame: int = 0
    part: str = ""
    full_scale: float | None = None

    def __str__(self) -> str:
        return self.named(self.path)

    @property
    def animated(self) -> bool:
        """The first frame of several."""
        return self.part.startswith("first")

    def named(self, path: Path) -> str:
        """``path``, on one line, and the part."""
        return " ".join(filter(None, (printable(path), self.part)))


class Range(NamedTuple):
    """Values of an image as the file holds them, and the one that counts as white."""

    lowest: float
    highest: float
    full_scale: float


@dataclass(frozen=True)
class Pixels:
    """A decoded image, at one to four bytes a value, that becomes floats only where it is used.

    Args:
        values: [H, W, 3] uint8, or [H, W] grey of more than 8 bits or in floats.
        full_scale: the value that counts as 1.
        inverted: 0 is white.
    """

    values: npt.NDArray[Any]
    full_scale: float = 255
    inverted: bool = False

    @classmethod
    def of(cls, image: FloatArray) -> Pixels:
        """An image [H, W, 3] in [0, 1] that is in memory already."""
        return cls(image, 1)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.values.shape[:2]
        return height, width

    @property
    def deep(self) -> bool:
        """Of more than 8 bits a value."""
        return self.values.ndim == 2

    @property
    def blank(self) -> bool:
        """Of one colour all over."""
        return bool((self.values == self.values[:1, :1]).all())

    @property
    def range(self) -> Range:
        """What of its range the image uses."""
        return Range(float(self.values.min()), float(self.values.max()), self.full_scale)

    @property
    def digest(self) -> str:
        """The same for images of the same values, whatever their files are like."""
        found = hashlib.blake2b(f"{self.values.shape} {self.full_scale}".encode(), digest_size=16)
        found.update(np.ascontiguousarray(self.values).data)
        return found.hexdigest()

    def rows(self, first: int, last: int) -> FloatArray:
        """Rows ``first`` to ``last`` (without it) as [rows, W, 3] in [0, 1]."""
        band = self._floats(self.values[first:last])
        return np.repeat(band[..., None], 3, axis=2) if self.deep else band

    def whole(self) -> FloatArray:
        """[H, W, 3] in [0, 1]."""
        return self.rows(0, self.shape[0])

    def resized(self, shape: tuple[int, int]) -> FloatArray:
        """Squashed to [H, W, 3] in [0, 1], [H, W] = ``shape``, antialiased bilinear.

        The aspect ratio is not kept. Computed in floating point: 16-bit images keep their depth.
        """
        if self.deep:
            grey = np.clip(_resize(self._floats(self.values), shape), 0.0, 1.0)
            return np.repeat(grey[..., None], 3, axis=2)
        channels = [_resize(self._floats(self.values[..., channel]), shape) for channel in range(3)]
        return np.clip(np.stack(channels, axis=2), 0.0, 1.0)

    def _floats(self, values: npt.NDArray[Any]) -> FloatArray:
        scaled = values.astype(np.float32) / np.float32(self.full_scale)
        return 1 - scaled if self.inverted else scaled


def sources_in(path: Path, full_scale: float | None = None) -> tuple[ImageSource, ...]:
    """The images that a file holds.

    Each page of a TIFF is one, but for thumbnails and transparency masks. Of an animation (GIF,
    PNG, WebP) the first frame is read, and named so; the preview in an MPO is left out.

    Raises:
        PatchGuardError: as :func:`read_pixels`.
    """
    try:
        with path.open("rb") as file:
            image = Image.open(file, formats=_FORMATS)
            count = getattr(image, "n_frames", 1)
            if image.format == "TIFF" and count > 1:
                pages = _pages(image, count)
                if len(pages) > 1:
                    return tuple(
                        ImageSource(path, page, f"page {page + 1} of {count}", full_scale)
                        for page in pages
                    )
                return (ImageSource(path, pages[0], full_scale=full_scale),)
            animated = image.format in _ANIMATED_FORMATS and count > 1
            part = f"first of {count} frames" if animated else ""
            return (ImageSource(path, 0, part, full_scale),)
    except Exception as error:  # decoders raise whatever they stumble over
        raise PatchGuardError(f"{path}: {_fault(error)}") from error


def _pages(image: Image.Image, count: int) -> list[int]:
    pages = []
    for page in range(count):
        image.seek(page)
        tags: Any = getattr(image, "tag_v2", {})
        if not tags.get(_SUBFILE_TYPE, 0) & _THUMBNAIL_OR_MASK:
            pages.append(page)
    return pages or [0]


def read_pixels(source: ImageSource | Path) -> Pixels:
    """Read an image as it is meant to be seen: PNG, JPEG, BMP, TIFF, WebP, JPEG 2000, PNM or GIF.

    EXIF orientation is applied. 8-bit values are divided by 255, 16-bit grey by 65535, 12-bit TIFF
    by 4095; 16-bit colour is read at 8 bits per channel (Pillow's limit). 32-bit integers must lie
    in 0..65535 and are read as 16-bit, floats must lie in [0, 1]. The source's ``full_scale``
    replaces these ranges, save that of 8 bits. Grey becomes three equal channels. Transparent
    pixels are composited on white, so that colours hidden under them never reach a detector.
    Colour profiles are ignored.

    Raises:
        PatchGuardError: the file is missing, damaged, cut short, not an image, has more than
            twice ``PIL.Image.MAX_IMAGE_PIXELS`` pixels, or values out of their range.
    """
    source = _as_source(source)
    image = _decode(source)
    if _is_deep_grey(image):
        return _deep_grey(image, source)
    return Pixels(_eight_bit_rgb(image))


def read_image(source: ImageSource | Path) -> FloatArray:
    """Read an image as :func:`read_pixels` does, as `[H, W, 3]` in [0, 1]."""
    return read_pixels(source).whole()


def read_mask(source: ImageSource | Path) -> BoolArray:
    """Read a mask at its own resolution; any value but zero marks a pixel, alpha does not count.

    In lossy formats only values above 127 count: compression rings around a region's edge, and
    counting those pixels would dilate the ground truth.

    Returns:
        `[H, W]`, True = marked.

    Raises:
        PatchGuardError: as :func:`read_pixels`, save for the range of the values.
    """
    image = _decode(_as_source(source))
    marked: BoolArray
    if _is_deep_grey(image):
        marked = np.asarray(image) != 0
    else:
        # By way of RGBA, so that dropping the alpha leaves the colours as they are.
        colours = np.asarray(image.convert("RGBA").convert("RGB"))
        threshold = 127 if image.format in _LOSSY_FORMATS else 0
        marked = np.any(colours > threshold, axis=2)
    return marked


def resize_image(image: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Squash an image `[h, w, 3]` in [0, 1] to `[H, W, 3]`: :meth:`Pixels.resized`."""
    return Pixels.of(image).resized(shape)


def resize_map(anomaly_map: FloatArray, shape: tuple[int, int]) -> FloatArray:
    """Resize an anomaly map `[h, w]` to `[H, W]` = ``shape``, bilinear, antialiased when smaller.

    Pixel centres as in ``torch.nn.functional.interpolate(align_corners=False)``. Maps are brought
    to the resolution of the ground truth; ground truth itself is never resized.
    """
    return _resize(anomaly_map, shape)


def save_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    """Write `[H, W, 3]` or `[H, W]` as a PNG, as it comes."""
    Image.fromarray(pixels).save(path, format="PNG")


def eight_bit(array: FloatArray | BoolArray) -> npt.NDArray[np.uint8]:
    """Values in [0, 1], clipped, as 0 to 255."""
    return np.rint(np.clip(array.astype(np.float32), 0.0, 1.0) * 255).astype(np.uint8)


def _as_source(source: ImageSource | Path) -> ImageSource:
    return ImageSource(source) if isinstance(source, Path) else source


def _decode(source: ImageSource) -> Image.Image:
    """Decode every pixel of one image of a file and turn it upright."""
    try:
        # Given a path, Pillow maps uncompressed grey TIFFs into memory and scrambles rotated ones.
        with source.path.open("rb") as file:
            # A PNG's checksums, which decoding alone does not look at.
            Image.open(file, formats=_FORMATS).verify()
            image = Image.open(file, formats=_FORMATS)
            image.seek(source.frame)
            image.load()
            with suppress(SyntaxError):  # broken EXIF data is no fault of the pixels
                ImageOps.exif_transpose(image, in_place=True)
            return image.convert("LA") if image.mode == "La" else image
    except Exception as error:  # decoders raise whatever they stumble over
        raise PatchGuardError(f"{source}: {_fault(error)}") from error


def _fault(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return (
            "not a readable PNG, JPEG, BMP, TIFF, WebP, JPEG 2000, PNM or GIF image; "
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


def _deep_grey(image: Image.Image, source: ImageSource) -> Pixels:
    """Grey of more than 8 bits."""
    tags: Any = getattr(image, "tag_v2", {})
    if source.full_scale is not None:
        full_scale = source.full_scale
    elif image.mode == "F":
        full_scale = 1
    elif image.mode == "I":
        full_scale = 65535
    else:
        full_scale = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    # Pillow inverts such files at 8 bits but not above.
    pixels = Pixels(np.array(image), full_scale, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO)
    lowest, highest, _ = pixels.range
    if not (lowest >= 0 and highest <= full_scale and math.isfinite(highest)):
        allowed = f"0 to {full_scale:g}" if math.isfinite(full_scale) else "finite ones from 0 up"
        raise PatchGuardError(
            f"{source}: values from {lowest:g} to {highest:g}, expected {allowed}; "
            "save it as an 8- or 16-bit image, or train with --full-scale"
        )
    return pixels


def _eight_bit_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _resize(channel: FloatArray, shape: tuple[int, int]) -> FloatArray:
    height, width = shape
    source = Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32))
    return np.array(source.resize((width, height), Image.Resampling.BILINEAR))
