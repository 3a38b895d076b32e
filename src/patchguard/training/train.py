"""From images in memory to a trained detector."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader

from patchguard.config import DataConfig, ModelConfig, TrainingConfig, parse_eps
from patchguard.detector import device
from patchguard.errors import Interrupted, PatchGuardError
from patchguard.files import encodable
from patchguard.models.patchguard import PatchGuard
from patchguard.results.run_folder import RESUME
from patchguard.stopping import heeding_stops
from patchguard.training.batches import Batch, TrainingImages, training_loader
from patchguard.training.callbacks import OverfittingMonitor, ResumePoint, TrainingProgress
from patchguard.training.module import LOG_EVERY, AdversarialTraining

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
    tell: Callable[[str], None] = print,
) -> Trained:
    """Train a detector; continue where an earlier run in the same folder was interrupted.

    Args:
        dataset: normal images with their foregrounds.
        model_config: the network.
        config: optimisation settings.
        seed: of the initial weights and of every random draw.
        folder: for ``resume.ckpt``, ``metrics.csv`` and the TensorBoard events.
        tell: receives a line for each thing the user should know.

    Raises:
        Interrupted: stopped by a request or by ``KeyboardInterrupt``, after saving the state.
        PatchGuardError: the settings contradict each other, or ``resume.ckpt`` is damaged.
    """
    steps = total_steps(config, len(dataset))
    torch.manual_seed(seed)
    model = PatchGuard(model_config, dataset.config.image_size)
    check_settings(model, dataset.config, config)
    module = AdversarialTraining(model, config, steps, seed, len(dataset))
    path = folder / RESUME.name
    first_step = saved_step(path)
    loader = training_loader(dataset, config.batch_size, module.progress_at, first_step=first_step)
    with heeding_stops() as stop:
        resume = ResumePoint(path, stop)
        callbacks = [*_monitor(dataset, config, seed, tell), TrainingProgress(), resume]
        trainer = _trainer(config, first_step, callbacks, _loggers(folder, first_step, tell))
        ended = _run_to_the_end(trainer, module, loader, path if first_step else None)
        if module.progress() >= 1:
            resume.save(trainer)
        if stop.asked or not ended:
            raise Interrupted(f"stopped at step {trainer.global_step}; add --resume to continue")
    return Trained(
        module.detector.cpu(),
        module.elapsed,
        trainer.global_step,
        module.switched_at,
        f"{'moving average' if config.ema else 'weights'} of the last step, nothing was selected",
    )


def _run_to_the_end(
    trainer: lightning.Trainer,
    module: AdversarialTraining,
    loader: DataLoader[Batch],
    checkpoint: Path | None,
) -> bool:
    """Train; False where a ``KeyboardInterrupt`` or a signal that Lightning heeds ended it."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what Lightning makes of either
        return False
    return True


def _monitor(
    dataset: TrainingImages, config: TrainingConfig, seed: int, tell: Callable[[str], None]
) -> list[lightning.Callback]:
    """Single-step training is watched."""
    attack = config.attack
    if attack.steps > 1 or not attack.monitor or parse_eps(attack.eps) == 0:
        return []
    return [OverfittingMonitor(dataset.unseen(MONITORED), attack.monitor, seed, tell)]


def saved_step(path: Path) -> int:
    """The optimiser steps that a resume file has behind it; 0 when there is none.

    Raises:
        PatchGuardError: the file is damaged.
    """
    if not path.exists():
        return 0
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True)["global_step"])
    except Exception as error:
        raise PatchGuardError(f"{path} is damaged; delete it to start again") from error


def _loggers(folder: Path, first_step: int, tell: Callable[[str], None]) -> list[Logger]:
    # A CSV file of its own for each start: Lightning empties the one it opens.
    loggers: list[Logger] = [CSVLogger(folder, name="csv", version=f"from_step_{first_step:07d}")]
    if encodable(str(folder)) == str(folder):
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    else:
        tell(f"{folder}: no TensorBoard events, which need a folder whose name is UTF-8")
    return loggers


def _trainer(
    config: TrainingConfig,
    first_step: int,
    callbacks: list[lightning.Callback],
    loggers: list[Logger],
) -> lightning.Trainer:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return lightning.Trainer(
        accelerator="gpu" if device().type == "cuda" else "cpu",
        devices=1,
        max_epochs=1,
        precision="bf16-mixed" if config.precision == "bf16" else "32-true",
        gradient_clip_val=config.gradient_clip,
        logger=loggers,
        log_every_n_steps=LOG_EVERY,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


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
    if config.attack.persistent and data.variation.moves:
        raise PatchGuardError(
            "training.attack.persistent keeps what was done to an image where it was, but "
            "data.variation moves images: set its rotation, zoom and shift to 0"
        )
