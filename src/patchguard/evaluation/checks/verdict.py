"""The outcome of a check."""

from __future__ import annotations

import math
from typing import NamedTuple

from patchguard.results.schema import Status


class Verdict(NamedTuple):
    """What a check says; see :class:`~patchguard.results.schema.Check`."""

    status: Status
    value: float | None
    limit: float | None
    meaning: str


def skipped(reason: str) -> Verdict:
    """The check cannot apply."""
    return Verdict("SKIP", None, None, reason)


def at_most(
    value: float, limit: float, good: str, bad: str, *, otherwise: Status = "FAIL"
) -> Verdict:
    """PASS with ``good`` if the value is not above the limit, else ``otherwise`` with ``bad``."""
    if value <= limit:
        return Verdict("PASS", value, limit, good)
    return Verdict(otherwise, value if math.isfinite(value) else None, limit, bad)
