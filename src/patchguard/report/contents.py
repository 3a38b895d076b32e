"""What the report tells about, read from the files of a run folder and checked."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import yaml

from patchguard.config import parse_size
from patchguard.data.samples import GOOD
from patchguard.deploy.calibration import Calibration
from patchguard.errors import PatchGuardError
from patchguard.evaluation.card import headline_eps
from patchguard.evaluation.card_format import SELF_TEST, STATUSES
from patchguard.evaluation.metrics import auroc_by_kind

Floats = npt.NDArray[np.floating]
Values = Mapping[str, Mapping[str, float]]
"""Metrics by what they judge (``image``, ``pixel``, ``deployed``) and name."""

ROWS = ("both", "anomalies", "normals")
CLEAN = "clean"
WORST, LEGACY = "worst", "legacy"
"""The worst case over a suite, and the published attack, among the attacks of ``metrics.json``."""


@dataclass(frozen=True)
class AttackResult:
    """Metrics under one attack at one eps: both classes attacked, or one.

    Beside its metrics, ``both`` holds the ends of their 95 % intervals (``auroc_low``,
    ``auroc_high``) and what no attack can go below (``auroc_floor``), where they were measured.
    ``winners`` are, for images and pixels, the attacks that make up the worst case, with their
    shares of the images.
    """

    attack: str
    norm: str
    eps: str
    rows: Mapping[str, Values]
    winners: Mapping[str, Mapping[str, float]]

    @property
    def radius(self) -> float:
        return parse_size(self.norm, self.eps)

    @property
    def both(self) -> Values:
        return self.rows["both"]

    @property
    def scores_key(self) -> str:
        """Where ``Metrics.scores`` holds the image scores under this attack."""
        return f"{self.attack} {self.norm} {self.eps}"


@dataclass(frozen=True)
class MinimalEps:
    """The smallest perturbations that bring images across the threshold.

    ``values`` `[N]` are infinite where none that was tried did; the medians are nan where unknown.
    """

    norm: str
    median: float
    median_normals: float
    median_anomalies: float
    values: Floats


@dataclass(frozen=True)
class Stress:
    """Metrics under a natural disturbance of one severity."""

    name: str
    severity: str
    values: Values


@dataclass(frozen=True)
class Check:
    """What a check of the evaluation itself found; nan where it has no number."""

    id: str
    name: str
    status: str
    value: float
    limit: float
    meaning: str


@dataclass(frozen=True)
class Metrics:
    """``metrics.json``: metrics clean and attacked, and the image scores they come from.

    ``clean`` holds intervals as `AttackResult.both` does. ``scores`` holds ``[N]`` each,
    ``kinds`` are of the ``N`` images, ``good`` the normal ones. ``unreliable`` says that a check
    failed, ``skipped`` why attacks of the suite were not run.
    """

    protocol: Mapping[str, Any]
    clean: Values
    attacked: tuple[AttackResult, ...]
    scores: Mapping[str, Floats]
    kinds: tuple[str, ...]
    minimal_eps: MinimalEps | None
    stress: tuple[Stress, ...]
    checks: tuple[Check, ...]
    unreliable: bool
    skipped: Mapping[str, str]

    @property
    def anomalous(self) -> npt.NDArray[np.bool_]:
        """Which images are, ``[N]``."""
        anomalous: npt.NDArray[np.bool_] = np.array(self.kinds, dtype=str) != GOOD
        return anomalous

    @property
    def legacy_steps(self) -> int | None:
        """Of the published attack; None where the evaluation does not say."""
        steps = self.protocol.get("legacy_steps")
        return None if steps is None else int(steps)

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms of the threats; the first is the one of the headline."""
        return tuple(self.protocol["threats"])

    def under(self, attack: str, norm: str | None = None) -> tuple[AttackResult, ...]:
        """The results of an attack in a norm (the first without one), by ascending eps."""
        norm = norm or self.norms[0]
        found = (each for each in self.attacked if (each.attack, each.norm) == (attack, norm))
        return tuple(sorted(found, key=lambda result: result.radius))

    def headline(self) -> AttackResult | None:
        """The worst case that stands for the first norm; None where nothing attacked."""
        found = {result.eps: result for result in self.under(WORST)}
        return found[headline_eps(self.norms[0], list(found))] if found else None

    def by_kind(self) -> dict[str, dict[str, float]]:
        """Image AUROC of each kind of defect: clean, and worst cases of the first norm by eps."""
        scores = {CLEAN: self.scores[CLEAN]}
        scores |= {result.eps: self.scores[result.scores_key] for result in self.under(WORST)}
        found = {eps: auroc_by_kind(values, self.kinds) for eps, values in scores.items()}
        return {kind: {eps: found[eps][kind] for eps in found} for kind in found[CLEAN]}

    def members(self) -> tuple[str, ...]:
        """The attacks of the suite in the first norm, in its order."""
        names = (each.attack for each in self.attacked if each.norm == self.norms[0])
        return tuple(name for name in dict.fromkeys(names) if name != WORST)

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "FAIL")

    @property
    def self_test(self) -> bool:
        """The anomalies were made, not found: nothing here was measured on real defects."""
        return bool(self.protocol.get("test_set") == SELF_TEST)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``metrics.json``.

        Raises:
            PatchGuardError: the file is not what an evaluation writes.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            metrics = cls._of(content)
            _check_scores(metrics)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, PatchGuardError) as fault:
            raise _damaged(path, "evaluate the run again") from fault
        return metrics

    @classmethod
    def _of(cls, content: Mapping[str, Any]) -> Self:
        scores, minimal = content["scores"], content.get("minimal_eps")
        checks = tuple(_check(entry) for entry in content.get("checks", ()))
        failed = any(check.status == "FAIL" for check in checks)
        protocol = dict(content["protocol"])
        if not protocol["threats"]:
            raise ValueError("threats")
        return cls(
            protocol=protocol,
            clean=_with_intervals(_values(content["clean"]), content.get("intervals", {})),
            attacked=_results(content["attacked"]),
            scores={
                name: np.array(values, dtype=np.float64)
                for name, values in scores.items()
                if name not in ("names", "kinds")
            },
            kinds=tuple(map(str, scores["kinds"])),
            minimal_eps=_minimal_eps(minimal) if minimal else None,
            stress=tuple(_stress(entry) for entry in content.get("stress", ())),
            checks=checks,
            unreliable=failed or bool(content.get("unreliable", False)),
            skipped={name: str(why) for name, why in content.get("skipped", {}).items()},
        )


@dataclass(frozen=True)
class Gallery:
    """``gallery.npz``: a few test images, clean and attacked.

    ``images`` and ``attacked`` are `[K, S, S, 3]` in [0, 1], ``truth`` (None without ground truth),
    ``maps`` and ``attacked_maps`` are `[K, S, S]`, the scores `[K]`.
    """

    names: tuple[str, ...]
    images: Floats
    truth: Floats | None
    maps: Floats
    attacked: Floats
    attacked_maps: Floats
    scores: Floats
    attacked_scores: Floats
    eps: str
    attack: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``gallery.npz``.

        Raises:
            PatchGuardError: the file is not what an evaluation writes.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(
                    names=tuple(str(name) for name in arrays["names"]),
                    images=arrays["images"],
                    truth=arrays["truth"] if arrays["has_truth"] else None,
                    maps=arrays["maps"],
                    attacked=arrays["attacked"],
                    attacked_maps=arrays["attacked_maps"],
                    scores=arrays["scores"],
                    attacked_scores=arrays["attacked_scores"],
                    eps=str(arrays["eps"]),
                    attack=str(arrays["attack"]),
                )
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as fault:
            raise _damaged(path, "evaluate the run again") from fault


@dataclass(frozen=True)
class Judged:
    """A detector as the evaluation found it; ``threshold`` is the calibrated one."""

    metrics: Metrics
    gallery: Gallery | None
    threshold: float | None


@dataclass(frozen=True)
class Run:
    """Everything in a run folder that the report shows.

    ``training`` holds the logged quantities by name, each as `[n, 2]` of step and value.
    """

    name: str
    config: Mapping[str, Any]
    calibration: Calibration
    judged: Judged | None
    twin: Judged | None
    training: Mapping[str, Floats]
    anomalies: Path | None


def read_run(folder: Path) -> Run:
    """Read a run folder; what is not there yet is None or empty.

    Raises:
        PatchGuardError: not a run folder, or a file in it is damaged.
    """
    anomalies = folder / "anomalies.png"
    return Run(
        name=folder.resolve().name,
        config=_config(folder),
        calibration=Calibration.from_json(folder / "calibration.json"),
        judged=_judged(folder),
        twin=_judged(folder / "twin"),
        training=training_curves(folder / "training" / "csv"),
        anomalies=anomalies if anomalies.exists() else None,
    )


def training_curves(folder: Path) -> dict[str, Floats]:
    """The logged quantities `[n, 2]` (step, value) of all starts of a training, by name.

    A resumed training starts where its state was saved, which may lie before the last row of the
    start before: those rows were taken back.

    Raises:
        PatchGuardError: a log is not what training writes.
    """
    logs = sorted(folder.glob("from_step_*/metrics.csv"), key=_first_step)
    ends = [*map(_first_step, logs[1:]), inf]
    curves: dict[str, list[tuple[float, float]]] = {}
    for log, end in zip(logs, ends, strict=False):
        for row in _logged_rows(log):
            step = row.pop("step")
            for name, value in row.items():
                if step < end:
                    curves.setdefault(name, []).append((step, value))
    return {name: np.array(points) for name, points in curves.items()}


def _logged_rows(log: Path) -> list[dict[str, float]]:
    """The rows of a CSV log without their blank cells."""
    try:
        with log.open(newline="", encoding="utf-8") as file:
            return [
                {name: float(cell) for name, cell in row.items() if cell}
                for row in csv.DictReader(file)
                if row.get("step")
            ]
    except (OSError, ValueError, TypeError) as fault:
        raise _damaged(log, "delete it to leave its part of the training curves out") from fault


def _first_step(log: Path) -> int:
    try:
        return int(log.parent.name.removeprefix("from_step_"))
    except ValueError as fault:
        raise PatchGuardError(
            f"{log.parent} is not named from_step_NUMBER; move it away"
        ) from fault


def _config(folder: Path) -> dict[str, Any]:
    """The settings of the run and where it came from, side by side."""
    path = folder / "config.yaml"
    if not path.exists():
        raise PatchGuardError(f"{folder} is not a run folder: it has no {path.name}")
    try:
        content = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        return {**content.pop("settings"), **content}
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as fault:
        raise _damaged(path, "restore it or fit again") from fault


def _judged(folder: Path) -> Judged | None:
    if not (folder / "metrics.json").exists():
        return None
    gallery, calibration = folder / "gallery.npz", folder / "calibration.json"
    return Judged(
        metrics=Metrics.read(folder / "metrics.json"),
        gallery=Gallery.read(gallery) if gallery.exists() else None,
        threshold=Calibration.from_json(calibration).threshold if calibration.exists() else None,
    )


def _results(entries: Sequence[dict[str, Any]]) -> tuple[AttackResult, ...]:
    """All results, but no worst case where every attack was skipped: it is the clean one."""
    results = [_attack_result(entry) for entry in entries]
    attackers = {result.norm for result in results if result.attack != WORST}
    return tuple(result for result in results if result.norm in attackers)


def _attack_result(entry: dict[str, Any]) -> AttackResult:
    rows = {row: _values(entry["rows"][row]) for row in ROWS if row in entry["rows"]}
    both = _with_intervals(rows["both"], entry.get("intervals", {}))
    for part, floors in entry.get("floor", {}).items():
        both = _with(both, part, auroc_floor=_number(floors.get("auroc")))
    result = AttackResult(
        attack=str(entry["attack"]),
        norm=str(entry["norm"]),
        eps=str(entry["eps"]),
        rows={**rows, "both": both},
        winners={
            part: {name: float(share) for name, share in entry.get(key, {}).items()}
            for part, key in (("image", "winners"), ("pixel", "pixel_winners"))
        },
    )
    parse_size(result.norm, result.eps)
    return result


def _with_intervals(values: Values, intervals: Mapping[str, Any]) -> Values:
    for part, found in intervals.items():
        for name, (low, high) in found.items():
            ends = {f"{name}_low": _number(low), f"{name}_high": _number(high)}
            values = _with(values, part, **ends)
    return values


def _with(values: Values, part: str, **more: float) -> Values:
    return {**values, part: {**values.get(part, {}), **more}}


def _minimal_eps(content: Mapping[str, Any]) -> MinimalEps:
    medians = ("median", "median_normals", "median_anomalies")
    values = [inf if value is None else value for value in content["values"]]
    return MinimalEps(
        norm=str(content["norm"]),
        values=np.array(values, dtype=np.float64),
        **{name: _number(content.get(name)) for name in medians},
    )


def _stress(entry: Mapping[str, Any]) -> Stress:
    values = {part: entry[part] for part in ("image", "pixel", "deployed") if part in entry}
    return Stress(str(entry["name"]), str(entry["severity"]), _values(values))


def _check(entry: Mapping[str, Any]) -> Check:
    if entry["status"] not in STATUSES:
        raise ValueError(entry["status"])
    return Check(
        id=str(entry["id"]),
        name=str(entry["name"]),
        status=str(entry["status"]),
        value=_number(entry.get("value")),
        limit=_number(entry.get("limit")),
        meaning=str(entry["meaning"]),
    )


def _values(content: Mapping[str, Mapping[str, float | None]]) -> Values:
    return {
        part: {name: _number(value) for name, value in values.items()}
        for part, values in content.items()
    }


def _number(value: float | None) -> float:
    return nan if value is None else float(value)


def _check_scores(metrics: Metrics) -> None:
    worst = (result.scores_key for result in metrics.attacked if result.attack == WORST)
    expected = {CLEAN, *worst}
    if not expected <= metrics.scores.keys():
        raise KeyError(expected - metrics.scores.keys())
    if any(values.shape != metrics.anomalous.shape for values in metrics.scores.values()):
        raise ValueError("as many scores as images")


def _damaged(path: Path, advice: str) -> PatchGuardError:
    return PatchGuardError(f"{path} is damaged: {advice}")
