"""Masks on disk, found again by what the image file holds and not by its name."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import numpy as np
from PIL import Image

from patchguard.arrays import BoolArray
from patchguard.data.images import ImageSource

MASKS_VERSION = 1
"""Part of every key: to be raised whenever a method, or the reading of images, changes masks."""

_LOG = logging.getLogger(__name__)


def default_store() -> Path:
    """``$XDG_CACHE_HOME/patchguard/foreground``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "patchguard" / "foreground"


def mask_key(source: ImageSource, method: str) -> str:
    """Name of a stored mask: depends on the image file's bytes and the method with its weights."""
    content = content_digest(source.path)
    if source.frame or source.full_scale is not None:
        content += f"|{source.frame}|{source.full_scale}"
    return hashlib.sha256(f"{MASKS_VERSION}|{method}|{content}".encode()).hexdigest()


def weights_tag(weights: Path | None, model: str) -> str:
    """What tells the weights of one model from others: the file's digest, or the hub's name."""
    return model if weights is None else f"{model}|{content_digest(weights)}"


def load_mask(store: Path, key: str) -> BoolArray | None:
    """The stored mask `[H, W]`, or None when there is none or it is damaged."""
    try:
        with Image.open(_entry(store, key), formats=("PNG",)) as image:
            image.load()
            return np.array(image) if image.mode == "1" else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except Exception as error:  # decoders raise whatever they stumble over
        _LOG.warning(
            "%s: cannot be read, the foreground mask is computed again (%s)",
            _entry(store, key),
            error,
        )
        return None


def save_mask(store: Path, key: str, mask: BoolArray) -> None:
    """Store a mask as a 1-bit PNG, whole or not at all; a store that cannot be written is no error.

    Works for several processes at once: the last one wins, with the same content.
    """
    entry = _entry(store, key)
    partial = entry.with_name(f".{entry.name}.{os.getpid()}.tmp")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(partial, format="PNG")
        partial.replace(entry)
    except OSError as error:
        _LOG.warning("%s: the foreground mask is not kept (%s)", entry, error.strerror or error)


def _entry(store: Path, key: str) -> Path:
    return store / key[:2] / f"{key}.png"


def content_digest(path: Path) -> str:
    """The sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
