"""What a training step costs in other ways of computing the same.

    python benchmarks/step_cost.py [--recipe fast] [--ways compiled ...] [--rounds 8] [--steps 3]

A step is that of the recipe at its final eps: inner attack, loss, backward, optimiser, without the
average of the weights; on random images, made beforehand. The ways take turns, and each is compared
with the recipe as it is in the same round; printed are the medians over the rounds. Compilation is
not counted, but printed. The other precision is fp32 where the recipe has bf16, and the reverse;
graphs are those of CUDA.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from torch import Tensor

from patchguard.config import Recipe, load_recipe
from patchguard.data.windows import WHOLE_PLACE
from patchguard.models.patchguard import PatchGuard, Placed
from patchguard.pipelines.evaluate import versions
from patchguard.runtime import named_device
from patchguard.training.batches import Batch
from patchguard.training.module import AdversarialTraining

Step = Callable[[], None]
DEVICE = named_device("auto")


class Separately(AdversarialTraining):
    """Attacks normal images and pseudo-anomalies one after the other."""

    def attacked(
        self, placed: Placed, batch: Batch, images: Tensor, labels: Tensor, masks: Tensor
    ) -> Tensor:
        eps, half = self.current_eps(), len(images) // 2
        if eps == 0:
            return images
        parts = (slice(0, half), slice(half, None))
        return torch.cat(
            [
                self.attack(
                    Placed(placed.model, placed.places[part]),
                    images[part],
                    labels[part],
                    masks[part],
                    eps=[eps],
                )[0]
                for part in parts
            ]
        )


def batch_of(recipe: Recipe) -> Batch:
    """Random windows of normals, and pseudo-anomalies that differ from them in a square."""
    size, count = recipe.model.window, recipe.training.batch_size
    normal = torch.rand(count, 3, size, size)
    mask = torch.zeros(count, size, size, dtype=torch.bool)
    mask[:, size // 4 : size // 2, size // 4 : size // 2] = True
    anomalous = torch.where(mask[:, None], 1 - normal, normal)
    batch = Batch(
        normal=normal,
        anomalous=anomalous,
        mask=mask,
        places=torch.tensor(WHOLE_PLACE).expand(count, 2, 4),
        index=torch.arange(count),
        flips=torch.zeros(count, 2, dtype=torch.bool),
    )
    return {name: part.to(DEVICE) for name, part in batch.items()}  # type: ignore[return-value, attr-defined]


def step_of(way: str, recipe: Recipe, batch: Batch) -> Step:
    """One optimiser step, computed in that way."""
    torch.manual_seed(0)
    attack = replace(recipe.training.attack, ramp=0.0)
    model = PatchGuard(replace(recipe.model, weights="none"))
    kind = Separately if way == "separate" else AdversarialTraining
    training = replace(recipe.training, attack=attack)
    module = kind(model, training, total_steps=1, seed=0, images=len(batch["index"])).to(DEVICE)
    optimizer = module.optimizer()
    if way == "channels-last":
        model.to(memory_format=torch.channels_last)
        images = ("normal", "anomalous")
        last = {name: batch[name].to(memory_format=torch.channels_last) for name in images}  # type: ignore[literal-required]
        batch = batch | last  # type: ignore[assignment]
    if way in COMPILED:
        model.backbone.compile(mode=COMPILED[way])
        model.discriminator.compile(mode=COMPILED[way])
    if way == "unfused":
        for part in model.modules():
            if hasattr(part, "fused_attn"):
                setattr(part, "fused_attn", False)  # noqa: B010
    half = (recipe.training.precision == "bf16") != (way == "other-precision")

    def step() -> None:
        model.train()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half, cache_enabled=False):
            loss, _ = module(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def seconds(step: Step, steps: int) -> float:
    """Wall time of that many steps."""
    began = time.perf_counter()
    for _ in range(steps):
        step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


COMPILED = {"compiled": "default", "graphs": "reduce-overhead"}
WAYS = ("separate", "unfused", "channels-last", "other-precision", *COMPILED)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="fast")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    print(
        f"{arguments.recipe}, {versions()}, {platform.processor() or platform.machine()}, ", end=""
    )
    print(f"{DEVICE.type}, {torch.get_num_threads()} threads, {arguments.rounds} rounds")
    batch = batch_of(recipe)
    steps = {way: step_of(way, recipe, batch) for way in ("as it is", *arguments.ways)}
    for way, step in steps.items():
        print(f"{way}: first step {seconds(step, 1):.1f} s", flush=True)
    rounds = [
        {way: seconds(step, arguments.steps) for way, step in steps.items()}
        for _ in range(arguments.rounds)
    ]
    for way in steps:
        took = median(each[way] for each in rounds) / arguments.steps
        ratio = median(each[way] / each["as it is"] for each in rounds)
        print(f"{way:14} {1000 * took:7.0f} ms a step, {ratio:.2f} of the recipe as it is")


if __name__ == "__main__":
    main()
