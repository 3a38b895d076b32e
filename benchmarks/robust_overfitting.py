"""Are normal images learned by heart? Attacked normals of the training beside held-out ones.

    python benchmarks/robust_overfitting.py DATA RUN [RUN ...] [--eps 4/255 8/255] [--seed 0]

DATA is what the runs were trained on. Of each run the image AUROC of its training normals and of
the normals held out for calibration, both against the same pseudo-anomalies, made from all of them
without variation or flips; normals and pseudo-anomalies attacked by PGD-20 on the score. A
detector that generalises has the same AUROC on both. No test image is looked at. Who chooses a
setting by this has used the calibration images of these runs for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

import patchguard
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.config import VariationConfig, parse_eps
from patchguard.evaluation.metrics import image_metrics
from patchguard.evaluation.test_set import TestSet, pseudo_test_set
from patchguard.models.patchguard import PatchGuard
from patchguard.pipelines.fit import check_same_images, prepared
from patchguard.results.run_folder import read_config
from patchguard.training.prepare import Normals

BATCH = 100


def both(data: Path, run: Path) -> tuple[TestSet, TestSet]:
    """The normals that a run was trained on, those it held out, and a pseudo-anomaly of each."""
    settings, _ = read_config(run)
    plain = replace(settings.recipe.data, variation=VariationConfig(), flips=[], stray=0.0)
    changed = replace(settings, recipe=replace(settings.recipe, data=plain))
    material = prepared(data, changed, tell=lambda _: None)
    check_same_images(run, material)

    def images(normals: Normals) -> TestSet:
        return pseudo_test_set(
            normals.names,
            normals.images,
            normals.foregrounds,
            material.data.anomalies,
            settings.seed,
        )

    return images(material.train), images(material.held_out)


def scores(model: PatchGuard, images: Tensor, anomalous: bool, eps: float, seed: int) -> Tensor:
    """Scores [B] of images, all normal or all anomalous, under the attack."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for batch in torch.split(images, BATCH):
        if eps:
            labels, masks = torch.full((len(batch),), anomalous), torch.zeros_like(batch[:, 0])
            attack = PGD(image_score)
            (batch,) = attack(model, batch, labels, masks, eps=[eps], generator=generator)
        with torch.no_grad():
            found.append(model(batch)[0])
    return torch.cat(found)


def auroc(normal: Tensor, anomalous: Tensor) -> float:
    """Image AUROC."""
    labels = [0] * len(normal) + [1] * len(anomalous)
    return image_metrics(torch.cat([normal, anomalous]), labels).auroc


def row(model: PatchGuard, parts: Sequence[TestSet], eps: float, seed: int) -> str:
    """AUROC of both kinds of normals, and how far they are apart."""
    pasted = torch.cat([part.images[part.labels] for part in parts])
    anomalous = scores(model, pasted, True, eps, seed)
    trained, held_out = (
        auroc(scores(model, part.images[~part.labels], False, eps, seed), anomalous)
        for part in parts
    )
    return f"{trained:9.3f} {held_out:9.3f} {trained - held_out:+9.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--eps", nargs="+", default=["4/255", "8/255"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(f"{arguments.data.name}, PGD-20, seed {arguments.seed}, torch {version('torch')}")
    for run in arguments.runs:
        model, parts = patchguard.load(run), both(arguments.data, run)
        trained, held_out = (int((~part.labels).sum()) for part in parts)
        print(f"{run}: {trained} training and {held_out} held-out normals")
        print(f"{'eps':>6} {'training':>9} {'held out':>9} {'apart':>9}")
        for eps in ["0/255", *arguments.eps]:
            found = row(model, parts, parse_eps(eps), arguments.seed)
            print(f"{eps:>6} {found}", flush=True)


if __name__ == "__main__":
    main()
