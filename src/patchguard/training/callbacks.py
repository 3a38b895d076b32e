"""Progress on the terminal, and checkpoints that survive an interruption at any moment."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from patchguard.errors import PatchGuardError
from patchguard.stopping import StopRequest
from patchguard.training.batches import Batch
from patchguard.training.module import LOG_EVERY, AdversarialTraining, images_of
from patchguard.training.monitor import look

SAVE_EVERY_SECONDS = 60


class ResumePoint(lightning.Callback):
    """Saves the whole training state between steps: every minute, and when interrupted.

    A request to stop finishes the step at hand, saves and stops. A ``KeyboardInterrupt`` in the
    midst of a step saves what was before it, unless that is just being changed; then, and when
    the process is killed, at most a minute is lost. The file is replaced atomically.

    Args:
        path: of the file.
        stop: looked at after every step.
    """

    def __init__(self, path: Path, stop: StopRequest) -> None:
        self.path = path
        self.stop = stop
        self._saved_at = time.monotonic()
        self._saved_step = -1

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        overdue = time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS
        if self.stop.asked or overdue:
            self.save(trainer)
        if self.stop.asked:
            trainer.should_stop = True

    def on_exception(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        assert isinstance(module, AdversarialTraining)
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        if stopped and not module.midway and self._saved_step != trainer.global_step:
            module.weight_perturbation.pop()
            self.save(trainer)

    def save(self, trainer: lightning.Trainer) -> None:
        """Write the resume file; a kill in the middle leaves the former one.

        Raises:
            PatchGuardError: it cannot be written; the former one stays.
        """
        partial = self.path.with_suffix(".partial")
        try:
            trainer.save_checkpoint(partial, weights_only=False)
            if trainer.is_global_zero:
                partial.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch says so of a full disk
            partial.unlink(missing_ok=True)
            reason = " ".join(str(error).split())
            raise PatchGuardError(f"{self.path}: cannot be written ({reason})") from error
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step


class OverfittingMonitor(lightning.Callback):
    """Looks for catastrophic overfitting, and ends single-step training where it shows.

    Args:
        batch: normal images with pseudo-anomalies of which training sees none.
        every: steps between two looks.
        seed: of the looks.
        tell: receives the line that says so.
    """

    def __init__(self, batch: Batch, every: int, seed: int, tell: Callable[[str], None]) -> None:
        self.batch = batch
        self.every = every
        self.seed = seed
        self.tell = tell

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(module, AdversarialTraining)
        step, eps = trainer.global_step, module.current_eps()
        if module.switched_at is not None or step % self.every or eps == 0:
            return
        generator = torch.Generator(module.device).manual_seed(self.seed + step)
        images, labels, masks = (part.to(module.device) for part in images_of(self.batch))
        attacked = (images, labels, masks)
        reading = look(module.model, module.attack, module.patch_loss, attacked, eps, generator)
        module.log_now({"overfitting_gap": reading.gap, "gradient_cosine": reading.cosine})
        if reading.overfits:
            module.switch_attack()
            self.tell(
                f"catastrophic overfitting at step {step}: PGD-10 finds {reading.gap:.1f} times "
                "the loss that the single step finds; training goes on with PGD-2"
            )


class TrainingProgress(lightning.Callback):
    """The fraction done, loss, eps and time left: a bar on a terminal, else a line every tenth."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %  {task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._bar.add_task("", total=1.0)
        self._tenths = 0
        self._loss = ""

    def on_train_start(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        assert isinstance(module, AdversarialTraining)
        self._tenths = int(10 * module.progress())
        if self._bar.console.is_terminal:
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(module, AdversarialTraining)
        # Only when it is new: to read it is to wait for the GPU.
        if trainer.global_step % LOG_EVERY == 0 and "loss" in trainer.logged_metrics:
            self._loss = f"  loss {float(trainer.logged_metrics['loss']):.2f}"
        text = f"step {trainer.global_step}  eps {255 * module.current_eps():.1f}/255{self._loss}"
        progress = module.progress()
        if self._bar.console.is_terminal:
            self._bar.update(self._task, completed=progress, description=text)
        elif int(10 * progress) > self._tenths:
            self._tenths = int(10 * progress)
            print(f"training {100 * progress:.0f} %  {text}", flush=True)

    def on_train_end(self, trainer: lightning.Trainer, module: lightning.LightningModule) -> None:
        self._bar.stop()

    def on_exception(
        self,
        trainer: lightning.Trainer,
        module: lightning.LightningModule,
        exception: BaseException,
    ) -> None:
        self._bar.stop()
