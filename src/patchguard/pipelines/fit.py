"""The steps of ``patchguard fit`` after the images are prepared, one function each."""

from __future__ import annotations

import errno
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchguard.config import FitConfig, ModelConfig, parse_eps
from patchguard.deploy.calibration import Calibration, required_normals, smallest_rate
from patchguard.errors import PatchGuardError
from patchguard.evaluation.protocol import suite_of
from patchguard.evaluation.scoring import score_images
from patchguard.models.checkpoint import load_unverified, save_detector
from patchguard.models.patchguard import PatchGuard
from patchguard.models.weights import start_digest
from patchguard.pipelines.evaluate import versions
from patchguard.reporter import Tell
from patchguard.results.ownership import RUN, claim, set_aside
from patchguard.results.run_folder import (
    CALIBRATION,
    CONFIG,
    DETECTOR,
    MANIFEST,
    RESUME,
    WEIGHTS,
    is_begun,
    read_config,
    read_manifest,
    seal,
    write_config,
)
from patchguard.runtime import Runtime
from patchguard.training.batches import TrainingImages
from patchguard.training.gallery import gallery, write_gallery
from patchguard.training.ladder import ladder, told
from patchguard.training.module import defended_eps
from patchguard.training.prepare import PreparedImages, prepare
from patchguard.training.train import check_settings, total_steps, train
from patchguard.training.views import choose_scores


def undefended(settings: FitConfig) -> FitConfig:
    """The settings of the twin: the same network, data and steps, no attack, no attention term.

    A shorter training would leave it smooth, and the control half robust.
    """
    twin = deepcopy(settings)
    training = twin.recipe.training
    training.attack.eps, training.attack.keep_clean, training.attention = "0/255", False, {}
    training.attack.persistent, training.awp = False, 0.0
    if twin.recipe.model.weights != "hub":
        # Those of a file or a run may be robust, and the control with them.
        twin.recipe.model.weights = "none"
    # Steps without an attack take about half the time.
    training.minutes = training.minutes and training.minutes / 2
    return twin


def is_defended(settings: FitConfig) -> bool:
    """The recipe trains against an attack, so that a twin without one differs."""
    return parse_eps(settings.recipe.training.attack.eps) > 0


def provenance(material: PreparedImages, weights: str, runtime: Runtime) -> dict[str, Any]:
    """What decides a number besides the settings; ``weights`` is what the training starts from."""
    return {
        "start_sha256": start_digest(weights),
        "versions": versions(),
        "device": runtime.described,
        "foreground": material.foreground,
        "varied_by": material.changes,
        "full_scale": material.folder.full_scale,
        "shape": list(material.shape),
        "span": material.data.anomalies.range,
        "images": {
            "train": len(material.train.names),
            "tuning": 0 if material.tuning is material.train else len(material.tuning.names),
            "held_out": len(material.held_out.names),
            "skipped": len(material.folder.skipped),
            "sha256": material.sha256,
        },
    }


def check(settings: FitConfig) -> None:
    """Build the network once, all but weights of the hub; read the suite; count the steps.

    Raises:
        PatchGuardError: settings that contradict each other; nothing is written yet.
    """
    recipe = settings.recipe
    total_steps(recipe.training, images=1)
    suite_of(settings.evaluation)
    weights = "none" if recipe.model.weights == "hub" else recipe.model.weights
    model = PatchGuard(replace(recipe.model, weights=weights))
    check_settings(model, recipe.data, recipe.training)


def prepared(data: Path, settings: FitConfig, tell: Tell) -> PreparedImages:
    """The images of a run: a folder, which may have moved since, scanned and split.

    Raises:
        PatchGuardError: see :func:`patchguard.training.prepare.prepare`.
    """
    return prepare(
        data,
        settings.recipe.data,
        settings.recipe.model,
        full_scale=settings.full_scale,
        groups=settings.groups,
        calibration_images=required_normals(settings.false_alarm_rate),
        seed=settings.seed,
        strict=settings.strict,
        tell=tell,
    )


def check_same_images(folder: Path, material: PreparedImages) -> None:
    """Refuse to continue a run on other images than it was started with.

    Raises:
        PatchGuardError: the normal images differ.
    """
    if not is_begun(folder):
        return
    if read_config(folder)[1].get("images", {}).get("sha256") != material.sha256:
        raise PatchGuardError(
            f"{material.folder.root}: not the normal images that {folder} was started with; "
            "restore them or choose another --out"
        )


def check_same_changes(folder: Path, material: PreparedImages) -> None:
    """Refuse to continue a run with images changed otherwise than when it was started.

    Raises:
        PatchGuardError: another version, or another processor, finds that other changes suit them.
    """
    if not is_begun(folder):
        return
    started = read_config(folder)[1].get("varied_by")
    if started != material.changes:
        raise PatchGuardError(
            f"{folder} was started with images varied by {started}, but {material.changes} suits "
            "them now: use the version and the machine that started it, or choose another --out"
        )


def write_training_gallery(
    material: PreparedImages, model: ModelConfig, path: Path, seed: int
) -> None:
    """A picture of the first training images and of pseudo-anomalies as training makes them."""
    write_gallery(path, gallery(training_images(material, model, seed)))


def training_images(material: PreparedImages, model: ModelConfig, seed: int) -> TrainingImages:
    """What training draws its examples from."""
    return TrainingImages(
        material.train.images,
        material.train.foregrounds,
        material.data,
        seed,
        window=model.window,
        views=model.views,
        in_windows=material.in_windows,
    )


def fit_detector(
    material: PreparedImages, settings: FitConfig, folder: Path, *, runtime: Runtime
) -> None:
    """Train and calibrate into ``folder``; nothing to do when that is done already."""
    tell = runtime.reporter.tell
    if is_trained(folder, tell):
        tell(f"{folder} is trained already")
        # Left there where a kill came after the manifest.
        (folder / RESUME).unlink(missing_ok=True)
        return
    claim(folder, RUN)
    recipe = settings.recipe
    dataset = training_images(material, recipe.model, settings.seed)
    logs = (folder / RESUME).parent
    if not is_begun(folder):
        # Curves of a start that left nothing to resume would be taken for a part of this one's.
        set_aside(logs, ("csv", "tensorboard"))
    logs.mkdir(parents=True, exist_ok=True)
    known = provenance(material, recipe.model.weights, runtime)
    write_config(folder, settings, known)
    try:
        trained = train(
            dataset,
            recipe.model,
            recipe.training,
            seed=settings.seed,
            folder=logs,
            runtime=runtime,
        )
    except OSError as error:  # of the loggers, which name no file
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise PatchGuardError(
            f"{logs}: cannot be written ({error.strerror or error}); fit --resume goes on from the "
            "last state that was saved"
        ) from error
    tell(f"trained in {trained.seconds / 60:.1f} minutes")
    training = {
        "training_seconds": round(trained.seconds, 1),
        "training_steps": trained.steps,
        "switched_to_pgd2_at_step": trained.switched_at,
        "selection": {"rule": trained.selection, "on_test": False},
    }
    detector = trained.detector.to(runtime.device)
    judged = _judge(detector, material, settings, folder, tell)
    write_config(folder, settings, known | training | judged)
    seal(folder, CONFIG, *_detector_files(folder))
    (folder / RESUME).unlink()


def _judge(
    detector: PatchGuard, material: PreparedImages, settings: FitConfig, folder: Path, tell: Tell
) -> dict[str, Any]:
    """Score, save and calibrate a trained detector; returns what was found out on the way."""
    tell("choosing how many patches the image score averages, under attack")
    anomalies = material.data.anomalies
    eps = defended_eps(settings.recipe.training, detector.contrast)
    scores = choose_scores(detector, material.tuning, anomalies, eps=eps, seed=settings.seed)
    save_detector(detector, folder, material.shape, material.folder.full_scale)
    calibration = calibrate(detector, material, settings.false_alarm_rate)
    calibration.to_json(folder / CALIBRATION)
    threshold = calibration.threshold
    rungs = ladder(detector, material.held_out, anomalies, threshold, settings.seed)
    tell(told(rungs))
    return {"scores": scores, "ladder": rungs}


def _detector_files(folder: Path) -> list[str]:
    """The parts of a detector; runs of before ``model.json`` have none."""
    return [name for name in DETECTOR if (folder / name).exists()]


def is_trained(folder: Path, tell: Tell) -> bool:
    """Whether the detector of a run is finished; a lost or damaged manifest is made again.

    Raises:
        PatchGuardError: no manifest, and weights or calibration are damaged too.
    """
    if (folder / MANIFEST).exists():
        try:
            return WEIGHTS in read_manifest(folder)
        except PatchGuardError:
            pass
    # While there is a state to resume, training itself ends in a manifest.
    elif (folder / RESUME).exists() or not (folder / WEIGHTS).exists():
        return False
    load_unverified(folder)
    Calibration.from_json(folder / CALIBRATION)
    (folder / MANIFEST).unlink(missing_ok=True)
    seal(folder, CONFIG, *_detector_files(folder))
    tell(
        f"{folder / MANIFEST} was missing or damaged: weights and calibration are whole, so it is "
        "made again"
    )
    return True


def calibrate(
    detector: PatchGuard, material: PreparedImages, false_alarm_rate: float
) -> Calibration:
    """The conformal threshold of the held-out normals, for the rate that they can guarantee."""
    images = material.held_out.images
    scores = np.concatenate(
        [
            score_images(detector, _batch(images[first : first + 32]), 32).scores
            for first in range(0, len(images), 32)
        ]
    )
    return Calibration.from_scores(scores, max(false_alarm_rate, smallest_rate(len(scores))))


def _batch(images: np.ndarray) -> torch.Tensor:
    """[B, 3, H, W] of [B, H, W, 3]."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def tell_of_shortfall(material: PreparedImages, false_alarm_rate: float, tell: Tell) -> None:
    """Say so where the held-out normals are too few for the rate asked for."""
    held_out = len(material.held_out.images)
    best = smallest_rate(held_out)
    if best > false_alarm_rate:
        tell(
            f"{held_out} held-out normals can guarantee a false-alarm rate of {best:.3g} at best; "
            f"{false_alarm_rate:.3g} needs {required_normals(false_alarm_rate)}"
        )
