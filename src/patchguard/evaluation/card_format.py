"""The format of a robustness card, and the check that a file keeps to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from patchguard.config import parse_size
from patchguard.errors import PatchGuardError

VERSION = 1

SELF_TEST = "self-test: held-out normals and pseudo-anomalies made from them"
LABELLED = "labelled test images"
"""What an evaluation may be of."""

STATUSES = {"PASS": "passed", "WARN": "warned", "FAIL": "failed", "SKIP": "skipped"}
"""What a check may say, and where a card counts it."""

Json = dict[str, Any]


class Kind(NamedTuple):
    """What a field may hold, as a test and in words."""

    holds: Callable[[Any], bool]
    words: str


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_share(value: object) -> bool:
    return _is_number(value) and 0 <= value <= 1  # type: ignore[operator]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _is_interval(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


class OrNull(NamedTuple):
    """A part that is null where nothing was measured."""

    part: Any


_TEXT = Kind(lambda value: isinstance(value, str) and bool(value), "text")
_COUNT = Kind(_is_count, "a whole number of at least 0")
_FLAG = Kind(lambda value: isinstance(value, bool), "true or false")
_NUMBER = OrNull(Kind(_is_number, "a finite number or null"))
_SHARE = OrNull(Kind(_is_share, "a number in [0, 1] or null"))
_SHA256 = OrNull(Kind(_is_sha256, "64 hexadecimal digits or null"))
_INTERVAL = OrNull(Kind(_is_interval, "a pair of numbers or null"))
_STATUS = Kind(lambda value: value in tuple(STATUSES), f"one of {', '.join(STATUSES)}")
_OBJECT = Kind(lambda value: isinstance(value, dict), "a JSON object")
_TEXTS = Kind(
    lambda value: isinstance(value, dict) and all(map(_TEXT.holds, value.values())),
    "a JSON object of texts",
)

_MEASURED = {
    "image_auroc": _SHARE,
    "image_auroc_interval": _INTERVAL,
    "pixel_auroc": _SHARE,
    "pixel_auroc_interval": _INTERVAL,
    "pixel_aupro": _SHARE,
    "tpr": _SHARE,
    "tpr_interval": _INTERVAL,
    "fpr": _SHARE,
    "fpr_interval": _INTERVAL,
}

SCHEMA: Json = {
    "patchguard_card": Kind(lambda value: value == VERSION, f"{VERSION}, the version read here"),
    "detector": {"name": _TEXT, "kind": _TEXT, "parameters": _COUNT, "sha256": _SHA256},
    "data": {"name": _TEXT, "sha256": _SHA256, "normal": _COUNT, "anomalous": _COUNT},
    "protocol": {
        "suite": _TEXT,
        "threats": [{"norm": _TEXT, "eps": [_TEXT]}],
        "attacks": _TEXTS,
        "skipped": _TEXTS,
        "legacy_steps": OrNull(_COUNT),
        "settings": _OBJECT,
        "test_set": OrNull(_TEXT),
        "seed": _COUNT,
        "attacked_resolution": _COUNT,
        "versions": _OBJECT,
        "device": _TEXT,
        "seconds": _NUMBER,
    },
    "numbers": {
        "clean": _MEASURED,
        "attacked": [
            {
                "norm": _TEXT,
                "eps": _TEXT,
                **_MEASURED,
                "pixel_auroc_floor": _SHARE,
                "legacy_image_auroc": _SHARE,
                "legacy_pixel_auroc": _SHARE,
                "legacy_gap": _NUMBER,
            }
        ],
        "eps_at_chance": [{"norm": _TEXT, "eps": _NUMBER}],
        "minimal_eps": OrNull(
            {
                "norm": _TEXT,
                "threshold": _NUMBER,
                "median": _NUMBER,
                "median_normals": _NUMBER,
                "median_anomalies": _NUMBER,
                "never_flipped": _SHARE,
                "never_flipped_normals": _SHARE,
                "never_flipped_anomalies": _SHARE,
            }
        ),
    },
    "checks": {
        "passed": _COUNT,
        "warned": _COUNT,
        "failed": _COUNT,
        "skipped": _COUNT,
        "list": [
            {
                "id": _TEXT,
                "name": _TEXT,
                "status": _STATUS,
                "value": _NUMBER,
                "limit": _NUMBER,
                "meaning": _TEXT,
            }
        ],
    },
    "unreliable": _FLAG,
}


def validate(card: Any, file: str) -> None:
    """Refuse what is not a card.

    Args:
        card: the content of its file.
        file: names it in the error.

    Raises:
        PatchGuardError: the line names the file, the field, what it is and what it must be.
    """
    _check(card, SCHEMA, file, "")
    threats = {threat["norm"]: threat["eps"] for threat in card["protocol"]["threats"]}
    for place, found in enumerate(card["numbers"]["attacked"]):
        _check_radius(found["norm"], found["eps"], threats, file, f"numbers.attacked[{place}]")
    _check_verdict(card, file)


def _check_radius(
    norm: str, eps: str, threats: Mapping[str, list[str]], file: str, field: str
) -> None:
    told = eps in threats.get(norm, ())
    _require(told, file, field, "at a radius in protocol.threats", f"{norm} {eps}")
    try:
        parse_size(norm, eps)
    except PatchGuardError as fault:
        raise PatchGuardError(f"{file}: {field}: {fault}") from fault


def _check_verdict(card: Json, file: str) -> None:
    statuses = [check["status"] for check in card["checks"]["list"]]
    for status, name in STATUSES.items():
        count, listed = card["checks"][name], statuses.count(status)
        _require(count == listed, file, f"checks.{name}", f"{listed}, as in checks.list", count)
    sound = card["unreliable"] or "FAIL" not in statuses
    _require(sound, file, "unreliable", "true where a check fails", card["unreliable"])


def _check(value: Any, schema: Any, file: str, field: str) -> None:
    """Compare a value with its part of the schema; further keys are allowed."""
    if isinstance(schema, OrNull):
        if value is not None:
            _check(value, schema.part, file, field)
    elif isinstance(schema, Kind):
        _require(schema.holds(value), file, field, schema.words, value)
    elif isinstance(schema, list):
        _require(isinstance(value, list), file, field, "a list", value)
        for place, item in enumerate(value):
            _check(item, schema[0], file, f"{field}[{place}]")
    else:
        _require(isinstance(value, Mapping), file, field or "its content", "a JSON object", value)
        for key, part in schema.items():
            name = f"{field}.{key}" if field else key
            if key not in value:
                raise PatchGuardError(f"{file}: {name} is missing; evaluate the detector again")
            _check(value[key], part, file, name)


def _require(met: bool, file: str, field: str, words: str, value: object) -> None:
    if not met:
        shown = " ".join(repr(value).split())[:60]
        raise PatchGuardError(f"{file}: {field} is {shown}; it must be {words}")
