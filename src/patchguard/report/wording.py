"""Numbers and findings as text."""

from __future__ import annotations

import math
from dataclasses import dataclass

from patchguard.report.contents import AttackResult, Metrics, Values

DASH = "–"
GOOD_AUROC, FAIR_AUROC = 0.9, 0.7
HOLDS_AUROC, WEAKENED_AUROC = 0.8, 0.5
LEVELS = ("good", "fair", "poor")


def number(value: float) -> str:
    """Three decimals, or a dash where there is no value."""
    return f"{value:.3f}".replace("-", "−") if math.isfinite(value) else DASH


def percent(share: float) -> str:
    """A share in [0, 1] with one decimal, or a dash where there is no value."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else DASH


def metric(values: Values, judged: str, name: str) -> float:
    """A metric, nan where it was not measured."""
    return values.get(judged, {}).get(name, math.nan)


@dataclass(frozen=True)
class Verdict:
    """The outcome in a few words (``title``) and a few sentences; ``level`` colours it."""

    title: str
    sentences: tuple[str, ...]
    level: str


@dataclass(frozen=True)
class Tile:
    """A number that stands out: clean, under attack, and that of the twin under attack."""

    label: str
    clean: str
    attacked: str
    twin: str | None


def targets(metrics: Metrics) -> str:
    """What the anomalous images of the test set hold."""
    return "pseudo-anomalies" if metrics.self_test else "defects"


def verdict(metrics: Metrics, twin: Metrics | None) -> Verdict:
    """What the image AUROCs say, clean and under the attack of the headline."""
    clean = metric(metrics.clean, "image", "auroc")
    if not math.isfinite(clean):
        return Verdict(
            "Too few images for a verdict",
            ("The test set needs normal and anomalous images.",),
            "unknown",
        )
    title, level = _skill(clean, targets(metrics))
    sentences = [f"Clean image AUROC {number(clean)}."]
    result = metrics.headline("score")
    if result:
        attacked = metric(result.both, "image", "auroc")
        words, under_attack = _robustness(attacked)
        title += f"; {words} at {result.eps}"
        level = max(level, under_attack, key=LEVELS.index)
        sentences = [_robustness_sentence(clean, attacked, result, twin)]
    return Verdict(f"{title}.", (*sentences, *_localization(metrics, twin)), level)


def tiles(metrics: Metrics, twin: Metrics | None) -> list[Tile]:
    """The numbers of the headline, those that were measured."""
    wanted = (
        ("Image AUROC", "score", "image", "auroc", number),
        ("Pixel AUROC", "map", "pixel", "auroc", number),
        (f"{targets(metrics).capitalize()} that pass", "score", "deployed", "fnr", percent),
        ("False alarms", "score", "deployed", "fpr", percent),
    )
    shown = []
    for label, attack, part, name, text in wanted:
        clean = metric(with_misses(metrics.clean), part, name)
        if math.isfinite(clean):
            own = _at_headline(metrics, attack, part, name)
            other = _at_headline(twin, attack, part, name) if twin else None
            shown.append(
                Tile(label, text(clean), text(own), None if other is None else text(other))
            )
    return shown


def with_misses(values: Values) -> Values:
    """The metrics with ``fnr``, the share of anomalous images that pass: 1 - TPR."""
    if "deployed" not in values:
        return values
    deployed = values["deployed"]
    return {**values, "deployed": {**deployed, "fnr": 1 - deployed.get("tpr", math.nan)}}


def _at_headline(metrics: Metrics, attack: str, part: str, name: str) -> float:
    result = metrics.headline(attack)
    return metric(with_misses(result.both), part, name) if result else math.nan


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
    clean: float, attacked: float, result: AttackResult, twin: Metrics | None
) -> str:
    text = (
        f"Clean image AUROC {number(clean)}; under the adaptive attack on the image score at "
        f"{result.eps}, on every image, it keeps {number(attacked)}"
    )
    return f"{text}{_beside(twin, result, 'image')}."


def _localization(metrics: Metrics, twin: Metrics | None) -> tuple[str, ...]:
    result = metrics.headline("map")
    if not result:
        return ()
    text = (
        f"Localization: clean pixel AUROC "
        f"{number(metric(metrics.clean, 'pixel', 'auroc'))}; under the adaptive attack on the map "
        f"at {result.eps} it keeps {number(metric(result.both, 'pixel', 'auroc'))}"
    )
    return (f"{text}{_beside(twin, result, 'pixel')}.",)


def _beside(twin: Metrics | None, result: AttackResult, part: str) -> str:
    if twin is None:
        return ""
    clean = metric(twin.clean, part, "auroc")
    attacked = metric(_at_same_eps(twin, result), part, "auroc")
    return f", where the undefended twin falls from {number(clean)} to {number(attacked)}"


def _at_same_eps(metrics: Metrics, like: AttackResult) -> Values:
    for result in metrics.under(like.attack):
        if result.radius == like.radius:
            return result.both
    return {}
