"""Images per second of a training, its share of the machine's peak, and where the rest goes.

    python benchmarks/throughput.py DATA [--recipe strong] [--steps 40] [--workers N] [--profile]

Timed are the loader alone, the step alone on one batch at the recipe's final eps, and both in a
training as `fit` runs it: the slower of the first two is what the third can come to. Images count
normals and pseudo-anomalies. The peak is that of a matrix product in the recipe's precision on this
machine, the operations those of matrix products, convolutions and attention. `--profile` lists what
a step spends its time on.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch.nn.utils import clip_grad_norm_
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from patchguard.config import FitConfig, Recipe, load_recipe
from patchguard.models.patchguard import PatchGuard
from patchguard.pipelines.evaluate import versions
from patchguard.pipelines.fit import prepared, training_images
from patchguard.runtime import named_device
from patchguard.training.batches import Batch, TrainingImages, training_loader, workers_for
from patchguard.training.module import AdversarialTraining
from patchguard.training.train import train

DEVICE = named_device("auto")
HALF = {"bf16": torch.bfloat16}


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Mean wall time of one, after two to warm up."""
    for _ in range(2):
        work()
    _settle()
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    _settle()
    return (time.perf_counter() - began) / repeats


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak(precision: str) -> float:
    """Operations per second of a large matrix product in that precision."""
    side = 8192 if torch.cuda.is_available() else 1024
    dtype = HALF.get(precision, torch.float32)
    left, right = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * side**3 / seconds(lambda: left @ right, 10)


def at_its_end(recipe: Recipe) -> Recipe:
    """Every step is one at the final eps, from random weights, without looks of the monitor."""
    attack = replace(recipe.training.attack, ramp=0.0, monitor=0)
    return replace(
        recipe,
        model=replace(recipe.model, weights="none"),
        training=replace(recipe.training, attack=attack),
    )


def step_of(recipe: Recipe, batch: Batch) -> Callable[[], None]:
    """One optimiser step as the training loop makes it, clipping and average included."""
    torch.manual_seed(0)
    training = recipe.training
    model = PatchGuard(recipe.model)
    module = AdversarialTraining(model, training, 1, 0, len(batch["index"])).to(DEVICE)
    optimizer = module.optimizer()
    half = HALF.get(training.precision)

    def step() -> None:
        model.train()
        with torch.autocast(DEVICE.type, half, enabled=half is not None, cache_enabled=False):
            loss, _ = module(batch)
        loss.backward()
        if training.gradient_clip:
            clip_grad_norm_(model.parameters(), training.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        module.update_average()

    return step


def loading(images: TrainingImages, batch_size: int, steps: int) -> float:
    """Seconds per batch that the workers need with nobody to wait for, the first left out."""
    batches = iter(training_loader(images, batch_size, lambda step: 1.0, device=DEVICE))
    ahead = 4 * max(1, workers_for(images.config, DEVICE))
    for _ in islice(batches, ahead):
        pass
    began = time.perf_counter()
    for _ in islice(batches, steps + ahead):
        pass
    return (time.perf_counter() - began) / (steps + ahead)


def training(images: TrainingImages, recipe: Recipe, steps: int) -> float:
    """Seconds per step of a training, from the difference of two lengths, after a first one."""
    took = []
    for length in (steps, steps, 3 * steps):
        config = replace(recipe.training, steps=length, epochs=None, minutes=None)
        with tempfile.TemporaryDirectory() as folder:
            found = train(images, recipe.model, config, seed=0, folder=Path(folder))
        took.append(found.seconds)
    return (took[2] - took[1]) / (2 * steps)


def profiled(step: Callable[[], None]) -> str:
    """What five steps spend their time on, the largest first."""
    activities = [ProfilerActivity.CPU]
    activities += [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    with profile(activities=activities) as seen:
        for _ in range(5):
            step()
        _settle()
    by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    told: str = seen.key_averages().table(sort_by=by, row_limit=20, max_name_column_width=60)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--recipe", default="strong")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    recipe = at_its_end(load_recipe(arguments.recipe))
    if arguments.workers is not None:
        recipe = replace(recipe, data=replace(recipe.data, workers=arguments.workers))
    material = prepared(arguments.data, FitConfig(data=str(arguments.data), recipe=recipe), print)
    images = training_images(material, recipe.model, seed=0)
    count, precision = recipe.training.batch_size, recipe.training.precision
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    print(
        f"{arguments.recipe} on {arguments.data.name}, {recipe.model.backbone} at "
        f"{recipe.model.window} px, batches of {count} and {count}, {precision}, "
        f"{workers_for(recipe.data, DEVICE)} workers, {versions()}, {name}, "
        f"{torch.get_num_threads()} threads"
    )
    batch = next(iter(training_loader(images, count, lambda step: 1.0, device=DEVICE)))
    on_device = {key: part.to(DEVICE) for key, part in batch.items()}
    step = step_of(recipe, on_device)  # type: ignore[arg-type]
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    highest, operations = peak(precision), counter.get_total_flops()
    print(f"peak {highest / 1e12:.1f} TFLOP/s, a step {operations / 1e12:.2f} TFLOP")
    times = {
        "loader alone": loading(images, count, arguments.steps),
        "step alone": seconds(step, arguments.steps),
        "training": training(images, recipe, arguments.steps),
    }
    for part, took in times.items():
        share = "" if part == "loader alone" else f", {operations / took / highest:.1%} of the peak"
        print(f"{part:12} {1000 * took:7.1f} ms, {2 * count / took:6.0f} images/s{share}")
    if arguments.profile:
        print(profiled(step))


if __name__ == "__main__":
    main()
