"""Files on disk: names that can be shown, writes that are whole or not at all, one writer a folder.

A write goes to a hidden file beside its target and takes the target's place when it is complete:
whoever reads meets the former content or the new one, also after a crash.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from patchguard.errors import PatchGuardError

LOCK = ".lock"
LONGEST_NAME = 255
"""Bytes that a name may have on every common file system."""
_UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_UNENCODABLE = re.compile(r"[\ud800-\udfff]")
_PARTIAL = re.compile(r"\.[0-9a-f]{8}\.\d+\.tmp")
_FORMULA = re.compile(r"[=+\-@]")


def printable(name: str | os.PathLike[str]) -> str:
    r"""A path or a text on one line, in characters that every encoding and parser takes.

    Bytes that are not UTF-8 become ``\xff``; line breaks and other control characters, and those
    that turn the direction of text, become ``\n``, ``\x1b``, ``\u202e``.
    """
    text = os.fspath(name)
    return text if text.isprintable() else _UNSHOWN.sub(_escaped, text)


def encodable(text: str) -> str:
    r"""A text of any number of lines that UTF-8 can hold: other bytes become ``\xff``."""
    return _UNENCODABLE.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    character = found[0]
    if "\udc80" <= character <= "\udcff":  # a byte that Python could not decode
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def counted(number: int, what: str) -> str:
    """Such as ``1 image``, ``2 images``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def absolute(path: Path) -> Path:
    """The path from the root, without ``..``; links in it stay as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def resolved(path: str | Path) -> Path:
    """The path without links; one that leads back to itself stays as it is."""
    return Path(os.path.realpath(path))


def csv_cell(path: str | os.PathLike[str]) -> str:
    """A path as a cell that no spreadsheet takes for a formula: ``./=1.png`` for ``=1.png``."""
    text = printable(path)
    return f".{os.sep}{text}" if _FORMULA.match(text) else text


def short_name(name: str, suffix: str) -> str:
    """``name`` with ``suffix``, cut where a file system would refuse it, and then told apart.

    A cut name ends in ``~`` and 8 digits of its digest before the suffix.
    """
    whole = f"{name}{suffix}"
    if len(os.fsencode(whole)) <= LONGEST_NAME:
        return whole
    end = f"~{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}{suffix}"
    cut = os.fsencode(name)[: LONGEST_NAME - len(os.fsencode(end))]
    # A character cut in two is dropped, so that the name stays readable.
    return os.fsdecode(cut.decode("utf-8", "ignore").encode() or cut) + end


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, whole or not at all; text as UTF-8 with ``\\n`` line ends.

    Raises:
        PatchGuardError: it cannot be written; what was there stays.
    """
    with whole_file(path) as partial:
        partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden file to write to, which takes the place of ``path`` when it is complete.

    Raises:
        PatchGuardError: it cannot be written; what was there stays.
    """
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    # Hidden, so that no scan of the folder meets half a file; short, as the name may be long.
    partial = path.with_name(f".{digest}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise PatchGuardError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        _remove(partial)


def is_partial(path: Path) -> bool:
    """A file that a killed :func:`write_whole` left behind."""
    return _PARTIAL.fullmatch(path.name) is not None


def remove_partials(files: Iterable[Path]) -> None:
    """Remove those that killed writes left behind; the caller holds the lock of their folder."""
    for path in files:
        if is_partial(path):
            _remove(path)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:  # the folder itself is not what it should be; the first error says so
        return


@contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which ends with the process however that ends.

    Raises:
        PatchGuardError: another process holds it, or the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise PatchGuardError(
            f"{folder}: another patchguard command is writing here; wait for it or choose another "
            "folder"
        ) from None
    except OSError as error:
        raise PatchGuardError(f"{folder}: cannot be written ({error.strerror or error})") from error
    try:
        yield
    finally:
        lock.release()
