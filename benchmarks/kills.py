"""Kill commands at random moments, give them again, and count what is lost, by kind.

    python benchmarks/kills.py [--kills 50] [--minutes 60] [--seed 0] [--only fit evaluate …]

Each command works on tiny images in a folder of its own. Its process group gets SIGKILL: half of
the times anywhere in its duration, half of them within 3 ms of one of its writes, which random
times would hardly ever meet. After a kill

- no folder looks finished that is not: what is sealed has its checksum, ``predict`` and
  ``leaderboard`` work on it or say what is wrong with it, without a traceback; a run
  with metrics and report has the metrics of an undisturbed one; a results file in JSON is whole;
- the command, given again (``fit`` with ``--resume``), ends with status 0 and leaves the weights
  and metrics of an undisturbed run, bit by bit, on one thread;
- what was finished before the kill is not made again: sealed weights, attacks, runs of a study and
  rows of ``scores.csv`` are those from before. A third of the restarted ones are killed again.

A command runs in a fork of a process that has loaded everything, since loading takes longer than
the work. Training saves its state after every step instead of every minute, the quick suite is two
attacks of two steps, and of the self-checks, which write nothing, one is run. Exit status 1 where
there is any fault.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import hashlib
import json
import os
import random
import re
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from evaluations import suite_text
from patchguard import cli, config
from patchguard.evaluation.checks import run as checks
from patchguard.pipelines import fit as fitting
from patchguard.pipelines import study as studying
from patchguard.pipelines.evaluate import versions
from patchguard.report import leaderboard, render
from patchguard.results.run_folder import MANIFEST, METRICS, WEIGHTS
from patchguard.training import resume
from trainings import small_recipe
from trees import mask, picture

LOADED = (fitting, studying, leaderboard, render)
"""Imported here, or every fork would do it."""
SUITE = suite_text(
    "attack: pgd, objective: score, steps: 2", "attack: pgd, objective: linear, steps: 2"
)
STEPS = 5
LONGEST = 180
"""Seconds after which a command counts as hanging."""
NEAR = 0.003
"""Seconds after a write within which half of the kills fall."""


class Moment(NamedTuple):
    """When to kill: so many seconds after the start, or after so many writes and seconds."""

    seconds: float
    writes: int = 0


class Ended(NamedTuple):
    """A command that ended, or was ended.

    Args:
        status: of the exit; None where it was killed.
        told: its output.
        seconds: that it took.
        writes: files that it opened for writing, renamed and removed.
    """

    status: int | None
    told: str
    seconds: float
    writes: int


@dataclass(frozen=True)
class Command:
    """A command under trial.

    Args:
        first: its words.
        again: the words with which it goes on.
        runs: run folders that it leaves.
    """

    first: tuple[str, ...]
    again: tuple[str, ...]
    runs: tuple[str, ...]


RUN = ("run", "run/twin")
FIT = ("fit", "data", "--recipe", "tiny.yaml", "--out", "run")
EVALUATE = ("evaluate", "run", "data", "--seed", "1")
PREDICT = ("predict", "run", "images", "--out", "out", "--maps")
STUDY = ("study", "data", "--recipes", "tiny.yaml", "--seeds", "0,1", "--out", "study")
STUDY_RUNS = tuple(f"study/data/tiny/seed-{seed}" for seed in (0, 1))
COMMANDS = {
    "fit": Command(FIT, (*FIT, "--resume"), RUN),
    "evaluate": Command(EVALUATE, EVALUATE, RUN),
    "predict": Command(PREDICT, PREDICT, ()),
    "study": Command(STUDY, STUDY, STUDY_RUNS),
}
NEEDS_RUN = ("evaluate", "predict")


def prepare(folder: Path) -> None:
    """Normal and defective images, masks, images to inspect, a recipe and a quick suite."""
    seeds = iter(range(100))
    for part, count in (("train/good", 12), ("test/good", 2), ("test/spot", 2)):
        for number in range(count):
            path = folder / "data" / part / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture("png RGB", (32, 32), next(seeds)))
    for number in range(2):
        path = folder / "data/ground_truth/spot" / f"{number}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(mask((32, 32), "partly"))
    (folder / "images").mkdir()
    for number in range(20):
        (folder / f"images/{number:02}.png").write_bytes(picture("png RGB", (48, 17), number))
    recipe = small_recipe()
    recipe.training.steps = STEPS
    (folder / "tiny.yaml").write_text(yaml.safe_dump(asdict(recipe)))
    (folder / "suites").mkdir()
    (folder / "suites/quick.yaml").write_text(SUITE)


def execute(words: tuple[str, ...], folder: Path, moment: Moment | None = None) -> Ended:
    """Run a command in a process group of its own, and kill that at a moment."""
    log = folder.parent / f"{folder.name}.log"
    reader, writer = os.pipe()
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_command(words, folder, log, writer)
    # Here and there: whichever of the two comes first.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(child, child)
    os.close(writer)
    writes, killed = 0, False
    try:
        writes, killed = _wait(reader, child, began, moment)
    finally:
        os.close(reader)
        _, status = os.waitpid(child, 0)
    told = log.read_text(errors="replace")
    seconds = time.monotonic() - began
    if killed and os.WIFSIGNALED(status):
        return Ended(None, told, seconds, writes)
    return Ended(os.waitstatus_to_exitcode(status), told, seconds, writes)


def _wait(reader: int, child: int, began: float, moment: Moment | None) -> tuple[int, bool]:
    """Follow a command to its end or to the moment; returns its writes and whether it was killed.

    It sends a byte for every write, and its end closes the pipe.
    """
    writes = 0
    end = began + LONGEST
    if moment and not moment.writes:
        end = began + moment.seconds
    while (left := end - time.monotonic()) > 0:
        ready, _, _ = select.select([reader], [], [], left)
        if not ready:
            break
        told = os.read(reader, 1 if moment and moment.writes else 65536)
        if not told:
            return writes, False
        writes += len(told)
        if moment and moment.writes and writes == moment.writes:
            time.sleep(moment.seconds)
            break
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return writes, True


def _be_command(words: tuple[str, ...], folder: Path, log: Path, writer: int) -> None:
    """Never returns."""
    status = 99
    try:
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        # After every step, so that a few steps meet as many saved states as hours do.
        resume.SAVE_EVERY_SECONDS = -1
        config.SUITES = folder / "suites"
        checks.QUICK = frozenset({"S1"})
        sys.addaudithook(lambda event, told: _tell_of_write(writer, event, told, folder))
        status = cli.main(list(words))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _tell_of_write(writer: int, event: str, told: tuple[Any, ...], folder: Path) -> None:
    if event == "open":
        writing = isinstance(told[1], str) and not {"w", "a", "x", "+"}.isdisjoint(told[1])
    else:
        writing = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir")
    if writing and not isinstance(told[0], int):
        os.write(writer, b".")


# What is left.


def content(folder: Path, suffixes: tuple[str, ...]) -> dict[str, tuple[str, int]]:
    """Files by name with digest and time of change."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest(),
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
        if path.suffix in suffixes and path.is_file()
    }


def kept_work(folder: Path) -> dict[str, tuple[str, int]]:
    """What takes long and is kept: weights and results of attacks."""
    found = content(folder, (".npy", ".safetensors"))
    # The worst so far is written anew after every attack; maps of predictions go with their rows.
    passing = re.compile(r"out/|.*/worst/")
    kept = {name: state for name, state in found.items() if not passing.match(name)}
    # The scores of a batch are written last: without them it is not finished.
    parts = re.compile(r"(.*/)(?:images|largest|maps)\.npy")
    whole = {name: parts.fullmatch(name) for name in kept}
    return {
        name: kept[name]
        for name, part in whole.items()
        if part is None or f"{part[1]}scores.npy" in kept
    }


def figures(folder: Path, runs: tuple[str, ...]) -> dict[str, Any]:
    """Weights and metrics of runs and rows of predictions; times left out."""
    found: dict[str, Any] = {}
    for run in runs:
        weights, metrics = folder / run / WEIGHTS, folder / run / METRICS
        found[f"{run} weights"] = hashlib.sha256(weights.read_bytes()).hexdigest()
        values = json.loads(metrics.read_text())
        values["protocol"].pop("seconds")
        found[f"{run} metrics"] = values
    if (folder / "out").exists():
        found["rows"] = [[_rounded(cell) for cell in row] for row in rows(folder)]
        found["json"] = json.loads((folder / "out/scores.json").read_text(), parse_float=_rounded)
    return found


def _rounded(cell: str) -> str:
    """A score up to what other images in its batch may change: the last digits."""
    try:
        return f"{float(cell):.4f}"
    except ValueError:
        return cell


def rows(folder: Path) -> list[list[str]]:
    """Whole rows of scores.csv: a line that was cut is none."""
    path = folder / "out/scores.csv"
    if not path.exists():
        return []
    whole = path.read_text().rpartition("\n")[0].split("\n")
    return [row for row in csv.reader(whole) if row][1:]


class Trial:
    """One command: what it leaves undisturbed, and faults against that.

    Args:
        base: folder in which it starts; the undisturbed one is made beside it.
        scratch: folder for the killed ones.
    """

    def __init__(self, name: str, base: Path, scratch: Path) -> None:
        self.name, self.command, self.base, self.scratch = name, COMMANDS[name], base, scratch
        self.faults: Counter[str] = Counter()
        self.example: dict[str, str] = {}
        self.kills = 0
        self.looked: set[str] = set()
        reference = scratch / f"undisturbed {name}"
        shutil.copytree(base, reference)
        self.former = figures(base, RUN) if name == "evaluate" else {}
        self.usual = execute(self.command.first, reference)
        if self.usual.status != 0:
            raise SystemExit(f"{name} fails undisturbed: {self.usual.told}")
        self.expected = figures(reference, self.command.runs)
        self.complete = kept_work(reference)

    def fault(self, kind: str, detail: str) -> None:
        self.faults[kind] += 1
        self.example.setdefault(kind, " ".join(detail.split())[-300:])

    def moment(self, rng: random.Random, usual: Ended) -> Moment:
        if rng.random() < 0.5:
            return Moment(rng.uniform(0, usual.seconds))
        return Moment(rng.uniform(0, NEAR), rng.randint(1, max(1, usual.writes)))

    def kill(self, rng: random.Random) -> None:
        """One kill or two, and a restart, in a fresh folder."""
        folder = self.scratch / f"killed {self.name}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.base, folder)
        moment = self.moment(rng, self.usual)
        ended = execute(self.command.first, folder, moment)
        if ended.status is not None:
            return
        self.kills += 1
        self.look(folder, moment)
        kept, before = self.finished(folder), rows(folder)
        if rng.random() < 1 / 3:
            second = self.moment(rng, self.usual)
            if execute(self.command.again, folder, second).status is None:
                self.kills += 1
                self.look(folder, second)
                self.compare(kept, folder, before)
                kept |= self.finished(folder)
        last = execute(self.command.again, folder)
        # Killed when all was done but the exit: nothing is left to do, and predict says so.
        if last.status != 0 and "holds finished predictions" not in last.told:
            kind = "traceback" if "Traceback" in last.told else f"status {last.status}"
            self.fault(f"given again: {kind}: {_reason(last.told)}", f"{moment} {last.told}")
            return
        self.compare(kept, folder, before)
        found = figures(folder, self.command.runs)
        for what, value in self.expected.items():
            if found.get(what) != value:
                self.fault(f"given again: other {what.split()[-1]}", f"{moment} {what}")
        if "resume.ckpt" in str(kept) and "nothing to resume" in last.told:
            self.fault("given again: a saved training is begun anew", f"{moment}")

    def finished(self, folder: Path) -> dict[str, int]:
        """Files that are as an undisturbed command leaves them, with their times."""
        return {
            name: changed
            for name, (digest, changed) in kept_work(folder).items()
            if self.complete.get(name, ("",))[0] == digest and self._sealed(folder / name)
        }

    def _sealed(self, path: Path) -> bool:
        """Weights without their manifest are made again from the saved state, which is fine."""
        return path.name != WEIGHTS or (path.parent / MANIFEST).exists()

    def compare(self, kept: dict[str, int], folder: Path, before: list[list[str]]) -> None:
        now = kept_work(folder)
        for name, changed in kept.items():
            if name not in now:
                self.fault("finished work is gone", name)
            elif now[name][0] != self.complete[name][0]:
                self.fault("finished work is altered", name)
            elif now[name][1] != changed:
                self.fault(f"finished work is made again: {_kind(name)}", name)
        lost = [row for row in before if row not in rows(folder)]
        if lost:
            self.fault("rows of scores.csv are gone", f"{len(lost)} of {len(before)}")

    # What a killed command leaves behind.

    def look(self, folder: Path, moment: Moment) -> None:
        for run in self.command.runs:
            if (folder / run).exists():
                self.look_at_run(folder, run, moment)
        for path in (folder / "out").glob("*.json"):
            try:
                done = json.loads(path.read_text(), parse_float=_rounded)
            except ValueError as error:
                self.fault(f"{path.name} is cut short", f"{moment} {error}")
            else:
                if done != self.expected["json"]:
                    self.fault(f"{path.name} looks finished", f"{moment} {len(done)} rows")
        if (folder / "out").exists():
            for part in ("overlays", "maps"):
                for path in (folder / "out" / part).rglob("[!.]*"):
                    if path.is_file() and path.stat().st_size == 0:
                        self.fault(f"an empty file in {part}", f"{moment} {path.name}")
        page = folder / "study/results.md"
        if page.exists() and page.stat().st_size == 0:
            self.fault("results.md is empty", str(moment))

    def look_at_run(self, folder: Path, run: str, moment: Moment) -> None:
        path = folder / run
        reports = (path / "report.html").exists() and (path / METRICS).exists()
        for kind, detail in _broken_seals(path):
            self.fault(kind, f"{moment} {run}: {detail}")
        if reports:
            self.compare_metrics(folder, run, moment)
        state = [digest for digest, _ in content(path, (".json", ".safetensors")).values()]
        if str(state) in self.looked:
            return
        self.looked.add(str(state))
        for words in (
            ("predict", run, "images/00.png", "--out", "looked/at"),
            ("leaderboard", run, "--out", "looked/board.html"),
        ):
            ended = execute(words, folder)
            if "Traceback" in ended.told or ended.status not in (0, 1):
                self.fault(
                    f"{words[0]}: traceback: {_reason(ended.told)}", f"{moment} {ended.told}"
                )
            elif ended.status == 1 and reports:
                self.fault(
                    f"a run that looks finished: {words[0]} fails: {_reason(ended.told)}",
                    f"{moment} {run}: {ended.told}",
                )
        shutil.rmtree(folder / "looked", ignore_errors=True)

    def compare_metrics(self, folder: Path, run: str, moment: Moment) -> None:
        try:
            found = figures(folder, (run,))
        except ValueError as error:
            self.fault("a run that looks finished: metrics.json is cut short", f"{moment} {error}")
            return
        what = f"{run} metrics"
        if found[what] not in (self.expected[what], self.former.get(what)):
            self.fault("a run that looks finished has other metrics", f"{moment} {run}")


def _broken_seals(run: Path) -> Iterator[tuple[str, str]]:
    """Parts that the manifest names and that differ from it."""
    if not (run / MANIFEST).exists():
        return
    try:
        digests = json.loads((run / MANIFEST).read_text())
    except ValueError as error:
        yield "manifest.json is cut short", str(error)
        return
    for name, digest in digests.items():
        path = run / name
        if not path.exists() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            yield f"{name} is not what manifest.json says", str(path.exists())


def _reason(told: str) -> str:
    """The last line of an output, without names and numbers."""
    line = (told.strip().splitlines() or ["no output"])[-1]
    return re.sub(r"\S*[/\d]\S*", "…", line)[:110]


def _kind(name: str) -> str:
    return "weights" if name.endswith(WEIGHTS) else "an attack"


def run_trials(
    names: list[str], kills: int, minutes: float, seed: int, tell: Callable[[str], None]
) -> list[Trial]:
    """Kill each of the commands so many times, or for so long."""
    trials = []
    with tempfile.TemporaryDirectory(prefix="kills") as place:
        scratch = Path(place)
        images, fitted = scratch / "images alone", scratch / "fitted"
        images.mkdir()
        prepare(images)
        if set(names) & set(NEEDS_RUN):
            shutil.copytree(images, fitted)
            ended = execute(FIT, fitted)
            if ended.status != 0:
                raise SystemExit(f"fit fails: {ended.told}")
        for name in names:
            trial = Trial(name, fitted if name in NEEDS_RUN else images, scratch)
            tell(f"{name}: {trial.usual.seconds:.1f} s and {trial.usual.writes} writes undisturbed")
            rng, began = random.Random(f"{seed} {name}"), time.monotonic()
            while trial.kills < kills and time.monotonic() - began < 60 * minutes:
                before = trial.kills
                trial.kill(rng)
                if trial.kills // 5 > before // 5:
                    took = f"{time.monotonic() - began:.0f} s"
                    tell(f"{name}: {trial.kills} kills, {trial.faults.total()} faults, {took}")
            trials.append(trial)
    return trials


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each command")
    parser.add_argument("--minutes", type=float, default=60.0, help="for each command, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    arguments = parser.parse_args()
    if arguments.kills < 1:
        parser.error("--kills must be at least 1")
    began = time.monotonic()
    trials = run_trials(
        arguments.only,
        arguments.kills,
        arguments.minutes,
        arguments.seed,
        lambda line: print(line, flush=True),
    )
    print(
        f"{sum(trial.kills for trial in trials)} kills, seed {arguments.seed}, "
        f"{time.monotonic() - began:.0f} s; {versions()}"
    )
    for trial in trials:
        print(f"{trial.name}: {trial.kills} kills, {trial.faults.total()} faults")
        for kind, count in trial.faults.most_common():
            print(f"{count:6}  {kind}\n        {trial.example[kind]}")
    sys.exit(any(trial.faults for trial in trials))


if __name__ == "__main__":
    main()
