"""The steps of ``patchguard fit`` after the images are prepared, one function each."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from patchguard import __version__
from patchguard.anomalies.gallery import gallery
from patchguard.config import DataConfig, EvaluationConfig, FitConfig, parse_eps
from patchguard.data.folder import ImageFolder
from patchguard.data.images import write_png
from patchguard.deploy.calibration import Calibration, required_normals, smallest_rate
from patchguard.deploy.predict import load_calibrated
from patchguard.detector import device
from patchguard.errors import PatchGuardError
from patchguard.evaluation.protocol import Evaluation, evaluate_detector, score_images
from patchguard.evaluation.test_set import TestSet, labelled_images, pseudo_test_set
from patchguard.models.checkpoint import (
    CALIBRATION,
    CONFIG,
    MANIFEST,
    METRICS,
    WEIGHTS,
    read_config,
    save_weights,
    seal,
    write_config,
)
from patchguard.models.patchguard import PatchGuard
from patchguard.training.batches import TrainingImages
from patchguard.training.material import Material
from patchguard.training.train import check_blocks, total_steps, train

Tell = Callable[[str], None]

TWIN_SHARE = 0.25
"""Length of the undefended twin's training, in steps: without an attack it converges sooner."""

SELF_TEST = "self-test: held-out normals and pseudo-anomalies made from them"
LABELLED = "labelled test images"

ATTACKS = {
    "score": "adaptive PGD on the deployed image score (detection): at each eps one start from the "
    "result of the smaller eps and the other restarts uniformly at random; best iterate by the "
    "true score, no early stop",
    "map": "adaptive PGD on the deployed pixel map (localization): the same, maximising the mean "
    "over normal pixels minus the mean over anomalous pixels",
    "legacy": "the published attack: PGD on patch logits, no random start, last iterate; one "
    "attack for both tasks, not adaptive for detection",
}


def versions() -> dict[str, str]:
    """Versions of everything that decides a number."""
    packages = ("torch", "timm", "lightning", "numpy")
    return {
        "patchguard": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def undefended(settings: FitConfig) -> FitConfig:
    """The settings of the twin: the same network and data, no attack, no attention term."""
    twin = deepcopy(settings)
    training = twin.recipe.training
    training.attack.eps, training.attack.keep_clean, training.attention = "0/255", False, {}
    training.steps = training.steps and max(1, round(TWIN_SHARE * training.steps))
    training.epochs = training.epochs and TWIN_SHARE * training.epochs
    # Steps without an attack take about half the time.
    training.minutes = training.minutes and TWIN_SHARE / 2 * training.minutes
    return twin


def is_defended(settings: FitConfig) -> bool:
    """The recipe trains against an attack, so that a twin without one differs."""
    return parse_eps(settings.recipe.training.attack.eps) > 0


def provenance(material: Material) -> dict[str, Any]:
    """What decides a number besides the settings."""
    return {
        "versions": versions(),
        "device": f"{device().type}, {torch.get_num_threads()} threads",
        "foreground": material.foreground,
        "images": {
            "train": len(material.train.names),
            "held_out": len(material.held_out.names),
            "skipped": len(material.folder.skipped),
            "sha256": material.sha256,
        },
    }


def check(settings: FitConfig) -> None:
    """Build the network once, without its pretrained weights, and count the steps.

    Raises:
        PatchGuardError: settings that contradict each other; nothing is written yet.
    """
    recipe = settings.recipe
    total_steps(recipe.training, images=1)
    model = PatchGuard(replace(recipe.model, weights="none"), recipe.data.image_size)
    check_blocks(model, recipe.training)


def check_same_images(folder: Path, material: Material) -> None:
    """Refuse to continue a run on other images than it was started with.

    Raises:
        PatchGuardError: the normal images differ.
    """
    if not (folder / CONFIG).exists():
        return
    if read_config(folder)[1].get("images", {}).get("sha256") != material.sha256:
        raise PatchGuardError(
            f"{material.folder.root}: not the normal images that {folder} was started with; "
            "restore them or choose another --out"
        )


def write_anomalies(material: Material, config: DataConfig, path: Path, seed: int) -> None:
    """A picture of pseudo-anomalies of the first training images."""
    images, foregrounds = material.train.images[:6], material.train.foregrounds[:6]
    write_png(path, gallery(images, foregrounds, config.anomalies, seed=seed, columns=8))


def fit_detector(material: Material, settings: FitConfig, folder: Path, *, tell: Tell) -> None:
    """Train and calibrate into ``folder``; nothing to do when that is done already."""
    if (folder / MANIFEST).exists():
        tell(f"{folder} is trained already")
        return
    normals, recipe = material.train, settings.recipe
    dataset = TrainingImages(normals.images, normals.foregrounds, recipe.data, settings.seed)
    logs = folder / "training"
    logs.mkdir(parents=True, exist_ok=True)
    write_config(folder, settings, provenance(material))
    detector, seconds = train(
        dataset, recipe.model, recipe.training, seed=settings.seed, folder=logs
    )
    tell(f"trained in {seconds / 60:.1f} minutes")
    write_config(folder, settings, provenance(material) | {"training_seconds": round(seconds, 1)})
    save_weights(detector, folder)
    calibration = calibrate(detector, material, settings.false_alarm_rate, tell)
    calibration.to_json(folder / CALIBRATION)
    seal(folder, CONFIG, WEIGHTS, CALIBRATION)
    (logs / "resume.ckpt").unlink()


def calibrate(
    detector: PatchGuard, material: Material, false_alarm_rate: float, tell: Tell
) -> Calibration:
    """The conformal threshold of the held-out normals.

    With too few of them for the rate asked for, the smallest that they can guarantee.
    """
    images = np.stack(material.held_out.images).transpose(0, 3, 1, 2)
    scores = score_images(detector.to(device()), torch.from_numpy(images), 32).scores
    rate = max(false_alarm_rate, smallest_rate(len(scores)))
    if rate > false_alarm_rate:
        tell(
            f"{len(scores)} held-out normals can guarantee a false-alarm rate of {rate:.3g} at "
            f"best; {false_alarm_rate:.3g} needs {required_normals(false_alarm_rate)}"
        )
    return Calibration.from_scores(scores, rate)


def test_set(material: Material, settings: FitConfig, tell: Tell) -> tuple[TestSet, str]:
    """The labelled test images of the folder, or a self-test where it has none; and which."""
    data = settings.recipe.data
    if material.folder.has_test:
        return labelled(material.folder, data.image_size, tell), LABELLED
    if material.folder.test:
        tell("the test folder lacks normal or anomalous images: a self-test takes its place")
    held_out = material.held_out
    made = pseudo_test_set(
        held_out.names, held_out.images, held_out.foregrounds, data.anomalies, settings.seed
    )
    return made, SELF_TEST


def labelled(folder: ImageFolder, size: int, tell: Tell) -> TestSet:
    """The labelled test images of a folder; says what its ground truth allows."""
    if folder.has_masks:
        tell("pixel metrics at the resolution of the ground truth, which is never resized")
    else:
        anomalous = sum(sample.anomalous for sample in folder.test)
        missing = len(folder.unmasked)
        tell(f"no pixel metrics: {missing} of {anomalous} anomalous images have no mask")
    return labelled_images(folder.test, size, folder.has_masks)


def evaluate_run(
    folder: Path, test: TestSet, test_name: str, config: EvaluationConfig, *, data: str, seed: int
) -> None:
    """Evaluate the detector of a run folder; write ``metrics.json`` and ``gallery.npz``."""
    detector, calibration = load_calibrated(folder)
    # The self-test's normals set the threshold: rates at it would only repeat that.
    threshold = calibration.threshold if test_name == LABELLED else None
    began = time.monotonic()
    with _progress() as bar:
        task = bar.add_task(f"attacking {folder.name}", total=1.0)
        evaluation = evaluate_detector(
            detector.to(device()),
            test,
            config,
            threshold=threshold,
            seed=seed,
            advance=lambda done: bar.update(task, completed=done),
        )
    protocol = _protocol(test, test_name, config, evaluation, data, seed)
    protocol["seconds"] = round(time.monotonic() - began, 1)
    (folder / METRICS).write_text(
        json.dumps({"protocol": protocol, **evaluation.summary}, indent=1) + "\n"
    )
    _write_gallery(folder / "gallery.npz", evaluation, test)
    seal(folder, METRICS)


def outcome(folder: Path) -> str:
    """One line for the terminal: image AUROC clean and under the score attack."""
    metrics = json.loads((folder / METRICS).read_text())
    curve = [f"clean {metrics['clean']['image']['auroc']:.3f}"] + [
        f"{entry['eps']} {entry['rows']['both']['image']['auroc']:.3f}"
        for entry in metrics["attacked"]
        if entry["attack"] == "score"
    ]
    return f"{folder.name}: image AUROC under the score attack: {', '.join(curve)}"


def _protocol(
    test: TestSet,
    test_name: str,
    config: EvaluationConfig,
    evaluation: Evaluation,
    data: str,
    seed: int,
) -> dict[str, Any]:
    used = {entry.attack for entry in evaluation.attacked}
    anomalous = int(test.labels.sum())
    return {
        "test_set": test_name,
        "data": data,
        "images": {"normal": len(test.labels) - anomalous, "anomalous": anomalous},
        "kinds": {kind: test.kinds.count(kind) for kind in sorted(set(test.kinds))},
        "ground_truth": "none" if test.masks is None else "native resolution, never resized",
        "attacks": {name: text for name, text in ATTACKS.items() if name in used},
        "eps": sorted(config.eps, key=parse_eps),
        "steps": config.steps,
        "restarts": config.restarts,
        "attacked_resolution": test.images.shape[-1],
        "seed": seed,
        "device": device().type,
        "versions": versions(),
    }


def _write_gallery(path: Path, evaluation: Evaluation, test: TestSet) -> None:
    """One image of each kind, clean and under the attack on maps (on scores without masks)."""
    chosen = [test.kinds.index(kind) for kind in sorted(set(test.kinds))][:8]
    attack = "score" if test.masks is None else "map"
    candidates = [entry for entry in evaluation.attacked if entry.attack == attack]
    entry = min(candidates, key=lambda found: abs(parse_eps(found.eps) - 4 / 255))

    def pictures(images: torch.Tensor) -> np.ndarray:
        return images[chosen].permute(0, 2, 3, 1).numpy()

    np.savez_compressed(
        path,
        images=pictures(test.images),
        truth=test.coverage()[chosen].numpy(),
        has_truth=np.array(test.masks is not None),
        maps=evaluation.clean.maps[chosen],
        scores=evaluation.clean.scores[chosen],
        attacked=pictures(entry.images),
        attacked_maps=entry.scored.maps[chosen],
        attacked_scores=entry.scored.scores[chosen],
        names=np.array([test.names[index] for index in chosen]),
        eps=np.array(entry.eps),
        attack=np.array(attack),
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
