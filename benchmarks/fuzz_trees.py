"""Draw file trees, give them to the tool, and count what goes wrong, by kind.

    python benchmarks/fuzz_trees.py [--trees 10000] [--seed 0] [--only scan|commands]

Every tree is scanned for training and for evaluation, and inspected with ``predict``, some of them
twice; of one in twelve the pseudo-anomalies are drawn too. Trees and properties are those of
``tests/test_fuzz.py``; the trial goes on after a fault. The example of each kind is of the smallest
tree that shows it. Exit status 1 where there is any fault.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from accounting import OPTIONS, Fault, Options, command_trial, scan_trial
from trainings import detector, small_recipe
from trees import Tree, trees

from patchguard.evaluating import versions


class Tally:
    """In how many trees each kind of fault was seen, with the smallest tree that shows it."""

    def __init__(self) -> None:
        self.trees = 0
        self.files = 0
        self.faulty = 0
        self.seen: dict[str, int] = {}
        self.smallest: dict[str, tuple[int, Tree, str]] = {}

    def enter(self, tree: Tree, faults: list[Fault]) -> None:
        self.trees += 1
        self.files += len(tree.entries)
        self.faulty += bool(faults)
        for kind, detail in {fault.kind: fault.detail for fault in faults}.items():
            self.seen[kind] = self.seen.get(kind, 0) + 1
            size = len(tree.entries)
            if kind not in self.smallest or size < self.smallest[kind][0]:
                self.smallest[kind] = size, tree, detail

    def table(self) -> str:
        lines = []
        for kind, count in sorted(self.seen.items(), key=lambda item: -item[1]):
            size, tree, detail = self.smallest[kind]
            lines.append(f"{count:6}  {kind}\n        {detail[:160]}  ({size} entries)")
            if size <= 2:
                lines.append(f"        {tree.entries}")
        return "\n".join(lines)


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
            faults = scan_trial(tree) if arguments.only != "commands" else []
            if arguments.only != "scan":
                faults += command_trial(tree, options, run, recipe)
            tally.enter(tree, faults)
            if tally.trees % 500 == 0:
                rate = tally.trees / (time.monotonic() - began)
                print(f"{tally.trees} trees, {tally.faulty} with faults, {rate:.1f} a second")

        trial()
    print(
        f"{tally.trees} trees of {tally.files / tally.trees:.1f} entries, seed {arguments.seed}, "
        f"{arguments.only or 'scan and commands'}, {time.monotonic() - began:.0f} s; {versions()}"
    )
    print(f"{tally.faulty} trees with faults, of {len(tally.seen)} kinds")
    print(tally.table())
    sys.exit(bool(tally.seen))


if __name__ == "__main__":
    main()
