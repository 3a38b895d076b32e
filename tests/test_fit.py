"""The main job on a tiny data set: what a run leaves behind, and what goes wrong in one line."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import patchguard
from detectors import BRIGHT
from patchguard import cli
from patchguard.config import (
    DataConfig,
    EvaluationConfig,
    FitConfig,
    Recipe,
    VariationConfig,
    load_recipe,
)
from patchguard.deploy.calibration import Calibration, required_normals
from patchguard.errors import PatchGuardError
from patchguard.evaluation.metrics import image_metrics
from patchguard.pipelines import fit as fitting
from patchguard.results.run_folder import read_config, seal, write_config
from patchguard.runtime import Runtime
from patchguard.training.batches import TrainingImages
from patchguard.training.prepare import PreparedImages, prepare
from trainings import Listening


def metrics(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "metrics.json").read_text(), parse_constant=refuse)
    return content


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def test_a_run_holds_everything_that_is_promised(run: Path) -> None:
    for name in (
        "config.yaml",
        "model.json",
        "model.safetensors",
        "calibration.json",
        "metrics.json",
        "manifest.json",
        "report.html",
        "anomalies.png",
        "twin/metrics.json",
    ):
        assert (run / name).stat().st_size > 0
    assert list(run.glob("training/csv/*/metrics.csv"))
    assert list(run.glob("training/tensorboard/events*"))


def prepared(tree: Path, recipe: Recipe, calibration_images: int = 4) -> PreparedImages:
    return prepare(
        tree,
        recipe.data,
        recipe.model,
        calibration_images=calibration_images,
        seed=0,
        strict=False,
        tell=lambda line: None,
    )


def test_training_changes_images_no_further_than_suits_them(
    tree: Path, tmp_path: Path, tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Trained(Exception):
        pass

    def train(dataset: TrainingImages, *_: object, **__: object) -> None:
        raise Trained(dataset.config)

    monkeypatch.setattr(fitting, "train", train)
    asked = replace(
        tiny_recipe.data, flips=["vertical"], variation=VariationConfig(brightness=0.5), stray=1.0
    )
    settings = FitConfig(data=str(tree), recipe=replace(tiny_recipe, data=asked))
    material = prepared(tree, replace(tiny_recipe, data=asked))
    with pytest.raises(Trained) as trained:
        fitting.fit_detector(material, settings, tmp_path, runtime=Runtime.on("cpu"))
    config = trained.value.args[0]
    assert config.variation.brightness < 0.5
    assert config == material.data
    recorded = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert recorded["varied_by"] == material.changes
    assert material.changes in material.summary


def test_settings_of_another_version_are_named(tmp_path: Path) -> None:
    write_config(tmp_path, FitConfig(data="x"), {})
    path = tmp_path / "config.yaml"
    path.write_text(path.read_text().replace("flips:", "flip_axes:"))
    with pytest.raises(PatchGuardError, match=r"config\.yaml holds settings that.*flip_axes"):
        read_config(tmp_path)


def test_the_evaluation_states_its_protocol_and_all_its_rows(run: Path) -> None:
    found = metrics(run)
    assert found["protocol"]["images"] == {"normal": 6, "anomalous": 6}
    assert found["protocol"]["ground_truth"] == "native resolution, never resized"
    assert found["protocol"]["versions"]["numpy"] == np.__version__
    seen = {(entry["attack"], entry["eps"]) for entry in found["attacked"]}
    attacks = ("worst", "pgd score", "pgd linear", "legacy")
    assert seen == {(attack, eps) for attack in attacks for eps in ("2/255", "8/255")}
    assert found["protocol"]["threats"] == {"linf": ["2/255", "8/255"]}
    for entry in found["attacked"]:
        assert set(entry["rows"]) == {"both", "anomalies", "normals"}


def check_of(run: Path, id_: str) -> dict[str, Any]:
    found: dict[str, Any]
    (found,) = (check for check in metrics(run)["checks"] if check["id"] == id_)
    return found


@pytest.mark.usefixtures("few_checks")
def test_the_choice_of_the_weights_is_what_the_training_recorded(
    run: Path, tree: Path, tiny_evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    assert check_of(run, "S30")["status"] == "PASS"
    assert "moving average of the last step" in check_of(run, "S30")["meaning"]
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "twin")
    settings, recorded = read_config(copy)
    del recorded["selection"]
    write_config(copy, settings, recorded)
    seal(copy, "config.yaml")
    patchguard.evaluate(copy, tree, evaluation=tiny_evaluation)
    assert check_of(copy, "S30")["status"] == "WARN"


def test_the_worst_case_falls_with_eps_and_is_lowest_with_both_classes_attacked(run: Path) -> None:
    found = metrics(run)
    rows = {
        entry["eps"]: {row: value["image"]["auroc"] for row, value in entry["rows"].items()}
        for entry in found["attacked"]
        if entry["attack"] == "worst"
    }
    clean = found["clean"]["image"]["auroc"]
    for row in ("both", "anomalies", "normals"):
        assert clean >= rows["2/255"][row] >= rows["8/255"][row]
        assert rows["8/255"]["both"] <= rows["8/255"][row]


def test_recorded_scores_give_the_recorded_metrics(run: Path) -> None:
    found = metrics(run)
    labels = np.array([kind != "good" for kind in found["scores"]["kinds"]])
    for key, expected in (
        ("clean", found["clean"]["image"]["auroc"]),
        ("worst linf 8/255", _row(found, "worst", "8/255", "both")["image"]["auroc"]),
    ):
        assert image_metrics(np.array(found["scores"][key]), labels).auroc == expected


def _row(found: dict, attack: str, eps: str, row: str) -> dict:  # type: ignore[type-arg]
    (entry,) = (e for e in found["attacked"] if (e["attack"], e["eps"]) == (attack, eps))
    return entry["rows"][row]  # type: ignore[no-any-return]


def test_a_loaded_detector_gives_the_scores_of_the_evaluation(run: Path, tree: Path) -> None:
    from patchguard.data.folder import scan
    from patchguard.evaluation.scoring import score_images
    from patchguard.evaluation.test_set import labelled_images

    detector = patchguard.load(run)
    assert not detector.training
    test = labelled_images(scan(tree).test, (32, 32), with_masks=True)
    scored = score_images(detector, test.images, batch_size=32)
    assert scored.scores.tolist() == metrics(run)["scores"]["clean"]


def test_the_threshold_comes_from_held_out_normals(run: Path) -> None:
    calibration = Calibration.from_json(run / "calibration.json")
    assert calibration.held_out == 4
    assert calibration.false_alarm_rate == 0.2
    assert calibration.threshold == max(calibration.scores)


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "calibration.json"])
@pytest.mark.parametrize("damage", ["truncate", "alter", "remove"])
def test_a_damaged_checkpoint_is_refused_by_name(
    run: Path, tree: Path, tmp_path: Path, name: str, damage: str
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    content = (copy / name).read_bytes()
    if damage == "truncate":
        (copy / name).write_bytes(content[: len(content) // 2])
    elif damage == "alter":
        (copy / name).write_bytes(content[:-20] + bytes(20))
    else:
        (copy / name).unlink()
    with pytest.raises(PatchGuardError, match=name.replace(".", r"\.")):
        patchguard.predict(copy, tree / "test", out=tmp_path / "out")


def test_an_unfinished_run_is_told_from_a_finished_one(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PatchGuardError, match="not a run folder"):
        patchguard.load(tmp_path)
    shutil.copy(run / "config.yaml", tmp_path)
    with pytest.raises(PatchGuardError, match="--resume"):
        patchguard.load(tmp_path)


def test_prediction_is_at_the_resolution_of_the_image(
    run: Path, tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    shutil.copytree(tree / "test", images)
    (images / "broken.png").write_bytes(b"\x89PNG")
    out = tmp_path / "out"
    status = cli.main(["predict", str(run), str(images), "--out", str(out), "--maps"])
    assert status == 1
    error = capsys.readouterr().err
    assert "broken.png" in error
    *rows, broken = sorted(
        json.loads((out / "scores.json").read_text()), key=lambda row: row["verdict"] == "error"
    )
    assert Path(broken["image"]).name == "broken.png"
    assert "not a readable PNG" in broken["error"]
    assert len(rows) == 12
    assert len((out / "scores.csv").read_text().splitlines()) == 14
    with Image.open(out / "overlays/scratch/000.png.png") as picture:
        assert picture.size == (64, 48)
    anomaly_map = np.load(out / "maps/scratch/000.png.npy", allow_pickle=False)
    assert anomaly_map.shape == (48, 64)
    clean = dict(zip(metrics(run)["scores"]["names"], metrics(run)["scores"]["clean"], strict=True))
    threshold = Calibration.from_json(run / "calibration.json").threshold
    for row in rows:
        name = "/".join(Path(row["image"]).parts[-2:])
        assert row["score"] == pytest.approx(clean[name], abs=1e-4)
        assert row["verdict"] == ("anomalous" if row["score"] > threshold else "normal")


def test_nothing_readable_to_predict_fails_and_names_the_files(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (images / "broken.png").write_bytes(b"no picture")
    assert cli.main(["predict", str(run), str(images), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "broken.png" in printed.err
    assert "normal" not in printed.out


def test_a_report_before_the_evaluation_says_what_is_missing(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("metrics.json", "report.html"))
    assert cli.main(["report", str(copy)]) == 0
    assert f"{copy} is not evaluated yet: patchguard evaluate" in capsys.readouterr().out
    assert "Nothing was evaluated yet." in (copy / "report.html").read_text()


@pytest.mark.usefixtures("few_checks")
def test_evaluate_renews_the_metrics_of_a_run_and_its_twin(
    run: Path, tree: Path, tiny_evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    patchguard.evaluate(copy, tree, evaluation=replace(tiny_evaluation, eps=["1/255"]))
    assert metrics(copy)["protocol"]["threats"] == {"linf": ["1/255"]}
    assert metrics(copy / "twin")["protocol"]["threats"] == {"linf": ["1/255"]}
    assert metrics(copy)["clean"] == metrics(run)["clean"]


@pytest.mark.usefixtures("few_checks")
def test_a_plain_folder_of_normals_is_enough(
    tree: Path, tiny_recipe: Recipe, tiny_evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    images = tmp_path / "my_images"
    shutil.copytree(tree / "train" / "good", images)
    run = patchguard.fit(
        images,
        out=tmp_path / "run",
        recipe=tiny_recipe,
        steps=2,
        twin=False,
        evaluation=tiny_evaluation,
    )
    found = metrics(run)
    assert "self-test" in found["protocol"]["test_set"]
    assert "deployed" not in found["clean"]
    assert not (run / "twin").exists()


@pytest.mark.usefixtures("few_checks")
def test_fit_names_corrupt_files_and_strict_fails(
    tree: Path,
    tiny_recipe: Recipe,
    tiny_evaluation: EvaluationConfig,
    tmp_path: Path,
) -> None:
    copy = tmp_path / "disc"
    shutil.copytree(tree, copy)
    (copy / "train/good/007.png").write_bytes(b"nonsense")
    with pytest.raises(PatchGuardError, match=r"007\.png"):
        patchguard.fit(copy, out=tmp_path / "strict", recipe=tiny_recipe, strict=True)
    reporter = Listening()
    patchguard.fit(
        copy,
        out=tmp_path / "lenient",
        recipe=tiny_recipe,
        steps=1,
        twin=False,
        evaluation=tiny_evaluation,
        reporter=reporter,
    )
    printed = "\n".join(reporter.told)
    assert "007.png" in printed
    assert "1 skipped" in printed


def test_a_run_is_not_overwritten_and_a_finished_one_resumes_to_itself(
    run: Path, tree: Path, tiny_recipe: Recipe
) -> None:
    with pytest.raises(PatchGuardError, match="--resume"):
        patchguard.fit(tree, out=run, recipe=tiny_recipe)
    before = metrics(run)
    other = replace(tiny_recipe, model=replace(tiny_recipe.model, hidden=32))
    patchguard.fit(tree, out=run, recipe=other, resume=True)
    assert metrics(run)["scores"] == before["scores"]


def test_a_shortfall_of_held_out_normals_is_told_before_training(
    tree: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    absent = replace(tiny_recipe, model=replace(tiny_recipe.model, weights="hub"))
    reporter = Listening()
    with pytest.raises(PatchGuardError):
        patchguard.fit(
            tree, out=tmp_path / "run", recipe=absent, false_alarm_rate=0.01, reporter=reporter
        )
    printed = "\n".join(reporter.told)
    assert re.search(r"can guarantee a false-alarm rate of 0\.\d+ at best; 0\.01 needs 99", printed)


def test_a_resumed_run_keeps_its_length(run: Path, tree: Path, tiny_recipe: Recipe) -> None:
    steps = tiny_recipe.training.steps
    message = f"begun with {steps} steps, .*give no --steps"
    with pytest.raises(PatchGuardError, match=message):
        patchguard.fit(tree, out=run, steps=99, resume=True)
    assert patchguard.fit(tree, out=run, steps=steps, resume=True) == run


@pytest.mark.usefixtures("few_checks")
def test_a_folder_without_anything_to_resume_is_used_again(
    tree: Path,
    tmp_path: Path,
    tiny_recipe: Recipe,
    tiny_evaluation: EvaluationConfig,
) -> None:
    """A start that failed for want of weights leaves a folder; the next start is not refused."""
    reporter = Listening()
    settings = {
        "out": tmp_path / "run",
        "twin": False,
        "evaluation": tiny_evaluation,
        "reporter": reporter,
    }
    config = FitConfig(data="elsewhere", recipe=tiny_recipe)
    stale = tmp_path / "run" / "training" / "csv"
    stale.mkdir(parents=True)
    write_config(tmp_path / "run", config, {"varied_by": "nothing"})
    (stale / "from_step_0000500").mkdir()
    patchguard.fit(tree, recipe=tiny_recipe, steps=2, resume=True, **settings)  # type: ignore[arg-type]
    assert any("holds nothing to resume" in line for line in reporter.told)
    assert read_config(tmp_path / "run")[0].recipe.training.steps == 2
    assert not (stale / "from_step_0000500").exists()


def test_every_verb_is_still_a_function_after_a_fit(run: Path, tree: Path, tmp_path: Path) -> None:
    assert patchguard.write_report(run) == run / "report.html"
    picture = patchguard.write_anomalies(tree, out=tmp_path / "grid.png", recipe="fast")
    with Image.open(picture) as grid:
        assert min(grid.size) > 112


def test_a_typo_leaves_no_run_folder_behind(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    for wrong in (
        ["--recipe.model.backbone", "no_such_vit"],
        ["--recipe.model.window", "50"],
        ["--recipe.training.attention", "{9: 1.0}"],
        ["--recipe.model.heads", "3"],
        ["--recipe.data.variation.shift", "0.8"],
        ["--recipe.model.weights", "missing.safetensors"],
        ["--evaluation.eps", "[4/25a]"],
        ["--evaluation.suite", "no_such_suite"],
        ["--steps", "-5"],
    ):
        status = cli.main(["fit", str(tree), "--out", str(out), "--recipe", "fast", *wrong])
        error = capsys.readouterr().err
        assert status == 1
        assert error.count("\n") == 1, error
        assert not out.exists()


def test_perturbations_outlive_a_step_only_where_images_stay() -> None:
    recipe = load_recipe("fast")
    recipe.training.attack.project = recipe.training.attack.persistent = True
    settings = FitConfig(data="x", recipe=recipe)
    with pytest.raises(PatchGuardError, match="rotation, zoom and shift"):
        fitting.check(settings)
    recipe.data.variation = VariationConfig(contrast=0.1, brightness=0.1)
    with pytest.raises(PatchGuardError, match=r"set model\.views to whole"):
        fitting.check(settings)
    recipe.model.views = ["whole"]
    fitting.check(settings)


def test_a_run_is_not_continued_on_other_images(
    run: Path, tree: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    other = tmp_path / "disc"
    shutil.copytree(tree, other)
    shutil.copy(other / "train/good/001.png", other / "train/good/002.png")
    before = (run / "metrics.json").read_bytes()
    with pytest.raises(PatchGuardError, match="not the normal images"):
        patchguard.fit(other, out=run, recipe=tiny_recipe, resume=True)
    assert (run / "metrics.json").read_bytes() == before


def test_a_run_is_not_continued_with_images_varied_otherwise(
    run: Path, tree: Path, tiny_recipe: Recipe
) -> None:
    material = prepared(tree, replace(tiny_recipe, data=DataConfig(flips=["horizontal"])))
    fitting.check_same_images(run, material)
    with pytest.raises(PatchGuardError, match="but horizontal flips suits"):
        fitting.check_same_changes(run, material)


def test_the_picture_of_anomalies_is_of_what_is_trained_on(
    tree: Path, tmp_path: Path, tiny_recipe: Recipe
) -> None:
    recipe = replace(tiny_recipe, data=replace(tiny_recipe.data, stray=1.1))
    reporter = Listening()
    patchguard.write_anomalies(tree, out=tmp_path / "grid.png", recipe=recipe, reporter=reporter)
    wanted = required_normals(FitConfig(data="x").false_alarm_rate)
    material = prepared(tree, recipe, wanted)
    assert material.summary in reporter.told
    fitting.write_training_gallery(material, recipe.model, tmp_path / "again.png", 0)
    assert (tmp_path / "grid.png").read_bytes() == (tmp_path / "again.png").read_bytes()


@pytest.mark.usefixtures("few_checks")
def test_evaluate_needs_no_training_images(
    run: Path, tree: Path, tiny_evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    copy, labelled = tmp_path / "run", tmp_path / "labelled"
    shutil.copytree(run, copy)
    shutil.copytree(tree / "test", labelled / "test")
    patchguard.evaluate(copy, labelled, evaluation=tiny_evaluation)
    found = metrics(copy)
    assert found["protocol"]["ground_truth"] == "none"
    assert "pixel" not in found["clean"]
    assert {entry["attack"] for entry in found["attacked"]} == {"worst", "pgd score"}
    assert set(found["skipped"]) == {"pgd linear", "legacy"}


def test_an_empty_mask_is_named(run: Path, tree: Path, tmp_path: Path) -> None:
    copy = tmp_path / "disc"
    shutil.copytree(tree, copy)
    Image.new("L", (64, 48)).save(copy / "ground_truth/scratch/003_mask.png")
    with pytest.raises(PatchGuardError, match=r"003_mask\.png: the mask marks no pixel"):
        patchguard.evaluate(run, copy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "no_such_folder"], "no_such_folder"),
        (["fit", "x", "--recipe", "no_such_recipe"], "no_such_recipe"),
        (["fit", "x", "--recipe.data.image_sise", "3"], "image_sise"),
        (["fit", "x", "--recipe.model.window", "big"], "window is 'big'"),
        (["fit", "x", "--minutes", "1", "--steps", "2"], "one of"),
        (["fit", "x", "--evaluation.eps", "[2]", "--recipe", "fast"], "eps"),
        (["evaluate", "no_such_run", "x"], "no_such_run"),
        (["predict", "no_such_run", "x", "--out", "y"], "no_such_run|x"),
        (["report", "no_such_run"], "no_such_run"),
        (["frobnicate"], "frobnicate"),
        (["fit"], "required: DATA"),
        (["fit", ".", "--step", "3"], r"--step 3 \(see patchguard fit --help"),
        (["fit", ".", "--steps", "few"], "--steps is 'few'; it must be a whole number"),
        (["fit", ".", "--recipe.training.precision", "16"], "must be '32' or 'bf16'"),
        (["study", ".", "--recipes", ""], "no recipes"),
        (["study", ".", "--evaluation.eps", ""], "evaluation.eps"),
    ],
)
def test_bad_input_gets_one_line_and_a_nonzero_exit(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) != 0
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("patchguard: ")
    assert re.search(message, error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: {flips: false}", "data.flips is False; it must be a list"),
        ("training: {steps: many}", "training.steps is 'many'; it must be a whole number"),
    ],
)
def test_a_wrong_value_in_a_recipe_is_told_by_file_and_setting(
    content: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    assert cli.main(["fit", str(tmp_path), "--recipe", str(path)]) == 1
    assert f"patchguard: {path}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["fit", "."], ["study", "."]])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG", "own.yaml is not YAML: "),
        (b"", "own.yaml holds no settings "),
        (b"fast", "own.yaml holds no settings "),
        (b"trainng: {steps: 3}", "own.yaml: trainng: there is no such setting"),
        (b"training: {attack: {eps: 8}}", "own.yaml: training.attack.eps is 8; it must be text "),
        (b"training: {batch-size: 3}", "own.yaml: training.batch-size: there is no such setting"),
        (b"training: {attack: 3}", "own.yaml: training.attack holds no settings "),
        (b"model:", "own.yaml: model holds no settings "),
    ],
)
def test_a_recipe_that_cannot_be_read_gets_one_line(
    command: list[str],
    content: bytes,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    option = "--recipe" if command[0] == "fit" else "--recipes"
    assert cli.main([*command, option, str(path)]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("looks: abc", "own.yaml: evaluation.looks is 'abc'; it must be a whole number"),
        (None, "--evaluation .*own.yaml: there is no such file of settings"),
    ],
)
def test_what_is_wrong_in_an_evaluation_file_is_told_by_file_and_setting(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.yaml"
    if content is not None:
        path.write_text(content)
    assert cli.main(["evaluate", "x", "y", "--evaluation", str(path)]) == 1
    assert re.search(message, capsys.readouterr().err)


def test_the_twin_is_the_same_network_without_any_defence() -> None:
    settings = FitConfig(data="x")
    settings.recipe.model.weights = "robust.safetensors"
    training = settings.recipe.training
    training.awp, training.attention, training.steps = 0.01, {1: 1.0}, 400
    training.attack.persistent = training.attack.project = True
    twin = fitting.undefended(settings).recipe
    assert twin.model == replace(settings.recipe.model, weights="none")
    assert twin.training.attack.eps == "0/255"
    assert (twin.training.awp, twin.training.attention, twin.training.steps) == (0.0, {}, 400)
    assert not twin.training.attack.persistent
    settings.recipe.model.weights = "hub"
    assert fitting.undefended(settings).recipe.model.weights == "hub"


def test_no_command_at_all_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 0
    assert "fit" in capsys.readouterr().out


def test_help_and_import_stay_light() -> None:
    script = (
        "import sys, contextlib, io, patchguard, patchguard.cli\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    patchguard.cli.main(['fit', '--help'])\n"
        "heavy = {'torch', 'timm', 'lightning', 'matplotlib', 'pydantic', 'scipy'}\n"
        "heavy &= set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("detector", ["own", pytest.param("run", marks=pytest.mark.slow)])
def test_doctor_prints_every_check_and_its_status_follows_them(
    detector: str,
    run: Path,
    tree: Path,
    tiny_evaluation: EvaluationConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["doctor", str(out), str(tree)]
    if detector == "run":
        shutil.copytree(run, out)
    else:
        (tmp_path / "mine.py").write_text(BRIGHT)
        command = ["doctor", f"{tmp_path / 'mine.py'}:make", str(tree), "--out", str(out)]
    suite = ["--evaluation.suite", tiny_evaluation.suite, "--evaluation.images", "8"]
    status = cli.main([*command, *suite])
    printed = capsys.readouterr()
    checks = metrics(out)["checks"]
    assert [check["id"] for check in checks] == [f"S{n}" for n in range(1, 31) if n != 26]
    for check in checks:
        assert f"{check['status']:4} {check['id']:4}{check['name']}:" in printed.out
    failed = [check["id"] for check in checks if check["status"] == "FAIL"]
    assert status == (1 if failed else 0)
    assert all(name in printed.err for name in failed)


def test_a_detector_of_ones_own_is_evaluated_into_a_folder_and_a_leaderboard(
    run: Path, tree: Path, tiny_evaluation: EvaluationConfig, tmp_path: Path
) -> None:
    source = tmp_path / "mine.py"
    source.write_text(BRIGHT)
    out = tmp_path / "cards" / "mine"
    arguments = ["evaluate", f"{source}:make", str(tree), "--out", str(out), "--strict", "true"]
    arguments += ["--evaluation.eps", "4/255"]
    assert cli.main([*arguments, "--evaluation.suite", tiny_evaluation.suite]) == 0
    shutil.copytree(run, tmp_path / "cards" / "run")
    page = tmp_path / "board.html"
    assert cli.main(["leaderboard", str(tmp_path / "cards"), "--out", str(page)]) == 0
    text = page.read_text()
    assert "make" in text
    assert "twin" in text
    card = json.loads((out / "card.json").read_text())
    assert card["detector"]["kind"] == "python"
    assert card["data"]["sha256"] == json.loads((run / "card.json").read_text())["data"]["sha256"]


@pytest.mark.usefixtures("few_checks")
def test_a_detector_of_images_that_are_no_squares_is_evaluated(tree: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "mine.py", tmp_path / "out"
    source.write_text(BRIGHT.replace("image_size = 32", "image_size = (48, 96)"))
    assert cli.main(["evaluate", f"{source}:make", str(tree), "--out", str(out)]) == 0
    found = metrics(out)
    assert found["protocol"]["suite"] == "quick"
    assert found["protocol"]["attacked_resolution"] == [48, 96]
    assert 0 < _row(found, "worst", "4/255", "both")["pixel"]["auroc"] < 1
    with np.load(out / "gallery.npz") as gallery:
        assert gallery["images"].shape == gallery["attacked"].shape == (2, 48, 96, 3)
        assert gallery["truth"].shape == gallery["attacked_maps"].shape == (2, 48, 96)
    assert "48 × 96 px" in (out / "leaderboard.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("raise ValueError('no weights')", "no weights"),
        ("return lambda images: 1 / 0", "image_size"),
        (
            "import torch\n    def f(images): raise RuntimeError('bad layer')\n"
            "    f.image_size = 32\n    return f",
            "bad layer",
        ),
        (
            "def f(images): return images.mean((1, 2, 3)) * float('nan')\n"
            "    f.image_size = 32\n    return f",
            "NaN",
        ),
    ],
)
def test_a_broken_detector_of_ones_own_gets_one_line(
    tree: Path,
    tmp_path: Path,
    source: str,
    complaint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def make():\n    {source}\n")
    out = str(tmp_path / "out")
    assert cli.main(["evaluate", f"{file}:make", str(tree), "--out", out]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert complaint in error
