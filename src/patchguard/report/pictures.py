"""Pixels as data URIs, small enough that a whole gallery stays in one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from PIL import Image, UnidentifiedImageError

from patchguard.errors import PatchGuardError

_Floats = npt.NDArray[np.floating]

COLOURS = colormaps["inferno"]
LARGEST_SIDE = 192
LARGEST_GRID = 1400
JPEG_QUALITY = 88


@dataclass(frozen=True)
class ColourScale:
    """The raw map values at the two ends of the colours; what lies beyond is clipped."""

    low: float
    high: float

    @classmethod
    def over(cls, maps: Sequence[_Floats]) -> ColourScale:
        """One scale for maps `[K, H, W]`, without the outermost 0.5 % at either end."""
        values = np.concatenate([shown.ravel() for shown in maps])
        finite = values[np.isfinite(values)]
        low, high = np.quantile(finite, [0.005, 0.995]) if finite.size else (0.0, 0.0)
        return cls(float(low), float(high) if high > low else float(low) + 1.0)

    @staticmethod
    def gradient() -> str:
        """The colours from low to high as CSS."""
        stops = COLOURS(np.linspace(0, 1, 9), bytes=True)[:, :3]
        return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in stops)


def picture(image: _Floats) -> str:
    """An image `[H, W, 3]` in [0, 1] as a JPEG."""
    return _jpeg(_limited(Image.fromarray(_bytes(image)), Image.Resampling.LANCZOS))


def perturbation(attacked: _Floats, image: _Floats, factor: float) -> str:
    """What an attack added to an image `[H, W, 3]`, times ``factor``, around mid-grey."""
    shown = 0.5 + factor * (attacked.astype(np.float64) - image)
    # Nearest: averaging neighbours would show less than was added.
    return _jpeg(_limited(Image.fromarray(_bytes(shown)), Image.Resampling.NEAREST))


def mask(truth: _Floats) -> str:
    """Coverage `[H, W]` in [0, 1] as a grey PNG."""
    return _png(_limited(Image.fromarray(_bytes(truth)), Image.Resampling.BOX))


def heat_map(anomaly_map: _Floats, scale: ColourScale) -> str:
    """An anomaly map `[H, W]` in the colours of the scale."""
    share = (np.nan_to_num(anomaly_map) - scale.low) / (scale.high - scale.low)
    levels = _limited(Image.fromarray(_bytes(share)), Image.Resampling.BILINEAR)
    levels = levels.convert("P")
    levels.putpalette(COLOURS(np.arange(256), bytes=True)[:, :3].tobytes())
    return _png(levels)


def picture_grid(path: Path) -> str:
    """A picture file as a JPEG of limited width.

    Raises:
        PatchGuardError: the file is not a picture.
    """
    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, UnidentifiedImageError) as fault:
        raise PatchGuardError(f"{path} is damaged: delete it or fit again") from fault
    picture.thumbnail((LARGEST_GRID, 4 * LARGEST_GRID), Image.Resampling.LANCZOS)
    return _jpeg(picture)


def magnification(eps: float) -> int:
    """The whole factor that spreads perturbations of up to ``eps`` over the grey values."""
    return max(1, int(0.5 / eps + 1e-9)) if eps > 0 else 1


def _bytes(values: _Floats) -> npt.NDArray[np.uint8]:
    return np.rint(np.clip(values.astype(np.float64), 0, 1) * 255).astype(np.uint8)


def _limited(picture: Image.Image, resampling: Image.Resampling) -> Image.Image:
    scale = LARGEST_SIDE / max(picture.size)
    if scale >= 1:
        return picture
    width, height = (max(1, round(scale * side)) for side in picture.size)
    return picture.resize((width, height), resampling)


def _jpeg(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    # No chroma subsampling: it would blur the colours of a perturbation.
    # Not "optimize" either: Pillow then needs the whole file in a buffer that noise overflows.
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return _data_uri("jpeg", buffer)


def _png(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return _data_uri("png", buffer)


def _data_uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
