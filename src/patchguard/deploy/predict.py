"""Scores, verdicts and maps for new images, at the resolution they came in."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from patchguard.data.images import read_image, resize_image, resize_map, write_png
from patchguard.deploy.calibration import Calibration
from patchguard.detector import Detector, device_of, to_tensor
from patchguard.errors import PatchGuardError
from patchguard.models.checkpoint import CALIBRATION, load_detector, verify
from patchguard.models.patchguard import PatchGuard


@dataclass(frozen=True)
class Prediction:
    """What is said of one image file.

    Attributes:
        image: the file.
        score: raw image score, higher is more anomalous.
        p_value: conformal p-value: small where few held-out normals score as high.
        verdict: ``anomalous`` if the score exceeds the calibrated threshold, else ``normal``.
    """

    image: str
    score: float
    p_value: float
    verdict: str


@dataclass(frozen=True)
class Predictor:
    """A detector with its calibration, ready for files.

    Args:
        detector: in eval mode.
        calibration: its threshold.
        image_size: side in pixels of the square images that the detector takes.
    """

    detector: Detector
    calibration: Calibration
    image_size: int

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> tuple[float, np.ndarray]:
        """Raw score and anomaly map [H, W] of an image [H, W, 3] in [0, 1]."""
        resized = to_tensor(resize_image(image, self.image_size))
        detection = self.detector(resized[None].to(device_of(self.detector)))
        anomaly_map = detection.anomaly_map[0].float().cpu().numpy()
        return float(detection.score[0]), resize_map(anomaly_map, image.shape[:2])

    def predict(self, path: Path) -> tuple[Prediction, np.ndarray, np.ndarray]:
        """The prediction for a file, the image [H, W, 3] and its anomaly map [H, W].

        Raises:
            PatchGuardError: the file cannot be read.
        """
        image = read_image(path)
        score, anomaly_map = self(image)
        verdict = "anomalous" if self.calibration.verdicts([score])[0] else "normal"
        p_value = float(self.calibration.p_values([score])[0])
        return Prediction(str(path), score, p_value, verdict), image, anomaly_map

    def heat(self, anomaly_map: np.ndarray) -> np.ndarray:
        """The map on a scale for display: 0 up to the least normal score, 0.5 at the threshold."""
        low, threshold = self.calibration.scores[0], self.calibration.threshold
        span = 2 * max(threshold - low, 1e-6)
        return np.clip((anomaly_map - low) / span, 0, 1)


def load_calibrated(run: Path) -> tuple[PatchGuard, Calibration]:
    """The detector of a run folder and its calibration, both checked against the manifest."""
    detector = load_detector(run)
    verify(run, CALIBRATION)
    return detector, Calibration.from_json(run / CALIBRATION)


def write_predictions(
    predictor: Predictor,
    paths: Sequence[Path],
    root: Path,
    out: Path,
    *,
    maps: bool,
    each: Callable[[Prediction | PatchGuardError], None],
) -> list[Prediction]:
    """Predict files one by one; what is done stays written, whatever happens later.

    ``scores.csv``, ``scores.json``, ``overlays/*.png`` and, with ``maps``, raw float32
    ``maps/*.npy`` go to ``out``, under each image's path relative to ``root``.

    Args:
        predictor: detector and calibration.
        paths: image files.
        root: folder that holds them.
        out: folder to write to.
        maps: write raw maps too.
        each: called with each prediction as it is made, or with the error of a file that could
            not be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    done: list[Prediction] = []
    try:
        with (out / "scores.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(Prediction.__dataclass_fields__))
            table.writeheader()
            for path in paths:
                try:
                    prediction, image, anomaly_map = predictor.predict(path)
                except PatchGuardError as error:
                    each(error)
                    continue
                place = path.relative_to(root)
                picture = overlay(image, predictor.heat(anomaly_map))
                _write_picture(out / "overlays" / place, picture)
                if maps:
                    _write_map(out / "maps" / place, anomaly_map)
                table.writerow(asdict(prediction))
                file.flush()
                done.append(prediction)
                each(prediction)
    finally:
        rows = json.dumps([asdict(row) for row in done], indent=2)
        (out / "scores.json").write_text(rows + "\n", encoding="utf-8")
    return done


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image [H, W, 3] in grey, with heat [H, W] in [0, 1] laid over it in colour."""
    grey = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1)
    colour = np.stack(
        [np.ones_like(heat), np.clip(2 - 2 * heat, 0, 1) * 0.8, np.zeros_like(heat)], axis=-1
    )
    alpha = (0.75 * heat)[..., None]
    return (grey * (1 - alpha) + colour * alpha).astype(np.float32)


def _write_picture(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path.with_name(path.name + ".png"), image)


def _write_map(path: Path, anomaly_map: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path.with_name(path.name + ".npy"), anomaly_map.astype(np.float32), allow_pickle=False)
