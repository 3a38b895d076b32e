"""Numbers and findings as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from patchguard.results.card import eps_text, published_steps
from patchguard.results.schema import (
    LEGACY,
    STATUSES,
    AttackResult,
    Ends,
    Measured,
    MinimalRadii,
    Result,
)

DASH = "–"
GOOD_AUROC, FAIR_AUROC = 0.9, 0.7
HOLDS_AUROC, WEAKENED_AUROC = 0.8, 0.5
_LEVELS = ("good", "fair", "poor")
NORMS = {"linf": "L∞", "l2": "L2", "l1": "L1", "l0": "L0", "patch": "patch"}
THREATS = {
    "linf": "changes every value of every pixel by at most eps",
    "l2": "changes every image by at most eps in the Euclidean norm",
    "l1": "changes every image by at most eps in the sum of absolute changes",
    "l0": "changes at most eps pixels of every image, as much as it likes",
    "patch": "replaces a square of every image whose share of the area is eps",
}
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def norm_name(norm: str) -> str:
    """A threat's norm as people write it."""
    return NORMS.get(norm, norm)


def threat(norm: str) -> str:
    """What an attacker of that norm does, to follow “the attacker”."""
    return THREATS.get(norm, f"changes every image by at most eps in the {norm} norm")


def at(result: AttackResult) -> str:
    """The radius of a result and its norm, where that is not linf."""
    return sized(result.norm, result.eps)


def sized(norm: str, eps: str) -> str:
    """A radius and its norm, where that is not linf."""
    return eps if norm == "linf" else f"{norm_name(norm)} {eps}"


def published_text(metrics: Result) -> str:
    """The published attack, with as many steps as it took here."""
    return f"the published attack ({published_steps(metrics.protocol.legacy_steps)})"


def interval(ends: Ends) -> str:
    """Both ends of an interval, or a dash."""
    low, high = ends
    return f"{number(low)} to {number(high)}" if math.isfinite(low + high) else DASH


def gap(value: float) -> str:
    """A difference of two metrics with its sign."""
    return f"+{number(value)}" if value >= 0 else number(value)


def check_number(value: float | None) -> str:
    """Three significant digits, as checks span many orders of magnitude; or a dash."""
    return DASH if value is None else f"{value:.3g}".replace("-", "−")


def radius(norm: str, value: float) -> str:
    """A radius, or that none was found."""
    return DASH if math.isnan(value) else eps_text(norm, value)


def number(value: float) -> str:
    """Three decimals, or a dash where there is no value."""
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else DASH


def resolution(size: int | Sequence[int]) -> str:
    """Height and width in pixels, of a square by its side, too."""
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} × {width} px"


def looks(views: Sequence[str], window: int, side: int | str) -> str:
    """How a network looks at images: such as ``windows of 112 px at 448 px, and the whole``."""
    if "windows" not in views:
        return f"the whole at {resolution((window, window))}"
    at = f"{side} px" if isinstance(side, int) else f"{side} resolution"
    whole = ", and the whole" if "whole" in views else ""
    return f"windows of {window} px at {at}{whole}"


def percent(share: float) -> str:
    """A share in [0, 1] with one decimal, or a dash where there is no value."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else DASH


def metric(values: Measured | None, judged: str, name: str) -> float:
    """A metric, nan where it was not measured."""
    return float(getattr(getattr(values, judged, None), name, math.nan))


@dataclass(frozen=True)
class _Verdict:
    """The outcome in a few words (``title``) and a few sentences; ``level`` colours it."""

    title: str
    sentences: tuple[str, ...]
    level: str


@dataclass(frozen=True)
class Tile:
    """A number that stands out: clean, in the worst case, and what else belongs beside that.

    ``legacy`` is what the published attack says and ``steps`` how long it was run, ``twin`` the
    worst case of the twin; None where there is none.
    """

    label: str
    clean: str
    worst: str
    legacy: str | None
    steps: str
    twin: str | None


def targets(metrics: Result) -> str:
    """What the anomalous images of the test set hold."""
    return "pseudo-anomalies" if metrics.self_test else "defects"


def verdict(metrics: Result, twin: Result | None) -> _Verdict:
    """What the image AUROCs say, clean and in the worst case of the headline."""
    clean = metric(metrics.clean, "image", "auroc")
    if not math.isfinite(clean):
        return _Verdict(
            "Too few images for a verdict",
            ("The test set needs normal and anomalous images.",),
            "unknown",
        )
    title, level = _skill(clean, targets(metrics))
    sentences = [f"Clean image AUROC {number(clean)}."]
    result = metrics.headline()
    if result:
        words, under_attack = _robustness(metric(result.both, "image", "auroc"))
        title += f"; {words} at {at(result)}"
        level = max(level, under_attack, key=_LEVELS.index)
        sentences = [_robustness_sentence(clean, result, metrics, twin)]
        sentences += [*_published(metrics, result), *_localization(metrics, result, twin)]
    elif metrics.skipped:
        title, level = f"{title}; not attacked", "unknown"
        sentences.append("No attack of the suite could run: nothing here says how robust it is.")
    return _Verdict(f"{title}.", tuple(sentences), "unknown" if metrics.unreliable else level)


def tiles(metrics: Result, twin: Result | None) -> list[Tile]:
    """The numbers of the headline, those that were measured."""
    wanted = (
        ("Image AUROC", "image", "auroc", number),
        ("Pixel AUROC", "pixel", "auroc", number),
        (f"{targets(metrics).capitalize()} that pass", "deployed", "fnr", percent),
        ("False alarms", "deployed", "fpr", percent),
    )
    result = metrics.headline()
    worst = result.both if result else None
    legacy = _same_radius(metrics, LEGACY, result) if result else None
    other = _same_radius(twin, result.attack, result) if twin and result else None
    shown = []
    for label, part, name, text in wanted:
        clean, attacked, kinder, of_twin = (
            metric(values, part, name) for values in (metrics.clean, worst, legacy, other)
        )
        if math.isfinite(clean):
            shown.append(
                Tile(
                    label,
                    clean=text(clean),
                    worst=text(attacked),
                    legacy=text(kinder) if math.isfinite(kinder) else None,
                    steps=published_steps(metrics.protocol.legacy_steps),
                    twin=text(of_twin) if twin else None,
                )
            )
    return shown


def quantiles(found: MinimalRadii) -> list[tuple[str, str]]:
    """How far the verdicts are from flipping: what and how much, for lists of facts."""
    medians = (
        ("median of all images", found.median),
        ("median of normal images", found.median_normals),
        ("median of anomalous images", found.median_anomalies),
    )
    # The lower neighbour: between a number and infinity there is nothing to interpolate.
    values = np.array(found.values)
    spread = np.quantile(values, QUANTILES, method="lower") if values.size else ()
    shares = [
        (f"{100 * share:.0f}\N{NO-BREAK SPACE}% of all images within", value)
        for share, value in zip(QUANTILES, spread, strict=False)
        if share != 0.5
    ]
    facts = [(label, radius(found.norm, value)) for label, value in (*medians, *shares)]
    kept = int(np.isinf(values).sum())
    return [*facts, ("never flipped", f"{kept} of {values.size} images")]


def tally(metrics: Result) -> str:
    """How many checks came to which end."""
    statuses: list[str] = [check.status for check in metrics.checks]
    counts = [(statuses.count(status), word) for status, word in STATUSES.items()]
    return ", ".join(f"{count} {word}" for count, word in counts if count)


def _skill(auroc: float, target: str) -> tuple[str, str]:
    if auroc >= GOOD_AUROC:
        return f"Good at finding {target}", "good"
    if auroc >= FAIR_AUROC:
        return f"Fair at finding {target}", "fair"
    return f"Poor at finding {target}", "poor"


def _robustness(auroc: float) -> tuple[str, str]:
    if not math.isfinite(auroc):
        return "attack without result", "fair"
    if auroc >= HOLDS_AUROC:
        return "holds under attack", "good"
    if auroc >= WEAKENED_AUROC:
        return "weakened by attack", "fair"
    return "defeated by attack", "poor"


def _robustness_sentence(
    clean: float, result: AttackResult, metrics: Result, twin: Result | None
) -> str:
    found = result.both.image
    text = (
        f"Clean image AUROC {number(clean)}; in the worst case over all attacks of the suite "
        f"“{metrics.protocol.suite}” at {at(result)}, on every image, it keeps "
        f"{number(found.auroc)}"
    )
    if found.auroc_interval and all(map(math.isfinite, found.auroc_interval)):
        text += f" (95 % interval {interval(found.auroc_interval)})"
    return f"{text}{_beside(twin, result, 'image')}."


def _published(metrics: Result, result: AttackResult) -> tuple[str, ...]:
    kinder = metric(_same_radius(metrics, LEGACY, result), "image", "auroc")
    if not math.isfinite(kinder):
        return ()
    name = published_text(metrics)
    told = f"{name[0].upper()}{name[1:]} alone, on its combined loss, says {number(kinder)}."
    return (told,)


def _localization(metrics: Result, result: AttackResult, twin: Result | None) -> tuple[str, ...]:
    attacked = metric(result.both, "pixel", "auroc")
    if not math.isfinite(attacked):
        return ()
    text = (
        f"Localization: clean pixel AUROC {number(metric(metrics.clean, 'pixel', 'auroc'))}; in "
        f"the worst case at {at(result)} it keeps {number(attacked)}"
    )
    return (f"{text}{_beside(twin, result, 'pixel')}.",)


def _beside(twin: Result | None, result: AttackResult, part: str) -> str:
    if twin is None:
        return ""
    clean = metric(twin.clean, part, "auroc")
    attacked = metric(_same_radius(twin, result.attack, result), part, "auroc")
    return f", where the undefended twin falls from {number(clean)} to {number(attacked)}"


def _same_radius(metrics: Result, attack: str, like: AttackResult) -> Measured | None:
    for result in metrics.under(attack, like.norm):
        if result.radius == like.radius:
            return result.both
    return None
