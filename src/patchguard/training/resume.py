"""The resume file: the whole state of a training, so that a stop at any moment loses little."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from patchguard.errors import PatchGuardError
from patchguard.training.module import AdversarialTraining

SAVE_EVERY_SECONDS = 60

_FORMAT = 3
"""The first format was a checkpoint of Lightning's Trainer and named no format."""


class ResumeFile:
    """Holds a training as it was between two steps; replaced as a whole.

    Args:
        path: of the file.
        training: what is saved.
        optimizer: its optimiser, which is saved too.
    """

    def __init__(
        self, path: Path, training: AdversarialTraining, optimizer: torch.optim.Optimizer
    ) -> None:
        self.path = path
        self.training = training
        self.optimizer = optimizer
        self._saved_at = time.monotonic()
        self._saved_step = -1

    @property
    def overdue(self) -> bool:
        """Whether a kill would lose more than a minute."""
        return time.monotonic() - self._saved_at > SAVE_EVERY_SECONDS

    def load(self) -> None:
        """Go on from what the file holds, if there is one.

        Raises:
            PatchGuardError: see :func:`read_state`.
        """
        state = read_state(self.path)
        if state is not None:
            self.training.restore(state["training"])
            self.optimizer.load_state_dict(state["optimizer"])
            self._saved_step = self.training.step

    def save(self) -> None:
        """Write the state, unless it is there already; a kill in the middle leaves the former one.

        Raises:
            PatchGuardError: it cannot be written; the former one stays.
        """
        step = self.training.step
        if step == self._saved_step:
            return
        state = {
            "format": _FORMAT,
            "training": self.training.state(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.path.with_suffix(".partial")
        try:
            torch.save(state, partial)
            partial.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch says so of a full disk
            partial.unlink(missing_ok=True)
            reason = " ".join(str(error).split())
            raise PatchGuardError(f"{self.path}: cannot be written ({reason})") from error
        self._saved_at = time.monotonic()
        self._saved_step = step


def read_state(path: Path) -> dict[str, Any] | None:
    """What a resume file holds; None when there is none.

    Raises:
        PatchGuardError: the file is damaged, or of another version's format.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = state.get("format")
    except Exception as error:
        raise PatchGuardError(f"{path} is damaged; delete it to start again") from error
    if found != _FORMAT:
        raise PatchGuardError(
            f"{path} is of another version of patchguard: resume with that version, or delete it "
            "to start again"
        )
    return state
