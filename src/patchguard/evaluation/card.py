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
from itertools import compress
from operator import not_
from pathlib import Path
from typing import Any

from patchguard.config import parse_size
from patchguard.data.folder import GOOD
from patchguard.errors import PatchGuardError
from patchguard.evaluation.card_format import (
    SCHEMA,
    SELF_TEST,
    STATUSES,
    VERSION,
    Json,
    validate,
)
from patchguard.files import write_whole

HEADLINE_EPS = 4 / 255
"""Where a suite has several radii of linf, the headline is of the one nearest to this."""

CHANCE = 0.5

PUBLISHED_STEPS = 1000
"""Of the attack in the published protocol; suites made for minutes give it fewer."""

_TOLD_APART = frozenset(
    {
        "suite",
        "threats",
        "attacks",
        "legacy_steps",
        "seed",
        "attacked_resolution",
        "versions",
        "device",
        "seconds",
        "test_set",
        "test_sha256",
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
            "protocol": _protocol(metrics),
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
    """The card in one line, for terminals and logs: what was not measured is not in it.

    The worst case is the one over the suite with every image attacked, at the radius that stands
    for the first threat.
    """
    clean, found = card["numbers"]["clean"], headline_result(card)
    whose = ["self-test on pseudo-anomalies"] if is_self_test(card) else []
    worst = f"{_worst(found, 'image_auroc')} at {found['norm']} {found['eps']}" if found else ""
    parts = [f"image AUROC {_told(clean['image_auroc'])} clean, {worst or 'not attacked'}"]
    if found and found["pixel_auroc"] is not None:
        pixel = _told(clean["pixel_auroc"])
        parts.append(f"pixel AUROC {pixel} clean, {_worst(found, 'pixel_auroc')}")
    if found:
        parts += [*_published(card, found), *_at_chance(card, found)]
    return " | ".join([*_alarm(card), *whose, *parts, *_skipped(card), _tally(card["checks"])])


def is_self_test(card: Mapping[str, Any]) -> bool:
    """Whether no labelled defects were at hand, so that it says nothing of any."""
    return bool(card["protocol"]["test_set"] == SELF_TEST)


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
    """The checks that failed, as ``S14 (no limit)``."""
    return [
        f"{check['id']} ({check['name']})"
        for check in card["checks"]["list"]
        if check["status"] == "FAIL"
    ]


def published_steps(steps: int | None) -> str:
    """How long the published attack was run, so that nobody takes fewer steps for all of them."""
    if steps is None:
        return "steps unknown"
    if steps == PUBLISHED_STEPS:
        return f"PGD-{steps}"
    return f"here {steps} {'step' if steps == 1 else 'steps'}"


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
    write_whole(path, json.dumps(card, indent=1, allow_nan=False) + "\n")
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


def _worst(found: Mapping[str, Any], name: str) -> str:
    return f"{_told(found[name])} in the worst case"


def _alarm(card: Mapping[str, Any]) -> list[str]:
    if not card["unreliable"]:
        return []
    failed = failed_checks(card)
    if not failed:
        return ["UNRELIABLE"]
    return [f"UNRELIABLE: {', '.join(failed)} {'fails' if len(failed) == 1 else 'fail'}"]


def _published(card: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    auroc = found["legacy_image_auroc"]
    if auroc is None:
        return []
    steps = published_steps(card["protocol"]["legacy_steps"])
    return [f"the published attack alone ({steps}) says {_told(auroc)}"]


def _at_chance(card: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    norm, eps = found["norm"], eps_at_chance(card, found["norm"])
    if eps is not None:
        return [f"AUROC 0.5 at {norm} {eps_text(norm, eps)}"]
    return [] if found["image_auroc"] is None else [f"above AUROC 0.5 at every {norm} eps"]


def _skipped(card: Mapping[str, Any]) -> list[str]:
    count = len(card["protocol"]["skipped"])
    return [f"{count} {'attack' if count == 1 else 'attacks'} skipped"] if count else []


def _tally(checks: Mapping[str, Any]) -> str:
    run = checks_run(checks)
    if not run:
        return "unchecked: no self-check was run"
    warned = f", {checks['warned']} warned" if checks["warned"] else ""
    return f"{checks['passed']} of {run} checks passed{warned}"


def _protocol(metrics: Mapping[str, Any]) -> Json:
    protocol = metrics["protocol"]
    ran, skipped = _attacks(metrics)
    legacy = any(entry["attack"] == "legacy" for entry in metrics["attacked"])
    return {
        "suite": protocol["suite"],
        "threats": [
            {"norm": norm, "eps": _ascending(norm, eps)}
            for norm, eps in protocol["threats"].items()
        ],
        "attacks": ran,
        "skipped": skipped,
        "legacy_steps": protocol.get("legacy_steps") if legacy else None,
        "settings": {key: value for key, value in protocol.items() if key not in _TOLD_APART},
        "test_set": protocol.get("test_set"),
        "seed": protocol["seed"],
        "attacked_resolution": protocol["attacked_resolution"],
        "versions": dict(protocol["versions"]),
        "device": protocol["device"],
        "seconds": protocol.get("seconds"),
    }


def _attacks(metrics: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The attacks that ran, with their settings, and those that did not, with the reason.

    Both by name and norm, as ``apgd score (linf)``: a reason is given by name alone, but what
    cannot run in one norm may run in another.
    """
    planned: Mapping[str, str] = metrics["protocol"]["attacks"]
    ran = {f"{entry['attack']} ({entry['norm']})" for entry in metrics["attacked"]}
    reasons = metrics.get("skipped", {})
    return (
        {name: told for name, told in planned.items() if name in ran},
        {
            name: reasons.get(name.rpartition(" (")[0], "no reason was given")
            for name in planned
            if name not in ran
        },
    )


def _ascending(norm: str, eps: Sequence[str]) -> list[str]:
    return sorted(eps, key=lambda text: parse_size(norm, text))


def _numbers(metrics: Mapping[str, Any]) -> Json:
    entries = {
        (entry["attack"], entry["norm"], entry["eps"]): entry for entry in metrics["attacked"]
    }
    clean = _measured(metrics["clean"], metrics.get("intervals", {}))
    threats = metrics["protocol"]["threats"]
    attackers = {entry["norm"] for entry in metrics["attacked"] if entry["attack"] != "worst"}
    attacked = [
        _attacked(entries["worst", norm, eps], entries.get(("legacy", norm, eps)))
        for norm, radii in threats.items()
        for eps in _ascending(norm, radii)
        # Where every attack was skipped, the worst case is the clean one: no result.
        if norm in attackers and ("worst", norm, eps) in entries
    ]
    return {
        "clean": clean,
        "attacked": attacked,
        "eps_at_chance": [
            {"norm": norm, "eps": _eps_at_chance(clean, attacked, norm)} for norm in threats
        ],
        "minimal_eps": _minimal_eps(metrics),
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


def _minimal_eps(metrics: Mapping[str, Any]) -> Json | None:
    """Medians, null where they are infinite; the shares of images beyond reach tell that apart."""
    found = metrics.get("minimal_eps")
    if not found:
        return None
    never = [value is None or math.isinf(value) for value in found["values"]]
    normal = [kind == GOOD for kind in metrics["scores"]["kinds"]]
    medians = ("median", "median_normals", "median_anomalies")
    return {
        "norm": found["norm"],
        "threshold": _finite(found.get("threshold")),
        **{name: _finite(found.get(name)) for name in medians},
        "never_flipped": _share(never),
        "never_flipped_normals": _share(list(compress(never, normal))),
        "never_flipped_anomalies": _share(list(compress(never, map(not_, normal)))),
    }


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


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


def _told(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
