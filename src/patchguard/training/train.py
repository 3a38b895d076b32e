"""From images in memory to a trained detector."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from patchguard.config import DataConfig, ModelConfig, TrainingConfig, parse_eps
from patchguard.errors import Interrupted, PatchGuardError
from patchguard.models.patchguard import PatchGuard
from patchguard.runtime import Runtime
from patchguard.stopping import heeding_stops
from patchguard.training.batches import Batch, TrainingImages, training_loader
from patchguard.training.loop import Loop
from patchguard.training.module import AdversarialTraining

MONITORED = 8
"""Normal images, and as many pseudo-anomalies, that single-step training is watched on."""


@dataclass(frozen=True)
class Trained:
    """The end of a training.

    Attributes:
        detector: in eval mode on the CPU; averaged weights where the recipe has them.
        seconds: that the training took, interruptions left out.
        steps: of the optimiser.
        switched_at: the step at which catastrophic overfitting ended single-step training.
        selection: how the weights were chosen among those of all steps, in words.
    """

    detector: PatchGuard
    seconds: float
    steps: int
    switched_at: int | None
    selection: str


def total_steps(config: TrainingConfig, images: int) -> int | None:
    """The length in optimiser steps, or None when it is given in minutes.

    Raises:
        PatchGuardError: not exactly one of steps, epochs and minutes is given.
    """
    given = [config.steps, config.epochs, config.minutes]
    if sum(value is not None for value in given) != 1:
        raise PatchGuardError(
            "give the length as one of training.steps, .epochs and .minutes "
            "(on the command line --steps, --epochs or --minutes)"
        )
    if config.epochs is not None:
        return math.ceil(config.epochs * images / config.batch_size)
    return config.steps


def train(
    dataset: TrainingImages,
    model_config: ModelConfig,
    config: TrainingConfig,
    *,
    seed: int,
    folder: Path,
    runtime: Runtime | None = None,
) -> Trained:
    """Train a detector; continue where an earlier run in the same folder was interrupted.

    Args:
        dataset: normal images with their foregrounds.
        model_config: the network.
        config: optimisation settings.
        seed: of the initial weights and of every random draw.
        folder: for ``resume.ckpt``, ``metrics.csv`` and the TensorBoard events.
        runtime: the device, and where messages and progress go; when absent, the GPU if there is
            one, and nowhere.

    Raises:
        Interrupted: stopped by a request or by ``KeyboardInterrupt``, after saving the state.
        PatchGuardError: the settings contradict each other, or ``resume.ckpt`` is damaged or of
            another version.
    """
    runtime = runtime or Runtime.on()
    steps = total_steps(config, len(dataset))
    torch.manual_seed(seed)
    model = PatchGuard(model_config, span=dataset.config.anomalies.range)
    check_settings(model, dataset.config, config)
    training = AdversarialTraining(model, config, steps, seed, len(dataset), model.contrast)
    asked = parse_eps(config.attack.eps)
    if training.eps < asked:
        runtime.reporter.tell(
            f"trained against {255 * training.eps:.2g}/255 instead of {config.attack.eps}: the "
            f"images span {model.contrast:.2g} of [0, 1] only"
        )
    loop = Loop(training, folder, runtime, _watched(dataset, config))
    loader = training_loader(
        dataset,
        config.batch_size,
        training.progress_at,
        device=runtime.device,
        first_step=training.step,
        rank=loop.fabric.global_rank,
        world_size=loop.fabric.world_size,
    )
    with heeding_stops() as stop:
        loop.run(loader, stop)
    if stop.asked:
        raise Interrupted(
            f"stopped at step {training.step}; give the command again to go on (fit: add --resume)"
        )
    return Trained(
        training.detector.cpu(),
        training.elapsed,
        training.step,
        training.switched_at,
        f"{'moving average' if config.ema else 'weights'} of the last step, nothing was selected",
    )


def _watched(dataset: TrainingImages, config: TrainingConfig) -> Batch | None:
    """Single-step training is watched."""
    attack = config.attack
    if attack.steps > 1 or not attack.monitor or parse_eps(attack.eps) == 0:
        return None
    return dataset.unseen(MONITORED)


def check_settings(model: PatchGuard, data: DataConfig, config: TrainingConfig) -> None:
    """The attention term names blocks that exist, and persistent perturbations fit their images.

    Raises:
        PatchGuardError: they do not.
    """
    for number in config.attention:
        if not 1 <= number <= len(model.blocks):
            raise PatchGuardError(
                f"training.attention names block {number}; "
                f"{model.config.backbone} has blocks 1 to {len(model.blocks)}"
            )
    if config.attack.persistent and (data.variation.moves or "windows" in model.config.views):
        raise PatchGuardError(
            "training.attack.persistent keeps what was done to an image where it was, but windows "
            "and data.variation move: set model.views to whole, and rotation, zoom and shift to 0"
        )
