"""The folder that predictions go to: what of it is ours, and what is done already.

``predictions.jsonl`` is a journal, a line for each thing as it happens: what the folder is for,
each file before it is written and with its digest, each row when its files are there, and the end.
So nothing that somebody else put there is ever removed or overwritten, and a stopped prediction is
continued from what it has.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from patchguard.data.images import ImageSource
from patchguard.errors import PatchGuardError
from patchguard.files import (
    absolute,
    csv_cell,
    remove_partials,
    sole_writer,
    whole_file,
    write_whole,
)

JOURNAL, TABLE, ROWS = "predictions.jsonl", "scores.csv", "scores.json"
OVERLAYS, MAPS = "overlays", "maps"
ERROR = "error"


@dataclass(frozen=True)
class Prediction:
    """What is said of one image.

    Attributes:
        image: the file; on one line, see :func:`patchguard.files.printable`.
        part: which image of a file that holds several, such as ``page 2 of 3``.
        score: raw image score, higher is more anomalous; None where there is none.
        p_value: conformal p-value: small where few held-out normals score as high.
        verdict: ``anomalous`` if the score exceeds the calibrated threshold, else ``normal``;
            ``error`` where no verdict could be found.
        overlay: the picture of the map over the image, relative to the folder of predictions.
        error: what could not be done, and what to do about it.
    """

    image: str
    part: str = ""
    score: float | None = None
    p_value: float | None = None
    verdict: str = ERROR
    overlay: str = ""
    error: str = ""


COLUMNS = [field.name for field in fields(Prediction)]


class PredictionFolder:
    """A folder of predictions that one command makes, in as many goes as it takes.

    Args:
        folder: need not exist.
        purpose: what tells this command from others: detector, inputs, options. As JSON.
    """

    def __init__(self, folder: Path, purpose: dict[str, Any]) -> None:
        self.folder = folder
        self._purpose = {"format": 1, **purpose}
        self._made: dict[str, set[str]] = {}
        self._done: dict[str, tuple[str, Prediction]] = {}
        self._former: frozenset[str] = frozenset()
        self._stack = ExitStack()

    def open(self, *, overwrite: bool) -> tuple[Path, ...]:
        """Make the folder ready.

        Args:
            overwrite: remove the predictions that are there.

        Returns:
            Files of the former predictions that were left where they are, as somebody changed them.

        Raises:
            PatchGuardError: what is there is finished, of another command or not ours; or the
                folder cannot be written.
        """
        self._stack.enter_context(sole_writer(self.folder))
        lines = list(_lines(self.folder / JOURNAL))
        if lines:
            self._remove_partials()
        changed: tuple[Path, ...] = ()
        if not lines:
            self._refuse_foreign()
        elif overwrite:
            changed = self._remove_former(lines)
            lines = []
        else:
            self._take_up(lines)
        try:
            if not lines:  # whole, so that a kill leaves no journal that says nothing
                write_whole(self.folder / JOURNAL, json.dumps(self._purpose))
            self._journal = self._appending(JOURNAL)
            write_whole(self.folder / TABLE, _table(self.rows))
            self._table = self._appending(TABLE)
        except OSError as error:
            raise PatchGuardError(
                f"{self.folder}: cannot be written ({error.strerror or error})"
            ) from error
        return changed

    def close(self) -> None:
        """Let go of the folder; what is in it can be continued."""
        # A full disk was told where it was met: what is left in the buffers would tell it again.
        with suppress(OSError):
            self._stack.close()

    def holds(self, path: Path) -> bool:
        """The file is one that was made here, or was before it was overwritten."""
        below = absolute(path)
        root = absolute(self.folder)
        return below.is_relative_to(root) and below.relative_to(root).as_posix() in (
            self._made.keys() | self._former
        )

    def done(self, source: ImageSource) -> Prediction | None:
        """The row of an image that was finished before and has not changed since."""
        state, row = self._done.get(_place(source), (None, None))
        return row if state is not None and state == _state(source) else None

    @property
    def rows(self) -> list[Prediction]:
        """Those that are finished."""
        return [row for _, row in self._done.values()]

    def write(self, place: Path, write: Callable[[Path], None]) -> None:
        """Write a file, whole or not at all, and remember it.

        Args:
            place: relative to the folder.
            write: called with the path to write to.

        Raises:
            PatchGuardError: it cannot be written, or something is there that was not made here.
        """
        path, name = self.folder / place, place.as_posix()
        if os.path.lexists(path) and not _holds(path, self._made.get(name, set())):
            raise PatchGuardError(f"{path}: something else is there; move it away")
        with whole_file(path) as partial:
            write(partial)
            digest = _digest(partial)
            self._made.setdefault(name, set()).add(digest)
            self._note({"file": name, "sha256": digest})

    def add(self, source: ImageSource, prediction: Prediction) -> None:
        """Write the row of an image, whose files are there.

        Raises:
            PatchGuardError: the table cannot be written.
        """
        place, state = _place(source), _state(source)
        self._done.pop(place, None)  # that of what the file held before
        try:
            if not prediction.error and state is not None:
                self._note({"row": asdict(prediction), "key": f"{place} {state}"})
                self._done[place] = state, prediction
            _writer(self._table).writerow(_cells(prediction))
            self._table.flush()
        except OSError as error:
            raise PatchGuardError(
                f"{self.folder / TABLE}: cannot be written ({error.strerror or error}); what is "
                "in it stays, and the same command goes on from there"
            ) from error

    def finish(self, predictions: Sequence[Prediction]) -> None:
        """Write the whole table, in order; the folder is finished if nothing went wrong."""
        self.write_rows(predictions)
        write_whole(self.folder / TABLE, _table(predictions))
        if not any(prediction.error for prediction in predictions):
            self._note({"finished": True})

    def write_rows(self, predictions: Sequence[Prediction]) -> None:
        """Write ``scores.json``."""
        rows = json.dumps([asdict(row) for row in predictions], indent=2)
        write_whole(self.folder / ROWS, rows + "\n")

    def _appending(self, name: str) -> TextIO:
        file = (self.folder / name).open("a", newline="", encoding="utf-8")
        return self._stack.enter_context(file)

    def _note(self, line: dict[str, Any]) -> None:
        # On a line of its own, also where a kill cut the last one short.
        self._journal.write("\n" + json.dumps(line))
        self._journal.flush()

    def _remove_partials(self) -> None:
        """A kill leaves its hidden file where it was writing."""
        remove_partials(self.folder.glob(".*"))
        for below in (OVERLAYS, MAPS):
            remove_partials((self.folder / below).rglob(".*"))

    def _refuse_foreign(self) -> None:
        names = (JOURNAL, TABLE, ROWS, OVERLAYS, MAPS)
        there = [name for name in names if (self.folder / name).exists()]
        if there:
            raise PatchGuardError(
                f"{self.folder / there[0]} is in the way and not known to be of patchguard "
                "predict; move it away or choose another --out"
            )

    def _take_up(self, lines: list[dict[str, Any]]) -> None:
        """Go on from what the same command has done."""
        choose = "add --overwrite to replace them, or choose another --out"
        if lines[0] != self._purpose:
            raise PatchGuardError(
                f"{self.folder} holds predictions of another detector, of other images or with "
                f"other options; {choose}"
            )
        if lines[-1].get("finished"):
            raise PatchGuardError(f"{self.folder} holds finished predictions; {choose}")
        self._made = _files(lines)
        for line in lines:
            if "row" in line:
                place, *state = line["key"].rsplit(" ", 2)
                self._done[place] = " ".join(state), Prediction(**line["row"])

    def _remove_former(self, lines: list[dict[str, Any]]) -> tuple[Path, ...]:
        """Remove what the journal names, but for what was changed since."""
        changed, files = [], _files(lines)
        self._former = frozenset(files)
        for name, digests in files.items():
            path = self.folder / name
            if os.path.lexists(path):
                if _holds(path, digests):
                    path.unlink()
                else:
                    changed.append(path)
        for folder in (self.folder / OVERLAYS, self.folder / MAPS):
            _remove_empty(folder)
        for name in (TABLE, ROWS, JOURNAL):
            (self.folder / name).unlink(missing_ok=True)
        return tuple(changed)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a journal; one that a kill cut short is left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise PatchGuardError(f"{path}: cannot be read ({error.strerror or error})") from error
    for line in text.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict):
            yield found


def _files(lines: Iterable[dict[str, Any]]) -> dict[str, set[str]]:
    """The digests that each file has had, by name relative to the folder.

    A kill may leave the former file where the latest digest is noted already.
    """
    found: dict[str, set[str]] = {}
    for line in lines:
        if "file" in line:
            found.setdefault(line["file"], set()).add(line["sha256"])
    return found


def _place(source: ImageSource) -> str:
    return f"{absolute(source.path)} {source.frame}"


def _state(source: ImageSource) -> str | None:
    """What tells a file from what it was before; None where it is gone."""
    try:
        state = source.path.stat()
    except OSError:
        return None
    return f"{state.st_size} {state.st_mtime_ns}"


def _holds(path: Path, digests: Collection[str]) -> bool:
    """Whether this is a file of one of these digests; what cannot be read is not."""
    try:
        return _digest(path) in digests
    except OSError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remove_empty(folder: Path) -> None:
    for below in sorted(folder.rglob("*"), reverse=True):
        if below.is_dir() and not below.is_symlink() and not any(below.iterdir()):
            below.rmdir()
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _table(predictions: Iterable[Prediction]) -> str:
    text = io.StringIO()
    table = _writer(text)
    table.writeheader()
    table.writerows(_cells(prediction) for prediction in predictions)
    return text.getvalue()


def _writer(file: TextIO) -> csv.DictWriter[str]:
    return csv.DictWriter(file, COLUMNS, lineterminator="\n")


def _cells(prediction: Prediction) -> dict[str, Any]:
    """The row without anything that a spreadsheet takes for a formula."""
    paths = {name: csv_cell(getattr(prediction, name)) for name in ("image", "overlay")}
    return asdict(prediction) | paths
