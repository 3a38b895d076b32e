"""Robustness against training time: the published recipe beside another, on the same data.

    python benchmarks/training_cost.py DATA OUT [--recipe fast] [--recipe_minutes 1.5 3 6]
        [--paper_minutes 15 60] [--seeds 0] [--eps 2/255] [--suite quick]

Both recipes train the same backbone at the same image size on the same machine, one after the
other. Every length is a training of its own, so that each recipe ends its schedule of learning
rate and eps within the time it is given, and is judged by the worst-case image AUROC of the suite.
Prints the cost of a step, the curves, and the ratio of times to reach what `paper` has in the end.
Runs in OUT that are finished are not made again; curves go to OUT/training_cost.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

import patchguard
from patchguard.config import EvaluationConfig, Recipe, load_recipe
from patchguard.models.patchguard import PatchGuard
from patchguard.pipelines.evaluate import worst_auroc
from patchguard.reporter import Speaking
from patchguard.results.files import read_as
from patchguard.results.run_folder import METRICS, read_config
from patchguard.results.schema import Result

PAPER = "paper"
PUBLISHED = {6: 0.005, 9: 0.01, 12: 0.05}
"""The published weights of the attention term by block of twelve."""


@dataclass(frozen=True)
class Point:
    """A finished training.

    Attributes:
        recipe: its name.
        seed: of the run.
        minutes: that its training took.
        steps: optimiser steps in that time.
        auroc: of clean images.
        worst: worst-case image AUROC at the eps asked for.
        failed: self-checks that fail.
    """

    recipe: str
    seed: int
    minutes: float
    steps: int
    auroc: float
    worst: float
    failed: list[str]


def on_the_same_backbone(paper: Recipe, other: Recipe) -> Recipe:
    """The published recipe with the network, the window and the views of another.

    The attention term goes to the blocks at a half, three quarters and the end, divided once more
    by the number of tokens as in the release; where two of these are the same block, it has the sum
    of their weights. The discriminator stays the published one.
    """
    model = replace(
        paper.model,
        backbone=other.model.backbone,
        weights=other.model.weights,
        window=other.model.window,
        stride=other.model.stride,
        views=other.model.views,
        blur_sigma=other.model.blur_sigma,
        blur_radius=other.model.blur_radius,
    )
    built = PatchGuard(replace(model, weights="none"))
    tokens = built.grid**2 + built.backbone.num_prefix_tokens
    depth = len(built.blocks)
    attention = dict.fromkeys((round(depth * block / 12) for block in PUBLISHED), 0.0)
    for block, weight in PUBLISHED.items():
        attention[round(depth * block / 12)] += weight / tokens
    data = replace(paper.data, resolution=other.data.resolution, wholes=other.data.wholes)
    return replace(
        paper, model=model, data=data, training=replace(paper.training, attention=attention)
    )


def trained(
    name: str, recipe: Recipe, minutes: float, seed: int, arguments: argparse.Namespace
) -> Point:
    """Train for that long and evaluate, unless that is done."""
    folder = arguments.out / f"{name}-{minutes:g}min-seed-{seed}"
    if not (folder / METRICS).exists():
        patchguard.fit(
            arguments.data,
            out=folder,
            recipe=recipe,
            minutes=minutes,
            seed=seed,
            twin=False,
            resume=folder.exists(),
            evaluation=EvaluationConfig(suite=arguments.suite, eps=[arguments.eps]),
            reporter=Speaking(),
        )
    metrics = read_as(Result, folder / METRICS)
    worst, provenance = worst_auroc(folder), read_config(folder)[1]
    if arguments.eps not in worst:
        raise SystemExit(f"{folder} was evaluated at other radii: choose another OUT")
    return Point(
        recipe=name,
        seed=seed,
        minutes=provenance["training_seconds"] / 60,
        steps=provenance["training_steps"],
        auroc=metrics.clean.image.auroc,
        worst=worst[arguments.eps],
        failed=[check.id for check in metrics.failed],
    )


def curves(arguments: argparse.Namespace) -> Iterator[Point]:
    """Every training of both recipes, the short ones of each seed first."""
    other = load_recipe(arguments.recipe)
    paper = on_the_same_backbone(load_recipe(PAPER), other)
    for seed in arguments.seeds:
        for minutes in sorted(arguments.recipe_minutes):
            yield trained(Path(arguments.recipe).stem, other, minutes, seed, arguments)
        for minutes in sorted(arguments.paper_minutes):
            yield trained(PAPER, paper, minutes, seed, arguments)


def verdict(points: Sequence[Point]) -> str:
    """How much sooner the other recipe is where the longest training of `paper` ends."""
    end = max((each for each in points if each.recipe == PAPER), key=lambda each: each.minutes)
    if end.worst <= 0.5:
        return f"{PAPER} is no better than chance after {end.minutes:.1f} min: {end.worst:.3f}"
    sooner = [each for each in points if each.recipe != PAPER and each.worst >= end.worst]
    if not sooner:
        return f"none reaches the {end.worst:.3f} that {PAPER} has after {end.minutes:.1f} min"
    first = min(sooner, key=lambda each: each.minutes)
    return (
        f"{first.recipe} has {first.worst:.3f} after {first.minutes:.1f} min, {PAPER} "
        f"{end.worst:.3f} after {end.minutes:.1f} min: {end.minutes / first.minutes:.0f} times as "
        "long or longer"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--recipe_minutes", type=float, nargs="+", default=[1.5, 3, 6])
    parser.add_argument("--paper_minutes", type=float, nargs="+", default=[15, 60])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--eps", default="2/255")
    parser.add_argument("--suite", default="quick")
    arguments = parser.parse_args()
    print(
        f"{arguments.data.name}, worst-case image AUROC of {arguments.suite} at {arguments.eps}, "
        f"{torch.get_num_threads()} threads, torch {version('torch')}, patchguard "
        f"{patchguard.__version__}, Python {platform.python_version()}"
    )
    print(f"{'recipe':10} seed  minutes  steps  s/step   clean  worst  checks that fail")
    found = []
    for point in curves(arguments):
        found.append(point)
        print(
            f"{point.recipe:10} {point.seed:4}  {point.minutes:7.1f}  {point.steps:5}  "
            f"{60 * point.minutes / point.steps:6.2f}   {point.auroc:.3f}  {point.worst:.3f}  "
            f"{', '.join(point.failed) or 'none'}",
            flush=True,
        )
        kept = [asdict(each) for each in found]
        (arguments.out / "training_cost.json").write_text(json.dumps(kept, indent=1) + "\n")
    for seed in arguments.seeds:
        print(f"seed {seed}: {verdict([each for each in found if each.seed == seed])}")


if __name__ == "__main__":
    main()
