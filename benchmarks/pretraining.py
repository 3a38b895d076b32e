"""Robust pre-training on rendered images: what it is worth on other data.

    python benchmarks/pretraining.py OUT DATA [DATA ...] [--recipe fast]
        [--steps 2000 | --minutes 3] [--pretraining_steps 16000] [--normals 200] [--seeds 0 1 2]
        [--eps 2/255 4/255 8/255] [--jobs 1]

Renders normal images of the three synthetic categories, trains recipe `pretrain` on them together,
and then, on DATA, the recipe from random weights beside the same recipe, as long, from the
pre-trained ones. Prints what `ablations.py` prints. The time of the pre-training is paid once and
told apart. Finished work in OUT is not done again.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import patchguard
from ablations import compare, parser_of, recipe_of, runs
from patchguard.config import EvaluationConfig
from patchguard.data.synthetic import write_benchmark
from patchguard.reporter import Speaking
from patchguard.results.run_folder import METRICS, read_config


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
            resume=run.exists(),
            evaluation=EvaluationConfig(eps=["4/255"]),
            reporter=Speaking(),
        )
    return run


def main() -> None:
    parser = parser_of((__doc__ or "").splitlines()[0])
    parser.add_argument("--pretraining_steps", type=int, default=16000)
    parser.add_argument("--normals", type=int, default=200)
    arguments = parser.parse_args()
    run = pretrained(arguments.out, arguments.normals, arguments.pretraining_steps, seed=0)
    provenance = read_config(run)[1]
    print(
        f"pre-trained for {provenance['training_steps']} steps, "
        f"{provenance['training_seconds'] / 60:.1f} min"
    )
    base = recipe_of(arguments)
    started = replace(base, model=replace(base.model, weights=str(run)))
    recipes = {"random": base, "pretrained": started}
    compare(
        list(runs(arguments.data, recipes, arguments.seeds, arguments.eps, arguments.out)),
        arguments.jobs,
    )


if __name__ == "__main__":
    main()
