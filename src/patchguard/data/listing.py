"""What lies below a folder: images, files of other types, and what cannot be reached."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from patchguard.data.images import SUFFIXES, UNREAD_SUFFIXES
from patchguard.errors import PatchGuardError
from patchguard.files import absolute, counted, printable

MOST_NAMED = 5

Fault = tuple[Path, str]
"""A file, and why it cannot be used."""


@dataclass(frozen=True)
class Listing:
    """Every file below a folder that is not hidden, sorted by path.

    Args:
        images: by their suffix.
        others: files of other types, which nobody asked to have read.
        faults: links that lead nowhere or back to a folder above them, folders that cannot be
            opened, and pictures of a kind that is not read.
    """

    images: tuple[Path, ...]
    others: tuple[Path, ...] = ()
    faults: tuple[Fault, ...] = ()


def list_images(path: Path) -> Listing:
    """The file itself, or every file below a folder; links are followed.

    Raises:
        PatchGuardError: there is no such file or folder, or no image in it.
    """
    if path.is_file():
        return Listing((path,))
    found = list_folder(path)
    if not found.images:
        raise PatchGuardError(f"{path}: no images in this folder ({_all_told(found)})")
    return found


def list_folder(folder: Path) -> Listing:
    """Every file below a folder; links are followed, and hidden files are left out.

    Raises:
        PatchGuardError: there is no such folder.
    """
    if not folder.exists():
        raise PatchGuardError(f"{folder}: does not exist")
    if not folder.is_dir():
        raise PatchGuardError(f"{folder}: not a folder")
    files: list[Path] = []
    faults: list[Fault] = []
    left: list[tuple[Path, tuple[str, ...]]] = [(folder, (os.path.realpath(folder),))]
    while left:
        left += _entries(*left.pop(), files, faults)
    images: list[Path] = []
    others: list[Path] = []
    for path in files:
        if path.suffix.lower() in UNREAD_SUFFIXES:
            faults.append((path, "a kind of file that is not read; save it as PNG or TIFF"))
        else:
            (images if path.suffix.lower() in SUFFIXES and path.is_file() else others).append(path)
    faults.sort(key=lambda fault: fault[0].as_posix())
    return Listing(_sorted(images), _sorted(others), tuple(faults))


def others_told(listing: Listing, root: Path) -> Iterator[str]:
    """A line on the files of other types, where there are any."""
    if listing.others:
        told = named(listing.others, root)
        yield f"{counted(len(listing.others), 'file')} of other types not read: {told}"


def named(paths: Sequence[Path], root: Path) -> str:
    """The first few of many files, and how many more there are."""
    below = absolute(root)
    first = [printable(absolute(path).relative_to(below)) for path in paths[:MOST_NAMED]]
    more = len(paths) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _entries(
    folder: Path, above: tuple[str, ...], files: list[Path], faults: list[Fault]
) -> list[tuple[Path, tuple[str, ...]]]:
    """The folders in a folder, each with the real paths of it and of those above it."""
    try:
        names = [entry.name for entry in os.scandir(folder)]
    except OSError as error:
        faults.append((folder, f"cannot be opened ({error.strerror or error})"))
        return []
    folders = []
    for path in (folder / name for name in names if not name.startswith(".")):
        if _is_folder(path):
            real = os.path.realpath(path)
            if real in above:
                faults.append((path, "a link back to a folder above it; it is not followed"))
            else:
                folders.append((path, (*above, real)))
        elif _exists(path):
            files.append(path)
        else:
            faults.append((path, "a link that leads nowhere; mend or remove it"))
    return folders


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a link to itself, or a name too long for the system
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _sorted(paths: Iterable[Path]) -> tuple[Path, ...]:
    return tuple(sorted(paths, key=Path.as_posix))


def _all_told(found: Listing) -> str:
    if found.faults:
        path, reason = found.faults[0]
        return f"{printable(path.name)}: {reason}"
    told = f"{counted(len(found.others), 'file')} of other types; " if found.others else ""
    return f"{told}{', '.join(sorted(SUFFIXES))}"
