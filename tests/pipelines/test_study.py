"""A study: what its page says is what its runs say, and nothing is made twice or mixed."""

import json
import math
import re
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import yaml

import evaluations
import patchguard
from patchguard import cli
from patchguard.config import EvaluationConfig, FitConfig, Recipe, load_recipe
from patchguard.errors import Interrupted, PatchGuardError
from patchguard.evaluation.checks import run as checks
from patchguard.pipelines import study as studying
from patchguard.pipelines.study import Planned
from patchguard.report import study as report
from patchguard.report.study import StudyRun
from patchguard.report.tables import Table
from patchguard.results.files import read_as
from patchguard.results.run_folder import METRICS, seal
from patchguard.results.schema import SELF_TEST, Result
from trainings import SELF_CHECKS

EPS = ("1/255", "4/255")
pytestmark = pytest.mark.usefixtures("few_checks")


def made(
    folder: Path,
    data: str,
    recipe: str,
    seed: int,
    auroc: float,
    *,
    checks: list[dict[str, Any]] | None = None,
    test_set: str = "labelled test images",
    masks: bool = True,
    test_sha256: str = "0" * 64,
    suite: str = "quick",
    scores: dict[str, list[Any]] | None = None,
) -> StudyRun:
    """A run as it would be read, from a ``metrics.json`` made by hand.

    Its worst image AUROC is ``auroc``, its clean one 0.1 higher.
    """
    content = evaluations.metrics(auroc, checks=checks)
    clean = content["clean"]
    content["clean"] = {"image": {**clean["image"], "auroc": auroc + 0.1}}
    if masks:
        content["clean"]["pixel"] = clean["pixel"]
    content["protocol"] |= {"test_set": test_set, "seconds": 90.0, "suite": suite}
    content["scores"] |= scores or {}
    path = folder / f"{data}-{recipe}-{seed}.json"
    path.write_text(json.dumps(content))
    return StudyRun(
        data,
        recipe,
        FitConfig(data=f"data/{data}", seed=seed, recipe=load_recipe("fast")),
        {"device": "cpu, 2 threads", "training_seconds": 120.0},
        read_as(Result, path),
        test_sha256,
    )


def row(table: Table, *first: str) -> dict[str, str]:
    """The row that starts with these cells, by heading."""
    (found,) = (cells for cells in table.rows if cells[: len(first)] == first)
    return dict(zip(table.headings, found, strict=True))


def test_the_page_says_whether_it_measured_what_is_shipped(tmp_path: Path) -> None:
    shipped = made(tmp_path, "a", "fast", 0, 0.5)
    assert "- Measured with: `fast` as shipped" in report.study_page(
        [shipped], [], "patchguard study a"
    )
    settings = shipped.settings
    recipe = replace(settings.recipe, training=replace(settings.recipe.training, steps=100))
    shorter = replace(shipped, settings=replace(settings, recipe=recipe))
    page = report.study_page([shorter], [], "patchguard study a")
    assert "training.steps 100 (shipped: 6000)" in page


def test_cells_are_means_and_standard_deviations_over_seeds(tmp_path: Path) -> None:
    values = {("a", 0): 0.5, ("a", 1): 0.6, ("a", 2): 0.8, ("b", 0): 0.7, ("b", 1): 0.4}
    runs = [made(tmp_path, name, "fast", seed, at) for (name, seed), at in values.items()]
    table = report.auroc_table(runs, "image")
    assert table.headings == (
        "data",
        "recipe",
        "seeds",
        "clean",
        *EPS,
        *(f"legacy {e}" for e in EPS),
    )
    a, b = row(table, "a"), row(table, "b")
    assert (a["seeds"], b["seeds"]) == ("3", "2")
    assert a["4/255"] == f"{fmean([0.5, 0.6, 0.8]):.3f} ± {stdev([0.5, 0.6, 0.8]):.3f}"
    assert a["clean"] == f"{fmean([0.6, 0.7, 0.9]):.3f} ± {stdev([0.6, 0.7, 0.9]):.3f}"
    assert a["legacy 1/255"] == "0.971 ± 0.000"
    mean = row(table, "mean of 2")
    assert mean["seeds"] == "2"
    assert mean["4/255"] == f"{fmean([0.6, 0.5]):.3f} ± {stdev([0.6, 0.5]):.3f}"


def test_one_seed_has_no_spread(tmp_path: Path) -> None:
    table = report.auroc_table([made(tmp_path, "a", "fast", 0, 0.5)], "image")
    assert row(table, "a")["4/255"] == "0.500"


def test_differences_are_paired_by_data_and_seed(tmp_path: Path) -> None:
    first = {("a", 0): 0.5, ("a", 1): 0.6, ("a", 2): 0.1, ("b", 0): 0.7, ("b", 1): 0.2}
    second = {("a", 0): 0.52, ("a", 1): 0.66, ("a", 2): 0.9, ("b", 0): 0.74, ("b", 1): 0.22}
    runs = [made(tmp_path, name, "fast", seed, at) for (name, seed), at in first.items()]
    runs += [made(tmp_path, name, "slow", seed, at) for (name, seed), at in second.items()]
    table = report.differences(runs, "image")
    found = row(table, "mean of 2", "slow − fast")
    error = stdev([0.03, 0.04]) / math.sqrt(2)
    assert found["pairs"] == "2"  # of the seeds with which both have runs on both
    assert found["4/255"] == found["clean"] == f"+0.035 ± {error:.3f}"
    assert row(table, "a")["pairs"] == "3"
    assert row(table, "b")["4/255"].startswith("+0.030")
    assert not any(name.startswith("legacy") for name in table.headings)


def test_runs_that_overfitted_and_switched_are_told(tmp_path: Path) -> None:
    kept, switched = (made(tmp_path, "a", "fast", seed, 0.5) for seed in (0, 1))
    switched = replace(switched, provenance={**switched.provenance, "switched_to_pgd2_at_step": 7})
    page = report.study_page([kept, switched], [], "patchguard study a")
    assert "switched to PGD-2: a with seed 1 at step 7." in page
    assert "PGD-2" not in report.study_page([kept], [], "patchguard study a")


def test_data_without_masks_are_not_in_the_table_of_pixels(tmp_path: Path) -> None:
    runs = [made(tmp_path, "a", "fast", 0, 0.5), made(tmp_path, "b", "fast", 0, 0.5, masks=False)]
    assert [cells[0] for cells in report.auroc_table(runs, "pixel").rows] == ["a"]
    assert row(report.auroc_table(runs, "pixel"), "a")["4/255"] == "0.432"


def test_self_tests_are_marked_and_have_a_mean_of_their_own(tmp_path: Path) -> None:
    self_test = SELF_TEST
    runs = [made(tmp_path, name, "fast", 0, 0.5, test_set=self_test) for name in "ab"]
    runs += [made(tmp_path, name, "fast", 0, 0.7) for name in "cd"]
    table = report.auroc_table(runs, "image")
    assert row(table, "a (self-test)")["4/255"] == "0.500"
    assert row(table, "mean of 2 (self-test)")["4/255"] == "0.500"
    assert row(table, "mean of 2")["4/255"] == "0.700"
    other = made(tmp_path, "a", "slow", 0, 0.6, test_set=self_test, test_sha256="1" * 64)
    assert not report.different_self_tests(runs)
    assert report.different_self_tests([*runs, other])
    assert "differences of the test" in report.study_page([*runs, other], [], "patchguard study")


def test_kinds_of_defects_are_told_apart_where_there_are_several(tmp_path: Path) -> None:
    kinds = ["good", "good", "good", "good", "dent", "dent", "burr", "burr"]

    def judged(recipe: str, seed: int, lost: float) -> StudyRun:
        found: dict[str, list[Any]] = {
            "kinds": kinds,
            "worst linf 4/255": [-2.0, -1.5, -1.0, 1.0, lost, 2.0, 3.0, 4.0],
        }
        failing = [evaluations.FAILED] if recipe == "slow" else None
        return made(tmp_path, "a", recipe, seed, 0.5, scores=found, checks=failing)

    runs = [made(tmp_path, "b", "fast", 0, 0.5), judged("fast", 0, 0.5), judged("fast", 1, -9.0)]
    runs.append(judged("slow", 0, -9.0))
    table = report.kinds_table(runs)
    assert table.headings == ("data", "defect", "recipe", "seeds", "clean", *EPS)
    slow = "slow (unreliable: 1 of 1)"
    assert [cells[:4] for cells in table.rows] == [
        ("a", "burr", "fast", "2"),
        ("a", "burr", slow, "1"),
        ("a", "dent", "fast", "2"),
        ("a", "dent", slow, "1"),
    ]
    dent = row(table, "a", "dent", "fast")
    assert dent["4/255"] == f"{fmean([0.875, 0.5]):.3f} ± {stdev([0.875, 0.5]):.3f}"
    assert dent["clean"] == row(table, "a", "burr", "fast")["4/255"] == "1.000 ± 0.000"
    assert report.markdown(table) in report.study_page(runs, [], "patchguard study")
    assert "by kind of defect" not in report.study_page(runs[:1], [], "patchguard study")


def test_failed_checks_are_counted_and_named_and_the_row_is_marked(tmp_path: Path) -> None:
    failing = [*evaluations.CHECKS, evaluations.FAILED]
    runs = [
        made(tmp_path, "a", "fast", seed, 0.5, checks=failing if seed else None)
        for seed in range(3)
    ]
    found = row(report.costs(runs), "a", "fast (unreliable: 2 of 3)")
    assert (found["PASS"], found["WARN"], found["FAIL"]) == ("3", "3", "2")
    assert found["checks that fail"] == "S14 unbounded attack (2 of 3)"
    assert (found["training, min"], found["evaluation, min"]) == ("2.0", "1.5")
    assert row(report.auroc_table(runs, "image"), "a", "fast (unreliable: 2 of 3)")
    assert row(report.every_run(runs, "image"), "a", "fast", "0")["checks that fail"] == ""


def test_every_single_value_is_on_the_page(tmp_path: Path) -> None:
    runs = [made(tmp_path, "a", "fast", seed, 0.5 + seed / 7) for seed in range(3)]
    page = report.study_page(
        runs, [report.Failure("out/a/slow/seed-0", "no | such")], "patchguard study a"
    )
    for seed in range(3):
        assert f"| {seed} | {0.6 + seed / 7:.4f} | {0.5 + seed / 7:.4f} |" in page
    assert "    patchguard study a\n" in page
    assert "- `out/a/slow/seed-0`: no | such" in page
    for fact in ("suite", "4/255", "cpu, 2 threads", "torch 2.6.0", "6000 steps", "Seeds 0, 1, 2"):
        assert fact.lower() in page.lower(), fact


def test_a_cell_cannot_break_a_markdown_table() -> None:
    text = report.markdown(Table(("a|b", "c"), (("<d>", "e"),)))
    assert text.splitlines() == ["| a\\|b | c |", "| --- | --- |", "| &lt;d> | e |"]


@pytest.fixture(scope="module")
def recipe(tiny_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tiny = replace(tiny_recipe, training=replace(tiny_recipe.training, steps=2))
    return write(tiny, tmp_path_factory.mktemp("recipe") / "tiny.yaml")


def write(recipe: Recipe, path: Path) -> Path:
    path.write_text(yaml.safe_dump(asdict(recipe)))
    return path


@pytest.fixture(scope="module")
def evaluation(tiny_evaluation: EvaluationConfig) -> EvaluationConfig:
    return replace(tiny_evaluation, images=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study") / "results"


@pytest.fixture(scope="module")
def page(folder: Path, tree: Path, recipe: Path, evaluation: EvaluationConfig) -> Path:
    """A finished study of one recipe with two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "QUICK", SELF_CHECKS)
        return patchguard.study(
            tree, recipes=str(recipe), seeds=(0, 1), out=folder, evaluation=evaluation
        )


def arguments(tree: Path, folder: Path, recipe: Path, evaluation: EvaluationConfig) -> list[str]:
    options = {
        "recipes": recipe,
        "seeds": "0,1",
        "out": folder,
        "evaluation.suite": evaluation.suite,
        "evaluation.images": evaluation.images,
    }
    return ["study", str(tree), *(word for k, v in options.items() for word in (f"--{k}", str(v)))]


def times(folder: Path) -> dict[Path, int]:
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".md"
    }


@pytest.mark.parametrize("part", ["image", "pixel"])
def test_the_page_says_what_the_metrics_of_the_runs_say(
    page: Path, folder: Path, part: str
) -> None:
    assert page == folder / "results.md"
    runs = [folder / "disc" / "tiny" / f"seed-{seed}" for seed in (0, 1)]
    assert not any((run / "twin").exists() for run in runs)
    found = [aurocs(json.loads((run / "metrics.json").read_text()), part) for run in runs]
    cells = (f"{fmean(two):.3f} ± {stdev(two):.3f}" for two in zip(*found, strict=True))
    text = page.read_text()
    # After so short a training a self-check may call a run unreliable, beside the recipe's name.
    row = rf"\| disc \| tiny[^|]* \| 2 \| {re.escape(' | '.join(cells))} \|"
    assert re.search(row, text)
    for seed, values in enumerate(found):
        assert f"| {seed} | {' | '.join(f'{value:.4f}' for value in values)} |" in text


def aurocs(metrics: dict[str, Any], part: str) -> list[float]:
    """Clean, then under the worst case and the published attack at both eps."""
    by_attack = {
        (entry["attack"], entry["eps"]): entry["rows"]["both"] for entry in metrics["attacked"]
    }
    attacked = [by_attack[name, eps] for name in ("worst", "legacy") for eps in ("2/255", "8/255")]
    return [each[part]["auroc"] for each in (metrics["clean"], *attacked)]


def test_the_same_command_again_makes_nothing_again(
    page: Path,
    folder: Path,
    tree: Path,
    recipe: Path,
    evaluation: EvaluationConfig,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, text = times(folder), page.read_text()
    assert cli.main(arguments(tree, folder, recipe, evaluation)) == 0
    assert times(folder) == before
    assert page.read_text() == text
    printed = capsys.readouterr().out
    assert "2 of 2 runs are finished already" in printed
    assert "4/255" not in printed
    assert "8/255" in printed


def test_who_prepares_the_batches_makes_no_other_run(
    page: Path,
    folder: Path,
    tree: Path,
    recipe: Path,
    evaluation: EvaluationConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = yaml.safe_load(recipe.read_text())
    other["data"]["workers"] = 7
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(other))
    again = arguments(tree, folder, tmp_path / "tiny.yaml", evaluation)
    assert cli.main([*again, "--page", str(tmp_path / "page.md")]) == 0
    assert "2 of 2 runs are finished already" in capsys.readouterr().out


def test_the_command_on_the_page_writes_the_page(page: Path) -> None:
    text = page.read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("    patchguard study"))
    assert cli.main(shlex.split(line)[1:]) == 0
    assert page.read_text() == text


def test_what_is_missing_is_made_and_the_rest_is_kept(
    page: Path,
    folder: Path,
    tree: Path,
    recipe: Path,
    evaluation: EvaluationConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stop during the evaluation of one of the runs, and another page."""
    copy = tmp_path / "results"
    shutil.copytree(folder, copy)
    stopped = copy / "disc" / "tiny" / "seed-1"
    weights = (stopped / "model.safetensors").stat().st_mtime_ns
    before = json.loads((stopped / "metrics.json").read_text())
    (stopped / "metrics.json").unlink()
    (stopped / "report.html").unlink()
    other = times(copy / "disc" / "tiny" / "seed-0")
    second = tmp_path / "page.md"
    again = [*arguments(tree, copy, recipe, evaluation), "--page", str(second)]
    assert cli.main(again) == 0
    printed = capsys.readouterr().out
    assert f"run 2 of 2: {stopped}, about" in printed
    assert f"{stopped} is trained already" in printed
    assert times(copy / "disc" / "tiny" / "seed-0") == other
    assert (stopped / "model.safetensors").stat().st_mtime_ns == weights
    assert json.loads((stopped / "metrics.json").read_text())["scores"] == before["scores"]
    assert second.exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--steps", "3"], r"seed-0 was made with.*training\.steps 2, not 3"),
        (["--evaluation.eps", "4/255"], r"seed-0 was made with.*evaluation\.eps None, not 4/255"),
        (["--twin"], r"seed-0 was made with.*twin False, not True"),
    ],
)
def test_finished_runs_are_not_mixed_with_others(
    page: Path,
    folder: Path,
    tree: Path,
    recipe: Path,
    evaluation: EvaluationConfig,
    option: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before, text = times(folder), page.read_text()
    again = arguments(tree, folder, recipe, evaluation)
    assert cli.main([*again, *option, "--seeds", "0,1,2"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error), error
    assert (times(folder), page.read_text()) == (before, text)


def test_a_run_that_was_evaluated_otherwise_is_refused(
    page: Path, folder: Path, tree: Path, recipe: Path, evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    copy = tmp_path / "results"
    shutil.copytree(folder, copy)
    run = copy / "disc" / "tiny" / "seed-1"
    content = json.loads((run / METRICS).read_text())
    content["protocol"]["threats"] = {"linf": ["1/255"]}
    (run / METRICS).write_text(json.dumps(content))
    seal(run, METRICS)
    with pytest.raises(PatchGuardError, match=r"seed-1 was made .*evaluation threats .*1/255"):
        patchguard.study(tree, recipes=str(recipe), seeds=1, out=copy, evaluation=evaluation)


def test_altered_metrics_are_refused_by_name(
    page: Path, folder: Path, tree: Path, recipe: Path, evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    copy = tmp_path / "results"
    shutil.copytree(folder, copy)
    metrics = copy / "disc" / "tiny" / "seed-0" / METRICS
    metrics.write_text(metrics.read_text().replace('"auroc"', '"auroc" ', 1))
    with pytest.raises(PatchGuardError, match=r"seed-0/metrics\.json is truncated or altered"):
        patchguard.study(tree, recipes=str(recipe), out=copy, evaluation=evaluation)


def test_a_failing_run_is_reported_and_the_others_are_on_the_page(
    page: Path,
    folder: Path,
    tree: Path,
    recipe: Path,
    evaluation: EvaluationConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy, few = tmp_path / "results", tmp_path / "few"
    shutil.copytree(folder, copy)
    few.mkdir()
    for number in range(3):
        shutil.copy(tree / "train" / "good" / f"00{number}.png", few)
    command = arguments(tree, copy, recipe, evaluation)
    assert cli.main([command[0], str(few), *command[1:]]) == 1
    printed = capsys.readouterr()
    failed = copy / "few" / "tiny" / "seed-0"
    assert f"2 of 4 runs failed, first {failed}: " in printed.err
    assert printed.err.count("\n") == 1
    assert f"{failed} failed: " in printed.out
    text = (copy / "results.md").read_text()
    assert f"- `{failed}`: {few}: 3 normal images are too few" in text
    assert "| disc | tiny" in text


def test_names_that_would_share_a_folder_are_refused(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "disc").mkdir()
    with pytest.raises(
        PatchGuardError, match=re.escape(f"called disc: {tree} and {tmp_path / 'disc'}")
    ):
        patchguard.study([tree, tmp_path / "disc"], recipes="fast", out=tmp_path / "out")
    mine = write(load_recipe("fast"), tmp_path / "fast.yaml")
    with pytest.raises(
        PatchGuardError, match=re.escape(f"recipes are called fast: fast and {mine}")
    ):
        patchguard.study(tree, recipes=["fast", str(mine)], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seeds", "0,one"], "--seeds is [0, 'one']; it must be a whole number"),
        (["--seeds", "1,1"], "only once"),
        (["--seeds", "-1"], "seed is -1"),
        (["--recipes", "fast,none"], "recipe none"),
        (["--steps", "2", "--minutes", "1"], "one of"),
        (["--evaluation.eps", "[4/25a]"], "4/25a"),
    ],
)
def test_bad_options_get_one_line_and_leave_nothing_behind(
    tree: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["study", str(tree), "--recipes", "fast", "--out", str(out), *options]
    assert cli.main(command) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert not out.exists()


def test_a_page_of_somebody_else_is_not_overwritten(tree: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    notes.write_text("# Mine\n")
    with pytest.raises(PatchGuardError, match=r"notes\.md is not a page of patchguard study"):
        patchguard.study(tree, recipes="fast", out=tmp_path / "out", page=notes)
    assert notes.read_text() == "# Mine\n"


def planned(out: Path, count: int) -> list[Planned]:
    return [
        Planned(out / f"seed-{seed}", "a", "fast", FitConfig(data="a", seed=seed))
        for seed in range(count)
    ]


def test_what_is_left_is_estimated_from_the_runs_that_are_done(tmp_path: Path) -> None:
    told: list[str] = []

    def fit(run: Planned) -> None:
        if run.settings.seed == 1:
            raise PatchGuardError("no such thing")
        run.folder.mkdir()
        content = {"training_seconds": 500.0, "settings": asdict(run.settings)}
        (run.folder / "config.yaml").write_text(yaml.safe_dump(content))
        found = evaluations.metrics(0.5)
        found["protocol"]["seconds"] = 100.0
        (run.folder / "metrics.json").write_text(json.dumps(found))
        (run.folder / "report.html").touch()

    (failure,) = studying.carry_out(planned(tmp_path, 4), fit, told.append)
    assert failure == report.Failure(str(tmp_path / "seed-1"), "no such thing")
    assert told == [
        f"run 1 of 4: {tmp_path / 'seed-0'}",
        f"run 2 of 4: {tmp_path / 'seed-1'}, about 30 min left",
        f"{tmp_path / 'seed-1'} failed: no such thing",
        f"run 3 of 4: {tmp_path / 'seed-2'}, about 20 min left",
        f"run 4 of 4: {tmp_path / 'seed-3'}, about 10 min left",
    ]


def test_a_stop_ends_the_study_and_says_how_to_go_on(tmp_path: Path) -> None:
    begun = []

    def fit(run: Planned) -> None:
        begun.append(run)
        raise Interrupted("add --resume")

    with pytest.raises(Interrupted, match=r"run 1 of 3, .*seed-0: .*the same command again"):
        studying.carry_out(planned(tmp_path, 3), fit, lambda _: None)
    assert len(begun) == 1


def test_runs_that_were_not_evaluated_alike_do_not_share_a_table(tmp_path: Path) -> None:
    runs = planned(tmp_path, 2)
    first = made(tmp_path, "a", "fast", 0, 0.5)
    studying.check_comparable(runs, [first, made(tmp_path, "a", "fast", 1, 0.6)])
    other = made(tmp_path, "a", "fast", 1, 0.6, suite="standard")
    with pytest.raises(PatchGuardError, match=r"seed-1 and .*seed-0 differ in their evaluation"):
        studying.check_comparable(runs, [first, other])
    other = made(tmp_path, "a", "fast", 1, 0.6, test_sha256="1" * 64)
    with pytest.raises(PatchGuardError, match=r"differ in their test images"):
        studying.check_comparable(runs, [first, other])
