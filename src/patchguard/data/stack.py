"""Many images of one size: in memory where they fit, else in a file that is mapped into it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from patchguard.errors import PatchGuardError
from patchguard.files import whole_file

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


def stacked(
    items: Iterable[npt.NDArray[Any]], shape: tuple[int, ...], dtype: npt.DTypeLike, name: str
) -> Stack:
    """Arrays of one shape as one, in memory or in a file of the cache.

    Args:
        items: as many as ``shape`` says, read once; not at all where the file is there already.
        shape: of the result, the number of items first.
        dtype: of its values.
        name: of the file: has to tell these items from any others.

    Raises:
        PatchGuardError: the disk is too small for the file.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if size <= IN_MEMORY:
        return _filled(np.empty(shape, dtype), items)
    path = default_cache() / f"{name}.npy"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        if free < size:
            raise PatchGuardError(
                f"{path.parent}: the training images need {size / 2**30:.1f} GB here and "
                f"{free / 2**30:.1f} GB are free; make room, or point XDG_CACHE_HOME to a larger "
                "disk"
            )
        with whole_file(path) as partial:
            array = np.lib.format.open_memmap(partial, "w+", np.dtype(dtype), shape)
            _filled(array, items).flush()
    return MappedArray(path)


ArrayT = TypeVar("ArrayT", bound=npt.NDArray[Any])


def _filled(array: ArrayT, items: Iterable[npt.NDArray[Any]]) -> ArrayT:
    for place, item in enumerate(items):
        array[place] = item
    return array
