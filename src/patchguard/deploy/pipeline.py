"""The one way from an image to a verdict: preprocessing, detector, calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from patchguard.arrays import FloatArray
from patchguard.data.images import Pixels
from patchguard.data.preprocess import Preprocessor
from patchguard.deploy.calibration import Calibration
from patchguard.detector import Detector, device_of
from patchguard.models.checkpoint import load_unverified, verified_model
from patchguard.results.run_folder import CALIBRATION, verify
from patchguard.runtime import full_precision


@dataclass(frozen=True)
class Judgement:
    """What is said of one image.

    Attributes:
        score: raw image score, higher is more anomalous.
        p_value: conformal p-value: small where few held-out normals score as high.
        anomalous: the score exceeds the calibrated threshold.
        anomaly_map: raw, [H, W] at the detector's resolution.
    """

    score: float
    p_value: float
    anomalous: bool
    anomaly_map: FloatArray


@dataclass(frozen=True)
class Pipeline:
    """A detector with what comes before and after it.

    Args:
        preprocessor: what the detector was trained with.
        detector: in eval mode, on the device to use.
        calibration: its threshold.
    """

    preprocessor: Preprocessor
    detector: Detector
    calibration: Calibration

    @torch.no_grad()
    def __call__(self, images: Sequence[Pixels]) -> list[Judgement]:
        """Judge a batch of images of any sizes."""
        batch = torch.stack([self.preprocessor(image) for image in images])
        with full_precision():
            detection = self.detector(batch.to(device_of(self.detector)))
        scores = detection.score.cpu().double().numpy()
        maps = detection.anomaly_map.float().cpu().numpy()
        return [
            Judgement(float(score), float(p_value), bool(anomalous), anomaly_map)
            for score, p_value, anomalous, anomaly_map in zip(
                scores,
                self.calibration.p_values(scores),
                self.calibration.verdicts(scores),
                maps,
                strict=True,
            )
        ]

    def score(self, image: FloatArray) -> float:
        """The raw score of one image [H, W, 3] in [0, 1]."""
        return self([Pixels.of(image)])[0].score

    def heat(self, anomaly_map: FloatArray) -> FloatArray:
        """A map on a scale for display: 0 up to the least normal score, 0.5 at the threshold."""
        low, threshold = self.calibration.scores[0], self.calibration.threshold
        span = 2 * max(threshold - low, 1e-6)
        shown: FloatArray = np.clip((anomaly_map - low) / span, 0, 1)
        return shown


def load_pipeline(run: Path, device: torch.device) -> Pipeline:
    """The pipeline of a run folder, each file of it checked against the manifest.

    Raises:
        PatchGuardError: the folder is unfinished, or a file is missing, damaged or altered.
    """
    model = verified_model(run)
    verify(run, CALIBRATION)
    return Pipeline(
        Preprocessor(model.preprocessing.shape, model.preprocessing.full_scale),
        load_unverified(run, model).to(device),
        Calibration.from_json(run / CALIBRATION),
    )
