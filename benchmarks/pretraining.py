"""Robust pre-training on rendered images: what it is worth on other data.

    python benchmarks/pretraining.py OUT DATA [DATA ...] [--recipe fast] [--steps 300]
        [--pretraining_steps 4000] [--normals 200] [--seeds 0 1 2] [--eps 2/255 4/255 8/255]

Renders normal images of the three synthetic categories, trains recipe `pretrain` on them together,
and then runs `patchguard study` on DATA: the recipe from random weights beside the same recipe, as
many steps, from the pre-trained ones. The time of the pre-training is paid once and is not in the
minutes of the page, OUT/results.md. Finished work in OUT is not done again.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import yaml

import patchguard
from patchguard.config import EvaluationConfig, load_recipe
from patchguard.data.synthetic import write_benchmark
from patchguard.models.checkpoint import METRICS


def normals_of_every_kind(folder: Path, count: int, seed: int) -> Path:
    """Rendered normal images, in a folder for each category."""
    mixed = folder / "normals"
    trees = write_benchmark(
        folder / "rendered", train=count, test_good=0, test_per_defect=0, seed=seed
    )
    for tree in trees:
        shutil.copytree(tree / "train" / "good", mixed / tree.name, dirs_exist_ok=True)
    return mixed


def pretrained(out: Path, count: int, steps: int, seed: int) -> Path:
    """The run folder of the pre-trained detector."""
    run = out / "pretrained"
    if not (run / METRICS).exists():
        patchguard.fit(
            normals_of_every_kind(out, count, seed),
            out=run,
            recipe="pretrain",
            steps=steps,
            seed=seed,
            twin=False,
            resume=True,
        )
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--pretraining_steps", type=int, default=4000)
    parser.add_argument("--normals", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eps", nargs="+", default=["2/255", "4/255", "8/255"])
    arguments = parser.parse_args()
    run = pretrained(arguments.out, arguments.normals, arguments.pretraining_steps, seed=0)
    recipe = load_recipe(arguments.recipe)
    started = replace(recipe, model=replace(recipe.model, weights=str(run)))
    path = arguments.out / f"{Path(arguments.recipe).stem}-pretrained.yaml"
    path.write_text(yaml.safe_dump(asdict(started)))
    patchguard.study(
        arguments.data,
        recipes=[arguments.recipe, str(path)],
        seeds=arguments.seeds,
        out=arguments.out,
        steps=arguments.steps,
        evaluation=EvaluationConfig(eps=arguments.eps),
    )


if __name__ == "__main__":
    main()
