"""An evaluation from start to end: attack, score, tabulate, check, and say how it was done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from patchguard.attacks.attack import NotDifferentiable
from patchguard.attacks.balls import BALLS
from patchguard.attacks.eot import Averaged
from patchguard.attacks.minimal import MinimalEps
from patchguard.attacks.objectives.registry import ObjectiveContext
from patchguard.attacks.objectives.statistics import PixelStatistics
from patchguard.attacks.suite import build, members
from patchguard.config import EvaluationConfig, Suite, ThreatConfig, load_suite, parse_size
from patchguard.constraints import checked_settings, setting_types
from patchguard.detector import Detector, device_of
from patchguard.errors import PatchGuardError
from patchguard.evaluation.bootstrap import (
    image_auroc_interval,
    pixel_auroc_interval,
    rate_intervals,
)
from patchguard.evaluation.campaign import Campaign
from patchguard.evaluation.checks import CheckContext, run_checks
from patchguard.evaluation.metrics import image_metrics, rates_at
from patchguard.evaluation.outcome import Scored, Worst
from patchguard.evaluation.pixels import ROWS, metrics_of
from patchguard.evaluation.scoring import score_images
from patchguard.evaluation.store import (
    code_digest,
    detector_digest,
    digest,
    images_digest,
    keep_clean,
    store_of,
)
from patchguard.evaluation.stress import STRESSES, stressed
from patchguard.evaluation.test_set import OriginalImages, TestSet
from patchguard.evaluation.threat import ThreatResult, run_threat
from patchguard.files import printable
from patchguard.results.schema import (
    HEADLINE_EPS,
    LEGACY,
    WORST,
    AttackResult,
    Check,
    ImageScores,
    Measured,
    MinimalRadii,
    PixelMetrics,
    Rates,
    StressResult,
    Summary,
    headline_eps,
)
from patchguard.runtime import full_precision

SEVERITIES = (1, 3, 5)


@dataclass(frozen=True)
class DetectorFacts:
    """What an evaluation knows of a detector besides its outputs; all of it is optional.

    Attributes:
        identity: what tells the detector from others besides its tensors, such as the sha256 of
            the files it was made from.
        threshold: the calibrated one; adds the rates at which it flags images and minimal eps.
        twin_auroc: by eps, the worst-case image AUROC of an undefended control.
        sources: detectors that transfer attacks may be made on, by name.
        deployed: the score of an image [H, W, 3] in [0, 1] on the way that deployment takes.
        provenance: facts for the checks on records: see :class:`CheckContext`.
        checks: run the self-checks.
    """

    identity: str = ""
    threshold: float | None = None
    twin_auroc: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, Detector] = field(default_factory=dict)
    deployed: Callable[[np.ndarray], float] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    checks: bool = True


@dataclass(frozen=True)
class Evaluation:
    """The outcome: ``summary`` goes into ``metrics.json``; the rest is for pictures."""

    summary: Summary
    test: TestSet
    clean: Scored
    worst: tuple[Worst, ...]


def suite_of(config: EvaluationConfig) -> Suite:
    """The suite that is asked for, with the radii that replace its own.

    Raises:
        PatchGuardError: it does not exist, or asks for an attack that does not.
    """
    suite = load_suite(config.suite)
    if config.eps:
        sizes = [config.eps] if isinstance(config.eps, str) else config.eps
        suite.threats[0] = replace(suite.threats[0], eps=sizes)
    suite.all_checks |= config.all_checks
    for threat in suite.threats:
        _rehearse(threat)
    checked_settings("suite: minimal_eps", suite.minimal_eps or {}, _MINIMAL)
    for name in suite.stress:
        if name not in STRESSES:
            raise PatchGuardError(f"suite: no stress {name!r}; known: {', '.join(STRESSES)}")
    return suite


_MINIMAL = {name: setting_types(MinimalEps)[name] for name in ("steps", "restarts")}
"""What a suite may set of the search for minimal eps."""


def _rehearse(threat: ThreatConfig) -> None:
    """Build every attack once, so that a mistake shows before hours of work."""
    maps, labels = np.zeros((2, 4, 4), dtype=np.float32), np.array([False, True])
    coverage = torch.zeros(2, 4, 4)
    coverage[1, 0] = 1
    statistics = PixelStatistics.of(maps, coverage)
    context = ObjectiveContext(statistics, maps, coverage, labels, torch.zeros(1, 2))
    for member in members(threat):
        sources = {} if member.source is None else {member.source: Detector()}
        build(member, threat.norm, context, sources)


@full_precision()
def evaluate_detector(
    detector: Detector,
    test: TestSet,
    config: EvaluationConfig,
    *,
    known: DetectorFacts | None = None,
    seed: int = 0,
    cache: Path | None = None,
    gpus: Sequence[torch.device] = (),
    advance: Callable[[str, float], None] = lambda what, done: None,
) -> Evaluation:
    """Clean and worst-case metrics of a detector on a labelled test set, and the self-checks.

    Every image is attacked at every eps, whatever the detector says of it; attacks see raw
    scores in float32.

    Args:
        detector: on the device to use.
        test: the images.
        config: the suite and its size.
        known: what else is known of the detector.
        seed: of all random draws.
        cache: folder for finished work, which a later call with the same arguments goes on from.
        gpus: to attack on at once, besides the detector's device.
        advance: called with what is being done, and the fraction of it that is done.

    Raises:
        PatchGuardError: a suite that asks for what does not exist.
    """
    suite, known = suite_of(config), known or DetectorFacts()
    if config.images is not None:
        test = test.subset(config.images)
    if config.looks > 1:
        detector = Averaged(detector, config.looks)
        torch.manual_seed(seed)
    at_once = detector.at_once(*test.images.shape[-2:]) or config.batch_size
    batch_size = min(config.batch_size, at_once)
    clean = score_images(detector, test.images, batch_size)
    if not np.isfinite(clean.scores).all() or not np.isfinite(clean.maps).all():
        raise PatchGuardError("the detector returns NaN or infinity for clean test images")
    with ExitStack() as stack:
        root = cache or Path(stack.enter_context(TemporaryDirectory()))
        fingerprint = _fingerprint(detector, test, suite, config, known, seed)
        store = stack.enter_context(store_of(root, fingerprint, clean))
        keep_clean(store, clean)
        campaign = Campaign(
            detector,
            test,
            clean,
            store,
            batch_size,
            seed,
            known.sources,
            parallel=config.looks == 1,
            gpus=gpus,
        )
        findings = _Findings(campaign, suite, known, advance)
        summary = findings.summary()
    return Evaluation(summary, test, clean, findings.worst)


def _fingerprint(
    detector: Detector,
    test: TestSet,
    suite: Suite,
    config: EvaluationConfig,
    known: DetectorFacts,
    seed: int,
) -> str:
    """Of everything that decides what attacks find and can be known exactly, code included."""
    sources = {name: detector_digest(source) for name, source in known.sources.items()}
    decides = [asdict(suite)["threats"], suite.minimal_eps, config.batch_size, config.looks, seed]
    found = [known.identity, known.threshold, detector_digest(detector), images_digest(test)]
    return digest([code_digest(), str(torch.__version__), sources, *decides, *found])


class _Findings:
    """Everything that an evaluation writes down.

    Args:
        campaign: detector, images and store.
        suite: what to run.
        known: what else is known of the detector.
        advance: called with what is being done, and the fraction of it that is done.
    """

    def __init__(
        self,
        campaign: Campaign,
        suite: Suite,
        known: DetectorFacts,
        advance: Callable[[str, float], None],
    ) -> None:
        self.campaign, self.suite, self.known = campaign, suite, known
        self.test, self.clean, self.seed = campaign.test, campaign.clean, campaign.seed
        self.advance = advance

    @cached_property
    def results(self) -> list[ThreatResult]:
        """What the attacks of each threat found; they run when this is first asked for."""
        return [self._attack(threat) for threat in self.suite.threats]

    @property
    def worst(self) -> tuple[Worst, ...]:
        """The worst case of each threat at each radius."""
        return tuple(worst for result in self.results for worst in result.worst)

    def summary(self) -> Summary:
        """What ``metrics.json`` holds besides the protocol."""
        return Summary(
            clean=self._measured(
                self.clean.scores, "both", self._pixels(self.clean), intervals=True
            ),
            attacked=tuple(entry for result in self.results for entry in self._entries(result)),
            skipped={name: why for found in self.results for name, why in found.skipped.items()},
            minimal_eps=self._minimal_eps(),
            stress=tuple(entry for name in self.suite.stress for entry in self._stress(name)),
            scores=self._scores(),
            checks=tuple(self._checks()) if self.known.checks else (),
        )

    def _attack(self, threat: ThreatConfig) -> ThreatResult:
        def advance(done: float) -> None:
            self.advance(f"{threat.norm} attacks", done)

        return run_threat(self.campaign, threat, advance)

    def _entries(self, result: ThreatResult) -> Iterator[AttackResult]:
        yield from map(self._worst_entry, result.worst)
        for entry in result.attacked:
            pixel = PixelMetrics.model_validate(entry.pixel) if entry.pixel else None
            yield AttackResult(
                attack=entry.attack,
                norm=entry.norm,
                eps=entry.eps,
                rows={
                    row: self._measured(entry.scored.scores, row, pixel if row == "both" else None)
                    for row in ROWS
                },
            )

    def _worst_entry(self, worst: Worst) -> AttackResult:
        pixel = {
            row: PixelMetrics.model_validate(found.pixel) for row, found in worst.mixtures.items()
        }
        both = worst.mixtures.get("both")
        if both:
            ends = pixel_auroc_interval(both.histograms, self.test.labels, seed=self.seed)
            found = {"auroc_interval": tuple(ends), "auroc_floor": worst.floor}
            pixel["both"] = pixel["both"].model_copy(update=found)
        return AttackResult(
            attack=WORST,
            norm=worst.norm,
            eps=worst.eps,
            rows={
                row: self._measured(worst.scores, row, pixel.get(row), intervals=row == "both")
                for row in ROWS
            },
            winners=_shares(worst.winners),
            pixel_winners=_shares(both.attacks) if both else {},
        )

    def _measured(
        self,
        attacked: np.ndarray,
        row: str,
        pixel: PixelMetrics | None,
        *,
        intervals: bool = False,
    ) -> Measured:
        """Image metrics, and the rates at the threshold, with one class attacked or both."""
        labels, threshold = self.test.labels, self.known.threshold
        scores = np.where(np.where(labels, *ROWS[row]), attacked, self.clean.scores)
        image, deployed = image_metrics(scores, labels), None
        if intervals:
            ends = image_auroc_interval(scores, labels, seed=self.seed)
            image = image.model_copy(update={"auroc_interval": tuple(ends)})
        if threshold is not None:
            tpr, fpr = rates_at(scores, labels, threshold)
            bounds = rate_intervals(scores, labels, threshold) if intervals else (None, None)
            deployed = Rates(tpr=tpr, fpr=fpr, tpr_interval=bounds[0], fpr_interval=bounds[1])
        return Measured(image=image, pixel=pixel, deployed=deployed)

    def _pixels(self, scored: Scored) -> PixelMetrics | None:
        return None if self.test.masks is None else metrics_of(scored.maps, self.test.masks)

    def _minimal_eps(self) -> MinimalRadii | None:
        """The smallest eps known to carry each image over the threshold, in the first threat."""
        threat, settings = self.suite.threats[0], self.suite.minimal_eps
        if settings is None or self.known.threshold is None or threat.norm not in BALLS:
            return None
        attack = MinimalEps(ball=BALLS[threat.norm], **settings)
        try:
            found = self._smallest(attack, self.known.threshold)
        except NotDifferentiable:
            return None
        labels = self.test.labels
        for worst, size in zip(self.results[0].worst, threat.sizes, strict=True):
            over = (worst.scores.astype(np.float64) > self.known.threshold) != labels
            found = np.where(over, np.minimum(found, size), found)
        return MinimalRadii(
            norm=threat.norm,
            threshold=self.known.threshold,
            median=float(np.median(found)),
            median_normals=float(np.median(found[~labels])),
            median_anomalies=float(np.median(found[labels])),
            values=tuple(found.tolist()),
        )

    def _smallest(self, attack: MinimalEps, threshold: float) -> np.ndarray:
        store, batches = self.campaign.store, self.campaign.batches
        for index, batch in enumerate(batches):
            if not store.has(f"minimal eps/{index}"):
                store.save(f"minimal eps/{index}", self._smallest_of(attack, threshold, batch))
            self.advance("minimal eps", (index + 1) / len(batches))
        return np.concatenate([store.load(f"minimal eps/{index}") for index in range(len(batches))])

    def _smallest_of(self, attack: MinimalEps, threshold: float, batch: np.ndarray) -> np.ndarray:
        detector = self.campaign.detector
        device, chosen = device_of(detector), torch.from_numpy(batch)
        eps, _ = attack(
            detector,
            self.test.images[chosen].to(device),
            torch.from_numpy(self.test.labels)[chosen].to(device),
            threshold=threshold,
            generator=torch.Generator(device).manual_seed(self.seed),
        )
        found: np.ndarray = eps.cpu().numpy()
        return found

    def _stress(self, name: str) -> Iterator[StressResult]:
        for severity in SEVERITIES:
            images = stressed(self.test.images, name, severity, self.seed)
            scored = score_images(self.campaign.detector, images, self.campaign.batch_size)
            found = self._measured(scored.scores, "both", self._pixels(scored))
            yield StressResult(name=name, severity=severity, **dict(found))

    def _scores(self) -> ImageScores:
        attacked = {(WORST, worst.norm, worst.eps): worst.scores for worst in self.worst}
        for result in self.results:
            for entry in result.attacked:
                if entry.attack == LEGACY:
                    attacked[LEGACY, entry.norm, entry.eps] = entry.scored.scores
        return ImageScores(
            names=tuple(map(printable, self.test.names)),
            kinds=tuple(map(printable, self.test.kinds)),
            clean=tuple(self.clean.scores.tolist()),
            decided_by=self._decided_by(),
            **{" ".join(key): tuple(scores.tolist()) for key, scores in attacked.items()},
        )

    @torch.no_grad()
    def _decided_by(self) -> tuple[str, ...]:
        """By image, the view of the detector that decided its clean score."""
        detector, found = self.campaign.detector, list[str]()
        for batch in torch.split(self.test.images, self.campaign.batch_size):
            names = detector.decided_by(batch.to(device_of(detector)))
            if names is None:
                return ()
            found += names
        return tuple(found)

    def _checks(self) -> list[Check]:
        threat, result = self.suite.threats[0], self.results[0]
        nearest = headline_eps(threat.norm, threat.eps)
        linf = threat.norm == "linf"
        context = CheckContext(
            detector=self.campaign.detector,
            test=self.test,
            clean=self.clean,
            attacked=result.attacked if linf else (),
            others=[
                entry for other in self.results[1 if linf else 0 :] for entry in other.attacked
            ],
            worst=result.worst if linf else (),
            eps=parse_size(threat.norm, nearest) if linf else HEADLINE_EPS,
            threshold=self.known.threshold,
            twin_auroc=self.known.twin_auroc.get(nearest),
            deployed=self.known.deployed,
            captured=OriginalImages(self.test.sources) if self.test.sources else None,
            provenance={"seed": self.seed, **self.known.provenance},
            seed=self.seed,
            effort="full" if self.suite.all_checks else "quick",
        )
        return run_checks(context, advance=lambda done: self.advance("self-checks", done))


def _shares(names: Sequence[str]) -> dict[str, float]:
    """The share of images of each name, largest first."""
    return {name: count / len(names) for name, count in Counter(names).most_common()}
