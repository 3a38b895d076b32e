"""The page of a study: recipes on data sets with several seeds, as Markdown.

Everything is computed from runs that were read already: means and standard deviations over seeds,
differences of recipes over pairs of runs that share data and seed, means by kind of defect, and the
values of every run.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from patchguard.config import FitConfig, Recipe, parse_eps
from patchguard.files import encodable, printable
from patchguard.report.tables import Table, aurocs_by_kind
from patchguard.report.wording import (
    DASH,
    gap,
    looks,
    metric,
    norm_name,
    number,
    sized,
    threat,
)
from patchguard.results.card import published_steps
from patchguard.results.schema import CLEAN, LEGACY, WORST, AttackResult, Protocol, Result
from patchguard.shipped import measured_with

STUDY_MARK = "<!-- Written by patchguard study, which writes it again: keep notes elsewhere. -->"
PARTS = ("image", "pixel")
COUNTED = ("PASS", "WARN", "FAIL")
COST = ("training, min", "evaluation, min", *COUNTED, "checks that fail")


@dataclass(frozen=True)
class StudyRun:
    """A finished run of a study.

    Attributes:
        data: name of the data set.
        recipe: name of the recipe.
        settings: what the run was made with.
        provenance: versions, device, image counts and ``training_seconds`` of its ``config.yaml``.
        metrics: of its ``metrics.json``.
        test_sha256: of the images it was evaluated on.
    """

    data: str
    recipe: str
    settings: FitConfig
    provenance: Mapping[str, Any]
    metrics: Result
    test_sha256: str | None

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def training_minutes(self) -> float:
        return float(self.provenance.get("training_seconds", math.nan)) / 60

    @property
    def evaluation_minutes(self) -> float:
        return self.metrics.protocol.seconds / 60


class Failure(NamedTuple):
    """A run that could not be finished, and why in one line."""

    run: str
    reason: str


@dataclass(frozen=True)
class Spread:
    """Mean of ``count`` values and its ``error``, nan where there is only one value."""

    mean: float
    error: float
    count: int

    def text(self, *, signed: bool = False) -> str:
        """Three decimals, as ``0.912 ± 0.010``."""
        mean = gap(self.mean) if signed and math.isfinite(self.mean) else number(self.mean)
        return f"{mean} ± {number(self.error)}" if math.isfinite(self.error) else mean


_Scores = Mapping[tuple[str, str, int], Mapping[str, float]]
"""AUROC by column, for each data set, recipe and seed."""


@dataclass(frozen=True)
class _Group:
    """A row's data: one data set, or several of the same kind of test to take the mean over."""

    label: str
    data: tuple[str, ...]


def over_seeds(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation (n - 1)."""
    error = stdev(values) if len(values) > 1 else math.nan
    return Spread(fmean(values) if values else math.nan, error, len(values))


def over_pairs(differences: Sequence[float]) -> Spread:
    """Mean and its standard error, the sample standard deviation over the root of the count."""
    found = over_seeds(differences)
    return Spread(found.mean, found.error / math.sqrt(max(1, found.count)), found.count)


def aurocs(metrics: Result, part: str) -> dict[str, float]:
    """AUROC of images or pixels by column: clean, worst case at each eps, published attack.

    Those of the first threat, both classes attacked; what was not measured is left out.
    """
    found = {CLEAN: metric(metrics.clean, part, "auroc")}
    for attack in (WORST, LEGACY):
        for result in metrics.under(attack):
            found[_column(result)] = metric(result.both, part, "auroc")
    return {name: value for name, value in found.items() if math.isfinite(value)}


def auroc_table(runs: Sequence[StudyRun], part: str) -> Table:
    """A row for each data set and recipe, then for the means over data sets: mean ± sd over seeds.

    A mean over data sets is taken seed by seed, of the seeds with which every one of them has a
    run, so that its spread is that of the mean.
    """
    scores = _scores(runs, part)
    columns = _columns(scores.values())
    rows = []
    for group in _groups(runs, scores):
        for recipe in _recipes(runs):
            values = list(_by_seed(scores, group, recipe).values())
            cells = (over_seeds(each).text() for each in _in_columns(values, columns))
            if values:
                rows.append((group.label, _marked(runs, group, recipe), str(len(values)), *cells))
    return Table(("data", "recipe", "seeds", *columns), tuple(rows))


def differences(runs: Sequence[StudyRun], part: str) -> Table:
    """Each recipe minus the first one, over pairs of runs that share data and seed.

    Of several data sets the means are taken seed by seed, as in :func:`auroc_table`.
    """
    scores = _scores(runs, part)
    columns = [name for name in _columns(scores.values()) if not name.startswith(LEGACY)]
    first, *others = _recipes(runs)
    rows = []
    for group in _groups(runs, scores):
        for recipe in others:
            pairs = list(_pairs(scores, group, recipe, first))
            cells = (over_pairs(each).text(signed=True) for each in _in_columns(pairs, columns))
            if pairs:
                rows.append((group.label, f"{recipe} − {first}", str(len(pairs)), *cells))
    return Table(("data", "difference", "pairs", *columns), tuple(rows))


def kinds_table(runs: Sequence[StudyRun]) -> Table:
    """A row for each kind of defect, by data set and recipe: image AUROC, mean ± sd over seeds.

    Each kind stands against all normal images, clean and in the worst case. Data with a single
    kind are left out: theirs is the AUROC of all images.
    """
    kinds = {_key(run): _by_kind(run.metrics) for run in runs}
    columns = _columns(values for of_run in kinds.values() for values in of_run.values())
    rows = []
    for group in _groups(runs, _scores(runs, "image")):
        of_data = [run for run in runs if (run.data,) == group.data]
        for kind in dict.fromkeys(kind for run in of_data for kind in kinds[_key(run)]):
            for recipe in _recipes(of_data):
                values = [kinds[_key(run)][kind] for run in of_data if run.recipe == recipe]
                cells = (over_seeds(each).text() for each in _in_columns(values, columns))
                label = _marked(runs, group, recipe)
                rows.append((group.label, kind, label, str(len(values)), *cells))
    return Table(("data", "defect", "recipe", "seeds", *columns), tuple(rows))


def _by_kind(metrics: Result) -> dict[str, dict[str, float]]:
    """Image AUROC by kind of defect and column, where there are several kinds."""
    columns = {CLEAN: CLEAN, **{each.eps: _column(each) for each in metrics.under(WORST)}}
    kinds = aurocs_by_kind(metrics)
    if len(kinds) < 2:
        return {}
    return {
        kind: {columns[eps]: auroc for eps, auroc in values.items()}
        for kind, values in kinds.items()
    }


def costs(runs: Sequence[StudyRun]) -> Table:
    """Mean minutes, and what the self-checks of all seeds say."""
    rows = []
    for group in _groups(runs, _scores(runs, "image")):
        if len(group.data) > 1:
            continue
        for recipe in _recipes(runs):
            found = [run for run in runs if (run.data, run.recipe) == (group.data[0], recipe)]
            if found:
                label = _marked(runs, group, recipe)
                rows.append((group.label, label, str(len(found)), *_cost(found)))
    return Table(("data", "recipe", "seeds", *COST), tuple(rows))


def every_run(runs: Sequence[StudyRun], part: str) -> Table:
    """Every value that the other tables take means of, but by kind; AUROCs with four decimals.

    Minutes and checks, which belong to a run and not to a part, are beside those of images.
    """
    scores = _scores(runs, part)
    columns = _columns(scores.values())
    rows = [
        (
            _kind(run),
            run.recipe,
            str(run.seed),
            *(_fine(scores[_key(run)].get(name, math.nan)) for name in columns),
            *(_cost([run]) if part == "image" else ()),
        )
        for run in sorted(runs, key=lambda run: _place(runs, run))
        if _key(run) in scores
    ]
    cost = COST if part == "image" else ()
    return Table(("data", "recipe", "seed", *columns, *cost), tuple(rows))


def protocol(runs: Sequence[StudyRun]) -> list[str]:
    """What decides the numbers, one fact a line; where runs differ, every value that occurs."""
    protocols = [run.metrics.protocol for run in runs]
    versions = [_named(run.provenance.get("versions", {})) for run in runs]
    evaluated = [_named(each.versions) for each in protocols]
    seeds = sorted({run.seed for run in runs})
    return [
        f"Versions: {_distinct([*versions, *evaluated])}.",
        f"Device: training on {_distinct(run.provenance.get('device') for run in runs)}; "
        f"evaluation on {_distinct(each.device for each in protocols)}.",
        _threat(runs[0].metrics),
        f"Attacks of the worst case: {_distinct(_attacks(each) for each in protocols)}.",
        f"Seeds {', '.join(map(str, seeds))}: each decides the split, the weights and every "
        "random draw of training and evaluation.",
        *(line for name in _recipes(runs) for line in _recipe(name, runs)),
        *(_data(name, runs) for name in dict.fromkeys(run.data for run in runs)),
    ]


def study_page(runs: Sequence[StudyRun], failures: Sequence[Failure], command: str) -> str:
    """The whole page, ending in a newline.

    Args:
        runs: at least one.
        failures: the runs of the study that are missing.
        command: what writes the page again.
    """
    several = len(_recipes(runs)) > 1
    lines = [STUDY_MARK, "", "# Results of a study", "", "Written by", "", f"    {command}", ""]
    lines += _missing(failures)
    lines += ["## Protocol", "", *(f"- {line}" for line in protocol(runs)), ""]
    for part in _parts(runs):
        lines += [f"## {part.capitalize()} AUROC", "", _reading(part), ""]
        lines += [markdown(auroc_table(runs, part)), ""]
        if several:
            lines += ["Differences, with standard errors over pairs of the same data and seed:", ""]
            lines += [*_warning(runs), markdown(differences(runs, part)), ""]
    kinds = kinds_table(runs)
    if kinds.rows:
        lines += [
            "## Image AUROC by kind of defect",
            "",
            _reading_of_kinds(),
            "",
            markdown(kinds),
            "",
        ]
    lines += ["## Time and self-checks", "", _reading_of_costs(), ""]
    lines += [markdown(costs(runs)), "", "## Every run", ""]
    for part in _parts(runs):
        lines += [f"{part.capitalize()} AUROC:", "", markdown(every_run(runs, part)), ""]
    return encodable("\n".join(lines))


def summary(runs: Sequence[StudyRun]) -> str:
    """The tables of the page for a terminal, without kinds of defects and single runs."""
    several = len(_recipes(runs)) > 1
    blocks = []
    for part in _parts(runs):
        blocks += [f"{part} AUROC, mean ± sd over seeds", aligned(auroc_table(runs, part))]
        if several:
            blocks += ["", *_warning(runs), aligned(differences(runs, part))]
        blocks.append("")
    return "\n".join([*blocks, aligned(costs(runs))])


def markdown(table: Table) -> str:
    """A table in Markdown; what it says cannot break it."""
    rule = ["---"] * len(table.headings)
    rows = [table.headings, rule, *table.rows]
    return "\n".join(f"| {' | '.join(map(_escaped, row))} |" for row in rows)


def aligned(table: Table) -> str:
    """A table in columns of even width."""
    rows = [table.headings, *table.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )


def different_self_tests(runs: Sequence[StudyRun]) -> bool:
    """Recipes were evaluated on pseudo-anomalies of their own, so that they do not compare."""
    found: dict[tuple[str, int], set[str | None]] = {}
    for run in runs:
        if run.metrics.self_test:
            found.setdefault((run.data, run.seed), set()).add(run.test_sha256)
    return any(len(digests) > 1 for digests in found.values())


def _key(run: StudyRun) -> tuple[str, str, int]:
    return run.data, run.recipe, run.seed


def _scores(runs: Sequence[StudyRun], part: str) -> _Scores:
    found = {_key(run): aurocs(run.metrics, part) for run in runs}
    return {key: values for key, values in found.items() if CLEAN in values}


def _columns(scores: Iterable[Mapping[str, float]]) -> list[str]:
    """The published attack last, else in the order in which they occur."""
    names = list(dict.fromkeys(name for values in scores for name in values))
    return sorted(names, key=lambda name: name.startswith(LEGACY))


def _column(result: AttackResult) -> str:
    size = sized(result.norm, result.eps)
    return f"{LEGACY} {size}" if result.attack == LEGACY else size


def _in_columns(
    rows: Sequence[Mapping[str, float]], columns: Sequence[str]
) -> Iterator[list[float]]:
    """The values of each column; none where a row lacks it."""
    for name in columns:
        yield [row[name] for row in rows] if all(name in row for row in rows) else []


def _recipes(runs: Sequence[StudyRun]) -> list[str]:
    return list(dict.fromkeys(run.recipe for run in runs))


def _parts(runs: Sequence[StudyRun]) -> list[str]:
    return [part for part in PARTS if _scores(runs, part)]


def _place(runs: Sequence[StudyRun], run: StudyRun) -> tuple[int, int, int]:
    data = list(dict.fromkeys(each.data for each in runs))
    return data.index(run.data), _recipes(runs).index(run.recipe), run.seed


def _groups(runs: Sequence[StudyRun], scores: _Scores) -> list[_Group]:
    """Each data set, then all with labelled test images, then all with a self-test."""
    measured = {run.data: run for run in runs if _key(run) in scores}
    groups = [_Group(_kind(run), (name,)) for name, run in measured.items()]
    for self_test, label in ((False, "mean of {}"), (True, "mean of {} (self-test)")):
        of_kind = [name for name, run in measured.items() if run.metrics.self_test == self_test]
        if len(of_kind) > 1:
            groups.append(_Group(label.format(len(of_kind)), tuple(of_kind)))
    return groups


def _kind(run: StudyRun) -> str:
    return f"{run.data} (self-test)" if run.metrics.self_test else run.data


def _by_seed(scores: _Scores, group: _Group, recipe: str) -> dict[int, dict[str, float]]:
    """For each seed with a run on all data of the group, the mean over them."""
    seeds = sorted({seed for _, of_recipe, seed in scores if of_recipe == recipe})
    keys = {seed: [(name, recipe, seed) for name in group.data] for seed in seeds}
    return {
        seed: _mean([scores[key] for key in of_seed])
        for seed, of_seed in keys.items()
        if all(key in scores for key in of_seed)
    }


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    shared = [name for name in rows[0] if all(name in row for row in rows)]
    return {name: fmean(row[name] for row in rows) for name in shared}


def _pairs(scores: _Scores, group: _Group, recipe: str, first: str) -> Iterator[dict[str, float]]:
    found, base = (_by_seed(scores, group, name) for name in (recipe, first))
    for seed in sorted(found.keys() & base.keys()):
        shared = [name for name in found[seed] if name in base[seed]]
        yield {name: found[seed][name] - base[seed][name] for name in shared}


def _marked(runs: Sequence[StudyRun], group: _Group, recipe: str) -> str:
    found = [run for run in runs if run.data in group.data and run.recipe == recipe]
    count = sum(run.metrics.unreliable for run in found)
    return f"{recipe} (unreliable: {count} of {len(found)})" if count else recipe


def _cost(runs: Sequence[StudyRun]) -> tuple[str, ...]:
    """Mean minutes; how many checks pass, warn and fail; which fail, and in how many runs."""
    minutes = (
        fmean(run.training_minutes for run in runs),
        fmean(run.evaluation_minutes for run in runs),
    )
    checks = [check for run in runs for check in run.metrics.checks]
    statuses: Counter[str] = Counter(check.status for check in checks)
    failed = Counter(f"{check.id} {check.name}" for check in checks if check.status == "FAIL")
    names = [
        f"{name} ({count} of {len(runs)})" if len(runs) > 1 else name
        for name, count in failed.items()
    ]
    counts = (str(statuses[status]) for status in COUNTED)
    return (*map(_minutes, minutes), *counts, ", ".join(names))


def _threat(metrics: Result) -> str:
    found, norm = metrics.protocol, metrics.norms[0]
    steps = metrics.protocol.legacy_steps
    legacy = f" legacy: the published attack alone ({published_steps(steps)})." if steps else ""
    return (
        f"Suite `{found.suite}`: the attacker {threat(norm)} ({norm_name(norm)}), at eps "
        f"{', '.join(found.threats[norm])}, in normal and in anomalous images. The worst case "
        f"over the suite is an upper bound of robustness, not a certificate.{legacy}"
    )


def _attacks(found: Protocol) -> str:
    return "; ".join(f"{name}: {told}" for name, told in found.attacks.items())


def _recipe(name: str, runs: Sequence[StudyRun]) -> tuple[str, str]:
    """What it is, and whether it is what is shipped."""
    recipe = next(run.settings.recipe for run in runs if run.recipe == name)
    start = "" if recipe.model.weights == "none" else f" from {recipe.model.weights}"
    return (
        f"Recipe `{name}`: {recipe.model.backbone}{start}, "
        f"{looks(recipe.model.views, recipe.model.window, recipe.data.resolution)}, "
        f"{recipe.training.length}, {recipe.training.batch_size} normal images a step, "
        f"{_trained_against(recipe)}{_switched(name, runs)}.",
        measured_with(name, recipe),
    )


def _trained_against(recipe: Recipe) -> str:
    attack = recipe.training.attack
    if not parse_eps(attack.eps):
        return "trained without an attack"
    steps = "1 step" if attack.steps == 1 else f"{attack.steps} steps"
    return f"trained against {attack.eps} in {steps}"


def _switched(name: str, runs: Sequence[StudyRun]) -> str:
    """Which of its runs the overfitting monitor put on PGD-2."""
    at = [
        f"{run.data} with seed {run.seed} at step {step}"
        for run in runs
        if run.recipe == name and (step := run.provenance.get("switched_to_pgd2_at_step"))
    ]
    return f"; overfitted to it and switched to PGD-2: {', '.join(at)}" if at else ""


def _data(name: str, runs: Sequence[StudyRun]) -> str:
    found = [run for run in runs if run.data == name]
    images = [run.provenance.get("images", {}) for run in found]
    tests = [run.metrics.protocol for run in found]
    return (
        f"Data `{name}` ({_distinct(run.settings.data for run in found)}): trained on "
        f"{_distinct(each.get('train') for each in images)} images, varied by "
        f"{_distinct(run.provenance.get('varied_by') for run in found)}; calibrated on "
        f"{_distinct(each.get('held_out') for each in images)}; tested on "
        f"{_distinct(_named(each.images.model_dump()) for each in tests)} "
        f"({_distinct(each.test_set for each in tests)}; ground truth: "
        f"{_distinct(each.ground_truth for each in tests)})."
    )


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _distinct(values: Iterable[Any]) -> str:
    found = dict.fromkeys("unknown" if value is None else str(value) for value in values)
    return " / ".join(found)


def _reading(part: str) -> str:
    where = "images" if part == "image" else "pixels"
    return (
        f"AUROC of {where}, clean and in the worst case at each eps: mean ± standard deviation "
        "over seeds, without the uncertainty of the test images, whose intervals are in each "
        "run's `metrics.json`. A mean over data sets is taken seed by seed."
    )


def _reading_of_kinds() -> str:
    return (
        "Each kind against all normal images, clean and in the worst case at each eps: mean ± "
        "standard deviation over seeds. The values of each run can be had from the scores in its "
        "`metrics.json`; data with a single kind are left out."
    )


def _reading_of_costs() -> str:
    return (
        "Means over seeds, of the detector alone without its twin; the checks of all its runs. A "
        "run is unreliable where a check fails: do not rely on its numbers."
    )


def _warning(runs: Sequence[StudyRun]) -> list[str]:
    if not different_self_tests(runs):
        return []
    return [
        "The recipes make their self-tests themselves, by their own pseudo-anomalies or image "
        "size: between those the differences are also differences of the test.",
        "",
    ]


def _missing(failures: Sequence[Failure]) -> list[str]:
    if not failures:
        return []
    return [
        "**Missing runs:**",
        "",
        *(f"- `{failure.run}`: {failure.reason}" for failure in failures),
        "",
    ]


def _minutes(value: float) -> str:
    return f"{value:.1f}" if math.isfinite(value) else DASH


def _fine(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else DASH


def _escaped(cell: str) -> str:
    return printable(cell).replace("|", "\\|").replace("<", "&lt;")
