"""Draw file trees, give them to the tool, and count what goes wrong, by kind.

    python benchmarks/fuzz_trees.py [--trees 10000] [--seed 0] [--only scan|commands]

Every tree is scanned for training and for evaluation, and inspected with ``predict``, some of them
twice; of one in twelve the pseudo-anomalies are drawn too. Trees and properties are those of
``tests/test_fuzz.py``; the trial goes on after a fault. The example of each kind is a
small tree that shows it. Exit status 1 where there is any fault.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from accounting import OPTIONS, Fault, Options, command_trial, scan_trial
from patchguard.pipelines.evaluate import versions
from trainings import detector, small_recipe
from trees import Tree, trees

Trial = Callable[[Tree], list[Fault]]


class Tally:
    """In how many trees each kind of fault was seen, with a small tree that shows it."""

    def __init__(self) -> None:
        self.trees = 0
        self.files = 0
        self.faulty = 0
        self.seen: dict[str, int] = {}
        self.smallest: dict[str, tuple[Tree, Trial]] = {}

    def enter(self, tree: Tree, trial: Trial) -> None:
        faults = trial(tree)
        self.trees += 1
        self.files += len(tree.entries)
        self.faulty += bool(faults)
        for kind in {fault.kind for fault in faults}:
            self.seen[kind] = self.seen.get(kind, 0) + 1
            if kind not in self.smallest or _size(tree) < _size(self.smallest[kind][0]):
                self.smallest[kind] = tree, trial

    def table(self) -> str:
        lines = []
        for kind, count in sorted(self.seen.items(), key=lambda item: -item[1]):
            tree, detail = reduced(*self.smallest[kind], kind)
            entries = "; ".join(f"{each.path!r} ({each.what})" for each in tree.entries)
            lines += [
                f"{count:6}  {kind}",
                f"        {_short(entries)}",
                f"        {_short(detail)}",
            ]
        return "\n".join(lines)


def reduced(tree: Tree, trial: Trial, kind: str) -> tuple[Tree, str]:
    """The tree without the entries that the fault does not need, and the fault's detail."""
    detail = ""
    for entry in tree.entries:
        fewer = Tree(tuple(each for each in tree.entries if each != entry))
        if any(fault.kind == kind for fault in trial(fewer)):
            tree = fewer
    for fault in trial(tree):
        if fault.kind == kind:
            detail = fault.detail
    return tree, detail


def _size(tree: Tree) -> tuple[int, int]:
    return len(tree.entries), sum(len(entry.path) for entry in tree.entries)


def _short(text: str) -> str:
    return re.sub(r"(.{1,12}?)\1{7,}", r"\1\1…", text)[:300]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trees", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=["scan", "commands"])
    arguments = parser.parse_args()
    if arguments.trees < 1:
        parser.error("--trees must be at least 1")
    tally, began = Tally(), time.monotonic()
    recipe = small_recipe()

    with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
        run = detector(Path(folder))

        @seed(arguments.seed)
        @settings(
            max_examples=arguments.trees,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(tree=trees(), options=OPTIONS)
        def trial(tree: Tree, options: Options) -> None:
            def both(tree: Tree) -> list[Fault]:
                faults = scan_trial(tree) if arguments.only != "commands" else []
                if arguments.only != "scan":
                    faults += command_trial(tree, options, run, recipe)
                return faults

            tally.enter(tree, both)
            if tally.trees % 500 == 0:
                rate = tally.trees / (time.monotonic() - began)
                print(
                    f"{tally.trees} trees, {tally.faulty} with faults, {rate:.1f} a second",
                    flush=True,
                )

        trial()
        seconds = time.monotonic() - began
        print(
            f"{tally.trees} trees of {tally.files / tally.trees:.1f} entries, seed "
            f"{arguments.seed}, {arguments.only or 'scan and commands'}, {seconds:.0f} s; "
            f"{versions()}"
        )
        print(f"{tally.faulty} trees with faults, of {len(tally.seen)} kinds")
        print(tally.table())
    sys.exit(bool(tally.seen))


if __name__ == "__main__":
    main()
