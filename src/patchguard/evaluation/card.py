"""The robustness card: what an evaluation found, in one small JSON that says how it was found.

One card belongs to one detector, one data set and one protocol. It holds the threat model, the
numbers, the checks of the evaluation itself, hashes of weights and data, and versions, so that a
reader can tell which cards may be compared. The idea of a small file for each model with an
``unreliable`` flag is RobustBench's (Croce et al., NeurIPS 2021 Datasets and Benchmarks).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from patchguard.config import parse_size
from patchguard.errors import PatchGuardError
from patchguard.evaluation.card_format import SCHEMA, STATUSES, VERSION, Json, validate

HEADLINE_EPS = 4 / 255
"""Where a suite has several radii of linf, the headline is of the one nearest to this."""

CHANCE = 0.5

_TOLD_APART = frozenset(
    {
        "suite",
        "threats",
        "seed",
        "attacked_resolution",
        "versions",
        "device",
        "seconds",
        "test_set",
        "data",
        "images",
        "kinds",
        "eps",
    }
)
"""Parts of a protocol that have a place of their own in a card."""


def robustness_card(
    metrics: Mapping[str, Any], *, detector: Mapping[str, Any], data: Mapping[str, Any]
) -> Json:
    """Distil an evaluation into a card.

    Everything is taken from ``metrics``; what was not measured, and every number that is not
    finite, is null.

    Args:
        metrics: the content of ``metrics.json``.
        detector: ``name``, ``kind`` (such as ``PatchGuard``), ``parameters`` (their number) and
            ``sha256`` of the weights, null where there is no file of weights.
        data: ``name`` and ``sha256`` of the test images.

    Raises:
        PatchGuardError: a part is missing or not of its type; the line names it.
    """
    try:
        card: Json = {
            "patchguard_card": VERSION,
            "detector": {key: detector[key] for key in SCHEMA["detector"]},
            "data": {
                **{key: data[key] for key in ("name", "sha256")},
                **{key: metrics["protocol"]["images"][key] for key in ("normal", "anomalous")},
            },
            "protocol": _protocol(metrics["protocol"]),
            "numbers": _numbers(metrics),
            "checks": _checks(metrics.get("checks", ())),
            "unreliable": bool(metrics.get("unreliable", False)),
        }
    except KeyError as fault:
        raise PatchGuardError(f"robustness card: {fault.args[0]} is missing") from fault
    card["unreliable"] |= card["checks"]["failed"] > 0
    validate(card, "robustness card")
    return card


def headline(card: Mapping[str, Any]) -> str:
    """The card in one line, for terminals and logs.

    AUC is the clean image AUROC, AAUC the worst case over the suite at the headline's radius;
    the gap is what the published protocol says above that.
    """
    clean = card["numbers"]["clean"]["image_auroc"]
    found = headline_result(card)
    parts = [f"AUC {_told(clean)}"]
    if found:
        norm, gap = found["norm"], found["legacy_gap"]
        parts += [
            f"AAUC {_told(found['image_auroc'])} at {norm} {found['eps']}",
            f"gap legacy - AAUC {_told(gap, '+.3f')}",
            f"eps@AUROC 0.5 {eps_text(norm, eps_at_chance(card, norm))}",
        ]
    checks = card["checks"]
    run = checks_run(checks)
    verdict = f"checks {checks['passed']} of {run} passed" if run else "no checks were run"
    if card["unreliable"]:
        verdict += f", UNRELIABLE: {', '.join(failed_checks(card)) or 'flagged'}"
    return " | ".join([*parts, verdict])


def headline_result(card: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The worst case that stands for the first threat; None where nothing attacked."""
    norm = next((threat["norm"] for threat in card["protocol"]["threats"]), None)
    results = {
        found["eps"]: found for found in card["numbers"]["attacked"] if found["norm"] == norm
    }
    return results[headline_eps(norm, list(results))] if norm and results else None


def headline_eps(norm: str, eps: Sequence[str]) -> str:
    """The radius that stands for a threat: nearest to 4/255 for linf, else the middle one."""
    ascending = _ascending(norm, eps)
    if norm == "linf":
        return min(ascending, key=lambda text: abs(parse_size(norm, text) - HEADLINE_EPS))
    return ascending[(len(ascending) - 1) // 2]


def checks_run(checks: Mapping[str, Any]) -> int:
    """How many checks came to a verdict."""
    return int(checks["passed"] + checks["warned"] + checks["failed"])


def failed_checks(card: Mapping[str, Any]) -> list[str]:
    """Id and name of the checks that failed."""
    return [
        f"{check['id']} {check['name']}"
        for check in card["checks"]["list"]
        if check["status"] == "FAIL"
    ]


def eps_at_chance(card: Mapping[str, Any], norm: str) -> float | None:
    """The size of the threat at which the worst image AUROC is 0.5; None if none measured is."""
    found = card["numbers"]["eps_at_chance"]
    return next((entry["eps"] for entry in found if entry["norm"] == norm), None)


def eps_text(norm: str, value: float | None) -> str:
    """A radius for people: linf in steps of an 8-bit image."""
    if value is None or not math.isfinite(value):
        return "never"
    return f"{255 * value:.2f}/255" if norm == "linf" else f"{value:.3g}"


def write_card(card: Mapping[str, Any], path: Path) -> Path:
    """Write a card as readable JSON; returns the path.

    Raises:
        PatchGuardError: not a card; the line names the field.
    """
    validate(card, str(path))
    path.write_text(json.dumps(card, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path


def read_card(path: Path) -> Json:
    """Read and check what :func:`write_card` wrote.

    Raises:
        PatchGuardError: unreadable, of another version, or damaged; the line names file and field.
    """
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise PatchGuardError(f"{path}: cannot be read ({fault.strerror})") from fault
    except ValueError as fault:
        raise PatchGuardError(f"{path}: is not JSON; evaluate the detector again") from fault
    validate(card, str(path))
    return dict(card)


def _protocol(protocol: Mapping[str, Any]) -> Json:
    return {
        "suite": protocol["suite"],
        "threats": [
            {"norm": norm, "eps": _ascending(norm, eps)}
            for norm, eps in protocol["threats"].items()
        ],
        "settings": {key: value for key, value in protocol.items() if key not in _TOLD_APART},
        "test_set": protocol.get("test_set"),
        "seed": protocol["seed"],
        "attacked_resolution": protocol["attacked_resolution"],
        "versions": dict(protocol["versions"]),
        "device": protocol["device"],
        "seconds": protocol.get("seconds"),
    }


def _ascending(norm: str, eps: Sequence[str]) -> list[str]:
    return sorted(eps, key=lambda text: parse_size(norm, text))


def _numbers(metrics: Mapping[str, Any]) -> Json:
    entries = {
        (entry["attack"], entry["norm"], entry["eps"]): entry for entry in metrics["attacked"]
    }
    clean = _measured(metrics["clean"], metrics.get("intervals", {}))
    threats = metrics["protocol"]["threats"]
    attacked = [
        _attacked(entries["worst", norm, eps], entries.get(("legacy", norm, eps)))
        for norm, radii in threats.items()
        for eps in _ascending(norm, radii)
        if ("worst", norm, eps) in entries
    ]
    return {
        "clean": clean,
        "attacked": attacked,
        "eps_at_chance": [
            {"norm": norm, "eps": _eps_at_chance(clean, attacked, norm)} for norm in threats
        ],
        "minimal_eps": _minimal_eps(metrics.get("minimal_eps")),
    }


def _measured(values: Mapping[str, Any], intervals: Mapping[str, Any]) -> Json:
    """The metrics of a card: clean, or with both classes attacked."""
    image, pixel, deployed = (values.get(part, {}) for part in ("image", "pixel", "deployed"))
    return {
        "image_auroc": _finite(image.get("auroc")),
        "image_auroc_interval": _interval(intervals, "image", "auroc"),
        "pixel_auroc": _finite(pixel.get("auroc")),
        "pixel_auroc_interval": _interval(intervals, "pixel", "auroc"),
        "pixel_aupro": _finite(pixel.get("aupro")),
        "tpr": _finite(deployed.get("tpr")),
        "tpr_interval": _interval(intervals, "deployed", "tpr"),
        "fpr": _finite(deployed.get("fpr")),
        "fpr_interval": _interval(intervals, "deployed", "fpr"),
    }


def _attacked(worst: Mapping[str, Any], legacy: Mapping[str, Any] | None) -> Json:
    found = _measured(worst["rows"]["both"], worst.get("intervals", {}))
    floor = worst.get("floor", {}).get("pixel", {}).get("auroc")
    kinder = _measured(legacy["rows"]["both"], {}) if legacy else {}
    return {
        "norm": worst["norm"],
        "eps": worst["eps"],
        **found,
        "pixel_auroc_floor": _finite(floor),
        "legacy_image_auroc": kinder.get("image_auroc"),
        "legacy_pixel_auroc": kinder.get("pixel_auroc"),
        "legacy_gap": _gap(kinder.get("image_auroc"), found["image_auroc"]),
    }


def _gap(kinder: float | None, worst: float | None) -> float | None:
    return None if kinder is None or worst is None else kinder - worst


def _eps_at_chance(clean: Json, attacked: Sequence[Json], norm: str) -> float | None:
    """The radius at which the worst image AUROC reaches 0.5, linear between those measured."""
    measured = [(0.0, clean["image_auroc"])] + [
        (parse_size(norm, found["eps"]), found["image_auroc"])
        for found in attacked
        if found["norm"] == norm
    ]
    before: tuple[float, float] | None = None
    for eps, auroc in measured:
        if auroc is None:
            continue
        if auroc <= CHANCE:
            return eps if before is None else _crossing(before, (eps, auroc))
        before = (eps, auroc)
    return None


def _crossing(before: tuple[float, float], after: tuple[float, float]) -> float:
    (eps, auroc), (next_eps, next_auroc) = before, after
    return eps + (next_eps - eps) * (auroc - CHANCE) / (auroc - next_auroc)


def _minimal_eps(found: Mapping[str, Any] | None) -> Json | None:
    if not found:
        return None
    medians = ("median", "median_normals", "median_anomalies")
    return {
        "norm": found["norm"],
        "threshold": _finite(found.get("threshold")),
        **{name: _finite(found.get(name)) for name in medians},
    }


def _checks(checks: Sequence[Mapping[str, Any]]) -> Json:
    statuses = [check["status"] for check in checks]
    return {
        **{name: statuses.count(status) for status, name in STATUSES.items()},
        "list": [
            {
                "id": check["id"],
                "name": check["name"],
                "status": check["status"],
                "value": _finite(check.get("value")),
                "limit": _finite(check.get("limit")),
                "meaning": check["meaning"],
            }
            for check in checks
        ],
    }


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _interval(intervals: Mapping[str, Any], part: str, name: str) -> list[float] | None:
    ends = [_finite(end) for end in intervals.get(part, {}).get(name) or (None, None)]
    return None if None in ends else [end for end in ends if end is not None]


def _told(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)
