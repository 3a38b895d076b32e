"""Stops that a user asks for: signals are the command line's business, steps are the library's.

The command line makes SIGINT and SIGTERM requests to stop. Work that goes on in steps heeds them
between two steps; anywhere else a request is a :class:`KeyboardInterrupt`.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class StopRequest:
    """Whether somebody asked to stop; looked at between two steps."""

    asked: bool = False


_heeded: list[StopRequest] = []


@contextmanager
def heeding_stops() -> Iterator[StopRequest]:
    """Within it a request to stop is noted in what it yields, and interrupts nothing."""
    request = StopRequest()
    _heeded.append(request)
    try:
        yield request
    finally:
        _heeded.remove(request)


def request_stop(*_: object) -> None:
    """Ask all work that heeds requests to stop; a handler of signals.

    Raises:
        KeyboardInterrupt: nothing heeds requests now.
    """
    if not _heeded:
        raise KeyboardInterrupt
    for request in tuple(_heeded):
        request.asked = True


@contextmanager
def signals_stop() -> Iterator[None]:
    """Within it SIGINT and SIGTERM are requests to stop; outside the main thread nothing changes.

    Python delivers signals to the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request_stop) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
