"""``report.html`` of a run folder."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from markupsafe import Markup

from patchguard.config import parse_eps
from patchguard.files import printable, write_whole
from patchguard.report import pictures, plots, tables, wording
from patchguard.report.contents import Gallery, Judged, Run, read_run
from patchguard.report.page import render_page
from patchguard.report.wording import metric, number, percent
from patchguard.results.card import PUBLISHED_STEPS
from patchguard.results.schema import CLEAN, LEGACY, WORST, Ends, Measured, Result

DEGREE = "attention_degree_"
"""What the attention degrees of the blocks are logged under, with the block's number."""

TOLD_ELSEWHERE = ("recipe", "evaluation")
OURS, TWIN = "this detector", "undefended twin"
LEVEL_OF = {"PASS": "good", "WARN": "fair", "FAIL": "poor", "SKIP": "unknown"}
"""The colour of each status of a check."""


@dataclass(frozen=True)
class Panel:
    """A figure with its caption."""

    drawing: Markup
    caption: str


@dataclass(frozen=True)
class Specimen:
    """A row of the gallery: what it says of the image, and its pictures by column."""

    name: str
    score: str
    attacked_score: str
    pictures: tuple[str, ...]


@dataclass(frozen=True)
class SamplePictures:
    """The gallery: columns, rows, and how to read them."""

    headings: tuple[str, ...]
    specimens: tuple[Specimen, ...]
    eps: str
    factor: int
    scales: tuple[tuple[str, str, str], ...]


def render_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder, from the files of that folder alone.

    Returns:
        The file; it refers to nothing outside itself.

    Raises:
        PatchGuardError: not a run folder, or a file in it is damaged.
    """
    contents = read_run(run)
    path = run / "report.html"
    write_whole(path, render_page("report.html.j2", _context(contents)))
    return path


def _context(run: Run) -> dict[str, Any]:
    context: dict[str, Any] = {
        "title": _title(run),
        "facts": _facts(run.config),
        "twin_length": _twin_length(run.config),
        "recipe": yaml.safe_dump(run.config.get("recipe") or {}, sort_keys=False),
        "calibration": run.calibration,
        "rates": tuple(map(percent, run.calibration.rate_interval(0.9))),
        "guarantee": percent(run.calibration.false_alarm_rate),
        "training": _training_panels(run),
        "anomalies": pictures.picture_grid(run.anomalies) if run.anomalies else None,
        "provenance": _listed(
            {key: value for key, value in run.config.items() if key not in TOLD_ELSEWHERE}
        ),
        "judged": run.judged,
        "bounds": {
            "good": wording.GOOD_AUROC,
            "fair": wording.FAIR_AUROC,
            "holds": wording.HOLDS_AUROC,
            "weakened": wording.WEAKENED_AUROC,
        },
        "number": number,
        "gradient": pictures.ColourScale.gradient(),
    }
    if run.judged:
        context |= _findings(run.judged, run.twin)
    return context


def _findings(judged: Judged, twin: Judged | None) -> dict[str, Any]:
    metrics, other = judged.metrics, twin.metrics if twin else None
    resolution = wording.resolution(metrics.protocol.attacked_resolution)
    rates = tables.deployed(metrics)
    headline = metrics.headline()
    return {
        "metrics": metrics,
        "twin": twin,
        "verdict": wording.verdict(metrics, other),
        "tiles": wording.tiles(metrics, other),
        "headline": headline and wording.at(headline),
        "published_attack": wording.published_text(metrics),
        "as_published": metrics.protocol.legacy_steps == PUBLISHED_STEPS,
        "published_steps": PUBLISHED_STEPS,
        "norm": wording.norm_name(metrics.norms[0]),
        "threat": wording.threat(metrics.norms[0]),
        "detection": tables.by_eps(metrics, other, tables.IMAGE + rates, (tables.TWIN_IMAGE,)),
        "detection_classes": tables.by_class(metrics, tables.IMAGE_BY_CLASS + rates),
        "detection_kinds": tables.by_kind(metrics, judged.threshold),
        "localization": tables.by_eps(metrics, other, tables.PIXEL, (tables.TWIN_PIXEL,)),
        "localization_classes": tables.by_class(metrics, tables.PIXEL_BY_CLASS),
        "published": tables.published_table(metrics, other),
        "image_members": tables.members_table(metrics, "image"),
        "pixel_members": tables.members_table(metrics, "pixel"),
        "other_norms": tables.other_norms(metrics, tables.EITHER + rates),
        "stress": tables.stress(metrics, tables.STRESSED + rates),
        "distances": wording.quantiles(metrics.minimal_eps) if metrics.minimal_eps else [],
        "distance_panels": _distance_panels(metrics),
        "curves": _curve_panels(metrics, other),
        "histograms": _histogram_panels(judged, OURS)
        + (_histogram_panels(twin, TWIN) if twin else []),
        "exhibition": _exhibition(judged, twin),
        "protocol": _listed({**metrics.protocol.told(), "attacked_resolution": resolution}),
        "test_images": _test_images(metrics),
        "tally": wording.tally(metrics),
        "level_of": LEVEL_OF,
        "check_number": wording.check_number,
    }


def _title(run: Run) -> str:
    """The data set's folder, or the run's where the config does not say."""
    return printable(Path(str(run.config.get("data") or run.name)).name or run.name)


def _facts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was trained on what: label and text, as far as the config says."""
    recipe = config.get("recipe") or {}
    data, model = recipe.get("data") or {}, recipe.get("model") or {}
    training = recipe.get("training") or {}
    facts = [
        ("data", config.get("data")),
        ("images", _image_counts(config.get("images") or {})),
        ("foreground", config.get("foreground")),
        ("varied by", config.get("varied_by")),
        ("network", _network(model, data)),
        ("training", _length(training, config.get("training_seconds"))),
        ("defence", _defence(training.get("attack") or {})),
        ("device", config.get("device")),
        ("seed", config.get("seed")),
    ]
    return [(label, str(text)) for label, text in facts if text not in (None, "")]


def _image_counts(images: Mapping[str, Any]) -> str:
    parts = [
        f"{images[key]} {words}"
        for key, words in (
            ("train", "normal images to train on"),
            ("tuning", "to choose the score on"),
            ("held_out", "held out for calibration"),
        )
        if images.get(key)
    ]
    if images.get("skipped"):
        parts.append(f"{images['skipped']} unreadable and left out")
    return ", ".join(parts)


def _network(model: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    parts = [str(model["backbone"])] if "backbone" in model else []
    if model.get("weights") not in (None, "none"):
        parts.append(f"weights {model['weights']}")
    if "image_size" in data:  # of before windows
        parts.append(wording.resolution(data["image_size"]))
    elif {"views", "window"} <= model.keys() and "resolution" in data:
        parts.append(wording.looks(model["views"], model["window"], data["resolution"]))
    return ", ".join(parts)


def _twin_length(config: Mapping[str, Any]) -> str:
    """Beside the detector; of minutes it has half, for its steps take about half the time."""
    training = (config.get("recipe") or {}).get("training") or {}
    return "for half the time" if training.get("minutes") else "for as many steps"


def _length(training: Mapping[str, Any], seconds: float | None) -> str:
    parts = [
        f"{training[unit]} {unit}" for unit in ("steps", "epochs", "minutes") if training.get(unit)
    ]
    if "batch_size" in training:
        parts.append(f"batches of {training['batch_size']} normals and as many pseudo-anomalies")
    if seconds is not None:
        parts.append(f"{seconds / 60:.1f} minutes on the clock")
    return ", ".join(parts)


def _defence(attack: Mapping[str, Any]) -> str:
    if "eps" not in attack:
        return ""
    if parse_eps(str(attack["eps"])) == 0:
        return "none: trained without an attack"
    text = f"adversarial training, eps up to {attack['eps']}"
    return f"{text}, {attack['steps']}-step attack" if "steps" in attack else text


def _test_images(metrics: Result) -> str:
    anomalous = int(metrics.anomalous.sum())
    normal = len(metrics.anomalous) - anomalous
    test_set = metrics.protocol.test_set or "test images"
    return f"{normal} normal and {anomalous} anomalous images ({test_set})"


def _listed(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings as pairs of name and text; each attack is described in a line of its own."""
    pairs: list[tuple[str, str]] = []
    for key, value in content.items():
        name = f"{prefix}{key}".replace("_", " ")
        if key in ("attacks", "threats"):
            pairs += _listed(value, f"{key.removesuffix('s')}: ")
        elif isinstance(value, Mapping):
            pairs.append((name, ", ".join(f"{part} {told}" for part, told in value.items())))
        elif isinstance(value, list):
            pairs.append((name, ", ".join(map(str, value))))
        elif value is not None:
            pairs.append((name, str(value)))
    return pairs


def _curve_panels(metrics: Result, twin: Result | None) -> list[Panel]:
    panels = []
    for part, caption in (
        ("image", "Finding defective images, in the worst case."),
        ("pixel", "Finding defective pixels, in the worst case."),
    ):
        curves = [_curve(metrics, WORST, part, OURS, plots.OURS, "-", "o")]
        if twin:
            curves.append(_curve(twin, WORST, part, "twin", plots.TWIN, "--", "s"))
        steps = metrics.protocol.legacy_steps
        published = "published" if steps is None else f"PGD-{steps}"
        curves.append(_curve(metrics, LEGACY, part, published, plots.INK, ":", "^"))
        drawn = [curve for curve in curves if len(curve.x) > 1]
        if drawn:
            if curves[-1] in drawn:
                caption += f" Dotted: {wording.published_text(metrics)} alone."
            ticks = {CLEAN: 0.0} | {each.eps: each.radius for each in metrics.under(WORST)}
            drawing = plots.auroc_against_eps(drawn, ticks, f"{part} AUROC")
            panels.append(Panel(Markup(drawing), caption))
    return panels


def _curve(
    metrics: Result, attack: str, part: str, label: str, colour: str, line: str, marker: str
) -> plots.Curve:
    """The clean AUROC and those under an attack; empty where none was measured."""
    measured = [(0.0, metrics.clean)]
    measured += [(result.radius, result.both) for result in metrics.under(attack)]
    found = [
        (radius, metric(values, part, "auroc"), *_ends(values, part))
        for radius, values in measured
        if math.isfinite(metric(values, part, "auroc"))
    ]
    x, y, low, high = zip(*found, strict=True) if found else ((), (), (), ())
    return plots.Curve(x, y, low, high, label, colour, line, marker)


def _ends(values: Measured, part: str) -> Ends:
    """Of the interval of an AUROC, nan where there is none."""
    return getattr(getattr(values, part), "auroc_interval", None) or (math.nan, math.nan)


def _distance_panels(metrics: Result) -> list[Panel]:
    """How far each image is from the other verdict, where every image was asked."""
    found = metrics.minimal_eps
    if found is None or len(found.values) != len(metrics.anomalous):
        return []
    linf = found.norm == "linf"
    radii = np.array(found.values) * (255 if linf else 1)
    edges = plots.shared_edges([np.append(radii, 0.0)], None)
    drawing = plots.radius_histogram(
        radii, metrics.anomalous, edges, "n/255" if linf else wording.norm_name(found.norm)
    )
    return [Panel(Markup(drawing), "Images at 0 are on the wrong side already.")]


def _histogram_panels(judged: Judged, whose: str) -> list[Panel]:
    """Image scores clean and in the worst case of the headline, on one axis."""
    metrics, threshold = judged.metrics, judged.threshold
    shown = {CLEAN: metrics.scores_under()}
    result = metrics.headline()
    if result:
        shown[f"worst case at {wording.at(result)}"] = metrics.scores_under(result)
    edges = plots.shared_edges(list(shown.values()), threshold)
    return [
        Panel(
            Markup(
                plots.score_histogram(
                    scores, metrics.anomalous, edges, threshold, f"{whose}, {state}"
                )
            ),
            f"{whose[0].upper()}{whose[1:]}, {state}.",
        )
        for state, scores in shown.items()
    ]


def _training_panels(run: Run) -> list[Panel]:
    logged = run.training
    panels = []
    if "loss" in logged:
        caption = "The training loss; it may rise while the attack grows."
        drawing = plots.training_plot({"loss": logged["loss"]}, "loss")
        panels.append(Panel(Markup(drawing), caption))
    if "eps" in logged:
        points = {"eps": logged["eps"] * [1, 255]}
        caption = "The radius of the attack inside the training."
        panels.append(Panel(Markup(plots.training_plot(points, "eps (n/255)")), caption))
    if "attention_gradient_share" in logged:
        caption = "The share of the attention term in the gradient; near 0 it would do nothing."
        share = {"share": logged["attention_gradient_share"]}
        drawing = plots.training_plot(share, "share of gradient")
        panels.append(Panel(Markup(drawing), caption))
    blocks = sorted(int(name.removeprefix(DEGREE)) for name in logged if name.startswith(DEGREE))
    if blocks:
        # The last block and, before it, as many as can be told apart.
        shown = blocks[:: -math.ceil(len(blocks) / 6)][::-1]
        degrees = {str(block): logged[f"{DEGREE}{block}"] for block in shown}
        caption = "Tokens that a token attends to, effectively (exp of the entropy), by block."
        drawing = plots.training_plot(degrees, "attention degree")
        panels.append(Panel(Markup(drawing), caption))
    return panels


def _exhibition(judged: Judged, twin: Judged | None) -> SamplePictures | None:
    gallery = judged.gallery
    if gallery is None:
        return None
    eps = wording.sized(judged.metrics.norms[0], gallery.eps)
    beside = twin.gallery if twin and twin.gallery else None
    if beside and beside.names != gallery.names:
        beside = None
    # The largest change that was made, as eps is no number of grey values in every norm.
    factor = pictures.magnification(float(np.abs(gallery.attacked - gallery.images).max()))
    scales = [(OURS, pictures.ColourScale.over([gallery.maps, gallery.attacked_maps]))]
    if beside:
        scales.append((TWIN, pictures.ColourScale.over([beside.attacked_maps])))
    return SamplePictures(
        headings=_headings(gallery, beside, eps, factor),
        specimens=tuple(
            Specimen(
                name=name,
                score=_told(gallery.scores[index], judged.threshold),
                attacked_score=_told(gallery.attacked_scores[index], judged.threshold),
                pictures=_pictures(gallery, beside, index, factor, [scale for _, scale in scales]),
            )
            for index, name in enumerate(gallery.names)
        ),
        eps=eps,
        factor=factor,
        scales=tuple((whose, number(scale.low), number(scale.high)) for whose, scale in scales),
    )


def _headings(gallery: Gallery, beside: Gallery | None, eps: str, factor: int) -> tuple[str, ...]:
    truth = ("truth",) if gallery.truth is not None else ()
    twin = ("twin’s map, attacked",) if beside else ()
    return (
        "image",
        *truth,
        "map",
        f"attacked, {eps}",
        f"perturbation × {factor}",
        "map, attacked",
        *twin,
    )


def _pictures(
    gallery: Gallery,
    beside: Gallery | None,
    index: int,
    factor: int,
    scales: list[pictures.ColourScale],
) -> tuple[str, ...]:
    truth = () if gallery.truth is None else (pictures.mask(gallery.truth[index]),)
    twin = (pictures.heat_map(beside.attacked_maps[index], scales[1]),) if beside else ()
    image, attacked = gallery.images[index], gallery.attacked[index]
    return (
        pictures.picture(image),
        *truth,
        pictures.heat_map(gallery.maps[index], scales[0]),
        pictures.picture(attacked),
        pictures.perturbation(attacked, image, factor),
        pictures.heat_map(gallery.attacked_maps[index], scales[0]),
        *twin,
    )


def _told(score: float, threshold: float | None) -> str:
    """A score and the verdict it leads to."""
    if threshold is None:
        return number(score)
    return f"{number(score)} ({'flagged' if score > threshold else 'passes'})"
