"""Where messages and progress go: nowhere of themselves, on the terminal for its commands."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Literal, Protocol

from patchguard.files import printable

if TYPE_CHECKING:
    from rich.progress import TaskID

LINE_EVERY = 60.0
"""Seconds between lines where there is no terminal to draw bars on."""

Interval = Literal["tenth", "minute"]

Tell = Callable[[str], None]
"""Takes a line for each thing that the user should know."""


class Advance(Protocol):
    """Says that the fraction ``done`` of ``what`` is done, and how it goes."""

    def __call__(self, what: str, done: float, detail: str = "") -> None: ...


class Reporter(Protocol):
    """Where messages and progress go."""

    def tell(self, line: str) -> None:
        """Say what the user should know."""

    def progress(self, every: Interval) -> AbstractContextManager[Advance]:
        """What shows progress; ``every`` is how often where it cannot be shown as it grows."""


class Silent:
    """Prints nothing: messages go to the log ``patchguard``, progress nowhere."""

    def tell(self, line: str) -> None:
        logging.getLogger("patchguard").info("%s", line)

    @contextmanager
    def progress(self, every: Interval) -> Iterator[Advance]:
        yield lambda what, done, detail="": None


class Speaking:
    """Writes to standard output: lines, and bars where it is a terminal."""

    def tell(self, line: str) -> None:
        print(printable(line), flush=True)

    @contextmanager
    def progress(self, every: Interval) -> Iterator[Advance]:
        bars = _Bars()
        if not bars.shown.console.is_terminal:
            yield _Lines(self, every)
            return
        with bars.shown:
            yield bars


class _Bars:
    """A bar for each part of the work, with an estimate."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self.shown = Progress(
            # Not as markup: a name may have brackets.
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>5.1f} %{task.fields[detail]}", markup=False),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, what: str, done: float, detail: str = "") -> None:
        if what not in self._tasks:
            self._tasks[what] = self.shown.add_task(printable(what), total=1.0, detail="")
        self.shown.update(self._tasks[what], completed=done, detail=detail)


class _Lines:
    """A line whenever another tenth of the work is done, or a minute has passed.

    Args:
        reporter: says the lines.
        every: which of the two.
    """

    def __init__(self, reporter: Reporter, every: Interval) -> None:
        self._reporter = reporter
        self._every = every
        self._began: dict[str, tuple[float, float]] = {}
        self._told_at = time.monotonic()
        self._told: dict[str, float] = {}

    def __call__(self, what: str, done: float, detail: str = "") -> None:
        now = time.monotonic()
        began, before = self._began.setdefault(what, (now, done))
        if not self._due(what, done, now):
            return
        self._told_at, self._told[what] = now, done
        left = (now - began) * (1 - done) / (done - before)
        remaining = f", about {left / 60:.0f} min left" if done < 1 else ""
        self._reporter.tell(f"{what} {done:.0%}{detail}{remaining}")

    def _due(self, what: str, done: float, now: float) -> bool:
        _, before = self._began[what]
        if done <= before:
            return False
        if self._every == "minute":
            return now - self._told_at >= LINE_EVERY and done < 1
        return int(10 * done) > int(10 * self._told.get(what, before))
