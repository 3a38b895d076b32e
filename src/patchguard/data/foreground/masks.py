"""Foreground masks for the images of a training set."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from patchguard.arrays import BoolArray, FloatArray
from patchguard.config import ForegroundConfig, ForegroundMethod
from patchguard.data.foreground.border import border_mask
from patchguard.data.foreground.saliency import (
    ATTENTION_MODEL,
    GRADCAM_MODEL,
    attention_masks,
    gradcam_masks,
)
from patchguard.data.foreground.store import (
    MASKS_VERSION,
    content_digest,
    default_store,
    load_mask,
    mask_key,
    save_mask,
    weights_tag,
)
from patchguard.data.images import SUFFIXES, ImageSource, Pixels, read_mask, read_pixels
from patchguard.errors import PatchGuardError

# `auto` takes a set for one object when this share of its images looks like one, and the middle
# half of the foreground areas spans at most this factor.
_LEAST_OBJECT_SHARE, _MOST_AREA_SPREAD = 0.75, 2.0
_LEAST_AREA = 0.002

_LOG = logging.getLogger(__name__)


def chosen_method(
    sources: Sequence[ImageSource], config: ForegroundConfig, *, cache: Path | None = None
) -> ForegroundMethod:
    """The method that suits a training set: for ``auto``, what :func:`resolve_method` says.

    Raises:
        PatchGuardError: an image cannot be read.
    """
    if config.method != "auto":
        return config.method
    masks = _kept_masks(sources, "border", config, cache or default_store())
    method = _object_or_texture(masks)
    _LOG.info("foreground: auto chose %s", method)
    return method


def foreground_masks(
    sources: Sequence[ImageSource], config: ForegroundConfig, *, cache: Path | None = None
) -> Iterator[BoolArray]:
    """Foreground of every image of a training set, one after the other.

    Computed masks are kept in ``cache`` and found again by the content of the image file. Where
    nothing is found the whole image counts as foreground; a warning is logged with the count.

    Args:
        sources: images.
        config: the method, which is not ``auto``, and what it needs.
        cache: folder of the kept masks; by default ``$XDG_CACHE_HOME/patchguard/foreground`` or
            ``~/.cache/patchguard/foreground``.

    Returns:
        One mask `[H, W]` per image, at the image's own size.

    Raises:
        PatchGuardError: an image cannot be read, a given mask is missing or of another size, or
            the weights cannot be had.
    """
    if config.method == "full":
        return (np.ones(read_pixels(source).shape, bool) for source in sources)
    if config.method == "files":
        return _fill_empty(_given_mask(source, config) for source in sources)
    return _fill_empty(_kept_masks(sources, config.method, config, cache or default_store()))


def masks_decided_by(sources: Sequence[ImageSource], config: ForegroundConfig) -> str:
    """What tells the masks of these images from those that others settings or files give them.

    Raises:
        PatchGuardError: as :func:`foreground_masks`.
    """
    if config.method == "full":
        return "full"
    if config.method == "files":
        return " ".join(content_digest(_mask_file(source, config)) for source in sources)
    return f"{MASKS_VERSION} {_method_tag(config.method, config)}"


def foreground_mask(image: FloatArray, config: ForegroundConfig) -> BoolArray:
    """Foreground `[H, W]` of one image `[H, W, 3]` in [0, 1], everything where nothing is found.

    ``auto`` is decided on this image alone. Loads the network anew on each call: for many images
    use :func:`foreground_masks`.

    Raises:
        PatchGuardError: the method is ``files``, or the weights cannot be had.
    """
    method = resolve_method([image], config)
    if method == "full":
        return np.ones(image.shape[:2], bool)
    mask = _mask_function(method, config)(Pixels.of(image))
    return mask if mask.any() else ~mask


def resolve_method(images: Sequence[FloatArray], config: ForegroundConfig) -> ForegroundMethod:
    """The method itself, or for ``auto`` what suits a set of images `[H, W, 3]`.

    ``border`` where the border mask looks like one object in most images (large pieces, in the
    centre of the image rather than along its edge) and is of similar area in all; else ``full``.
    """
    if config.method != "auto":
        return config.method
    return _object_or_texture([border_mask(Pixels.of(image)) for image in images])


def _kept_masks(
    sources: Sequence[ImageSource],
    method: ForegroundMethod,
    config: ForegroundConfig,
    store: Path,
) -> Iterator[BoolArray]:
    """Masks from the store; the missing ones are computed, the network loaded only then."""
    tag = _method_tag(method, config)
    function: Callable[[Pixels], BoolArray] | None = None
    for source in sources:
        key = mask_key(source, tag)
        mask = load_mask(store, key)
        if mask is None:
            function = function or _mask_function(method, config)
            mask = function(read_pixels(source))
            save_mask(store, key, mask)
        yield mask


def _method_tag(method: ForegroundMethod, config: ForegroundConfig) -> str:
    if method == "border":
        return method
    model = GRADCAM_MODEL if method == "gradcam" else ATTENTION_MODEL
    return f"{method}|{weights_tag(_weights(config), model)}"


def _mask_function(
    method: ForegroundMethod, config: ForegroundConfig
) -> Callable[[Pixels], BoolArray]:
    match method:
        case "border":
            return border_mask
        case "gradcam":
            return gradcam_masks(_weights(config))
        case "attention":
            return attention_masks(_weights(config))
        case _:
            raise PatchGuardError(
                f"foreground.method={method} does not compute masks from images; "
                "choose border, gradcam or attention"
            )


def _weights(config: ForegroundConfig) -> Path | None:
    """The local weight file, None for the hub."""
    if config.weights is None:
        return None
    weights = Path(config.weights)
    if not weights.is_file():
        raise PatchGuardError(f"{weights}: no such file; correct foreground.weights")
    return weights


def _fill_empty(masks: Iterable[BoolArray]) -> Iterator[BoolArray]:
    count = empty = 0
    for mask in masks:
        count += 1
        empty += not mask.any()
        yield mask if mask.any() else ~mask
    if empty:
        _LOG.warning(
            "no foreground found in %d of %d images: all of each counts as foreground",
            empty,
            count,
        )


def _object_or_texture(masks: Iterable[BoolArray]) -> ForegroundMethod:
    small = [_at_most_256(mask).copy() for mask in masks]
    objects = np.mean([_looks_like_object(mask) for mask in small]) if small else 0.0
    if objects < _LEAST_OBJECT_SHARE:
        return "full"
    low, high = np.quantile([mask.mean() for mask in small], (0.25, 0.75))
    return "border" if high <= _MOST_AREA_SPREAD * low else "full"


def _at_most_256(mask: BoolArray) -> BoolArray:
    stride = max(1, min(mask.shape) // 256)
    return mask[::stride, ::stride]


def _looks_like_object(mask: BoolArray) -> bool:
    """A texture's outliers are as frequent along the edge as in the centre, or are specks."""
    if mask.mean() < _LEAST_AREA:
        return False
    components, _ = ndimage.label(mask)
    largest = np.bincount(components.ravel())[1:].max()
    if largest < 0.1 * mask.sum():
        return False
    edge, centre = _edge_and_centre(mask)
    return bool(edge.mean() < 0.5 * centre.mean())


def _edge_and_centre(mask: BoolArray) -> tuple[BoolArray, BoolArray]:
    """The pixels of a ring along the edge, and of the middle half of each side."""
    height, width = mask.shape
    ring = np.ones_like(mask)
    ring[height // 16 : -(height // 16) or None, width // 16 : -(width // 16) or None] = False
    quarter = (height // 4, width // 4)
    centre = mask[quarter[0] : height - quarter[0], quarter[1] : width - quarter[1]]
    return mask[ring], centre


def _given_mask(source: ImageSource, config: ForegroundConfig) -> BoolArray:
    path = _mask_file(source, config)
    mask = read_mask(replace(source, path=path))
    height, width = read_pixels(source).shape
    if mask.shape != (height, width):
        raise PatchGuardError(
            f"{path}: the mask is {mask.shape[1]}x{mask.shape[0]} pixels "
            f"and {source} {width}x{height}; give a mask of the image's size"
        )
    return mask


def _mask_file(source: ImageSource, config: ForegroundConfig) -> Path:
    if config.masks is None:
        raise PatchGuardError(
            "foreground.method=files needs the folder of the masks: give foreground.masks"
        )
    return _find_mask(Path(config.masks), source.path)


def _find_mask(folder: Path, path: Path) -> Path:
    for stem in (path.stem, f"{path.stem}_mask"):
        for suffix in sorted(SUFFIXES):
            for candidate in (folder / f"{stem}{suffix}", folder / f"{stem}{suffix.upper()}"):
                if candidate.is_file():
                    return candidate
    raise PatchGuardError(
        f"{folder}: no foreground mask for {path}; "
        f"add {path.stem}.png or {path.stem}_mask.png, or change foreground.masks"
    )
