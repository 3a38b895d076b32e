"""The outcome of a check."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]


@dataclass(frozen=True)
class Check:
    """A check and what came of it.

    Attributes:
        id: S1 to S30.
        name: what is checked.
        status: SKIP where it cannot apply.
        value: what was measured, finite or None.
        limit: what the value is compared with, or None.
        meaning: one sentence on what that means for the user.
    """

    id: str
    name: str
    status: Status
    value: float | None
    limit: float | None
    meaning: str


class Verdict(NamedTuple):
    """What a check says; see :class:`Check`."""

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
