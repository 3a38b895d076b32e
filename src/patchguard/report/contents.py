"""What the report tells about, read from the files of a run folder and checked."""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import yaml

from patchguard.config import parse_eps
from patchguard.deploy.calibration import Calibration
from patchguard.errors import PatchGuardError

Floats = npt.NDArray[np.floating]
Values = Mapping[str, Mapping[str, float]]
"""Metrics by what they judge (``image``, ``pixel``, ``deployed``) and name."""

HEADLINE_EPS = 4 / 255
"""The attack of the headline is the one whose eps is nearest to this."""

GOOD = "good"
ROWS = ("both", "anomalies", "normals")


@dataclass(frozen=True)
class AttackResult:
    """Metrics under one attack at one eps: both classes attacked, or one."""

    attack: str
    eps: str
    rows: Mapping[str, Values]

    @property
    def radius(self) -> float:
        return parse_eps(self.eps)

    @property
    def both(self) -> Values:
        return self.rows["both"]

    @property
    def scores_key(self) -> str:
        """Where ``Metrics.scores`` holds the image scores under this attack."""
        return f"{self.attack} {self.eps}"


@dataclass(frozen=True)
class Metrics:
    """``metrics.json``: metrics clean and attacked, and the image scores they come from.

    ``scores`` holds ``[N]`` each, ``anomalous`` is ``[N]``.
    """

    protocol: Mapping[str, Any]
    clean: Values
    attacked: tuple[AttackResult, ...]
    scores: Mapping[str, Floats]
    anomalous: npt.NDArray[np.bool_]

    def under(self, attack: str) -> tuple[AttackResult, ...]:
        """The results of an attack, by ascending eps."""
        found = (result for result in self.attacked if result.attack == attack)
        return tuple(sorted(found, key=lambda result: result.radius))

    def headline(self, attack: str) -> AttackResult | None:
        """The result of an attack nearest to `HEADLINE_EPS`; None where it was not run."""
        return min(
            self.under(attack),
            key=lambda result: abs(result.radius - HEADLINE_EPS),
            default=None,
        )

    @property
    def self_test(self) -> bool:
        """The anomalies were made, not found: nothing here was measured on real defects."""
        return str(self.protocol.get("test_set", "")).startswith("self-test")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``metrics.json``.

        Raises:
            PatchGuardError: the file is not what an evaluation writes.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            scores = content["scores"]
            kinds = np.array(scores["kinds"], dtype=str)
            metrics = cls(
                protocol=dict(content["protocol"]),
                clean=_values(content["clean"]),
                attacked=tuple(_attack_result(entry) for entry in content["attacked"]),
                scores={
                    name: np.array(values, dtype=np.float64)
                    for name, values in scores.items()
                    if name not in ("names", "kinds")
                },
                anomalous=kinds != GOOD,
            )
            _check_scores(metrics)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, PatchGuardError) as fault:
            raise _damaged(path, "evaluate the run again") from fault
        return metrics


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


def _attack_result(entry: dict[str, Any]) -> AttackResult:
    rows = {row: _values(entry["rows"][row]) for row in ROWS}
    parse_eps(entry["eps"])
    return AttackResult(str(entry["attack"]), entry["eps"], rows)


def _values(content: dict[str, dict[str, float | None]]) -> Values:
    return {
        part: {name: nan if value is None else float(value) for name, value in values.items()}
        for part, values in content.items()
    }


def _check_scores(metrics: Metrics) -> None:
    expected = {"clean", *(result.scores_key for result in metrics.attacked)}
    if not expected <= metrics.scores.keys():
        raise KeyError(expected - metrics.scores.keys())
    if any(values.shape != metrics.anomalous.shape for values in metrics.scores.values()):
        raise ValueError("as many scores as images")


def _damaged(path: Path, advice: str) -> PatchGuardError:
    return PatchGuardError(f"{path} is damaged: {advice}")
