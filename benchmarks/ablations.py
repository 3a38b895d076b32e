"""What each setting of a recipe is worth: one change at a time, several seeds, worst case.

    python benchmarks/ablations.py OUT DATA [DATA ...] [--variants attention awp ...]
        [--recipe fast] [--steps 2000 | --minutes 3] [--seeds 0 1 2] [--eps 2/255 4/255 8/255]
        [--jobs 1]

Settings are chosen on these numbers, so DATA must hold no test images that anybody reports on:
give folders of training normals (the evaluation is then a self-test on held-out normals and
pseudo-anomalies) or the rendered categories of `patchguard synthetic`. Each run is trained, and
attacked by the quick suite without self-checks; its figures go to a file in OUT, and a run whose
file is there is not made again. Prints means over seeds, differences to the recipe itself, paired
by seed, and the clean image AUROC by kind of defect. Without `--variants` all are made, with none
named the recipe alone. `--jobs` trainings at a time share a GPU, or have a thread each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

from patchguard.config import EvaluationConfig, FitConfig, Recipe, from_plain, load_recipe
from patchguard.errors import PatchGuardError
from patchguard.evaluation.metrics import auroc_by_kind
from patchguard.evaluation.protocol import DetectorFacts, evaluate_detector
from patchguard.pipelines import fit as fitting
from patchguard.pipelines.evaluate import test_set, versions
from patchguard.pipelines.study import data_names
from patchguard.results.schema import CLEAN, WORST, Summary
from patchguard.runtime import named_device
from patchguard.training.module import defended_eps
from patchguard.training.prepare import PreparedImages
from patchguard.training.train import Trained, train
from patchguard.training.views import choose_scores

DEVICE = named_device("auto")
SUITE = "quick"
BATCH = 128
"""Images attacked at once: a GPU is hardly slower for all of them than for a few."""

STILL = {f"data.variation.{name}": 0.0 for name in ("rotation", "zoom", "shift")} | {
    "training.attack.start": 1.0,
    "training.attack.project": True,
    "model.views": ["whole"],
}
"""Nothing moves and perturbations stay within eps, so that they can outlive a step: compare
`persistent` with this, which is three changes away from the recipe."""

VARIANTS: dict[str, dict[str, Any]] = {
    "attention": {"training.attention": {2: 1.0, 3: 1.0}},
    "attention-x10": {"training.attention": {2: 10.0, 3: 10.0}},
    "pgd-2": {
        "training.attack.steps": 2,
        "training.attack.step_size": 1.25,
        "training.attack.start": 1.0,
        "training.attack.project": True,
    },
    "still": STILL,
    "persistent": STILL | {"training.attack.persistent": True},
    "no-curriculum": {"data.anomalies.curriculum": 0.0},
    "no-variation": {"data.variation": {}},
    "any-variation": {"data.stray": 0.0},
    "no-flips": {"data.flips": []},
    "no-removals": {"data.anomalies.removals": 0.0},
    "removals-half": {"data.anomalies.removals": 0.15},
    "no-copies": {"data.anomalies.copies": 0.0},
    "position-1": {"model.position_std": 1.0},
    "no-ramp": {"training.attack.ramp": 0.0},
    "eps-6": {"training.attack.eps": "6/255"},
    "eps-10": {"training.attack.eps": "10/255"},
    "awp": {"training.awp": 0.005},
    "equal-patches": {"training.anomalous_weight": 1.0},
    "grazed": {"training.least_cover": 0.0},
    "cover-twentieth": {"training.least_cover": 0.05},
    "no-ema": {"training.ema": 0.0},
    "decay": {"training.weight_decay": 0.2},
    "lr-x2": {"training.lr": 1.6e-3},
    "lines": {"data.anomalies.shapes": ["rectangle", "ellipse", "irregular", "line", "line"]},
    "up-to-4": {"data.anomalies.count_max": 4},
    "whole-alone": {"model.views": ["whole"]},
    "windows-alone": {"model.views": ["windows"]},
    "no-overlap": {"model.stride": 1.0},
    "more-overlap": {"model.stride": 0.45},
    "half-resolution": {"data.resolution": 160},
    "top-1": {"model.top": [0.0]},
    "top-5-percent": {"model.top": [0.05]},
    "quick-stem": {"model.backbone": "patchguard_swift"},
    "wholes-quarter": {"data.wholes": 0.25},
    "full-span": {"data.anomalies.range": [0.0, 1.0]},
    "rectangles": {
        "data.anomalies.shapes": ["rectangle"],
        "data.anomalies.blends": ["opaque"],
        "data.anomalies.count_max": 1,
    },
    "subtle": {"data.anomalies.contrast_floor": 0.05},
    "batch-8": {"training.batch_size": 8},
    "batch-16": {"training.batch_size": 16},
    "patches-8": {"model.backbone": "patchguard_mini_8"},
}
"""Changes to a recipe, by dotted name."""


@dataclass(frozen=True)
class Run:
    """A training with its evaluation; ``variant`` is a name, or that of the recipe itself."""

    data: str
    variant: str
    seed: int
    recipe: Recipe
    eps: tuple[str, ...]
    file: Path

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its figures."""
        recipe = asdict(self.recipe)
        del recipe["data"]["workers"]
        return {"recipe": recipe, "eps": list(self.eps), "suite": SUITE, "seed": self.seed}

    def figures(self) -> Any:
        """What its file holds.

        Raises:
            PatchGuardError: it was made with other settings.
        """
        kept = json.loads(self.file.read_text())
        if kept["settings"] != json.loads(json.dumps(self.settings)):
            raise PatchGuardError(f"{self.file} was made with other settings: choose another OUT")
        return kept


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with these changes, by dotted name.

    Raises:
        KeyError: a recipe has no such setting.
    """
    content = asdict(recipe)
    for name, value in changes.items():
        *path, last = name.split(".")
        part = content
        for key in path:
            part = part[key]
        if last not in part:
            raise KeyError(f"a recipe has no {name}")
        part[last] = value
    return from_plain(Recipe, content)


def runs(
    data: Sequence[str],
    recipes: Mapping[str, Recipe],
    seeds: Sequence[int],
    eps: Sequence[str],
    out: Path,
) -> Iterator[Run]:
    """All of them, seed by seed."""
    for seed in seeds:
        for name, folder in data_names(data).items():
            for variant, recipe in recipes.items():
                file = out / f"{name}-{variant}-{seed}.json"
                yield Run(folder, variant, seed, recipe, tuple(eps), file)


def make(run: Run, alone: bool) -> None:
    """Train, attack, and write down the figures."""
    if not alone:
        torch.set_num_threads(1)
        run.recipe.data.workers = run.recipe.data.workers or 1
    settings = FitConfig(data=run.data, seed=run.seed, twin=False, recipe=run.recipe)
    material = fitting.prepared(Path(run.data), settings, print)
    trained = trained_on(material, run)
    test, test_name = test_set(material, settings, print)
    found = evaluate_detector(
        trained.detector,
        test,
        EvaluationConfig(suite=SUITE, eps=list(run.eps), batch_size=BATCH),
        known=DetectorFacts(checks=False),
        seed=run.seed,
    ).summary
    kept = {
        "settings": run.settings,
        "test_set": test_name,
        "steps": trained.steps,
        "minutes": trained.seconds / 60,
        "switched_at": trained.switched_at,
        "device": DEVICE.type,
        "versions": versions(),
        **aurocs(found),
        "scores": found.scores.model_dump(mode="json"),
    }
    partial = run.file.with_suffix(".partial")
    partial.write_text(json.dumps(kept, indent=1) + "\n")
    partial.replace(run.file)


def trained_on(material: PreparedImages, run: Run) -> Trained:
    """The training of a run, its views scored; nothing of it is kept."""
    model, training = run.recipe.model, run.recipe.training
    images = fitting.training_images(material, model, run.seed)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(images, model, training, seed=run.seed, folder=Path(folder))
    detector = trained.detector.to(DEVICE)
    eps = defended_eps(training, detector.contrast)
    choose_scores(detector, material.held_out, material.data.anomalies, eps=eps, seed=run.seed)
    return trained


def aurocs(found: Summary) -> dict[str, dict[str, float]]:
    """Image and pixel AUROC, clean and in the worst case by eps, and image AUROC by kind."""
    worst = {entry.eps: entry.both for entry in found.attacked if entry.attack == WORST}
    figures = {CLEAN: found.clean, **worst}
    return {
        "image": {eps: values.image.auroc for eps, values in figures.items()},
        "pixel": {eps: values.pixel.auroc for eps, values in figures.items() if values.pixel},
        "by_kind": auroc_by_kind(found.scores.clean, found.scores.kinds),
    }


def table(planned: Sequence[Run]) -> Iterator[str]:
    """By data and variant, means over seeds, and paired differences to the first variant."""
    found = {(run.data, run.variant, run.seed): run.figures() for run in planned}
    seeds = list(dict.fromkeys(run.seed for run in planned))
    first, *others = dict.fromkeys(run.variant for run in planned)
    yield f"AUROC, mean ± standard deviation over seeds {seeds}; others: differences to {first}"
    for data in dict.fromkeys(run.data for run in planned):
        base = [found[data, first, seed] for seed in seeds]
        yield f"{Path(data).name}, {first}"
        yield from lines(base, None)
        for variant in others:
            yield f"{Path(data).name}, {variant}"
            yield from lines([found[data, variant, seed] for seed in seeds], base)


def lines(own: Sequence[Any], base: Sequence[Any] | None) -> Iterator[str]:
    """One for each kind of figure, of all seeds; with what they are compared with, of the same."""
    for kind in ("image", "pixel", "by_kind"):
        parts = []
        for name in own[0][kind]:
            values = [each[kind][name] for each in own]
            told = f"{name} {fmean(values):.3f}"
            if base is not None:
                before = [each[kind][name] for each in base]
                values = [after - old for after, old in zip(values, before, strict=True)]
                told += f" ({fmean(values):+.3f})"
            parts.append(told + (f" ± {stdev(values):.3f}" if len(values) > 1 else ""))
        if parts:
            yield f"  {kind.replace('_', ' '):8} " + ", ".join(parts)


def compare(planned: Sequence[Run], at_once: int) -> None:
    """Make the runs that are outstanding, and print how they compare with the first variant."""
    outstanding = [run for run in planned if not run.file.exists()]
    print(
        f"{len(outstanding)} of {len(planned)} runs to make, worst of {SUITE}, {DEVICE.type}, "
        f"{platform.machine()}, {versions()}",
        flush=True,
    )
    # A process that has asked for a GPU cannot be forked.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["patchguard.training.train", "patchguard.pipelines.evaluate"])
    with ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1) as pool:
        pending = {pool.submit(make, run, at_once == 1): run for run in outstanding}
        try:
            for done in as_completed(pending):
                done.result()
                print(f"{pending[done].file.stem}: done", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print("\n".join(table(planned)))


def parser_of(description: str) -> argparse.ArgumentParser:
    """What every comparison of trainings asks for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eps", nargs="+", default=["2/255", "4/255", "8/255"])
    parser.add_argument("--jobs", type=int, default=1)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, default=2000)
    length.add_argument("--minutes", type=float)
    return parser


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe asked for, with the length asked for."""
    recipe = load_recipe(arguments.recipe)
    recipe.training.epochs, recipe.training.minutes = None, arguments.minutes
    recipe.training.steps = None if arguments.minutes else arguments.steps
    return recipe


def main() -> None:
    parser = parser_of((__doc__ or "").splitlines()[0])
    parser.add_argument("--variants", nargs="*", choices=VARIANTS, default=list(VARIANTS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    base = recipe_of(arguments)
    recipes = {Path(arguments.recipe).stem: base}
    recipes |= {name: changed(base, VARIANTS[name]) for name in arguments.variants}
    planned = runs(arguments.data, recipes, arguments.seeds, arguments.eps, arguments.out)
    compare(list(planned), arguments.jobs)


if __name__ == "__main__":
    main()
