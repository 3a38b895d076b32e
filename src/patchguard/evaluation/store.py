"""Finished work on disk, so that a stopped evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from patchguard import attacks
from patchguard.detector import Detector
from patchguard.errors import PatchGuardError
from patchguard.evaluation.test_set import TestSet


class Store:
    """Arrays by key below a folder of this detector, these images and this seed.

    Writing is atomic: a file is there whole or not at all. As a context it is locked: two
    evaluations do not share it.

    Args:
        root: folder for the stores of all evaluations.
        fingerprint: of everything but the attack that decides its result.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.folder = root / fingerprint[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")

    def __enter__(self) -> Self:
        """Lock.

        Raises:
            PatchGuardError: another evaluation works here.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise PatchGuardError(
                f"{self.folder}: another evaluation of the same detector and images is running"
            ) from None
        return self

    def __exit__(self, *raised: object) -> None:
        self._lock.release()

    def has(self, key: str) -> bool:
        """The array was saved."""
        return self._path(key).exists()

    def load(self, key: str) -> np.ndarray:
        """A saved array, mapped from disk and read where it is used."""
        array: np.ndarray = np.load(self._path(key), mmap_mode="r", allow_pickle=False)
        return array

    def save(self, key: str, array: np.ndarray) -> np.ndarray:
        """Save an array; returns it as :meth:`load` does."""
        path = self._path(key)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                np.save(file, array, allow_pickle=False)
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise PatchGuardError(
                f"{path}: cannot be written ({error.strerror or error}); what is finished is kept"
            ) from error
        return self.load(key)

    def drop(self, key: str) -> None:
        """Forget everything below a key; files of others, and what links point to, stay."""
        for folder, _, names in os.walk(self.folder / key, topdown=False):
            for name in names:
                if name.endswith((".npy", ".partial")):
                    (Path(folder) / name).unlink(missing_ok=True)
            with suppress(OSError):  # not empty
                Path(folder).rmdir()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.npy"


def digest(content: Any) -> str:
    """sha256 of anything that JSON can hold, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_digest() -> str:
    """sha256 over the source of all attacks: results of former code are not taken for its own."""
    found = hashlib.sha256()
    for path in sorted(Path(attacks.__file__).parent.rglob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def detector_digest(detector: Detector) -> str:
    """sha256 over names, shapes and values of the detector's weights and buffers."""
    found = hashlib.sha256(type(detector).__qualname__.encode())
    for name, tensor in sorted(detector.state_dict(keep_vars=False).items()):
        values = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tuple(values.shape)} {values.dtype}".encode())
        found.update(values.view(-1).float().numpy().tobytes())
    return found.hexdigest()


def images_digest(test: TestSet) -> str:
    """sha256 over the test images as the detector sees them, their names and their masks."""
    found = hashlib.sha256(os.fsencode("\n".join(test.names)))
    found.update(test.images.numpy().tobytes())
    for mask in test.masks or ():
        found.update(np.packbits(mask).tobytes())
    return found.hexdigest()
