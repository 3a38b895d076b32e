"""The steps of ``patchguard evaluate``, one function each; ``fit`` ends with them."""

from __future__ import annotations

import io
import math
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.attacks.suite import Member, members
from patchguard.config import SUITES, EvaluationConfig, FitConfig, Suite, load_suite
from patchguard.data.folder import ImageFolder
from patchguard.deploy.pipeline import load_pipeline
from patchguard.detector import Detector, device_of
from patchguard.errors import Interrupted, PatchGuardError
from patchguard.evaluation.budget import affordable, remember, remembered
from patchguard.evaluation.protocol import (
    DetectorFacts,
    Evaluation,
    evaluate_detector,
    suite_of,
)
from patchguard.evaluation.scoring import score_images
from patchguard.evaluation.store import digest
from patchguard.evaluation.test_set import TestSet, labelled_images, pseudo_test_set
from patchguard.files import printable, write_whole
from patchguard.integrations.load import Loaded
from patchguard.models.checkpoint import load_detector
from patchguard.reporter import Tell
from patchguard.results.card import Card, CardDetector, headline, robustness_card
from patchguard.results.files import read_as, to_json, write_json
from patchguard.results.ownership import keep_former
from patchguard.results.run_folder import (
    CONFIG,
    MANIFEST,
    METRICS,
    WEIGHTS,
    is_sealed,
    read_manifest,
    read_plain_config,
    seal,
    unseal,
)
from patchguard.results.schema import (
    LABELLED,
    LEGACY,
    SELF_TEST,
    WORST,
    Images,
    Protocol,
    Result,
    headline_eps,
)
from patchguard.runtime import Runtime
from patchguard.training.prepare import PreparedImages

TWIN, CACHE, CARD, GALLERY = "twin", "attacks", "card.json", "gallery.npz"
REPORT, LEADERBOARD = "report.html", "leaderboard.html"
RESULTS = (METRICS, CARD, GALLERY, REPORT, LEADERBOARD)
"""What an evaluation leaves behind, and the pages about it."""

_DECIDES = (
    "suite",
    "threats",
    "attacks",
    "legacy_steps",
    "looks",
    "seed",
    "test_set",
    "kinds",
    "ground_truth",
    "test_sha256",
)
"""Parts of a protocol without which the same detector has other results."""


@dataclass(frozen=True)
class Subject:
    """A detector under evaluation: name, kind, digest of what it was read from, and the rest."""

    name: str
    kind: str
    sha256: str
    detector: Detector
    known: DetectorFacts


def versions() -> dict[str, str]:
    """Versions of everything that decides a number."""
    packages = ("torch", "timm", "lightning", "numpy")
    return {
        "patchguard": version("patchguard-ad"),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def test_set(material: PreparedImages, settings: FitConfig, tell: Tell) -> tuple[TestSet, str]:
    """The labelled test images of the folder, or a self-test where it has none; and which."""
    if material.folder.has_test:
        return labelled(material.folder, material.shape, tell), LABELLED
    tell("no labelled test images: the evaluation is a self-test on pseudo-anomalies")
    held_out = material.held_out
    made = pseudo_test_set(
        held_out.names,
        held_out.images,
        held_out.foregrounds,
        material.data.anomalies,
        settings.seed,
    )
    return made, SELF_TEST


def labelled(folder: ImageFolder, shape: tuple[int, int], tell: Tell) -> TestSet:
    """The labelled test images of a folder at a shape; says what its ground truth allows."""
    if folder.has_masks:
        tell("pixel metrics at the resolution of the ground truth, which is never resized")
    else:
        anomalous = sum(sample.anomalous for sample in folder.test)
        missing = len(folder.unmasked)
        tell(f"no pixel metrics: {missing} of {anomalous} anomalous images have no mask")
    return labelled_images(folder.test, shape, folder.has_masks)


def evaluate_run(
    folder: Path,
    test: TestSet,
    test_name: str,
    config: EvaluationConfig,
    *,
    data: str,
    seed: int,
    twin: bool = False,
    runtime: Runtime,
) -> Evaluation:
    """Evaluate the detector of a run folder and write everything into that folder.

    Its twin, where there is one, has to be evaluated before: it is the control of the checks and
    the source of transfer attacks. The twin itself falls to the quick suite, so that is what it
    gets, at the radii of the suite asked for.
    """
    subject = _subject(folder, test, test_name, twin, runtime)
    # Both are attacked on the same images.
    config = _within_its_minutes(_asked_for(folder, twin), config, subject, test, runtime)
    if twin:
        config = _quick(config)
    evaluation = evaluate_into(
        folder, subject, test, test_name, config, data=data, seed=seed, runtime=runtime
    )
    # Last, as it is what says that the evaluation is finished.
    seal(folder, METRICS)
    return evaluation


def renew_run(
    folder: Path,
    test: TestSet,
    test_name: str,
    config: EvaluationConfig,
    *,
    data: str,
    seed: int,
    twin: bool = False,
    runtime: Runtime,
) -> None:
    """:func:`evaluate_run`, unless that was done: on these images, with these attacks."""
    if is_sealed(folder, METRICS):
        asked = _as_begun(_asked_for(folder, twin), config, test)
        asked = _quick(asked) if twin else asked
        used = test if asked.images is None else test.subset(asked.images)
        protocol = _protocol(used, test_name, asked, data, seed, runtime)
        changed = _changed(folder, protocol.told())
        if not changed:
            if not (folder / CARD).exists():
                subject = _subject(folder, test, test_name, twin, runtime)
                _write_card(folder, _recorded(folder), subject, used, data)
            return
        runtime.reporter.tell(
            f"{folder} is evaluated anew: {', '.join(changed)} changed since it was evaluated"
        )
    elif METRICS in read_manifest(folder):
        runtime.reporter.tell(f"{folder} is evaluated anew: its {METRICS} is missing or altered")
    evaluate_run(folder, test, test_name, config, data=data, seed=seed, twin=twin, runtime=runtime)


def _changed(folder: Path, asked: Mapping[str, Any]) -> list[str]:
    """What of a finished evaluation is not as it would be made now, for people."""
    recorded = _recorded(folder).protocol.told()
    if (folder / CARD).exists():  # where former versions kept the digest
        recorded.setdefault("test_sha256", read_as(Card, folder / CARD).data.sha256)
    differing = [
        name
        for name in _DECIDES
        if name in recorded
        and recorded[name] != asked.get(name)
        # A self-test is made anew from the same normals, and machines round differently.
        and not (name == "test_sha256" and asked["test_set"] == SELF_TEST)
    ]
    of_images = {"test_set", "kinds", "ground_truth", "test_sha256"}
    told = {"the test images" if name in of_images else f"its {name}" for name in differing}
    return sorted(told)


def _recorded(folder: Path) -> Result:
    return read_as(Result, folder / METRICS)


def _subject(folder: Path, test: TestSet, test_name: str, twin: bool, runtime: Runtime) -> Subject:
    """The detector of a run folder, with what its evaluation has to know."""
    pipeline = load_pipeline(folder, runtime.device)
    # The self-test's normals set the threshold: rates at it would only repeat that.
    threshold = pipeline.calibration.threshold if test_name == LABELLED else None
    control = folder / TWIN
    controlled = is_sealed(control, METRICS)
    provenance = _provenance(folder, test)
    known = DetectorFacts(
        identity=provenance["weights_sha256"] + provenance["config_sha256"],
        threshold=threshold,
        twin_auroc=worst_auroc(control) if controlled else {},
        sources={TWIN: load_detector(control).to(runtime.device)} if controlled else {},
        deployed=pipeline.score,
        provenance=provenance,
        checks=not twin,
    )
    return Subject(
        f"{folder.resolve().parent.name} twin" if twin else folder.resolve().name,
        "PatchGuard",
        provenance["weights_sha256"],
        pipeline.detector,
        known,
    )


def _quick(config: EvaluationConfig) -> EvaluationConfig:
    """The quick suite at the linf radii of another."""
    threat = suite_of(config).threats[0]
    eps = threat.eps if threat.norm == "linf" else None
    return replace(config, suite="quick", eps=eps, all_checks=False)


def evaluate_other(
    folder: Path,
    found: Loaded,
    test: TestSet,
    config: EvaluationConfig,
    *,
    data: str,
    seed: int,
    runtime: Runtime,
) -> Evaluation:
    """Evaluate a detector that is not a run folder, into ``folder``."""
    provenance = {
        "weights_sha256": found.sha256,
        "data_sha256": test.sha256,
        "versions": versions(),
        "mask_protocol": "native",
    }
    known = DetectorFacts(identity=found.sha256, threshold=found.threshold, provenance=provenance)
    _probe(found, test)
    detector = found.detector.to(runtime.device)
    subject = Subject(found.name, found.kind, found.sha256, detector, known)
    config = _within_its_minutes(folder, config, subject, test, runtime)
    return evaluate_into(
        folder, subject, test, LABELLED, config, data=data, seed=seed, runtime=runtime
    )


def evaluate_into(
    folder: Path,
    subject: Subject,
    test: TestSet,
    test_name: str,
    config: EvaluationConfig,
    *,
    data: str,
    seed: int,
    runtime: Runtime,
) -> Evaluation:
    """Evaluate any detector; write ``gallery.npz``, ``card.json`` and, last, ``metrics.json``.

    Results that they take the place of are kept in a dated folder, unless they are the same.
    """
    began = time.monotonic()
    try:
        with runtime.reporter.progress("minute") as advance:
            evaluation = evaluate_detector(
                subject.detector,
                test,
                config,
                known=subject.known,
                seed=seed,
                cache=folder / CACHE,
                gpus=runtime.gpus,
                advance=lambda what, done: advance(f"{subject.name}: {what}", done),
            )
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; finished attacks are kept in {folder / CACHE}: give the same command "
            "again to go on (fit: with --resume)"
        ) from None
    seconds = round(time.monotonic() - began, 1)
    protocol = _protocol(evaluation.test, test_name, config, data, seed, runtime, seconds)
    result = Result(protocol=protocol, **dict(evaluation.summary))
    former = _former(folder)
    if former is not None and _says_the_same(former, result):
        # Its seconds are those of the work, not of reading it from the cache.
        result = former
    else:
        kept = keep_former(folder, RESULTS)
        if kept is not None:
            runtime.reporter.tell(f"the former results are kept in {kept}")
        if (folder / MANIFEST).exists():
            unseal(folder, METRICS)
        (folder / REPORT).unlink(missing_ok=True)
    write_whole(folder / GALLERY, _gallery(evaluation, subject.detector))
    _write_card(folder, result, subject, evaluation.test, data)
    write_json(result, folder / METRICS)
    return evaluation


def _asked_for(folder: Path, twin: bool) -> Path:
    """The run that an evaluation was asked for: a twin is evaluated on behalf of its own."""
    return folder.parent if twin else folder


def _as_begun(folder: Path, config: EvaluationConfig, test: TestSet) -> EvaluationConfig:
    """With the number of images of an evaluation that was begun with as many minutes."""
    if config.images is not None or config.minutes is None:
        return config
    count = remembered(folder / CACHE, test, suite_of(config), config.minutes)
    return replace(config, images=count) if count else config


def _within_its_minutes(
    folder: Path, config: EvaluationConfig, subject: Subject, test: TestSet, runtime: Runtime
) -> EvaluationConfig:
    """With as many images as the minutes allow, where minutes are given."""
    if config.images is not None or config.minutes is None:
        return config
    count = _as_begun(folder, config, test).images
    if count is None:
        suite = suite_of(config)
        on_gpus = device_of(subject.detector).type != "cpu"
        workers = max(1, len(runtime.gpus)) if on_gpus else torch.get_num_threads()
        minutes = config.minutes / config.looks
        count = affordable(subject.detector, test, suite, minutes, workers)
        remember(folder / CACHE, test, suite, config.minutes, count)
    total = len(test.names)
    if count < total:
        runtime.reporter.tell(
            f"{count} of {total} test images are attacked: about what {config.minutes:g} minutes "
            f"allow here; --evaluation.minutes or --evaluation.images {total} for more"
        )
    return replace(config, images=count)


def _former(folder: Path) -> Result | None:
    """What an earlier evaluation found; None where it cannot be read."""
    try:
        return _recorded(folder)
    except PatchGuardError:
        return None


def _says_the_same(former: Result, result: Result) -> bool:
    """Whether two results agree, however long they took and wherever the images lay."""
    aside = {"seconds": 0.0, "data": ""}
    return (
        len(
            {
                to_json(
                    each.model_copy(update={"protocol": each.protocol.model_copy(update=aside)})
                )
                for each in (former, result)
            }
        )
        == 1
    )


def _write_card(folder: Path, result: Result, subject: Subject, test: TestSet, data: str) -> None:
    described = CardDetector(
        name=printable(subject.name),
        kind=subject.kind,
        parameters=sum(weights.numel() for weights in subject.detector.parameters()),
        sha256=subject.sha256,
    )
    name = printable(Path(data).resolve().name)
    card = robustness_card(result, detector=described, data=name, sha256=test.sha256)
    write_json(card, folder / CARD)


def worst_auroc(folder: Path) -> dict[str, float]:
    """By eps, the worst-case image AUROC of an evaluated detector."""
    found = read_as(Result, folder / METRICS).under(WORST, "linf")
    return {result.eps: result.both.image.auroc for result in found}


def outcome(folder: Path) -> str:
    """One line for the terminal."""
    card = read_as(Card, folder / CARD)
    return f"{card.detector.name}: {headline(card)}"


def _probe(found: Loaded, test: TestSet) -> None:
    """Whatever a detector of somebody else raises or returns becomes one line."""
    images = test.images[:2]
    try:
        with torch.no_grad():
            score, anomaly_map = found.detector(images)
    except PatchGuardError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise PatchGuardError(f"{found.name} fails on a batch of two images: {reason}") from error
    if score.shape != (2,) or anomaly_map.shape != (2, *images.shape[2:]):
        raise PatchGuardError(
            f"{found.name} returns a score {list(score.shape)} and a map "
            f"{list(anomaly_map.shape)} for two images; they must be [2] and "
            f"{[2, *images.shape[2:]]}"
        )


def _provenance(folder: Path, test: TestSet) -> dict[str, Any]:
    """What the checks on records want to know."""
    digests = read_manifest(folder)
    selection = read_plain_config(folder).get("selection", {})
    return {
        "weights_sha256": digests[WEIGHTS],
        "config_sha256": digests.get(CONFIG),
        "data_sha256": test.sha256,
        "versions": versions(),
        "selected_on_test": selection.get("on_test"),
        "selection_rule": selection.get("rule"),
        "mask_protocol": "native",
    }


def _protocol(
    test: TestSet,
    test_name: str,
    config: EvaluationConfig,
    data: str,
    seed: int,
    runtime: Runtime,
    seconds: float = math.nan,
) -> Protocol:
    suite = suite_of(config)
    legacy = [each for threat in suite.threats for each in members(threat) if each.kind == LEGACY]
    anomalous = int(test.labels.sum())
    default = PGD(image_score).steps
    height, width = test.images.shape[-2:]
    return Protocol(
        legacy_steps=legacy[0].settings.get("steps", default) if legacy else None,
        suite=_suite_name(config, suite),
        test_set=test_name,
        test_sha256=test.sha256,
        data=printable(data),
        images=Images(normal=len(test.labels) - anomalous, anomalous=anomalous),
        kinds={printable(kind): test.kinds.count(kind) for kind in sorted(set(test.kinds))},
        ground_truth="none" if test.masks is None else "native resolution, never resized",
        threats={threat.norm: tuple(threat.eps) for threat in suite.threats},
        attacks={
            f"{member.name} ({threat.norm})": _told(member)
            for threat in suite.threats
            for member in members(threat)
        },
        looks=config.looks,
        attacked_resolution=(height, width),
        seed=seed,
        device=runtime.device.type,
        versions=versions(),
        seconds=seconds,
    )


def _suite_name(config: EvaluationConfig, suite: Suite) -> str:
    """Its name, with a digest of its threats where they are not those of a built-in suite."""
    name = Path(config.suite).stem
    own = digest([asdict(threat) for threat in suite.threats])[:8]
    if not (SUITES / f"{name}.yaml").exists():
        return f"{name} ({own})"
    return name if load_suite(name).threats == suite.threats else f"{name}, altered ({own})"


def _told(member: Member) -> str:
    """An attack of a suite with its settings."""
    settings = {**member.settings, **{f"objective {key}": v for key, v in member.options.items()}}
    if member.starts:
        settings["starts"] = "+".join(member.starts)
    told = ", ".join(f"{key} {value}" for key, value in settings.items())
    return f"{member.kind} on {member.objective}" + (f": {told}" if told else "")


def _gallery(evaluation: Evaluation, detector: Detector) -> bytes:
    """``gallery.npz``: an image of each kind, clean and under the worst attack on its score."""
    test = evaluation.test
    chosen = [test.kinds.index(kind) for kind in sorted(set(test.kinds))][:8]
    norm = evaluation.worst[0].norm
    by_eps = {entry.eps: entry for entry in evaluation.worst if entry.norm == norm}
    worst = by_eps[headline_eps(norm, list(by_eps))]
    attacked = score_images(detector, worst.images[chosen], len(chosen))

    def pictures(images: torch.Tensor) -> np.ndarray:
        return images[chosen].permute(0, 2, 3, 1).numpy()

    file = io.BytesIO()
    np.savez_compressed(
        file,
        images=pictures(test.images),
        truth=test.coverage()[chosen].numpy(),
        has_truth=np.array(test.masks is not None),
        maps=evaluation.clean.maps[chosen],
        scores=evaluation.clean.scores[chosen],
        attacked=pictures(worst.images),
        attacked_maps=attacked.maps,
        attacked_scores=attacked.scores,
        names=np.array([printable(test.names[index]) for index in chosen]),
        eps=np.array(worst.eps),
        attack=np.array(WORST),
    )
    return file.getvalue()
