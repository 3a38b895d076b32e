"""What each setting of a recipe is worth: one change at a time, several seeds, worst case.

    python benchmarks/ablations.py OUT DATA [DATA ...] [--variants attention awp ...]
        [--recipe fast] [--steps 500] [--seeds 0 1 2] [--eps 2/255 4/255 8/255]

Settings are chosen on these numbers, so DATA must hold no test images that anybody reports on:
give folders of training normals (the evaluation is then a self-test on held-out normals and
pseudo-anomalies) or the rendered categories of `patchguard synthetic`. Writes a recipe for each
variant to OUT/recipes and runs `patchguard study` on all of them, so a stopped run goes on where
it was. OUT/results.md has means, spreads and differences to the recipe itself, paired by data and
seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

import patchguard
from patchguard.config import EvaluationConfig, Recipe, from_plain, load_recipe

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


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", nargs="+")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--eps", nargs="+", default=["2/255", "4/255", "8/255"])
    arguments = parser.parse_args()
    recipes = arguments.out / "recipes"
    recipes.mkdir(parents=True, exist_ok=True)
    written = [arguments.recipe]
    for name in arguments.variants:
        path = recipes / f"{name}.yaml"
        path.write_text(yaml.safe_dump(changed(load_recipe(arguments.recipe), VARIANTS[name])))
        written.append(str(path))
    patchguard.study(
        arguments.data,
        recipes=written,
        seeds=arguments.seeds,
        out=arguments.out,
        steps=arguments.steps,
        evaluation=EvaluationConfig(eps=arguments.eps),
    )


if __name__ == "__main__":
    main()
