"""What an evaluation leaves in ``metrics.json``, made up, for tests of cards and reports."""

from __future__ import annotations

import math
from typing import Any

from patchguard.results.schema import Result

KINDS = ["good"] * 4 + ["scratch"] * 4
THREATS = {"linf": ["4/255", "1/255"], "l2": ["0.5", "1.5"]}
LEGACY_AUROC = 0.9714

CHECKS: list[dict[str, Any]] = [
    {
        "id": "S1",
        "name": "parity",
        "status": "PASS",
        "value": 2e-6,
        "limit": 1e-4,
        "meaning": "The attacked graph is the deployed one.",
    },
    {
        "id": "S6",
        "name": "gradient <health>",
        "status": "WARN",
        "value": 0.15,
        "limit": 0.2,
        "meaning": "Gradients turn between neighbouring points.",
    },
    {
        "id": "S21",
        "name": "original resolution",
        "status": "SKIP",
        "value": None,
        "limit": None,
        "meaning": "Not part of this suite.",
    },
]
FAILED: dict[str, Any] = {
    "id": "S14",
    "name": "unbounded attack",
    "status": "FAIL",
    "value": 0.31,
    "limit": 0.0,
    "meaning": "An attack without a bound left images that it must move.",
}


def metrics(auroc: float, *, checks: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """The content of ``metrics.json`` of eight images, whose worst image AUROC is ``auroc``."""
    told = CHECKS if checks is None else checks
    image = {"auroc": LEGACY_AUROC, "auroc_conservative": 0.97, "ap": math.nan, "f1_max": 0.9321}
    pixel = {"auroc": 0.8765, "ap": 0.2, "f1_max": 0.3, "aupro": 0.6543}
    deployed = {"tpr": 0.75, "fpr": 0.0625}
    worst = {
        "image": {**image, "auroc": auroc, "ap": 0.5432},
        "pixel": {**pixel, "auroc": 0.4321},
        "deployed": deployed,
    }
    clean = {"image": {**image, "auroc_interval": [0.91, 0.99]}, "pixel": pixel}
    scores = [-2.0, -1.5, -1.0, -0.5, 0.5, 1.0, 1.5, 2.0]
    attacked = [_worst(norm, eps, worst) for norm, radii in THREATS.items() for eps in radii]
    attacked += [
        _entry(name, "linf", eps, parts)
        for name, parts in (
            ("apgd score", {"image": {**image, "auroc": auroc + 0.01}}),
            ("apgd dense", {"image": {**image, "auroc": auroc + 0.02}}),
            ("apgd linear", {"image": image, "pixel": {**pixel, "auroc": 0.45}}),
            ("legacy", {"image": image, "pixel": pixel, "deployed": deployed}),
        )
        for eps in THREATS["linf"]
    ]
    attacked += [_entry("apgd score", "l2", eps, worst) for eps in THREATS["l2"]]
    return {
        Result.FORMAT: Result.VERSION,
        "protocol": protocol(),
        "clean": {**clean, "deployed": {"tpr": 1.0, "fpr": 0.0}},
        "attacked": attacked,
        "skipped": {"transfer score": "no detector called 'twin'"},
        "scores": {
            "names": [f"{kind}/{index}.png" for index, kind in enumerate(KINDS)],
            "kinds": KINDS,
            "clean": scores,
            **{
                f"{attack} {norm} {eps}": scores[::-1]
                for attack, norms in (("worst", THREATS), ("legacy", ["linf"]))
                for norm in norms
                for eps in THREATS[norm]
            },
        },
        "minimal_eps": {
            "norm": "linf",
            "threshold": 0.25,
            "median": 3 / 255,
            "median_normals": 2 / 255,
            "median_anomalies": 5 / 255,
            "values": [1 / 255] * 2 + [3 / 255] * 2 + [5 / 255] * 3 + ["inf"],
        },
        "stress": [
            {"name": "blur", "severity": 2, "image": image, "deployed": deployed},
            {"name": "jpeg", "severity": 30, "image": {**image, "auroc": 0.9345}},
        ],
        "checks": told,
        "unreliable": any(check["status"] == "FAIL" for check in told),
    }


def suite_text(*attacks: str) -> str:
    """A suite of two radii, as a file holds it, with these attacks."""
    entries = "".join(f"      - {{{attack}}}\n" for attack in attacks)
    return f"threats:\n  - norm: linf\n    eps: [2/255, 8/255]\n    attacks:\n{entries}"


def result_of(content: dict[str, Any]) -> Result:
    """The content of ``metrics.json`` as it is read."""
    parts = {name: part for name, part in content.items() if name != Result.FORMAT}
    return Result.model_validate(parts)


def protocol() -> dict[str, Any]:
    return {
        "test_set": "labelled test images",
        "data": "/factory/bolts & <nuts>",
        "images": {"normal": 4, "anomalous": 4},
        "kinds": {"good": 4, "scratch": 4},
        "ground_truth": "native resolution, never resized",
        "suite": "quick",
        "threats": THREATS,
        "attacks": {
            "apgd score (linf)": "apgd on score: steps 50",
            "transfer score (linf)": "transfer on score",
            "legacy (linf)": "legacy on legacy: steps 20",
            "apgd score (l2)": "apgd on score: steps 50",
        },
        "legacy_steps": 20,
        "steps": 17,
        "seed": 7,
        "attacked_resolution": 112,
        "device": "cpu",
        "versions": {"torch": "2.6.0"},
        "seconds": 12.5,
    }


def _worst(norm: str, eps: str, parts: dict[str, Any]) -> dict[str, Any]:
    found = _entry("worst", norm, eps, parts)
    more: dict[str, dict[str, Any]] = {
        "image": {"auroc_interval": [0.8012, 0.9923]},
        "pixel": {"auroc_interval": [0.4, 0.5], "auroc_floor": 0.2109},
        "deployed": {"tpr_interval": [0.5, 1.0], "fpr_interval": [0.0, 0.25]},
    }
    found["rows"]["both"] = {part: {**parts[part], **more[part]} for part in parts}
    return {
        **found,
        "winners": {"apgd score": 0.625, "apgd dense": 0.25, "clean": 0.125},
        "pixel_winners": {"apgd linear": 1.0},
    }


def _entry(name: str, norm: str, eps: str, parts: dict[str, Any]) -> dict[str, Any]:
    rows = dict.fromkeys(("both", "anomalies", "normals"), parts)
    return {"attack": name, "norm": norm, "eps": eps, "rows": rows}
