"""Figures as inline SVG that takes its colours and its type from the page around it.

The page decides between light, dark and print: figures are drawn in stand-in colours, and each
stand-in becomes a CSS variable of the page.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from patchguard.report.wording import number

_Floats = npt.NDArray[np.floating]

INK, FAINT = "#010203", "#040506"
OURS, TWIN, NORMAL, ANOMALOUS = "#070809", "#0a0b0c", "#0d0e0f", "#101112"
_VARIABLES = {
    INK: "var(--ink)",
    FAINT: "var(--faint)",
    OURS: "var(--ours)",
    TWIN: "var(--twin)",
    NORMAL: "var(--normal)",
    ANOMALOUS: "var(--anomalous)",
}

_SIZE = (4.6, 2.9)
"""Inches: a figure is one panel, so that its type stays legible across a phone."""

_AXES = (0.16, 0.17, 0.82, 0.73)
"""Left, bottom, width and height as fractions: the same for all, so that neighbours align."""

MIN_TICK_GAP = 0.12
"""Of the width of the axes: what the name of a radius takes."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "grid.alpha": 0.5,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


_FURNITURE = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"^.*?<svg[^>]*>",
        r"<metadata>.*?</metadata>",
        r"<style[^>]*>.*?</style>",  # It would apply to the whole page.
        r" font-family: [^;\"]*;",
        r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|legend'
        r'|Poly|FillBetween)[^"]*"',
    )
)


@dataclass(frozen=True)
class Curve:
    """A line of a figure: points `[n]` each, what it is, and how it is drawn.

    ``low`` and ``high`` `[n]` bound the band around it; nan where there is none.
    """

    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    label: str
    colour: str
    line: str
    marker: str


def auroc_against_eps(curves: Sequence[Curve], radii: Mapping[str, float], metric: str) -> str:
    """AUROC over the radius of the attack; the clean one at 0.

    Args:
        curves: those to draw.
        radii: by the names that label their ticks.
        metric: label of the vertical axis.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        for curve in curves:
            axes.plot(
                curve.x,
                curve.y,
                color=curve.colour,
                linestyle=curve.line,
                marker=curve.marker,
                markersize=5,
                linewidth=2,
                label=curve.label,
                clip_on=False,
            )
            if np.isfinite(curve.low).any():
                axes.fill_between(
                    curve.x, curve.low, curve.high, color=curve.colour, alpha=0.15, linewidth=0
                )
        axes.axhline(0.5, color=FAINT, linewidth=1, linestyle=":")
        axes.set(ylim=(-0.02, 1.02), xlabel="attack radius eps", ylabel=metric)
        axes.set_xlim(left=0)
        axes.set_xticks(list(radii.values()), _spaced(radii))
        _legend_above(axes)
        return _svg(figure, f"{metric} against eps: " + "; ".join(map(_in_words, curves)))


def score_histogram(
    scores: _Floats,
    anomalous: npt.NDArray[np.bool_],
    edges: _Floats,
    threshold: float | None,
    whose: str,
) -> str:
    """Image scores `[N]` of normal and anomalous images, with the calibrated threshold."""
    with mpl.rc_context(_STYLE):
        figure, axes = _two_classes(scores, anomalous, edges)
        if threshold is not None:
            axes.axvline(threshold, color=INK, linewidth=1.5, linestyle="--", label="threshold")
        axes.set_xlabel("image score")
        _legend_above(axes)
        return _svg(figure, f"image scores of normal and anomalous images: {whose}")


def radius_histogram(
    radii: _Floats, anomalous: npt.NDArray[np.bool_], edges: _Floats, unit: str
) -> str:
    """Minimal eps `[N]` of normal and anomalous images; those beyond the edges are not shown."""
    with mpl.rc_context(_STYLE):
        figure, axes = _two_classes(radii, anomalous, edges)
        axes.set_xlabel(f"smallest perturbation that flips the verdict ({unit})")
        _legend_above(axes)
        return _svg(figure, "minimal eps of normal and anomalous images")


def _two_classes(
    values: _Floats, anomalous: npt.NDArray[np.bool_], edges: _Floats
) -> tuple[Figure, Any]:
    figure, axes = _axes()
    for chosen, label, colour in (
        (~anomalous, "normal", NORMAL),
        (anomalous, "anomalous", ANOMALOUS),
    ):
        axes.hist(
            values[chosen],
            edges,
            color=colour,
            edgecolor=colour,
            alpha=0.5,
            label=label,
            histtype="stepfilled",
            linewidth=1.5,
        )
    axes.set(xlim=(edges[0], edges[-1]), ylabel="images")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    return figure, axes


def training_plot(lines: Mapping[str, _Floats], quantity: str) -> str:
    """A logged quantity over the training: a line `[n, 2]` of (step, value), or several by name."""
    with mpl.rc_context(_STYLE):
        figure, axes = _axes()
        for number, (name, points) in enumerate(lines.items(), 1):
            strength = 0.25 + 0.75 * number / len(lines)
            axes.plot(*points.T, color=OURS, linewidth=1.5, alpha=strength, label=name)
        if len(lines) > 1:
            _legend_above(axes, columns=len(lines))
        axes.set(xlabel="step", ylabel=quantity)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        return _svg(figure, f"{quantity} over the training steps")


def _spaced(radii: Mapping[str, float]) -> list[str]:
    """The names of the ticks, without those that would overlap a larger one or the first."""
    names = list(radii)
    width = MIN_TICK_GAP * max(radii.values())
    shown, limit = {names[0]}, math.inf
    for name in names[:0:-1]:
        if width <= radii[name] <= limit:
            shown.add(name)
            limit = radii[name] - width
    return [name if name in shown else "" for name in names]


def shared_edges(scores: Sequence[_Floats], threshold: float | None, bins: int = 40) -> _Floats:
    """Bin edges over all finite scores and the threshold, so that histograms compare."""
    values = np.concatenate([*scores, [] if threshold is None else [threshold]])
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    margin = 0.03 * (high - low) or 0.5
    return np.linspace(low - margin, high + margin, bins + 1)


def _axes() -> tuple[Figure, Any]:
    figure = Figure(figsize=_SIZE)
    return figure, figure.add_axes(_AXES)


def _legend_above(axes: Any, columns: int = 3) -> None:
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.0,
        handletextpad=0.5,
    )


def _in_words(curve: Curve) -> str:
    return f"{curve.label} " + ", ".join(map(number, curve.y))


def _svg(figure: Figure, description: str) -> str:
    """The figure as an ``<svg>`` element with no reference to anything outside it."""
    buffer = io.StringIO()
    # Ids are hashed with the salt: figures that differ share none, in one page and over time.
    with mpl.rc_context({"svg.hashsalt": description}):
        figure.savefig(buffer, format="svg")
    drawing = buffer.getvalue()
    for furniture in _FURNITURE:
        drawing = furniture.sub("", drawing)
    for stand_in, variable in _VARIABLES.items():
        drawing = drawing.replace(stand_in, variable)
    width, height = (72 * inches for inches in _SIZE)
    return (
        f'<svg role="img" aria-label="{escape(description)}" '
        f'viewBox="0 0 {width:g} {height:g}">{drawing.strip()}'
    )
