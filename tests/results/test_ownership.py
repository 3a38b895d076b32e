"""What commands write: never over what is not theirs, never two at once, whole, and to be resumed.

Evaluations are stood in for by the results of a finished one, so that a test takes seconds.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import evaluations
import patchguard
from patchguard import cli
from patchguard.config import EvaluationConfig, FitConfig, Recipe
from patchguard.data.synthetic import write_benchmark
from patchguard.errors import PatchGuardError
from patchguard.evaluation.protocol import Evaluation
from patchguard.evaluation.store import Store
from patchguard.files import sole_writer
from patchguard.pipelines import evaluate as evaluating
from patchguard.pipelines import fit as fitting
from patchguard.pipelines import study as studying
from patchguard.pipelines.study import Planned
from patchguard.results import ownership
from patchguard.results.card import CardDetector, headline, robustness_card
from patchguard.results.files import to_json
from patchguard.results.run_folder import METRICS, is_sealed, read_config, seal, write_config
from patchguard.results.schema import Result, Summary
from patchguard.training.prepare import PreparedImages
from platforms import needs_bytes, needs_links
from trainings import Listening


class Killed(BaseException):
    """The process ends here, as after SIGKILL."""


@pytest.fixture
def evaluated(run: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What every evaluation finds in place of attacking anything; a test may alter it."""
    found: dict[str, Any] = json.loads((run / METRICS).read_text())
    del found["protocol"], found[Result.FORMAT]

    def evaluate(_: Any, test: Any, __: Any, **___: Any) -> Evaluation:
        return Evaluation(Summary.model_validate(found), test, None, ())  # type: ignore[arg-type]

    monkeypatch.setattr(evaluating, "evaluate_detector", evaluate)
    gallery = (run / "gallery.npz").read_bytes()
    monkeypatch.setattr(evaluating, "_gallery", lambda *_: gallery)
    return found


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command ends in."""
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return error


SOURCE = """
def make():
    def bright(images):
        return images.mean((1, 2, 3)), images.mean(1)
    bright.image_size = 32
    return bright
"""


@pytest.mark.parametrize(
    "place", ["same", "inside", "above", pytest.param("link", marks=needs_links)]
)
@pytest.mark.parametrize("command", ["fit", "evaluate", "study"])
def test_results_are_not_written_where_images_are_read(
    command: str, place: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(tree, tmp_path / "all" / "disc"))
    if place == "link":
        (tmp_path / "link").symlink_to(data)
    (tmp_path / "mine.py").write_text(SOURCE)
    out = {
        "same": data,
        "inside": data / "train" / "runs",
        "above": data.parent,
        "link": tmp_path / "link" / "run",
    }[place]
    before = contents(tmp_path)
    detector = [f"{tmp_path / 'mine.py'}:make"] if command == "evaluate" else []
    error = refused([command, *detector, str(data), "--out", str(out)], capsys)
    assert f"--out {out} and the images in {data}" in error
    assert contents(tmp_path) == before


@pytest.mark.parametrize("command", ["fit", "evaluate", "study"])
@pytest.mark.parametrize("name", ["metrics.json", "training/000.png", "twin/note.txt", "a.txt"])
def test_a_folder_with_files_of_somebody_else_stays_as_it_is(
    command: str, name: str, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    folder = out / "disc" / "fast" / "seed-0" if command == "study" else out
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    (tmp_path / "mine.py").write_text(SOURCE)
    detector = [f"{tmp_path / 'mine.py'}:make"] if command == "evaluate" else []
    error = refused([command, *detector, str(tree), "--out", str(out)], capsys)
    assert f"{folder} holds files and is no" in error
    assert contents(folder) == {name: b"mine"}


def test_an_evaluation_is_not_written_into_a_run_nor_a_run_into_an_evaluation(
    copy: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    before = contents(copy)
    command = ["evaluate", f"{tmp_path / 'mine.py'}:make", str(tree), "--out", str(copy)]
    assert f"{copy} is a run already" in refused(command, capsys)
    assert contents(copy) == before
    ownership.claim(tmp_path / "evaluation", ownership.EVALUATION)
    command = ["fit", str(tree), "--out", str(tmp_path / "evaluation")]
    assert "is an evaluation of another detector already" in refused(command, capsys)


def test_runs_of_former_versions_are_known_without_a_mark(copy: Path) -> None:
    (copy / ownership.MARKER).unlink()
    ownership.check_own(copy, ownership.RUN)
    (copy / "manifest.json").write_text("{")
    ownership.check_own(copy, ownership.RUN)
    (copy / "config.yaml").write_text("a: b")
    (copy / "card.json").unlink()
    with pytest.raises(PatchGuardError, match="holds files"):
        ownership.check_own(copy, ownership.RUN)


def test_what_an_abandoned_start_left_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "csv").mkdir()
    (tmp_path / "csv" / "note.txt").write_text("mine")
    ownership.set_aside(tmp_path, ("csv", "tensorboard"))
    assert not (tmp_path / "csv").exists()
    (kept,) = tmp_path.glob("former/*/csv/note.txt")
    assert kept.read_text() == "mine"


def test_the_picture_of_pseudo_anomalies_does_not_become_one_of_the_images(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(tree / "train" / "good", tmp_path / "day 1"))
    before = contents(tmp_path)
    inside = data / "grid.png"
    error = refused(["anomalies", str(data), "--out", str(inside)], capsys)
    assert f"--out {inside} and the images in {data}" in error
    monkeypatch.chdir(tmp_path)
    error = refused(["anomalies", "."], capsys)
    assert "--out anomalies.png and the images in ." in error
    assert contents(tmp_path) == before


@needs_links
@pytest.mark.parametrize("command", ["fit", "anomalies", "study"])
def test_a_link_to_itself_is_one_line_as_data_and_as_out(
    command: str,
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert str(loop) in refused([command, str(loop), "--out", str(tmp_path / "out")], capsys)
    assert str(loop) in refused([command, str(loop)], capsys)
    assert cli.main([command, str(tree), "--out", str(loop / "out")]) == 1
    assert capsys.readouterr().err.startswith(f"patchguard: {loop}")


def test_pictures_and_pages_of_somebody_else_are_not_overwritten(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = robustness_card(
        evaluations.result_of(evaluations.metrics(0.5)),
        detector=CardDetector(name="a", kind="python", parameters=1, sha256=None),
        data="b",
        sha256=None,
    )
    (tmp_path / "card.json").write_text(to_json(card))
    for command, name in (
        (["leaderboard", str(tmp_path)], "page.html"),
        (["anomalies", str(tree)], "grid.png"),
    ):
        out = tmp_path / name
        shutil.copy(tree / "train" / "good" / "000.png", out)
        before = out.read_bytes()
        error = refused([*command, "--out", str(out)], capsys)
        assert f"--out {out} was not written by this command" in error
        assert out.read_bytes() == before
        out.unlink()
        assert cli.main([*command, "--out", str(out)]) == 0
        assert cli.main([*command, "--out", str(out)]) == 0
        assert "is a folder" in refused([*command, "--out", str(tmp_path)], capsys)


@needs_links
def test_finished_work_is_dropped_without_what_others_put_there(tmp_path: Path) -> None:
    store, outside = Store(tmp_path / "attacks", "0" * 64), tmp_path / "outside"
    outside.mkdir()
    (outside / "kept.npy").write_text("mine")
    store.save("a/batches/0/scores", np.zeros(2))
    (store.folder / "a/batches/note.txt").write_text("mine")
    (store.folder / "a/batches/link").symlink_to(outside)
    store.drop("a/batches")
    assert not store.has("a/batches/0/scores")
    assert (store.folder / "a/batches/note.txt").exists()
    assert (outside / "kept.npy").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["fit", "TREE", "--out", "RUN", "--resume"],
        ["evaluate", "RUN", "TREE"],
        ["evaluate", "RUN/twin", "TREE"],
        ["doctor", "RUN", "TREE"],
        ["report", "RUN"],
        ["report", "RUN/twin"],
    ],
)
def test_a_run_has_one_writer(
    command: list[str], copy: Path, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("RUN", str(copy)).replace("TREE", str(tree)) for word in command]
    before = contents(copy)
    with sole_writer(copy):
        assert f"{copy}: another patchguard command is writing here" in refused(words, capsys)
    assert contents(copy) == before


def test_other_folders_have_one_writer(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(SOURCE)
    out = tmp_path / "out"
    with sole_writer(out):
        for command in (
            ["fit", str(tree)],
            ["evaluate", f"{tmp_path / 'mine.py'}:make", str(tree)],
            ["study", str(tree)],
        ):
            error = refused([*command, "--out", str(out)], capsys)
            assert f"{out}: another patchguard command is writing here" in error
        assert "is writing here" in refused(["synthetic", str(out)], capsys)
    with sole_writer(out / "data"):
        assert "is writing here" in refused(["demo", "--out", str(out)], capsys)


def test_evaluate_keeps_the_former_results_with_their_date(
    copy: Path, tree: Path, evaluated: dict[str, Any]
) -> None:
    before = {name: (copy / name).read_bytes() for name in evaluating.RESULTS[:4]}
    os.utime(copy / METRICS, (0, 1_700_000_000))
    evaluated["clean"]["image"]["auroc"] = 0.123
    reporter = Listening()
    patchguard.evaluate(copy, tree, reporter=reporter)
    (kept,) = (copy / "former").iterdir()
    assert kept.name.startswith("2023-11-1")
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert f"the former results are kept in {kept}" in reporter.told
    assert json.loads((copy / METRICS).read_text())["clean"]["image"]["auroc"] == 0.123
    metrics = (copy / METRICS).read_bytes()
    patchguard.evaluate(copy, tree)
    assert (copy / METRICS).read_bytes() == metrics
    assert list((copy / "former").iterdir()) == [kept]
    page = patchguard.write_leaderboard(copy, out=copy.parent / "board.html")
    assert page.read_text().count('id="card-') == 2


def test_a_kill_between_copying_and_replacing_loses_no_former_result(
    copy: Path, tree: Path, evaluated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: (copy / name).read_bytes() for name in evaluating.RESULTS[:4]}
    evaluated["clean"]["image"]["auroc"] = 0.123
    for name in ("gallery.npz", "card.json", "metrics.json"):
        with monkeypatch.context() as patch:
            kill_at(patch, lambda _, target, name=name: target == copy / name)
            with pytest.raises(Killed):
                patchguard.evaluate(copy, tree)
        assert not is_sealed(copy, METRICS)
    patchguard.evaluate(copy, tree)
    (kept,) = (copy / "former").iterdir()
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert is_sealed(copy, METRICS)


def kill_at(patch: pytest.MonkeyPatch, when: Any) -> None:
    """End where a file would take its place; ``when`` is asked with both paths."""
    whole = Path.replace

    def interrupted(self: Path, target: Path) -> Path:
        if when(self, Path(target)):
            raise Killed
        return whole(self, target)

    patch.setattr(Path, "replace", interrupted)


def test_a_resumed_run_is_evaluated_anew_where_its_test_images_or_its_suite_changed(
    run: Path,
    copy: Path,
    tree: Path,
    evaluated: dict[str, Any],
    tmp_path: Path,
) -> None:
    def told(data: Path) -> str:
        """What resuming the run says."""
        reporter = Listening()
        patchguard.fit(data, out=copy, resume=True, reporter=reporter)
        return "\n".join(reporter.told)

    data = Path(shutil.copytree(tree, tmp_path / "disc"))
    assert "anew" not in told(data)
    assert (copy / METRICS).read_bytes() == (run / METRICS).read_bytes()
    shutil.copy(data / "train/good/000.png", data / "test/good/000.png")
    assert f"{copy} is evaluated anew: the test images changed" in told(data)
    assert list(copy.glob("former/*/metrics.json"))
    assert "anew" not in told(data)
    suite = tmp_path / "tiny.yaml"
    settings, provenance = read_config(copy)
    content = yaml.safe_load(Path(settings.evaluation.suite).read_text())
    content["threats"][0]["attacks"][0]["steps"] = 4
    suite.write_text(yaml.safe_dump(content))
    settings.evaluation.suite = str(suite)
    write_config(copy, settings, provenance)
    seal(copy, "config.yaml")
    assert "is evaluated anew: its attacks, its suite changed" in told(data)


def test_a_lost_card_is_made_again(
    run: Path, copy: Path, tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / "card.json").unlink()
    planned = Planned(copy, "disc", "tiny", FitConfig(data=str(tree)))
    assert not planned.finished

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("evaluated again")

    monkeypatch.setattr(evaluating, "evaluate_detector", never)
    patchguard.fit(tree, out=copy, resume=True)
    assert planned.finished
    made, before = (json.loads((each / "card.json").read_text()) for each in (copy, run))
    assert made == before | {"detector": before["detector"] | {"name": "run"}}


@pytest.mark.parametrize("damage", ["", "[", "3"])
def test_a_damaged_manifest_is_told_and_made_again_over_whole_weights(
    damage: str,
    copy: Path,
    tree: Path,
    evaluated: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = (copy / "model.safetensors").stat()
    (copy / "manifest.json").write_text(damage)
    into = ["--out", str(tmp_path / "out")]
    for command in (
        ["predict", str(copy), str(tree / "test"), *into],
        ["evaluate", str(copy), str(tree)],
    ):
        error = refused(command, capsys)
        assert "manifest.json is damaged: patchguard fit DATA --out" in error
        assert "--resume" in error
    assert cli.main(["fit", str(tree), "--out", str(copy), "--resume"]) == 0
    assert "is made again" in capsys.readouterr().out
    assert (copy / "model.safetensors").stat().st_mtime_ns == weights.st_mtime_ns
    assert is_sealed(copy, METRICS)
    (copy / "manifest.json").write_text(damage)
    (copy / "model.safetensors").write_bytes(b"damaged")
    assert "model.safetensors" in refused(
        ["fit", str(tree), "--out", str(copy), "--resume"], capsys
    )


@pytest.fixture
def tiny(tree: Path, tiny_recipe: Recipe, tiny_evaluation: EvaluationConfig) -> dict[str, Any]:
    training = replace(tiny_recipe.training, steps=1)
    return {
        "data": tree,
        "recipe": replace(tiny_recipe, training=training),
        "evaluation": tiny_evaluation,
        "false_alarm_rate": 0.2,
    }


def test_a_fit_that_is_killed_before_any_file_takes_its_place_is_continued(
    tiny: dict[str, Any],
    evaluated: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At every one of them in turn, the same command with --resume goes on from there."""
    out = tmp_path / "run"
    killed: set[tuple[Path, int]] = set()
    prepare = fitting.prepared
    prepared: list[PreparedImages] = []

    def prepared_once(*arguments: Any) -> PreparedImages:
        if not prepared:
            prepared.append(prepare(*arguments))
        return prepared[0]

    monkeypatch.setattr(fitting, "prepared", prepared_once)

    def first_time(partial: Path, target: Path) -> bool:
        key = (target, partial.stat().st_size)
        return key not in killed and not killed.add(key)  # type: ignore[func-returns-value]

    for _ in range(60):
        with monkeypatch.context() as patch:
            kill_at(patch, first_time)
            try:
                patchguard.fit(**tiny, out=out, resume=out.exists())
                break
            except Killed:
                assert not (out / "report.html").exists()
    named = {target.relative_to(out).as_posix() for target, _ in killed}
    assert {"config.yaml", "twin/manifest.json", "metrics.json", "report.html"} <= named
    assert (out / "report.html").exists()
    for folder in (out, out / "twin"):
        assert is_sealed(folder, METRICS)
        assert not (folder / "training" / "resume.ckpt").exists()
        patchguard.load(folder)
    assert not (out / "former").exists()


def test_a_kill_after_sealing_leaves_nothing_to_resume(
    copy: Path, tree: Path, evaluated: dict[str, Any]
) -> None:
    resume = copy / "training" / "resume.ckpt"
    resume.write_bytes(b"of the finished training")
    patchguard.fit(tree, out=copy, resume=True)
    assert not resume.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json", "report.html"])
def test_a_full_disk_names_the_file_and_what_was_finished_stays(
    name: str,
    tiny: dict[str, Any],
    evaluated: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, whole = tmp_path / "run", Path.replace

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(PatchGuardError, match=rf"{name}: cannot be written \(No space left"):
            patchguard.fit(**tiny, twin=False, out=out)
    assert not list(out.rglob("*.tmp"))
    patchguard.fit(**tiny, twin=False, out=out, resume=True)
    assert is_sealed(out, METRICS)


def test_two_fits_into_one_new_folder_do_not_mix(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one begins while this one prepares its images."""
    out, prepared = tmp_path / "run", fitting.prepared

    def meanwhile(*arguments: Any) -> Any:
        ownership.claim(out, ownership.RUN)
        (out / "model.safetensors").write_text("of the other")
        return prepared(*arguments)

    monkeypatch.setattr(fitting, "prepared", meanwhile)
    with pytest.raises(PatchGuardError, match="another patchguard fit was writing here"):
        patchguard.fit(**tiny, out=out)
    assert (out / "model.safetensors").read_text() == "of the other"


def test_checks_are_told_by_name_wherever_they_are_told() -> None:
    checks = [*evaluations.CHECKS, evaluations.FAILED]
    card = robustness_card(
        evaluations.result_of(evaluations.metrics(0.5, checks=checks)),
        detector=CardDetector(name="a", kind="python", parameters=1, sha256=None),
        data="b",
        sha256=None,
    )
    assert headline(card).startswith("UNRELIABLE: S14 (unbounded attack) fails | ")


def test_what_a_kill_left_half_written_in_a_run_is_removed(copy: Path) -> None:
    left = [copy / ".0123abcd.77.tmp", copy / "twin/.0123abcd.77.tmp"]
    for path in left:
        path.write_bytes(b"half")
    patchguard.write_report(copy)
    assert not any(path.exists() for path in left)


PRINTS = """
import sys
from patchguard import cli
cli._run = lambda argv: print("a line") or 0
sys.exit(cli.main([]))
"""


def test_a_closed_pipe_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", PRINTS], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == cli.CLOSED_PIPE


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell here")
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_without_an_output_does_its_work(closed: str) -> None:
    script = f'exec "$0" -c "$1" {closed}'
    words = ["sh", "-c", script, sys.executable, PRINTS]
    done = subprocess.run(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert done.stderr == b""
    assert done.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_behind_the_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-c", PRINTS], stdout=full, stderr=subprocess.PIPE)
    assert done.stderr.startswith(b"patchguard: standard output")  # or, unbuffered, a file
    assert done.stderr.endswith(b": No space left on device\n")
    assert done.stderr.count(b"\n") == 1
    assert done.returncode == 1


@needs_bytes
def test_any_name_is_told_in_one_line_whatever_the_terminal_can_show(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/n\xffa\nb\xc3\xbc"
    done = subprocess.run(
        [sys.executable, "-m", "patchguard", "leaderboard", name],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.stderr.count(b"\n") == 1
    assert b"/n\\xffa\\nb\\xfc" in done.stderr
    assert done.returncode == 1


@needs_bytes
def test_names_that_are_not_utf_8_survive_every_file(
    tiny: dict[str, Any], evaluated: dict[str, Any], tmp_path: Path
) -> None:
    name = os.fsdecode(b"n\xff")
    data = Path(shutil.copytree(tiny["data"], tmp_path / name / name))
    for path in (data / "train/good/000.png", data / "test/good/000.png"):
        path.rename(path.with_name(f"{name}.png"))
    (data / "ground_truth/scratch").rename(data / "ground_truth" / name)
    (data / "test/scratch").rename(data / "test" / name)
    out = tmp_path / name / f"run-{name}"
    patchguard.fit(**tiny | {"data": data}, twin=False, out=out)
    assert Path(read_config(out)[0].data) == data
    for written in ("metrics.json", "card.json"):
        assert "udcff" not in (out / written).read_text(encoding="utf-8")
        assert "\\\\xff" in (out / written).read_text(encoding="utf-8")
    assert "n\\xff" in (out / "report.html").read_text(encoding="utf-8")
    board = patchguard.write_leaderboard(out, out=tmp_path / f"{name}.html")
    assert "n\\xff" in board.read_text(encoding="utf-8")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(asdict(tiny["recipe"])))
    page = patchguard.study(
        data, recipes=str(recipe), out=tmp_path / f"study-{name}", evaluation=tiny["evaluation"]
    )
    text = page.read_text(encoding="utf-8")
    assert "| n\\xff |" in text
    command = next(line for line in text.splitlines() if line.startswith("    patchguard study"))
    shell = shutil.which("bash")
    assert shell is not None
    told = command.strip().replace("patchguard", "printf '%s\\0'", 1)
    words = subprocess.run([shell, "-c", told], capture_output=True, check=True).stdout.split(b"\0")
    assert os.fsencode(data) in words


def test_a_study_whose_output_nobody_reads_ends(tmp_path: Path) -> None:
    def fit(_: Planned) -> Iterator[None]:
        raise BrokenPipeError

    runs = [Planned(tmp_path / "a", "a", "fast", FitConfig(data="a"))]
    with pytest.raises(BrokenPipeError):
        studying.carry_out(runs, fit, lambda _: None)


@needs_links
def test_a_card_that_links_lead_to_is_on_the_leaderboard_once(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "cards").mkdir()
    for name in ("one", "two"):
        (tmp_path / "cards" / name).symlink_to(copy, target_is_directory=True)
    page = patchguard.write_leaderboard(tmp_path / "cards", out=tmp_path / "board.html")
    assert page.read_text().count('id="card-') == len(list(copy.rglob("card.json")))


@needs_links
def test_a_synthetic_category_with_files_of_somebody_else_is_not_replaced(tmp_path: Path) -> None:
    settings = {"categories": ("fabric",), "train": 1, "test_good": 1, "test_per_defect": 1}
    (category,) = write_benchmark(tmp_path, **settings)  # type: ignore[arg-type]
    for foreign in (category / "notes.txt", category / "test" / "mine"):
        if foreign.suffix:
            foreign.write_text("mine")
        else:
            foreign.symlink_to(tmp_path)
        before = contents(tmp_path)
        with pytest.raises(PatchGuardError, match=f"{re.escape(str(foreign))} is not a part of"):
            write_benchmark(tmp_path, **settings, seed=1)  # type: ignore[arg-type]
        assert contents(tmp_path) == before
        foreign.unlink()
    write_benchmark(tmp_path, **settings, seed=1)  # type: ignore[arg-type]
    assert json.loads((category / ".synthetic.json").read_text())["seed"] == 1
