"""What the operating system and file system allow here, for tests that need it."""

import os
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest


def _allows_links() -> bool:
    with TemporaryDirectory() as folder:
        try:
            (Path(folder) / "link").symlink_to(folder)
        except OSError:
            return False
    return True


def _allows(name: bytes) -> bool:
    with TemporaryDirectory() as folder:
        try:
            (Path(folder) / os.fsdecode(name)).touch()
        except (OSError, ValueError):
            return False
    return True


needs_links = pytest.mark.skipif(not _allows_links(), reason="no links here")
needs_bytes = pytest.mark.skipif(not _allows(b"n\xff\n"), reason="no names of any bytes here")


def named(names: Iterable[bytes]) -> list[Any]:
    """Parameters of a test; names that cannot be here are skipped."""
    return [
        pytest.param(name, marks=pytest.mark.skipif(not _allows(name), reason="no such name here"))
        for name in names
    ]
