"""What the report tells about, read from the files of a run folder and checked."""

from __future__ import annotations

import csv
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import yaml

from patchguard.deploy.calibration import Calibration
from patchguard.errors import PatchGuardError
from patchguard.results.files import read_as
from patchguard.results.schema import Result

Floats = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Gallery:
    """``gallery.npz``: a few test images, clean and attacked.

    ``images`` and ``attacked`` are `[K, H, W, 3]` in [0, 1], ``truth`` (None without ground truth),
    ``maps`` and ``attacked_maps`` are `[K, H, W]`, the scores `[K]`.
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

    metrics: Result
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
        metrics=read_as(Result, folder / "metrics.json"),
        gallery=Gallery.read(gallery) if gallery.exists() else None,
        threshold=Calibration.from_json(calibration).threshold if calibration.exists() else None,
    )


def _damaged(path: Path, advice: str) -> PatchGuardError:
    return PatchGuardError(f"{path} is damaged: {advice}")
