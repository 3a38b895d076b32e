"""Fit and attack as a user would, and print the outcome beside what is asked of it.

    python benchmarks/main_job.py demo OUT
    python benchmarks/main_job.py head_ct OUT DATA

The first runs ``patchguard demo``, the second ``patchguard fit DATA --recipe fast``. Minutes are
those of the whole command: training the detector and its twin, attacks and report.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import patchguard
from patchguard import api
from patchguard.reporter import Speaking
from patchguard.results.files import read_as
from patchguard.results.run_folder import METRICS
from patchguard.results.schema import Measured, Result


class Bar(NamedTuple):
    """A figure and the least (or, with ``at_most``, the largest) value asked of it, if any."""

    name: str
    found: float
    asked: float | None = None
    at_most: bool = False

    def __str__(self) -> str:
        line = f"{self.name:35} {self.found:7.3f}"
        if self.asked is None:
            return line
        met = self.found <= self.asked if self.at_most else self.found >= self.asked
        sign = "≤" if self.at_most else "≥"
        return f"{line}   asked {sign} {self.asked:<5}  {'met' if met else 'MISSED'}"


def auroc(measured: Measured, level: str) -> float:
    return float(getattr(measured, level).auroc)


def attacked(metrics: Result, attack: str, eps: str, level: str) -> float:
    """AUROC with both classes attacked."""
    for entry in metrics.under(attack):
        if entry.eps == eps:
            return auroc(entry.both, level)
    raise KeyError(f"{attack} {eps}")


def demo_bars(minutes: float, ours: Result, twin: Result) -> Iterator[Bar]:
    yield Bar("minutes", minutes, 10, at_most=True)
    yield Bar("image AUROC, clean", auroc(ours.clean, "image"), 0.95)
    yield Bar("image AUROC, worst case 4/255", attacked(ours, "worst", "4/255", "image"), 0.80)
    yield Bar("the same, undefended twin", attacked(twin, "worst", "4/255", "image"), 0.10, True)
    yield Bar("pixel AUROC, clean", auroc(ours.clean, "pixel"), 0.90)
    yield Bar("pixel AUROC, worst case 4/255", attacked(ours, "worst", "4/255", "pixel"), 0.60)


def head_ct_bars(minutes: float, ours: Result, twin: Result) -> Iterator[Bar]:
    yield Bar("minutes", minutes, 30, at_most=True)
    yield Bar("image AUROC, clean", auroc(ours.clean, "image"), 0.94)
    yield Bar("image AUROC, worst case 2/255", attacked(ours, "worst", "2/255", "image"), 0.90)
    yield Bar("image AUROC, worst case 4/255", attacked(ours, "worst", "4/255", "image"), 0.84)
    yield Bar("image AUROC, worst case 8/255", attacked(ours, "worst", "8/255", "image"), 0.65)
    yield Bar("undefended twin, 2/255", attacked(twin, "worst", "2/255", "image"))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("job", choices=["demo", "head_ct"])
    parser.add_argument("out", type=Path)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.out.exists():
        parser.error(f"{arguments.out} exists; choose a new folder")
    if (arguments.data is None) == (arguments.job == "head_ct"):
        parser.error("DATA goes with head_ct and with head_ct only")
    began = time.monotonic()
    if arguments.job == "demo":
        run = api.demo(arguments.out, reporter=Speaking())
    else:
        run = patchguard.fit(
            arguments.data,
            out=arguments.out,
            recipe="fast",
            seed=arguments.seed,
            reporter=Speaking(),
        )
    minutes = (time.monotonic() - began) / 60
    ours, twin = (read_as(Result, folder / METRICS) for folder in (run, run / "twin"))
    bars = demo_bars if arguments.job == "demo" else head_ct_bars
    print(ours.protocol.model_dump_json(indent=1))
    for bar in bars(minutes, ours, twin):
        print(bar)


if __name__ == "__main__":
    main()
