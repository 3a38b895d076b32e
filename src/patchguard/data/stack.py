"""Many images of one size: in memory where they fit, else in a file that is mapped into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from patchguard.errors import PatchGuardError

IN_MEMORY = 2**30
"""Bytes up to which an array is held in memory."""


class MappedArray:
    """An array in a ``.npy`` file, read where it is used.

    Another process gets the path, not the values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._array: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._array.shape

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        return np.array(self._array[index])

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        return (self[index] for index in range(len(self)))

    def __reduce__(self) -> tuple[type[MappedArray], tuple[Path]]:
        return MappedArray, (self.path,)


Stack = npt.NDArray[Any] | MappedArray


def default_cache() -> Path:
    """``$XDG_CACHE_HOME/patchguard/images``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "patchguard" / "images"


def kept(name: str, cache: Path) -> MappedArray | None:
    """The array of that name, where it was made before."""
    path = cache / f"{name}.npy"
    return MappedArray(path) if path.is_file() else None


@contextmanager
def filling(
    name: str, shape: tuple[int, ...], dtype: npt.DTypeLike, cache: Path
) -> Iterator[list[Stack]]:
    """A new array to fill, in a list whose one entry is the filled one afterwards.

    Args:
        name: of the file, where the array does not fit into memory.
        shape: of the array.
        dtype: of its values.
        cache: folder for the file.

    Raises:
        PatchGuardError: the disk is too small for it.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        yield [np.empty(shape, dtype)]
        return
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if free < size:
        raise PatchGuardError(
            f"{cache}: the training images need {size / 2**30:.1f} GB here and {free / 2**30:.1f} "
            "GB are free; make room, or point XDG_CACHE_HOME to a larger disk"
        )
    path, partial = cache / f"{name}.npy", cache / f".{name}.{os.getpid()}.tmp"
    try:
        array = np.lib.format.open_memmap(partial, "w+", np.dtype(dtype), shape)
        found: list[Stack] = [array]
        yield found
        array.flush()
        partial.replace(path)
        found[0] = MappedArray(path)
    finally:
        partial.unlink(missing_ok=True)
