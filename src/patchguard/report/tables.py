"""The tables of the report, as rows of text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from patchguard.evaluation.metrics import auroc_by_kind, rates_at
from patchguard.report.contents import Floats
from patchguard.report.wording import (
    DASH,
    gap,
    interval,
    metric,
    norm_name,
    number,
    percent,
    targets,
)
from patchguard.results.card import published_steps
from patchguard.results.schema import (
    CLEAN,
    LEGACY,
    WORST,
    AttackResult,
    ImageScores,
    Measured,
    Result,
)


@dataclass(frozen=True)
class Column:
    """A column of metrics: heading, the metric it shows and how that is written."""

    heading: str
    judged: str
    name: str
    text: Callable[[Any], str] = number

    def cell(self, values: Measured | None) -> str:
        found = getattr(getattr(values, self.judged, None), self.name, None)
        return DASH if found is None else self.text(found)


@dataclass(frozen=True)
class Table:
    """Headings, the cells of each row, and those that stand out, as (row, column)."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[tuple[int, int]] = frozenset()


IMAGE = (
    Column("AUROC", "image", "auroc"),
    Column("95 % interval", "image", "auroc_interval", interval),
    Column("AP", "image", "ap"),
    Column("F1-max (oracle)", "image", "f1_max"),
)
PIXEL = (
    Column("AUROC", "pixel", "auroc"),
    Column("95 % interval", "pixel", "auroc_interval", interval),
    Column("AUROC, floor", "pixel", "auroc_floor"),
    Column("AP", "pixel", "ap"),
    Column("F1-max (oracle)", "pixel", "f1_max"),
    Column("AUPRO@0.3", "pixel", "aupro"),
)
IMAGE_BY_CLASS = (IMAGE[0], Column("AUROC, ties lost", "image", "auroc_conservative"))
PIXEL_BY_CLASS = (PIXEL[0], *PIXEL[3:])
EITHER = (
    Column("image AUROC", "image", "auroc"),
    Column("95 % interval", "image", "auroc_interval", interval),
    Column("pixel AUROC", "pixel", "auroc"),
    Column("pixel AUROC, floor", "pixel", "auroc_floor"),
)
STRESSED = (EITHER[0], EITHER[2])
TWIN_IMAGE = Column("twin: AUROC", "image", "auroc")
TWIN_PIXEL = Column("twin: AUROC", "pixel", "auroc")
ATTACKED = {
    "both": "normal and anomalous images",
    "anomalies": "anomalous images only (hiding defects)",
    "normals": "normal images only (raising alarms)",
}


def deployed(metrics: Result) -> tuple[Column, ...]:
    """The rates at the calibrated threshold."""
    found = targets(metrics)
    return (
        Column(f"{found} caught (TPR)", "deployed", "tpr", percent),
        Column(f"{found} that pass (1\u00a0−\u00a0TPR)", "deployed", "fnr", percent),
        Column("false alarms (FPR)", "deployed", "fpr", percent),
    )


def by_eps(
    metrics: Result,
    twin: Result | None,
    columns: Sequence[Column],
    twin_columns: Sequence[Column],
) -> Table:
    """Clean, then the worst case at every eps; the twin in the last columns.

    Columns of which nothing was measured are left out.
    """
    attacked = _clean_and_worst(metrics)
    beside = _clean_and_worst(twin) if twin else {}
    rows = [
        (eps, *_cells(values, columns), *_cells(beside.get(eps), twin_columns))
        for eps, values in attacked.items()
    ]
    headings = ("attack eps", *(column.heading for column in (*columns, *twin_columns)))
    return _without_empty(headings, rows)


def by_kind(metrics: Result, threshold: float | None) -> Table:
    """Each kind of defect against all normal images: AUROC, and the share above the threshold.

    Clean and in the worst case; shares at the eps of the headline. Empty with a single kind.
    """
    kinds, headline = aurocs_by_kind(metrics), metrics.headline()
    scores = {CLEAN: metrics.scores_under()}
    if headline:
        scores[headline.eps] = metrics.scores_under(headline)
    rows = [
        (
            kind.replace("_", " "),
            str(metrics.scores.kinds.count(kind)),
            *map(number, aurocs.values()),
            *(_caught(values, metrics.scores.kinds, kind, threshold) for values in scores.values()),
            _in_windows(metrics.scores, kind),
        )
        for kind, aurocs in kinds.items()
    ]
    measured = next(iter(kinds.values()), {})
    headings = ("defect", "images", *(f"AUROC, {eps}" for eps in measured))
    return _without_empty(
        (*headings, *(f"caught, {eps}" for eps in scores), "decided by a window"),
        rows if len(rows) > 1 else (),
    )


def aurocs_by_kind(metrics: Result) -> dict[str, dict[str, float]]:
    """Image AUROC of each kind of defect: clean, and worst cases of the first norm by eps."""
    scores = {CLEAN: metrics.scores_under()}
    scores |= {result.eps: metrics.scores_under(result) for result in metrics.under(WORST)}
    found = {eps: auroc_by_kind(values, metrics.scores.kinds) for eps, values in scores.items()}
    return {kind: {eps: found[eps][kind] for eps in found} for kind in found[CLEAN]}


def _caught(scores: Floats, kinds: Sequence[str], kind: str, threshold: float | None) -> str:
    """The share of the images of a kind that score above the threshold."""
    if threshold is None:
        return DASH
    caught, _ = rates_at(scores, [each == kind for each in kinds], threshold)
    return percent(caught)


def _in_windows(scores: ImageScores, kind: str) -> str:
    """The share of the images of a kind whose clean score was decided in windows."""
    if not scores.decided_by:
        return DASH
    views = [
        view for view, each in zip(scores.decided_by, scores.kinds, strict=True) if each == kind
    ]
    return percent(views.count("windows") / len(views))


def by_class(metrics: Result, columns: Sequence[Column]) -> Table:
    """The worst case at every eps, with both classes attacked and with one."""
    rows = [
        (result.eps, ATTACKED[row], *_cells(result.rows[row], columns))
        for result in metrics.under(WORST)
        for row in ATTACKED
        if row in result.rows
    ]
    return _without_empty(("eps", "attacked", *(column.heading for column in columns)), rows)


def other_norms(metrics: Result, columns: Sequence[Column]) -> Table:
    """The worst case at every eps of all norms but the first."""
    rows = [
        (norm_name(norm), result.eps, *_cells(result.both, columns))
        for norm in metrics.norms[1:]
        for result in metrics.under(WORST, norm)
    ]
    return _without_empty(("threat", "eps", *(column.heading for column in columns)), rows)


def published_table(metrics: Result, twin: Result | None) -> Table:
    """The published attack beside the worst case at the same eps, and the gap between them."""
    compared = [(metrics, "", "image"), (metrics, "", "pixel")]
    if twin:
        compared.append((twin, "twin: ", "image"))
    headings = ["eps"]
    for each, whose, part in compared:
        steps = published_steps(each.protocol.legacy_steps)
        headings += [f"{whose}{part} AUROC, published ({steps})", f"{whose}worst case"]
        headings.append(f"{whose}gap")
    rows = []
    for eps in (result.eps for result in metrics.under(LEGACY)):
        pairs = [
            [metric(_at(each.under(attack), eps), part, "auroc") for attack in (LEGACY, WORST)]
            for each, _, part in compared
        ]
        cells = [(number(kind), number(worst), gap(kind - worst)) for kind, worst in pairs]
        rows.append((eps, *(cell for each in cells for cell in each)))
    return _without_empty(tuple(headings), rows)


def members_table(metrics: Result, part: str) -> Table:
    """AUROC of images or pixels under each attack of the suite alone, below the worst case.

    The lowest of each eps is marked. The last column is the share of the images for which the
    worst case takes an attack, at the eps of the headline.
    """
    worst, headline = metrics.under(WORST), metrics.headline()
    radii = [result.eps for result in worst]
    names = [WORST, *(name for name in metrics.members() if _measured(metrics, name, part))]
    values = [
        [metric(_at(metrics.under(name), eps), part, "auroc") for eps in radii] for name in names
    ]
    winners = {}
    if headline:
        winners = headline.winners if part == "image" else headline.pixel_winners
    shares = ["", *(percent(winners.get(name, 0.0)) for name in names[1:])]
    steps = published_steps(metrics.protocol.legacy_steps)
    labels = [{WORST: "worst case", LEGACY: f"legacy ({steps})"}.get(name, name) for name in names]
    rows = [
        (label, *map(number, row), *((share,) if winners else ()))
        for label, row, share in zip(labels, values, shares, strict=True)
    ]
    if CLEAN in winners:
        rows.append(("none: the clean image", *[""] * len(radii), percent(winners[CLEAN])))
    headings = (
        "attack",
        *radii,
        *((f"worst for, at {headline.eps}",) if headline and winners else ()),
    )
    return Table(headings, tuple(rows), _lowest(values[1:]))


def stress(metrics: Result, columns: Sequence[Column]) -> Table:
    """Clean, then every natural disturbance."""
    rows = [("none", "", *_cells(metrics.clean, columns))]
    rows += [
        (each.name.replace("_", " "), str(each.severity), *_cells(each, columns))
        for each in metrics.stress
    ]
    headings = ("disturbance", "severity", *(column.heading for column in columns))
    return _without_empty(headings, rows)


def _lowest(values: Sequence[Sequence[float]]) -> frozenset[tuple[int, int]]:
    """The least of each column, as places in a table with one row above and one column before."""
    marked = set()
    for place, column in enumerate(zip(*values, strict=True), 1):
        least = min((value for value in column if math.isfinite(value)), default=math.nan)
        marked |= {(row, place) for row, value in enumerate(column, 1) if value == least}
    return frozenset(marked)


def _measured(metrics: Result, attack: str, part: str) -> bool:
    return any(math.isfinite(metric(each.both, part, "auroc")) for each in metrics.under(attack))


def _at(results: Sequence[AttackResult], eps: str) -> Measured | None:
    return next((result.both for result in results if result.eps == eps), None)


def _clean_and_worst(metrics: Result) -> dict[str, Measured]:
    results = {result.eps: result.both for result in metrics.under(WORST)}
    return {"none": metrics.clean, **results}


def _cells(values: Measured | None, columns: Sequence[Column]) -> Iterator[str]:
    for column in columns:
        yield column.cell(values)


def _without_empty(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    kept = [place for place in range(len(headings)) if any(row[place] != DASH for row in rows)]
    return Table(
        tuple(headings[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
    )
