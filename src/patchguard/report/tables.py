"""The tables of the report, as rows of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from patchguard.report.contents import ROWS, Metrics, Values
from patchguard.report.wording import DASH, metric, number, percent, targets, with_misses


@dataclass(frozen=True)
class Column:
    """A column of metrics: heading, the metric it shows and how it is written."""

    heading: str
    judged: str
    name: str
    text: Callable[[float], str] = number


@dataclass(frozen=True)
class Table:
    """Headings, and the cells of each row."""

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


IMAGE = (
    Column("AUROC", "image", "auroc"),
    Column("AP", "image", "ap"),
    Column("F1-max (oracle)", "image", "f1_max"),
)
PIXEL = (
    Column("AUROC", "pixel", "auroc"),
    Column("AP", "pixel", "ap"),
    Column("F1-max (oracle)", "pixel", "f1_max"),
    Column("AUPRO@0.3", "pixel", "aupro"),
)
TIES = Column("AUROC, ties lost", "image", "auroc_conservative")
EITHER = (
    Column("image AUROC", "image", "auroc"),
    Column("pixel AUROC", "pixel", "auroc"),
)
TWIN_IMAGE = Column("twin: AUROC", "image", "auroc")
TWIN_PIXEL = Column("twin: AUROC", "pixel", "auroc")
TWIN_EITHER = (
    Column("twin: image AUROC", "image", "auroc"),
    Column("twin: pixel AUROC", "pixel", "auroc"),
)
ATTACKED = {
    "both": "normal and anomalous images",
    "anomalies": "anomalous images only (hiding defects)",
    "normals": "normal images only (raising alarms)",
}


def deployed(metrics: Metrics) -> tuple[Column, ...]:
    """The rates at the calibrated threshold."""
    found = targets(metrics)
    return (
        Column(f"{found} caught (TPR)", "deployed", "tpr", percent),
        Column(f"{found} that pass (1\u00a0−\u00a0TPR)", "deployed", "fnr", percent),
        Column("false alarms (FPR)", "deployed", "fpr", percent),
    )


def by_eps(
    metrics: Metrics,
    twin: Metrics | None,
    attack: str,
    columns: Sequence[Column],
    twin_columns: Sequence[Column],
) -> Table:
    """Clean, then every eps of an attack with both classes attacked; the twin in the last columns.

    Columns of which nothing was measured are left out.
    """
    attacked = _clean_and_attacked(metrics, attack)
    beside = _clean_and_attacked(twin, attack) if twin else {}
    rows = [
        (eps, *_cells(values, columns), *_cells(beside.get(eps, {}), twin_columns))
        for eps, values in attacked.items()
    ]
    headings = ("attack eps", *(column.heading for column in (*columns, *twin_columns)))
    return _without_empty(headings, rows)


def by_class(metrics: Metrics, attack: str, columns: Sequence[Column]) -> Table:
    """Every eps of an attack, with both classes attacked and with one."""
    rows = [
        (result.eps, ATTACKED[row], *_cells(result.rows[row], columns))
        for result in metrics.under(attack)
        for row in ROWS
    ]
    return _without_empty(("eps", "attacked", *(column.heading for column in columns)), rows)


def _clean_and_attacked(metrics: Metrics, attack: str) -> dict[str, Values]:
    results = {result.eps: result.both for result in metrics.under(attack)}
    return {"none": metrics.clean, **results}


def _cells(values: Values, columns: Sequence[Column]) -> Iterator[str]:
    for column in columns:
        yield column.text(metric(with_misses(values), column.judged, column.name))


def _without_empty(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    kept = [place for place in range(len(headings)) if any(row[place] != DASH for row in rows)]
    return Table(
        tuple(headings[place] for place in kept),
        tuple(tuple(row[place] for place in kept) for row in rows),
    )
