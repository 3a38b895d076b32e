"""How many of the patches that count as anomalous an anomaly only grazes, or hardly changes.

    python benchmarks/grazed_patches.py DATA [--recipe fast] [--draws 300] [--seed 0]

Pseudo-anomalies are drawn from the normal images of DATA as training does once its curricula are
over, pass after pass, of the whole squeezed into a window. Of the patches with an anomalous pixel,
those of less than `training.least_cover` included, which the loss leaves out, the share of which
less than so much is covered, and of which the pixels change by less than so much on average,
colours and normal pixels included. No test image is looked at.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from patchguard.config import FitConfig, Recipe, load_recipe
from patchguard.errors import PatchGuardError
from patchguard.models.patchguard import PatchGuard
from patchguard.pipelines.evaluate import versions
from patchguard.pipelines.fit import prepared, training_images
from patchguard.training.batches import Draw, TrainingImages

COVERS = (0.02, 0.05, 0.1, 0.2, 0.5)
CHANGES = (1, 2, 4, 8)


def drawn(data: Path, recipe: Recipe, seed: int) -> TrainingImages:
    """The training images of a recipe, as `fit` splits and varies them."""
    material = prepared(data, FitConfig(data=str(data), seed=seed, recipe=recipe), print)
    return training_images(material, recipe.model, seed)


def anomalous_patches(images: TrainingImages, draws: int, grid: int) -> Iterator[Tensor]:
    """Of each draw [2, n]: cover and mean absolute change of its n anomalous patches."""
    for number in range(draws):
        epoch, index = divmod(number, len(images))
        item = images[Draw(epoch, index, progress=1.0)]
        change = (item["anomalous"] - item["normal"]).abs().mean(0)
        patches = adaptive_avg_pool2d(torch.stack([item["mask"].float(), change]), grid)
        yield patches[:, patches[0] > 0]


def below(values: NDArray[np.float32], bounds: tuple[float, ...]) -> str:
    return ", ".join(f"{bound:g}: {np.mean(values < bound):.3f}" for bound in bounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.draws < 1:
        parser.error("--draws must be at least 1")
    try:
        recipe = load_recipe(arguments.recipe)
        # Normal and anomalous windows lie apart, and show no change.
        recipe.model.views = ["whole"]
        images = drawn(arguments.data, recipe, arguments.seed)
    except PatchGuardError as error:
        raise SystemExit(f"error: {error}") from None
    unstarted = replace(recipe.model, weights="none")
    grid = PatchGuard(unstarted).grid
    patches = torch.cat([*anomalous_patches(images, arguments.draws, grid)], dim=1).numpy()
    print(
        f"{arguments.data.name}, recipe {arguments.recipe}, seed {arguments.seed}, "
        f"{arguments.draws} draws, {patches.shape[1] / arguments.draws:.1f} anomalous patches "
        f"each; {versions()}"
    )
    print(f"share covered by less than … of the patch: {below(patches[0], COVERS)}")
    print(f"share changed by less than …/255 on average: {below(255 * patches[1], CHANGES)}")


if __name__ == "__main__":
    main()
