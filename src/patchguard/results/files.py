"""Documents as files: read and written here only."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from patchguard.errors import PatchGuardError
from patchguard.files import write_whole
from patchguard.results.schema import Document, Result

Content = TypeVar("Content", bound=Document)

_LOG = logging.getLogger(__name__)


def write_json(content: Document, path: Path) -> Path:
    """Write a file, whole or not at all; returns its path.

    Raises:
        PatchGuardError: it cannot be written.
    """
    write_whole(path, to_json(content) + "\n")
    return path


def to_json(content: Document) -> str:
    """What :func:`write_json` writes; parts that were not measured are left out."""
    parts = content.model_dump(mode="json", exclude_defaults=True)
    return json.dumps({content.FORMAT: content.VERSION, **parts}, indent=1, allow_nan=False)


def read_as(kind: type[Content], path: Path) -> Content:
    """Read what :func:`write_json` wrote, or an earlier version of it.

    What this version does not know is left out, and a warning is logged that names it.

    Raises:
        PatchGuardError: no such file, damaged, or of a later format; one line says what to do.
    """
    content = _parsed(kind, path)
    if kind is Result and kind.FORMAT not in content:
        content = _from_format_1(content, path)
    try:
        content = kind.upgraded(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(kind, path, "a part is missing or is another thing") from error
    version = content.pop(kind.FORMAT, None)
    if version is None:
        raise _damaged(kind, path, f"{kind.FORMAT} is missing")
    if version != kind.VERSION:
        raise PatchGuardError(
            f"{path}: {kind.FORMAT} is {version!r}; this version of patchguard reads "
            f"{kind.VERSION}: install the one that wrote it, or {kind.AGAIN}"
        )
    unknown: set[str] = set()
    try:
        found = kind.model_validate(content, context={"unknown": unknown})
    except ValidationError as error:
        raise _damaged(kind, path, _first(error)) from error
    if unknown:
        names = ", ".join(sorted(unknown))
        _LOG.warning("%s: left out what this version does not know: %s", path, names)
    return found


def _parsed(kind: type[Document], path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise PatchGuardError(f"{path}: cannot be read ({fault.strerror}); {kind.AGAIN}") from fault
    except ValueError as fault:
        raise _damaged(kind, path, "it is not JSON") from fault
    if not isinstance(content, dict):
        raise _damaged(kind, path, "it is not a JSON object")
    return content


def _from_format_1(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Intervals and floors stood beside the metrics that they belong to.

    Its infinities are bare, which Python's parser takes; in ``minimal_eps`` some are null.
    """
    upgraded = {**content, Result.FORMAT: Result.VERSION}
    try:
        intervals = upgraded.pop("intervals", {})
        if "clean" in content:
            upgraded["clean"] = _with_intervals(content["clean"], intervals, {})
        if "attacked" in content:
            upgraded["attacked"] = [_entry_of_format_1(entry) for entry in content["attacked"]]
        if found := content.get("minimal_eps"):
            values = ["inf" if value is None else value for value in found["values"]]
            upgraded["minimal_eps"] = {**found, "values": values}
    except (AttributeError, KeyError, TypeError, ValueError) as fault:
        raise _damaged(Result, path, "it is no result of an evaluation") from fault
    return upgraded


def _entry_of_format_1(entry: dict[str, Any]) -> dict[str, Any]:
    upgraded = dict(entry)
    intervals, floor = upgraded.pop("intervals", {}), upgraded.pop("floor", {})
    rows = dict(entry["rows"])
    rows["both"] = _with_intervals(rows["both"], intervals, floor)
    return {**upgraded, "rows": rows}


def _with_intervals(
    parts: dict[str, dict[str, Any]],
    intervals: dict[str, dict[str, Any]],
    floor: dict[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    return {
        part: {
            **values,
            **{f"{name}_interval": ends for name, ends in intervals.get(part, {}).items()},
            **{f"{name}_floor": value for name, value in floor.get(part, {}).items()},
        }
        for part, values in parts.items()
    }


def _first(error: ValidationError) -> str:
    """The first fault: its field, what that is and what it must be."""
    fault = error.errors(include_url=False)[0]
    places = (f"[{each}]" if isinstance(each, int) else f".{each}" for each in fault["loc"])
    field = "".join(places).lstrip(".")
    if fault["type"] == "missing":
        return f"{field} is missing"
    if fault["type"] == "value_error":
        return ": ".join(filter(None, (field, str(fault["ctx"]["error"]))))
    shown = " ".join(repr(fault["input"]).split())[:60]
    return f"{field} is {shown} ({fault['msg'].lower()})"


def _damaged(kind: type[Document], path: Path, why: str) -> PatchGuardError:
    return PatchGuardError(f"{path} is damaged: {why}; {kind.AGAIN}")
