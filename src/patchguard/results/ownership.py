"""Folders and files that the commands write: only their own, apart from the data, one at a time.

A folder is marked as ours before anything else is written into it, so that one whose making was
killed at any moment is known again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import yaml

from patchguard.errors import PatchGuardError
from patchguard.files import (
    LOCK,
    is_partial,
    remove_partials,
    resolved,
    sole_writer,
    write_whole,
)

MARKER = ".patchguard"
RUN, EVALUATION = "run", "evaluation"
FORMER = "former"
"""The folder, inside a run or an evaluation, of the results that others took the place of."""

_SAYS = 4096
"""First bytes of a file, in which one of ours says so."""


def claim(folder: Path, kind: str) -> None:
    """Mark a folder as ours; the caller holds its lock.

    Raises:
        PatchGuardError: see :func:`check_own`; or it cannot be written.
    """
    check_own(folder, kind)
    if not (folder / MARKER).exists():
        write_whole(folder / MARKER, f"{kind}\n")


def check_own(folder: Path, kind: str) -> None:
    """Refuse a folder that holds what this tool did not write, or another kind of results.

    Raises:
        PatchGuardError: it is not empty and no ``kind`` of ours.
    """
    if folder.exists() and not folder.is_dir():
        raise PatchGuardError(f"{folder} is a file where a folder has to be; give another path")
    found = _kind(folder)
    if found is None and not _is_empty(folder):
        raise PatchGuardError(
            f"{folder} holds files and is no {kind} of patchguard: choose another --out, or move "
            "them away"
        )
    if found not in (None, kind):
        raise PatchGuardError(f"{folder} is {_SPOKEN[found]} already: choose another --out")


def check_apart(out: Path, data: Iterable[str | Path]) -> None:
    """Refuse to write where images are read.

    Raises:
        PatchGuardError: the file or folder is one of the data, or above or inside one.
    """
    for images in map(Path, data):
        if _within(out, images) or _within(images, out):
            raise PatchGuardError(
                f"--out {out} and the images in {images} share a folder: choose an --out that "
                "is neither above nor inside it"
            )


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold the lock of a run or an evaluation; that of a run is also that of its twin.

    Raises:
        PatchGuardError: another process writes there.
    """
    place = resolved(folder)
    above = place.parent
    twin = place.name == "twin" and _kind(above) == RUN
    with sole_writer(above if twin else folder):
        for each in (folder, folder / "twin"):
            remove_partials(each.glob(".*"))
        yield


def check_file(path: Path, option: str, marks: tuple[bytes, ...]) -> None:
    """Refuse to overwrite a file of somebody else.

    Args:
        path: what is going to be written.
        option: that names it.
        marks: of which a file of ours has one near its start.

    Raises:
        PatchGuardError: it is a folder, or a file without any of the marks.
    """
    if path.is_dir():
        raise PatchGuardError(f"{option} {path} is a folder; name a file")
    if not path.exists():
        return
    with path.open("rb") as file:
        start = file.read(_SAYS)
    if not any(mark in start for mark in marks):
        raise PatchGuardError(
            f"{option} {path} was not written by this command: move it away or choose another name"
        )


def keep_former(folder: Path, names: Iterable[str]) -> Path | None:
    """Copy results that are about to be replaced to a dated folder; the first one decides.

    Returns:
        That folder; None where there are no results, or a copy of them is kept already, as after
        a stop between copying and replacing.

    Raises:
        PatchGuardError: the copy cannot be written; nothing is replaced yet.
    """
    first, *others = names
    if not (folder / first).exists():
        return None
    content = (folder / first).read_bytes()
    if any(kept.read_bytes() == content for kept in (folder / FORMER).glob(f"*/{first}")):
        return None
    made = datetime.fromtimestamp((folder / first).stat().st_mtime)
    kept = _unused(folder / FORMER / f"{made:%Y-%m-%dT%H-%M-%S}")
    copying = kept.with_name(".copying")
    try:
        copying.mkdir(parents=True, exist_ok=True)
        for name in (first, *others):
            # What a killed copy left would pass for a part of this one.
            (copying / name).unlink(missing_ok=True)
            if (folder / name).exists():
                shutil.copy2(folder / name, copying / name)
        copying.rename(kept)
    except OSError as error:
        raise PatchGuardError(f"{kept}: cannot be written ({error.strerror or error})") from error
    return kept


def set_aside(folder: Path, names: Iterable[str]) -> None:
    """Move what an abandoned start left behind into a dated folder beside it."""
    left = [folder / name for name in names if (folder / name).exists()]
    if left:
        kept = _unused(folder / FORMER / f"{datetime.now():%Y-%m-%dT%H-%M-%S}")
        kept.mkdir(parents=True)
        for path in left:
            path.rename(kept / path.name)


_SPOKEN = {RUN: "a run", EVALUATION: "an evaluation of another detector"}


def _kind(folder: Path) -> str | None:
    """What a folder of ours holds; None for any other."""
    try:
        marked = (folder / MARKER).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        marked = ""
    return marked if marked in _SPOKEN else _unmarked_kind(folder)


def _unmarked_kind(folder: Path) -> str | None:
    """Folders of former versions have no mark."""
    if _holds(folder / "manifest.json", "model.safetensors"):
        return RUN
    try:
        content = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        if "recipe" in content["settings"]:
            return RUN
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        pass
    return EVALUATION if _holds(folder / "card.json", "patchguard_card") else None


def _holds(path: Path, key: str) -> bool:
    try:
        return key in json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def _is_empty(folder: Path) -> bool:
    if not folder.exists():
        return True
    return all(path.name == LOCK or is_partial(path) for path in folder.iterdir())


def _within(inner: Path, outer: Path) -> bool:
    """Whether it is the folder, or below it, whatever the spelling and the links."""
    place = resolved(inner)
    if resolved(outer) in (place, *place.parents):
        return True
    # Where case does not count, paths that differ may be one folder.
    return outer.exists() and any(
        above.exists() and above.samefile(outer) for above in (place, *place.parents)
    )


def _unused(path: Path) -> Path:
    number, free = 2, path
    while free.exists():
        free = path.with_name(f"{path.name}-{number}")
        number += 1
    return free
