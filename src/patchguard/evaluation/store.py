"""Finished work on disk, so that a stopped evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

import numpy as np
from filelock import FileLock, Timeout

from patchguard.detector import Detector
from patchguard.errors import PatchGuardError
from patchguard.evaluation.outcome import Scored
from patchguard.evaluation.test_set import TestSet

DECIDING = (
    "attacks",
    "config.py",
    "constraints.py",
    "data/images.py",
    "data/preprocess.py",
    "data/samples.py",
    "data/windows.py",
    "detector.py",
    "evaluation/campaign.py",
    "evaluation/protocol.py",
    "evaluation/scoring.py",
    "evaluation/test_set.py",
    "evaluation/threat.py",
    "evaluation/worst_case.py",
    "integrations",
    "models",
    "runtime.py",
)
"""The code that decides what an attack finds: that of attacks and detectors, and what prepares
images, batches and seeds, scores, and picks the worst."""

_ROUNDING = 1e-5
"""How far the outputs of one detector lie apart, as a share of the largest: another number of
threads adds up in another order."""


class Store:
    """Arrays by key below a folder of this detector, these images and this seed.

    Writing is atomic: a file is there whole or not at all. As a context it is locked: two
    evaluations do not share it.

    Args:
        root: folder for the stores of all evaluations.
        fingerprint: of everything but the attack that decides its result.
    """

    def __init__(self, root: Path, fingerprint: str) -> None:
        self.folder = root / fingerprint
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


def store_of(root: Path, fingerprint: str, clean: Scored) -> Store:
    """The store of this fingerprint whose detector said the same of the clean images; or a new one.

    What it says stands for all that a fingerprint does not show. It is compared, not hashed: it
    is the same only up to rounding.

    Args:
        root: folder for the stores of all evaluations.
        fingerprint: of everything else that decides what attacks find.
        clean: what the detector says now.
    """
    stores = (Store(root, f"{fingerprint[:16]}-{number}") for number in count())
    return next(store for store in stores if not store.has("clean/scores") or _same(store, clean))


def keep_clean(store: Store, clean: Scored) -> None:
    """Have :func:`store_of` find a store by this the next time."""
    if not store.has("clean/scores"):
        store.save("clean/maps", clean.maps)
        store.save("clean/scores", clean.scores)


def _same(store: Store, clean: Scored) -> bool:
    return _close(store.load("clean/scores"), clean.scores) and _close(
        store.load("clean/maps"), clean.maps
    )


def _close(kept: np.ndarray, found: np.ndarray) -> bool:
    """Equal shapes, and equal up to rounding in every single value."""
    if kept.shape != found.shape:
        return False
    tolerance = _ROUNDING * max((float(np.abs(part).max()) for part in found), default=0.0)
    pairs = zip(kept, found, strict=True)
    return all(float(np.abs(old - new).max()) <= tolerance for old, new in pairs)


def digest(content: Any) -> str:
    """sha256 of anything that JSON can hold, 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def code_digest(package: Path | None = None) -> str:
    """sha256 over the code in :data:`DECIDING`: results of former code are not taken for its own.

    Args:
        package: folder of the code; that of this package when absent.
    """
    found = hashlib.sha256()
    for path in _deciding(package or Path(__file__).parents[1]):
        found.update(path.read_bytes())
    return found.hexdigest()


def _deciding(package: Path) -> Iterator[Path]:
    for name in DECIDING:
        path = package / name
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def detector_digest(detector: Detector) -> str:
    """sha256 over names, shapes and values of a detector's weights and buffers, and its settings.

    The settings are those that it shows (``extra_repr``).
    """
    found = hashlib.sha256(f"{type(detector).__qualname__} {detector.extra_repr()}".encode())
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
