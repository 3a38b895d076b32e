"""What a command owes to a tree of files: nothing lost, nothing passed over, one line for a fault.

Every function here yields faults, in words that are equal for faults of one kind.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from unittest import mock

from hypothesis import strategies as st
from PIL import Image

from patchguard import cli
from patchguard.data import folder as data_folder
from patchguard.deploy import pipeline
from patchguard.errors import PatchGuardError
from patchguard.files import csv_cell, printable
from patchguard.reporter import Speaking
from trees import OUTSIDE, Tree

LOCK = ".lock"
_LOAD = pipeline.load_pipeline


Part = TypeVar("Part")


class Fault(NamedTuple):
    """Something that must not happen.

    Args:
        kind: equal for faults of one kind.
        detail: of this one.
    """

    kind: str
    detail: str


@dataclass(frozen=True)
class Found:
    """One thing in a tree, at the end of all links.

    Args:
        category: what it is, in words.
        paths: under which it is met; links give it more than one.
    """

    category: str
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Done:
    """What a command left: exit status (None = an exception came out), output, warnings."""

    status: int | None
    out: str
    err: str
    faults: tuple[Fault, ...]

    @property
    def told(self) -> str:
        return self.out + self.err


# What there is.


def snapshot(*roots: Path) -> dict[Path, str]:
    """Every file, link and folder with a digest of what is in it."""
    return {
        Path(place, name): _content(Path(place, name))
        for root in roots
        for place, folders, files in os.walk(root)
        for name in folders + files
    }


def _content(path: Path) -> str:
    if path.is_symlink():
        return f"link to {path.readlink()!r}"
    if path.is_dir():
        return "folder"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def changes(before: Mapping[Path, str], *roots: Path, made: Path | None) -> Iterator[Fault]:
    """Inputs that are gone or altered, and files that were not to be made.

    Args:
        made: what the command was to create, a folder or a file.
    """
    after = snapshot(*roots)
    for path, content in before.items():
        if path not in after:
            yield Fault("an input is removed", repr(path))
        elif after[path] != content:
            yield Fault("an input is overwritten", repr(path))
    for path in after.keys() - before.keys():
        if made not in (path, *path.parents) and path.name != LOCK:
            yield Fault("a file is left where none was asked for", repr(path))


def contents(root: Path) -> list[Found]:
    """What is below a folder and not hidden: links are followed, loops are cut."""
    by_end: dict[Path, list[tuple[Path, bool]]] = {}
    for path, linked in _walk(root, (root.resolve(),), False):
        if path.is_dir():
            continue
        end = path if _is_dangling(path) else path.resolve()
        by_end.setdefault(end, []).append((path, linked))
    return [
        Found(_category(end, all(linked for _, linked in met)), tuple(path for path, _ in met))
        for end, met in by_end.items()
    ]


def _walk(folder: Path, above: tuple[Path, ...], linked: bool) -> Iterator[tuple[Path, bool]]:
    """Files, and folders that lead back up; each with whether a linked folder is on the way."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if not path.is_dir() or path.resolve() in above:
            yield path, linked
        else:
            yield from _walk(path, (*above, path.resolve()), linked or path.is_symlink())


def _is_dangling(path: Path) -> bool:
    return path.is_symlink() and not path.exists()


_READ = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"}
_READABLE = {".webp", ".jp2", ".ppm", ".pgm", ".pbm", ".gif"}


_FILES = "a file of another type"
_FILES_OR_IMAGES = "a file of another type|an image( of another format)?( in a linked folder)?$"


def _category(end: Path, linked: bool) -> str:
    suffix = end.suffix.lower()
    if _is_dangling(end):
        what = "a link to nothing"
    elif suffix in _READ:
        what = "an image"
    elif suffix in _READABLE:
        what = "an image of another format"
    else:
        what = "a file of another type"
    return f"{what} in a linked folder" if linked else what


def pages(path: Path) -> int:
    """Pages that a TIFF file tells of, whether or not they can be read; 1 for everything else.

    What a file is, its content says: a TIFF may be named ``.bmp``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=["TIFF"]) as image:
                return int(getattr(image, "n_frames", 1))
    except Exception:
        return 1


# What is said of it.


def command(what: str, function: Callable[..., None], **arguments: Any) -> Done:
    """Run a command as the shell does, output encoded, exit status and all; no parsing.

    To build the parser takes longer than most commands on a few images.
    """

    def called(_: list[str]) -> int:
        function(**arguments)
        return 0

    out, err = (
        io.TextIOWrapper(io.BytesIO(), "utf-8", errors, newline="\n")
        for errors in ("strict", "backslashreplace")
    )
    status: int | None = None
    faults: list[Fault] = []
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(record=True) as caught,
        mock.patch.object(cli, "_run", called),
        mock.patch.object(pipeline, "load_pipeline", _loaded),
    ):
        warnings.simplefilter("always")
        # As in a process of its own: pytest takes away what reading images has asked for.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            status = cli.main([])
        except (Exception, SystemExit) as error:
            faults.append(escaped(what, error))
    faults += [Fault(f"{what}: a raw {w.category.__name__}", str(w.message)) for w in caught]
    told = []
    for file in (out, err):
        file.flush()
        buffer = file.buffer
        assert isinstance(buffer, io.BytesIO)
        told.append(buffer.getvalue().decode())
    return Done(status, told[0], told[1], tuple(faults))


@cache
def _loaded(*arguments: Any) -> Any:
    """A detector loaded once: loading takes longer than to inspect a few images."""
    return _LOAD(*arguments)


def escaped(what: str, error: BaseException) -> Fault:
    """An exception that no user should see, in words without names and numbers."""
    message = re.sub(r"'(?:[^'\\]|\\.)*'|\"[^\"]*\"", "…", " ".join(str(error).split()))
    # Names, numbers and characters are of this tree, not of the kind.
    message = re.sub(r"\S*[/\\\d]\S*", "…", message)[:70]
    where = traceback.extract_tb(error.__traceback__)[-1]
    kind = f"{what}: traceback: {type(error).__name__}: {message}"
    return Fault(kind, f"{error!r} in {Path(where.filename).name}, {where.name}")


def _shown(path: Path, root: Path) -> set[str]:
    """How a path may be written: with its folder or below it; raw is another matter."""
    below = path.relative_to(root)
    raw = {str(path), str(below)}
    raw |= {name.encode(errors="backslashreplace").decode() for name in raw}
    return {printable(path), printable(below), csv_cell(below), *raw}


def _is_shown(text: str) -> bool:
    """One line without control characters."""
    return printable(text) == text


def is_named(path: Path, root: Path, told: str) -> bool:
    """An output names a file of a tree, by a path that is no part of another's."""
    return any(
        re.search(rf"(?<![\w/]){re.escape(name)}(?!\w|/)", told) for name in _shown(path, root)
    )


def unnamed(found: list[Found], root: Path, told: str, counted: str) -> list[Found]:
    """Those that an output does not name; a list of files may end in "and 7 more".

    Args:
        counted: categories, as a pattern, that need not be named each.
    """
    left = [each for each in found if not any(is_named(path, root, told) for path in each.paths)]
    more = sum(int(number) for number in re.findall(r"and (\d+) more", told))
    others = [each for each in left if re.match(counted, each.category)]
    return [each for each in left if each not in others] if len(others) <= more else left


def lines(what: str, done: Done, root: Path) -> Iterator[Fault]:
    """What holds for every output: no raw names, a last line that says why it failed."""
    yield from done.faults
    for line in done.told.split("\n"):
        if not _is_shown(line):
            yield Fault(f"{what}: a control character on the terminal", repr(line))
    for path in {path for found in contents(root) for path in found.paths}:
        if "\n" in path.name and path.name in done.told:
            yield Fault(f"{what}: a name that breaks a line", repr(path.name))
    if done.status is not None and done.status not in (0, 1):
        yield Fault(f"{what}: exit status {done.status}", done.err)
    if done.status == 1 and not done.err.rstrip("\n").split("\n")[-1].startswith("patchguard: "):
        yield Fault(f"{what}: exit status 1 without a reason", done.err)


# predict


def predict_faults(
    run: Path, root: Path, out: Path, *, relative: bool, maps: bool, again: Path | None
) -> Iterator[Fault]:
    """Inspect a tree; once more into the same folder, where ``again`` names other images."""
    before = snapshot(root, root.parent / OUTSIDE)
    found = contents(root)
    place = Path() if relative else root
    with contextlib.chdir(root):
        done = command(
            "predict",
            cli.predict,
            run=str(run),
            images=str(place),
            out=str(out),
            maps=maps,
            reporter=Speaking(),
        )
    yield from lines("predict", done, root)
    yield from changes(before, root, root.parent / OUTSIDE, made=out)
    if done.status is None:
        return
    if not (out / "scores.csv").exists() or out / "scores.csv" in before:
        yield from _refusal(done, found, root, out)
        return
    table, faults = _table(out)
    yield from faults
    rows = _rows_by_path(table, root)
    unknown = len(table) - sum(rows.values())
    if unknown:
        yield Fault("predict: a row of no file", f"{unknown} of {len(table)}")
    for each in found:
        yield from _account(each, rows, done, root)
    without_row = [each for each in found if not any(path in rows for path in each.paths)]
    for each in unnamed(without_row, root, done.told, _FILES):
        yield Fault(f"predict: {each.category} has no row and no line", _told(each, root))
    yield from _pictures(out)
    if again is not None:
        yield from _second(run, again, out, root)


def _refusal(done: Done, found: list[Found], root: Path, out: Path) -> Iterator[Fault]:
    if done.status != 1:
        yield Fault("predict: nothing written, exit status 0", done.told)
    outside = root not in (out, *out.parents)
    images = any(each.category == "an image" for each in found)
    if outside and images and unnamed(found, root, done.told, _FILES):
        yield Fault("predict: a folder with images is refused", done.told)


def _table(out: Path) -> tuple[list[str], list[Fault]]:
    """The images of scores.csv, and what is wrong with it and with scores.json."""
    faults = []
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, strict=True))
    for row in rows:
        cells = list(row.values())
        if None in row or any(cell is None for cell in cells):
            faults.append(Fault("predict: a row of scores.csv has other columns", repr(row)))
        elif not all(_is_shown(cell) for cell in cells):
            faults.append(Fault("predict: a line break or control in scores.csv", repr(row)))
        elif row["image"].startswith(("=", "+", "-", "@")):
            faults.append(Fault("predict: a formula in scores.csv", row["image"]))
    try:
        text = (out / "scores.json").read_bytes().decode()
        content = json.loads(text, parse_constant=_no_constant)
        json.dumps(content, ensure_ascii=False).encode()
    except (OSError, ValueError) as error:
        faults.append(Fault(f"predict: scores.json: {type(error).__name__}", str(error)))
    else:
        listed = content if isinstance(content, list) else next(iter(content.values()))
        if len(listed) != len(rows):
            told = f"{len(listed)} and {len(rows)} rows"
            faults.append(Fault("predict: scores.json and scores.csv differ", told))
    return [row["image"] for row in rows if row.get("image") is not None], faults


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _rows_by_path(table: list[str], root: Path) -> dict[Path, int]:
    """How many rows each path has; rows of a page carry its number at the end."""
    names: dict[str, Path] = {}
    for met, _ in _walk(root, (root.resolve(),), False):
        names |= dict.fromkeys(_shown(met, root), met)
    rows: dict[Path, int] = {}
    for cell in table:
        without_page = re.sub(r"\W+(?:page|frame)?\W*\d+\W*$", "", cell)
        path: Path | None = names.get(cell) or names.get(without_page)
        if path is not None:
            rows[path] = rows.get(path, 0) + 1
    return rows


def _account(each: Found, rows: Mapping[Path, int], done: Done, root: Path) -> Iterator[Fault]:
    count = max(rows.get(path, 0) for path in each.paths)
    named = any(is_named(path, root, done.err) for path in each.paths)
    told = _told(each, root)
    if not count and each.category == "an image" and done.status == 0:
        yield Fault("predict: an image without a row, exit status 0", told)
    if count > 1 and count != pages(each.paths[0]):
        yield Fault("predict: an image with too many rows", told)
    if 0 < count < pages(each.paths[0]) and not named:
        yield Fault("predict: pages of a TIFF have no row and no line", told)


def _told(each: Found, root: Path) -> str:
    return repr(str(each.paths[0].relative_to(root)))


def _pictures(out: Path) -> Iterator[Fault]:
    """As many overlays as rows without an error."""
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = sum(not row.get("error") for row in csv.DictReader(file))
    overlays = sum(path.is_file() for path in (out / "overlays").rglob("*.png"))
    if out.name == "out" and overlays != rows:
        kind = "fewer" if overlays < rows else "more"
        yield Fault(f"predict: {kind} overlays than rows", f"{overlays} for {rows}")


def _second(run: Path, images: Path, out: Path, root: Path) -> Iterator[Fault]:
    before = snapshot(out)
    done = command(
        "predict",
        cli.predict,
        run=str(run),
        images=str(images),
        out=str(out),
        reporter=Speaking(),
    )
    yield from done.faults
    if done.status == 0:
        yield from (
            Fault(f"{fault.kind} after a second predict", fault.detail) for fault in _pictures(out)
        )
    elif not before.items() <= snapshot(out).items():
        yield Fault("predict: a refused second predict changes files", done.err)


# scan, scan_test and anomalies


def scan_faults(root: Path) -> Iterator[Fault]:
    """Scan a tree for training and for evaluation."""
    found = contents(root)
    for name in ("scan", "scan_test"):
        below = [root / "test", root / "ground_truth"] if name == "scan_test" else [root]
        before = snapshot(root, root.parent / OUTSIDE)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                warnings.filterwarnings("ignore", module=r"PIL\.")
                scanned = getattr(data_folder, name)(root)
        except PatchGuardError as error:
            yield from _one_line(name, error, root)
            continue
        except Exception as error:
            yield escaped(name, error)
            continue
        finally:
            yield from changes(before, root, root.parent / OUTSIDE, made=None)
        yield from (Fault(f"{name}: a raw {w.category.__name__}", str(w.message)) for w in caught)
        if name == "scan" and (root / "test").is_dir() and not scanned.test:
            yield Fault(f"{name}: a test folder without images is no error", "")
        met = set(_parts(scanned, Path))
        used = {sample.path for sample in (*scanned.train, *scanned.test)}
        met |= _belonging({path for path in met - used if path.is_file()}, root)
        inside = [
            each
            for each in found
            if any(part in path.parents for path in each.paths for part in below)
        ]
        for each in _passed_over(inside, met, root, "\n".join(_parts(scanned, str))):
            yield Fault(f"{name}: {each.category} is neither used nor listed", _told(each, root))


def _belonging(left_out: set[Path], root: Path) -> set[Path]:
    """Masks of images that are left out, and the other way round: one line is enough for both."""

    def key(path: Path) -> str:
        return path.with_suffix("").name.removesuffix("_mask")

    keys = {key(path) for path in left_out} | {path.parent.name for path in left_out}
    parts = [root / "test", root / "ground_truth"]
    files = (path for part in parts for path in part.rglob("*") if path.is_file())
    return {path for path in files if {key(path), path.parent.name} & keys}


def _one_line(name: str, error: PatchGuardError, root: Path) -> Iterator[Fault]:
    if str(root) not in str(error):
        yield Fault(f"{name}: an error that names neither file nor folder", str(error))


def _passed_over(found: list[Found], met: set[Path], root: Path, told: str) -> list[Found]:
    """What is neither used nor spoken of, except what is documented not to be read.

    Of training images that are the same one is used, where it is said that others were left out.
    """
    used = {path.read_bytes() for path in met if path.is_file()} if "copies" in told else set()
    masks_of_normals = root / "ground_truth" / "good"
    left = [
        each
        for each in found
        if met.isdisjoint(each.paths)
        and masks_of_normals not in each.paths[0].parents
        and not (each.paths[0].is_file() and each.paths[0].read_bytes() in used)
    ]
    return unnamed(left, root, told, _FILES_OR_IMAGES)


def _parts(content: Any, kind: type[Part]) -> Iterator[Part]:
    """Every path, or every text, in a result, whatever its fields are called."""
    if isinstance(content, kind):
        yield content
    elif is_dataclass(content):
        for each in fields(content):
            yield from _parts(getattr(content, each.name), kind)
    elif isinstance(content, list | tuple | set | frozenset):
        for part in content:
            yield from _parts(part, kind)
    elif isinstance(content, dict):
        yield from _parts([*content.keys(), *content.values()], kind)


def anomalies_faults(root: Path, out: Path, recipe: Any) -> Iterator[Fault]:
    """Draw the pseudo-anomalies of a tree."""
    found = contents(root)
    before = snapshot(root, root.parent / OUTSIDE)
    done = command(
        "anomalies",
        cli.anomalies,
        data=str(root),
        recipe=recipe,
        out=str(out),
        reporter=Speaking(),
    )
    yield from lines("anomalies", done, root)
    yield from changes(before, root, root.parent / OUTSIDE, made=out)
    if done.status != 0:
        return
    if not out.exists():
        yield Fault("anomalies: nothing written, exit status 0", done.told)
    if root in out.parents:
        yield Fault("anomalies: a picture among the images it is made from", done.told)
        return
    scanned = data_folder.scan(root)
    used = {sample.path for sample in (*scanned.train, *scanned.test)}
    used |= _belonging(used, root)
    for each in _passed_over(found, used, root, done.told):
        yield Fault(f"anomalies: {each.category} is neither used nor named", _told(each, root))


# All of it.


@dataclass(frozen=True)
class Options:
    """How the commands are called.

    Args:
        out: where predictions go: ``outside`` the tree, ``inside`` it or ``same``, the tree itself.
        relative: the tree is given as ``.``.
        maps: raw maps are asked for.
        again: there is a second call into the same folder.
        drawn: a picture of pseudo-anomalies is asked for too.
    """

    out: str
    relative: bool
    maps: bool
    again: bool
    drawn: bool


OPTIONS = st.builds(
    Options,
    out=st.sampled_from(["outside"] * 6 + ["inside", "same"]),
    relative=st.booleans(),
    maps=st.sampled_from([False, False, False, True]),
    again=st.sampled_from([False, False, False, True]),
    drawn=st.sampled_from([False] * 11 + [True]),
)


def scan_trial(tree: Tree) -> list[Fault]:
    """Write the tree and scan it."""
    with tempfile.TemporaryDirectory(prefix="trial") as folder:
        root = Path(folder).resolve() / "tree"
        tree.write(root)
        return list(scan_faults(root))


def command_trial(tree: Tree, options: Options, run: Path, recipe: Any) -> list[Fault]:
    """Write the tree and give it to commands.

    Args:
        run: folder of a trained detector.
        recipe: with the image size of the pictures of pseudo-anomalies.
    """
    with tempfile.TemporaryDirectory(prefix="trial") as folder:
        root = Path(folder).resolve() / "tree"
        tree.write(root)
        out = {"outside": root.parent / "out", "inside": root / "out", "same": root}[options.out]
        again = root.parent / OUTSIDE if options.again else None
        faults: list[Fault] = []
        if options.drawn:
            picture = root / "anomalies.png" if options.out == "same" else root.parent / "a.png"
            faults += anomalies_faults(root, picture, recipe)
        place = "" if options.out == "outside" else f", --out {options.out}"
        faults += (
            Fault(fault.kind + place, fault.detail)
            for fault in predict_faults(
                run, root, out, relative=options.relative, maps=options.maps, again=again
            )
        )
        return faults
