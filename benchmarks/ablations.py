"""What each setting of a recipe is worth: one change at a time, several seeds, worst case.

    python benchmarks/ablations.py OUT DATA [DATA ...] [--variants attention awp ...]
        [--recipe fast] [--steps 500 | --minutes 3] [--seeds 0 1 2] [--eps 2/255 4/255 8/255]
        [--jobs 1]

Settings are chosen on these numbers, so DATA must hold no test images that anybody reports on:
give folders of training normals (the evaluation is then a self-test on held-out normals and
pseudo-anomalies) or the rendered categories of `patchguard synthetic`. Each run is trained, and
attacked by the quick suite without self-checks; its figures go to a file in OUT, and runs whose
file is there are not made again. Prints means over seeds, and differences to the recipe itself,
paired by data and seed. `--jobs` trainings at a time share a GPU, or have a thread each.
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

from patchguard import fitting
from patchguard.config import EvaluationConfig, FitConfig, Recipe, from_plain, load_recipe
from patchguard.detector import device
from patchguard.evaluating import test_set, versions
from patchguard.evaluation.protocol import WORST, Surroundings, evaluate_detector
from patchguard.training.batches import TrainingImages
from patchguard.training.train import train

STILL = {f"data.variation.{name}": 0.0 for name in ("rotation", "zoom", "shift")}
"""Nothing moves, so that a perturbation can outlive its step: compare `persistent` with this."""

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
    "persistent": STILL | {"training.attack.persistent": True, "training.attack.project": True},
    "spread": {"training.attack.spread": 0.75},
    "no-warmup": {"training.attack.warmup": 0.0},
    "no-curriculum": {"data.anomalies.curriculum": 0.0},
    "no-variation": {"data.variation": {}},
    "any-variation": {"data.stray": 0.0},
    "no-flips": {"data.flips": []},
    "no-copies": {"data.anomalies.copies": 0.0},
    "position-1": {"model.position_std": 1.0},
    "no-ramp": {"training.attack.ramp": 0.0},
    "eps-10": {"training.attack.eps": "10/255"},
    "awp": {"training.awp": 0.005},
    "image-loss": {"training.image_weight": 8.0},
    "equal-patches": {"training.anomalous_weight": 1.0},
    "no-ema": {"training.ema": 0.0},
    "decay": {"training.weight_decay": 0.2},
    "rectangles": {
        "data.anomalies.shapes": ["rectangle"],
        "data.anomalies.blends": ["opaque"],
        "data.anomalies.count_max": 1,
    },
    "subtle": {"data.anomalies.contrast_floor": 0.05},
    "patches-8": {"model.backbone": "patchguard_mini_8"},
}
"""Changes to a recipe, by dotted name."""


def changed(recipe: Recipe, changes: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe as plain values, with these changes."""
    content = asdict(recipe)
    for name, value in changes.items():
        *path, last = name.split(".")
        part = content
        for key in path:
            part = part[key]
        if last not in part:
            raise KeyError(f"a recipe has no {name}")
        part[last] = value
    from_plain(Recipe, content)
    return content


@dataclass(frozen=True)
class Job:
    """A training with its evaluation; ``variant`` is a name, or that of the recipe itself."""

    data: str
    variant: str
    seed: int
    recipe: Recipe
    eps: tuple[str, ...]
    file: Path


def jobs(
    data: Sequence[str],
    recipes: Mapping[str, Recipe],
    seeds: Sequence[int],
    eps: Sequence[str],
    out: Path,
) -> Iterator[Job]:
    """All of them, seed by seed."""
    for seed in seeds:
        for folder in data:
            for name, recipe in recipes.items():
                file = out / f"{Path(folder).name}-{name}-{seed}.json"
                yield Job(folder, name, seed, recipe, tuple(eps), file)


def run(job: Job, threads: int | None) -> None:
    """Train, attack, and write down the figures."""
    if threads:
        torch.set_num_threads(threads)
    settings = FitConfig(data=job.data, seed=job.seed, twin=False, recipe=job.recipe)
    recipe = job.recipe
    material = fitting.prepared(Path(job.data), settings, print)
    images = TrainingImages(
        material.train.images, material.train.foregrounds, material.data, job.seed
    )
    with tempfile.TemporaryDirectory() as folder:
        trained = train(images, recipe.model, recipe.training, seed=job.seed, folder=Path(folder))
    test, name = test_set(material, settings, print)
    found = evaluate_detector(
        trained.detector.to(device()),
        test,
        EvaluationConfig(eps=list(job.eps), batch_size=128),
        known=Surroundings(checks=False),
        seed=job.seed,
    ).summary
    worst = {
        each["eps"]: each["rows"]["both"] for each in found["attacked"] if each["attack"] == WORST
    }
    figures = {"clean": found["clean"], **worst}
    kept = {
        "protocol": {
            "data": Path(job.data).name,
            "test": name,
            "variant": job.variant,
            "seed": job.seed,
            "recipe": asdict(recipe),
            "suite": "quick",
            "steps": trained.steps,
            "minutes": trained.seconds / 60,
            "switched_at": trained.switched_at,
            "device": device().type,
            "versions": versions(),
        },
        "image": {eps: row["image"]["auroc"] for eps, row in figures.items()},
        "pixel": {eps: row["pixel"]["auroc"] for eps, row in figures.items() if "pixel" in row},
        "scores": found["scores"],
    }
    job.file.write_text(json.dumps(kept, indent=1) + "\n")


def table(all_jobs: Sequence[Job]) -> Iterator[str]:
    """By data and variant, means over the seeds that are there, and paired differences."""
    names = list(dict.fromkeys(job.variant for job in all_jobs))
    found = {
        (job.data, job.variant, job.seed): json.loads(job.file.read_text())
        for job in all_jobs
        if job.file.exists()
    }
    yield "data, variant (seeds)  figures: mean (difference to the first, ± standard deviation)"
    for data in dict.fromkeys(job.data for job in all_jobs):
        for name in names:
            seeds = [seed for where, variant, seed in found if (where, variant) == (data, name)]
            if seeds:
                own = [found[data, name, seed] for seed in seeds]
                base = [found.get((data, names[0], seed)) for seed in seeds]
                yield f"{Path(data).name}, {name} ({len(seeds)})"
                yield from _figures(own, base if None not in base else own)


def _figures(own: Sequence[Any], base: Sequence[Any]) -> Iterator[str]:
    for kind in ("image", "pixel"):
        parts = []
        for eps in own[0][kind]:
            gains = [a[kind][eps] - b[kind][eps] for a, b in zip(own, base, strict=True)]
            spread = f" ± {stdev(gains):.3f}" if len(gains) > 1 else ""
            mean = fmean(each[kind][eps] for each in own)
            parts.append(f"{eps} {mean:.3f} ({fmean(gains):+.3f}{spread})")
        if parts:
            yield f"  {kind}  " + "  ".join(parts)


def compare(planned: Sequence[Job], at_once: int) -> None:
    """Make the runs that are outstanding, and print how they compare with the first variant."""
    outstanding = [job for job in planned if not job.file.exists()]
    print(
        f"{len(outstanding)} of {len(planned)} runs to make, worst of quick, {device().type}, "
        f"{platform.machine()}, {versions()}",
        flush=True,
    )
    threads = None if at_once == 1 else 1
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["patchguard.training.train", "patchguard.evaluating"])
    with ProcessPoolExecutor(at_once, mp_context=context, max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(run, job, threads) for job in outstanding]):
            done.result()
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
    length.add_argument("--steps", type=int, default=500)
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
    for name in arguments.variants:
        recipes[name] = from_plain(Recipe, changed(base, VARIANTS[name]))
    planned = jobs(arguments.data, recipes, arguments.seeds, arguments.eps, arguments.out)
    compare(list(planned), arguments.jobs)


if __name__ == "__main__":
    main()
