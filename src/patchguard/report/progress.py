"""What a long evaluation shows while it runs."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

LINE_EVERY = 60.0
"""Seconds between lines where there is no terminal to draw bars on."""


class Watching:
    """A bar with an estimate for each part of the work; in a log, a line a minute.

    Args:
        name: of what is being evaluated.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._bars = Progress(
            # Not as markup: a name may have brackets.
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            disable=not Console().is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._began: dict[str, float] = {}
        self._told = time.monotonic()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def advance(self, what: str, done: float) -> None:
        """Say that the fraction ``done`` of ``what`` is done."""
        now = time.monotonic()
        if what not in self._tasks:
            self._tasks[what] = self._bars.add_task(f"{self._name}: {what}", total=1.0)
            self._began[what] = now
        self._bars.update(self._tasks[what], completed=done)
        if self._bars.disable and now - self._told >= LINE_EVERY and 0 < done < 1:
            self._told = now
            left = (now - self._began[what]) * (1 - done) / done
            print(f"{self._name}: {what} {done:4.0%}, about {left / 60:.0f} min left", flush=True)
