"""The steps of ``patchguard study``: plan the runs, make them one by one, read them back."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from patchguard.config import EvaluationConfig, FitConfig, Recipe
from patchguard.errors import Interrupted, PatchGuardError
from patchguard.evaluation.protocol import suite_of
from patchguard.files import printable, resolved
from patchguard.pipelines import fit as fitting
from patchguard.pipelines.evaluate import CARD, REPORT, TWIN
from patchguard.report.study import STUDY_MARK, Failure, StudyRun
from patchguard.reporter import Tell
from patchguard.results.card import Card
from patchguard.results.files import read_as
from patchguard.results.run_folder import (
    METRICS,
    is_begun,
    is_entered,
    read_config,
    read_plain_config,
    verify,
)
from patchguard.results.schema import Result
from patchguard.shipped import flat

COMPARED = ("suite", "threats", "attacks", "looks")
"""What the evaluations of all runs have in common."""


@dataclass(frozen=True)
class Planned:
    """A run of a study: its folder, the names it has in the tables, and its settings."""

    folder: Path
    data: str
    recipe: str
    settings: FitConfig

    @property
    def finished(self) -> bool:
        """Trained, evaluated and reported on."""
        return is_entered(self.folder, METRICS) and all(
            (self.folder / name).exists() for name in (CARD, REPORT)
        )


def data_names(folders: Sequence[str]) -> dict[str, str]:
    """Data folders by the names that their results go under.

    Raises:
        PatchGuardError: none, or two of the same name.
    """
    return _by_name("data folders", folders, lambda folder: resolved(folder).name)


def recipe_names(recipes: Sequence[str]) -> dict[str, str]:
    """Recipes, by name or YAML file, by the names that their results go under.

    Raises:
        PatchGuardError: none, or two of the same name.
    """
    return _by_name("recipes", recipes, lambda recipe: Path(recipe).stem)


def plan(
    data: Mapping[str, str],
    recipes: Mapping[str, Recipe],
    seeds: Sequence[int],
    out: Path,
    *,
    twin: bool,
    evaluation: EvaluationConfig,
) -> list[Planned]:
    """All runs, seed by seed: a study that is stopped has few seeds of everything.

    Args:
        data: folders by name.
        recipes: with their lengths, by name.
        seeds: different ones.
        out: where the run folders go.
        twin: also train undefended twins.
        evaluation: the attacks.

    Raises:
        PatchGuardError: settings that contradict each other, no seed or one named twice, a path
            that is no folder; nothing is written yet.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise PatchGuardError(f"seeds are {list(seeds)}; name at least one, and each only once")
    for path in data.values():
        if not Path(path).is_dir():
            raise PatchGuardError(f"{path}: no such folder of images")
    runs = [
        Planned(
            out / name / of_recipe / f"seed-{seed}",
            name,
            of_recipe,
            FitConfig(data=path, seed=seed, twin=twin, recipe=recipe, evaluation=evaluation),
        )
        for seed in seeds
        for name, path in data.items()
        for of_recipe, recipe in recipes.items()
    ]
    for run in runs[: len(recipes)]:
        fitting.check(run.settings)
    return runs


def check_same_settings(run: Planned) -> None:
    """Refuse to go on in a run folder that was made with other settings.

    Raises:
        PatchGuardError: a setting or the evaluation differs.
    """
    if not is_begun(run.folder):
        return
    recorded, _ = read_config(run.folder)
    differing = list(_differences(_settings(recorded), _settings(run.settings)))
    if resolved(recorded.data) != resolved(run.settings.data):
        differing.append(f"data {recorded.data}, not {run.settings.data}")
    if run.finished and not differing:
        differing += _evaluated_otherwise(run)
    if differing:
        raise PatchGuardError(
            f"{run.folder} was made with other settings ({'; '.join(differing[:3])}): "
            "restore them or choose another --out"
        )


def check_page(page: Path) -> None:
    """Refuse to overwrite what somebody else wrote.

    Raises:
        PatchGuardError: it is a folder, or a file that is no page of a study.
    """
    if page.is_dir():
        raise PatchGuardError(f"--page {page} is a folder; name a file")
    if page.exists() and not page.read_bytes().startswith(STUDY_MARK.encode()):
        raise PatchGuardError(
            f"--page {page} is not a page of patchguard study; move it away or choose another name"
        )


def carry_out(
    runs: Sequence[Planned], fit: Callable[[Planned], object], tell: Tell
) -> list[Failure]:
    """Make every run that is not finished; returns those that failed.

    Args:
        runs: the whole plan.
        fit: makes a run, or continues it.
        tell: receives which run of how many it is, and how long the rest may take.

    Raises:
        Interrupted: stopped by the user; the state is saved.
    """
    left = [run for run in runs if not run.finished]
    before = len(runs) - len(left)
    took = {run.folder: _seconds(run) for run in runs if run.finished}
    if before:
        tell(f"{before} of {len(runs)} runs are finished already")
    failures = []
    for done, run in enumerate(left):
        number = before + done + 1
        tell(f"run {number} of {len(runs)}: {run.folder}{_estimate(runs, left[done:], took)}")
        try:
            fit(run)
            took[run.folder] = _seconds(run)
        except Interrupted as stop:
            raise Interrupted(
                f"interrupted in run {number} of {len(runs)}, {run.folder}: its state is saved; "
                "give the same command again to go on"
            ) from stop
        except BrokenPipeError:  # nobody reads what is told: no fault of the run
            raise
        except (PatchGuardError, RuntimeError, OSError) as fault:
            # Out of memory or disk space too: what the other runs found is worth a page.
            reason = printable(" ".join(str(fault).split()))
            tell(f"{run.folder} failed: {reason}")
            failures.append(Failure(printable(run.folder), reason))
    return failures


def read_all(planned: Sequence[Planned]) -> list[StudyRun]:
    """The finished runs for the tables: those of the first recipe first.

    Raises:
        PatchGuardError: as :func:`read` and :func:`check_comparable`.
    """
    recipes = list(dict.fromkeys(run.recipe for run in planned))
    finished = [run for run in planned if run.finished]
    finished.sort(key=lambda run: recipes.index(run.recipe))
    found = [read(run) for run in finished]
    check_comparable(finished, found)
    return found


def read(run: Planned) -> StudyRun:
    """A finished run for the tables.

    Raises:
        PatchGuardError: a file of it is missing, damaged or altered.
    """
    settings, provenance = read_config(run.folder)
    verify(run.folder, METRICS)
    metrics = read_as(Result, run.folder / METRICS)
    digest = read_as(Card, run.folder / CARD).data.sha256
    names = (printable(run.data), printable(run.recipe))
    return StudyRun(*names, settings, provenance, metrics, digest)


def check_comparable(planned: Sequence[Planned], runs: Sequence[StudyRun]) -> None:
    """Refuse to put runs into one table that were not made alike.

    Args:
        planned: as planned, for their folders.
        runs: the same runs as read.

    Raises:
        PatchGuardError: evaluations, test images or normal images differ.
    """
    seen: dict[str, tuple[Path, Any]] = {}
    for where, run in zip(planned, runs, strict=True):
        for what, value in _facts(run).items():
            folder, first = seen.setdefault(what, (where.folder, value))
            if value != first:
                raise PatchGuardError(
                    f"{where.folder} and {folder} differ in their {what.split(' of ')[0]}, so they "
                    "do not belong in one table: delete one of them and run it again"
                )


def command(
    data: Sequence[str],
    recipes: Sequence[str],
    seeds: Sequence[int],
    evaluation: EvaluationConfig,
    **options: str | float | bool | None,
) -> str:
    """The command line that writes the page again, with what was given only.

    Args:
        data: folders as the user gave them.
        recipes: as the user gave them.
        seeds: of the runs.
        evaluation: the attacks.
        options: the other options; those that are None or False are left out.
    """
    words = ["patchguard", "study", *data, "--recipes", ",".join(recipes)]
    words += ["--seeds", ",".join(map(str, seeds))]
    for name, value in options.items():
        if value is True:
            words.append(f"--{name}")
        elif value is not None and value is not False:
            words += [f"--{name}", str(value)]
    for field in fields(evaluation):
        value = getattr(evaluation, field.name)
        if value != field.default:
            told = f"[{','.join(value)}]" if isinstance(value, list) else str(value)
            words += [f"--evaluation.{field.name}", told]
    return " ".join(map(_quoted, words))


def _quoted(word: str) -> str:
    r"""A word for the shell; one that is not printable as bash, zsh and POSIX 2024 know it."""
    if printable(word) == word:
        return shlex.quote(word)
    plain = "".join(
        chr(byte) if 32 <= byte < 127 and chr(byte) not in "\\'" else f"\\x{byte:02x}"
        for byte in os.fsencode(word)
    )
    return f"$'{plain}'"


def _by_name(what: str, given: Sequence[str], name_of: Callable[[str], str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in given:
        name = name_of(each)
        if name in found:
            raise PatchGuardError(
                f"two {what} are called {name}: {found[name]} and {each}; rename one of them"
            )
        found[name] = each
    if not found:
        raise PatchGuardError(f"no {what}: name at least one")
    return found


def _settings(settings: FitConfig) -> dict[str, Any]:
    """What decides the figures, by dotted name, as a config file holds it.

    Not the folder, which may be written in several ways, nor who prepares the batches.
    """
    content = yaml.safe_load(yaml.safe_dump(asdict(settings)))
    del content["data"], content["recipe"]["data"]["workers"]
    return dict(flat(content))


def _differences(recorded: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys((*recorded, *asked)):
        if recorded.get(name) != asked.get(name):
            yield f"{name} {recorded.get(name)}, not {asked.get(name)}"


def _evaluated_otherwise(run: Planned) -> list[str]:
    """How the evaluation of a finished run, which may have been renewed, differs from its plan."""
    found = read_as(Result, run.folder / METRICS).protocol
    threats = {each.norm: tuple(each.eps) for each in suite_of(run.settings.evaluation).threats}
    looks = run.settings.evaluation.looks
    asked = {"seed": run.settings.seed, "threats": threats, "looks": looks}
    differing = _differences({name: getattr(found, name) for name in asked}, asked)
    return [f"evaluation {each}" for each in differing]


def _seconds(run: Planned) -> float:
    """What a finished run took to train and to evaluate, its twin included."""
    folders = [folder for folder in (run.folder, run.folder / TWIN) if (folder / METRICS).exists()]
    training = (read_plain_config(folder).get("training_seconds", 0.0) for folder in folders)
    evaluation = (read_as(Result, folder / METRICS).protocol.seconds for folder in folders)
    return float(sum(training) + sum(filter(math.isfinite, evaluation)))


def _estimate(runs: Sequence[Planned], left: Sequence[Planned], took: Mapping[Path, float]) -> str:
    """From the runs done so far: those of the same recipe where there are any."""
    if not took:
        return ""
    of_recipe: dict[str, list[float]] = {}
    for run in runs:
        if run.folder in took:
            of_recipe.setdefault(run.recipe, []).append(took[run.folder])
    seconds = sum(fmean(of_recipe.get(run.recipe) or took.values()) for run in left)
    return f", about {seconds / 60:.0f} min left"


def _facts(run: StudyRun) -> dict[str, Any]:
    """What has to be equal, each under a name that says among which runs."""
    protocol = run.metrics.protocol
    facts = {f"evaluation ({name})": getattr(protocol, name) for name in COMPARED}
    facts[f"test set of {run.data}"] = protocol.test_set
    facts[f"test image counts of {run.data}"] = protocol.images
    if not run.metrics.self_test:
        facts[f"test images of {run.data}"] = run.test_sha256
    normals = run.provenance.get("images", {}).get("sha256")
    facts[f"normal images of {run.data} with seed {run.seed}"] = normals
    facts[f"start weights of {run.recipe}"] = run.provenance.get("start_sha256")
    return facts
