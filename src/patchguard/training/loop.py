"""The training loop: step after step until the end or a stop, with logs, looks and saved states."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.fabric import Fabric
from lightning.fabric.loggers.csv_logs import CSVLogger
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from torch import Tensor
from torch.utils.data import DataLoader

from patchguard.files import encodable
from patchguard.models.patchguard import Placed
from patchguard.reporter import Advance
from patchguard.results.run_folder import RESUME
from patchguard.runtime import Runtime
from patchguard.stopping import StopRequest
from patchguard.training.batches import Batch
from patchguard.training.module import AdversarialTraining, LoggedQuantities, images_of, places_of
from patchguard.training.monitor import look
from patchguard.training.resume import ResumeFile


class Loop:
    """Makes the steps of a training, from where the resume file in its folder left it.

    Args:
        training: what a step does.
        folder: for the resume file and the logs.
        runtime: the device, and where messages and progress go.
        watched: a batch of which training sees none, for looks at catastrophic overfitting; None
            where there is nothing to look for.

    Raises:
        PatchGuardError: the resume file is damaged or of another version.
    """

    def __init__(
        self, training: AdversarialTraining, folder: Path, runtime: Runtime, watched: Batch | None
    ) -> None:
        self.training = training
        self.folder = folder
        self.runtime = runtime
        self.fabric = _fabric(runtime.device)
        self._loss, self._optimizer = self.fabric.setup(training, training.optimizer())
        self._watched = watched and self.fabric.to_device(watched)
        self._resume = ResumeFile(folder / RESUME.name, training, self._optimizer.optimizer)
        self._resume.load()

    def run(self, loader: DataLoader[Batch], stop: StopRequest) -> None:
        """Make the steps that are left, until a stop is asked for.

        A request finishes the step at hand. A ``KeyboardInterrupt`` is one too: in the midst of a
        step what was before it is saved, unless that is just being changed; then, and when the
        process is killed, at most a minute is lost.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            _loggers(self.folder, self.training.step, self.runtime.reporter.tell) as loggers,
            self.runtime.reporter.progress("tenth") as advance,
        ):
            try:
                self._run(loader, stop, loggers, advance)
            except KeyboardInterrupt:
                stop.asked = True
                if not self.training.midway:
                    self.training.weight_perturbation.pop()
                    self._resume.save()

    def _run(
        self,
        loader: DataLoader[Batch],
        stop: StopRequest,
        loggers: list[Logger],
        advance: Advance,
    ) -> None:
        training = self.training
        clock = time.monotonic() - training.elapsed
        batches, loss = iter(loader), ""
        advance("training", training.progress())
        while training.progress() < 1 and not stop.asked:
            measured = self._step(next(batches), clock)
            if measured:
                _log(loggers, measured, training.step - 1)
            if "loss" in measured:
                loss = f"  loss {measured['loss']:.2f}"
            self._look(loggers)
            eps = 255 * training.current_eps()
            detail = f"  step {training.step}  eps {eps:.1f}/255{loss}"
            advance("training", training.progress(), detail)
            if self._resume.overdue:
                self._resume.save()
        self._resume.save()

    def _attacked_loss(self, batch: Batch) -> tuple[Tensor, LoggedQuantities]:
        # Nothing cast is kept for later: weight perturbation moves the weights in between.
        half = self.training.config.precision == "bf16"
        kind = self.fabric.device.type
        with torch.autocast(kind, torch.bfloat16, enabled=half, cache_enabled=False):
            found: tuple[Tensor, LoggedQuantities] = self._loss(batch)
        return found

    def _step(self, batch: Batch, clock: float) -> dict[str, float]:
        """One step of the optimiser; returns what was measured, for which it waits for a GPU."""
        training, clip = self.training, self.training.config.gradient_clip
        training.begin_step(self._optimizer, self.fabric.global_rank)
        loss, measured = self._attacked_loss(self.fabric.to_device(batch))
        self._optimizer.zero_grad()
        self.fabric.backward(loss)
        training.weight_perturbation.pop()
        if clip:
            self.fabric.clip_gradients(
                self._loss, self._optimizer, max_norm=clip, error_if_nonfinite=False
            )
        training.midway = True
        self._optimizer.step()
        training.end_step(time.monotonic() - clock)
        training.midway = False
        return {name: float(value) for name, value in measured.items()}

    def _look(self, loggers: list[Logger]) -> None:
        """Look for catastrophic overfitting, and end single-step training where it shows."""
        training = self.training
        step, eps, every = training.step, training.current_eps(), training.config.attack.monitor
        if self._watched is None or training.switched_at is not None or step % every or eps == 0:
            return
        generator = torch.Generator(self.fabric.device).manual_seed(training.seed + step)
        watched = images_of(self._watched)
        placed = Placed(training.model, places_of(self._watched))
        reading = look(placed, training.attack, training.patch_loss, watched, eps, generator)
        _log(loggers, {"overfitting_gap": reading.gap, "gradient_cosine": reading.cosine}, step)
        if reading.overfits:
            training.switch_attack()
            self.runtime.reporter.tell(
                f"catastrophic overfitting at step {step}: PGD-10 finds {reading.gap:.1f} times "
                "the loss that the single step finds; training goes on with PGD-2"
            )


def _fabric(device: torch.device) -> Fabric:
    # Which of the two speaks of matrix products depends on what was imported last.
    for package in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{package}.utilities.rank_zero").setLevel(logging.WARNING)
    return Fabric(
        accelerator=device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
    )


@contextmanager
def _loggers(folder: Path, first_step: int, tell: Callable[[str], None]) -> Iterator[list[Logger]]:
    # A CSV file of its own for each start: Lightning empties the one it opens.
    loggers: list[Logger] = [CSVLogger(folder, name="csv", version=f"from_step_{first_step:07d}")]
    if encodable(str(folder)) == str(folder):
        loggers.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    else:
        tell(f"{folder}: no TensorBoard events, which need a folder whose name is UTF-8")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield loggers
        finally:
            for logger in loggers:
                logger.finalize("success")


def _log(loggers: list[Logger], values: Mapping[str, float], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(dict(values), step=step)
        logger.save()
