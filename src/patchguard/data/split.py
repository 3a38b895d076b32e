"""Which normal images are held out for calibration, and which belong together."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from patchguard.data.samples import Sample
from patchguard.errors import PatchGuardError


def split_normals(
    samples: Sequence[Sample], held_out: int, seed: int
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Hold out some normal images, for calibration.

    Samples of one group stay on one side; one without a group is a group of its own. The choice is
    made by a hash of the seed and each group's name, or each path relative to the common folder: it
    does not depend on the order of the samples, the place of the folder, the machine or any
    version.

    Returns:
        The remaining samples and the held-out ones, each sorted by path: of groups, more than
        ``held_out`` by what the last one has too many, and fewer where the next ones are so large
        that more than half of all would be held out.

    Raises:
        PatchGuardError: one of the two would be empty.
    """
    if not 1 <= held_out < len(samples):
        raise PatchGuardError(
            f"cannot hold out {held_out} of {len(samples)} normal images: "
            "at least one must be held out and one remain"
        )
    common = os.path.commonpath([sample.path.parent for sample in samples])
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(_group(sample, common), []).append(sample)
    chosen: list[Sample] = []
    most = max(held_out, len(samples) // 2)
    for name in sorted(groups, key=lambda name: _rank(seed, name)):
        if len(chosen) >= held_out:
            break
        if len(chosen) + len(groups[name]) <= most:
            chosen += groups[name]
    if not chosen:
        raise PatchGuardError(
            "all normal images are of one group, so none can be held out: correct --groups"
        )
    taken = set(chosen)
    return _sorted(sample for sample in samples if sample not in taken), _sorted(chosen)


def grouped(samples: Sequence[Sample], root: Path, groups: str) -> tuple[Sample, ...]:
    """The samples with their groups: of one part, one patient, one shift.

    Args:
        samples: of a data set.
        root: its folder, to which paths are relative.
        groups: a CSV table with the columns file and group, or a regular expression whose first
            parenthesis, or whole match, in the relative path is the group.

    Raises:
        PatchGuardError: a table or expression that cannot be read, or that leaves images out.
    """
    # A table is a file; an expression that happens to name one would be an odd one.
    table = _table(Path(groups)) if Path(groups).is_file() else None
    pattern = _pattern(groups) if table is None else None
    found, without = [], []
    for sample in samples:
        place = sample.path.relative_to(root).as_posix()
        if table is not None:
            group = table.get(place) or table.get(sample.path.name)
        else:
            assert pattern is not None
            match = pattern.search(place)
            group = match and match[min(1, pattern.groups)]
        if not group:
            without.append(place)
        found.append(replace(sample, group=group or None))
    if without:
        raise PatchGuardError(
            f"--groups {groups}: no group for {len(without)} of {len(samples)} images, first "
            f"{without[0]}"
        )
    return tuple(found)


def _group(sample: Sample, common: str) -> str:
    if sample.group is not None:
        return f"group {sample.group}"
    name = sample.path.relative_to(common).as_posix()
    return f"{name}#{sample.source.frame}" if sample.source.frame else name


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(os.fsencode(f"{seed}/{name}")).hexdigest()


def _table(path: Path) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, csv.Error) as error:
        raise PatchGuardError(f"--groups {path}: cannot be read ({error})") from error
    short = next((number for number, row in enumerate(rows, 1) if len(row) < 2), None)
    if short is not None:
        raise PatchGuardError(f"--groups {path}: line {short} has no two columns, file and group")
    return {row[0].strip(): row[1].strip() for row in rows}


def _pattern(groups: str) -> re.Pattern[str]:
    try:
        return re.compile(groups)
    except re.error as error:
        raise PatchGuardError(
            f"--groups {groups}: neither a CSV table nor a regular expression ({error})"
        ) from error


def _sorted(samples: Iterable[Sample]) -> tuple[Sample, ...]:
    return tuple(sorted(samples, key=lambda sample: (sample.path.as_posix(), sample.source.frame)))
