"""What a detector needs to be used, and what it does not need."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import patchguard
from patchguard.config import ModelConfig, View
from patchguard.errors import PatchGuardError
from patchguard.models.checkpoint import load_unverified, save_detector
from patchguard.models.patchguard import PatchGuard, ViewScore
from patchguard.results.model_file import read_model
from patchguard.results.run_folder import CONFIG, METRICS, MODEL, read_config, seal


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def with_dropped_setting(folder: Path) -> None:
    """As written by a version that had a setting which this one has not."""
    content = yaml.safe_load((folder / CONFIG).read_text())
    content["settings"]["recipe"]["training"]["attack"]["warmup"] = 0.1
    (folder / CONFIG).write_text(yaml.safe_dump(content))


def test_a_new_run_describes_its_detector(run: Path) -> None:
    content = json.loads((run / MODEL).read_text())
    assert content["patchguard_model"] == 2
    assert content["preprocessing"]["shape"] == [32, 32]
    assert content["labels"] == {"normal": "normal", "anomalous": "anomalous"}
    assert content["architecture"]["backbone"] == "patchguard_mini"
    assert MODEL in json.loads((run / "manifest.json").read_text())


def test_settings_that_are_not_known_any_more_do_not_matter(
    copy: Path, run: Path, tree: Path, tmp_path: Path
) -> None:
    with_dropped_setting(copy)
    with pytest.raises(PatchGuardError, match="does not accept"):
        read_config(copy)
    predicted = [
        [row.score for row in patchguard.predict(folder, tree / "test", out=tmp_path / name)]
        for name, folder in (("old", copy), ("new", run))
    ]
    assert predicted[0] == pytest.approx(predicted[1], abs=1e-6)
    assert patchguard.write_report(copy).exists()


def test_a_run_without_its_training_settings_predicts(
    copy: Path, tree: Path, tmp_path: Path
) -> None:
    (copy / CONFIG).unlink()
    assert patchguard.predict(copy, tree / "test", out=tmp_path / "out")[0].score is not None


def test_a_run_of_before_is_described_by_its_settings(
    run_of_format_1: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = yaml.safe_load((run_of_format_1 / CONFIG).read_text())
    content["settings"]["recipe"]["model"]["swirl"] = 3
    (run_of_format_1 / CONFIG).write_text(yaml.safe_dump(content))
    seal(run_of_format_1, CONFIG)
    with caplog.at_level(logging.WARNING):
        detector = patchguard.load(run_of_format_1)
    assert "left out: swirl" in caplog.text
    size = content["settings"]["recipe"]["data"]["image_size"]
    assert detector(torch.rand(1, 3, size, size)).score.isfinite().all()


def test_a_run_of_before_predicts_evaluates_and_reports(
    run_of_format_1: Path, tree: Path, tmp_path: Path, tiny_evaluation: patchguard.EvaluationConfig
) -> None:
    done = patchguard.predict(run_of_format_1, tree / "test", out=tmp_path / "out")
    assert len(done) == 12
    patchguard.evaluate(run_of_format_1, tree, evaluation=tiny_evaluation)
    assert (run_of_format_1 / "report.html").exists()
    assert (run_of_format_1 / METRICS).exists()


def test_a_description_of_the_first_version_is_of_one_square_window(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = PatchGuard(
        ModelConfig(hidden=64, window=48, views=["whole"]), {"whole": ViewScore(5)}
    ).eval()
    save_detector(model, tmp_path, (48, 48), full_scale=4095.0)
    content = json.loads((tmp_path / MODEL).read_text())
    for name in ("window", "stride", "views"):
        del content["architecture"][name]
    content["architecture"]["top_k"] = 5
    content["preprocessing"] = {"image_size": 48, "full_scale": 4095.0}
    del content["scores"]
    (tmp_path / MODEL).write_text(json.dumps({**content, "patchguard_model": 1}))
    read = read_model(tmp_path)
    assert read.preprocessing.shape == (48, 48)
    assert read.preprocessing.full_scale == 4095.0
    assert read.preprocessing.span == (0.0, 1.0)
    images = torch.rand(2, 3, 48, 48)
    expected, found = model(images), load_unverified(tmp_path)(images)
    assert torch.equal(found.score, expected.score)
    assert torch.equal(found.anomaly_map, expected.anomaly_map)


def test_views_scores_and_span_come_back_as_they_were_written(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scores: dict[View, ViewScore] = {
        "windows": ViewScore(2, centre=-3.5, scale=0.25),
        "whole": ViewScore(1, centre=1.5, scale=2.0),
    }
    model = PatchGuard(ModelConfig(hidden=64, window=32, stride=0.5), scores, (0.1, 0.4)).eval()
    save_detector(model, tmp_path, (60, 100))
    assert read_model(tmp_path).preprocessing.shape == (60, 100)
    found = load_unverified(tmp_path)
    assert found.scores == scores and found.span == (0.1, 0.4)
    assert found.config.views == ["windows", "whole"] and found.stride == model.stride
    images = 0.5 * torch.rand(2, 3, 60, 100)
    assert torch.equal(found(images).score, model(images).score)


@pytest.mark.parametrize(
    "change",
    [
        {"preprocessing": {"shape": [32]}},
        {"preprocessing": {"image_size": 32}},
        {"scores": {"elsewhere": {"patches": 3}}},
        {"scores": {"whole": {}}},
    ],
)
def test_a_part_that_cannot_be_is_one_line(copy: Path, change: dict[str, object]) -> None:
    content = json.loads((copy / MODEL).read_text())
    (copy / MODEL).write_text(json.dumps({**content, **change}))
    with pytest.raises(PatchGuardError, match="fit again") as error:
        read_model(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [{}, {"architecture": {}}, {"architecture": 3}])
def test_a_damaged_description_of_the_first_version_is_one_line(
    tmp_path: Path, content: dict[str, object]
) -> None:
    (tmp_path / MODEL).write_text(json.dumps({"patchguard_model": 1, **content}))
    with pytest.raises(PatchGuardError, match="fit again") as error:
        read_model(tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_not_known_is_left_out_and_said(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads((copy / MODEL).read_text())
    (copy / MODEL).write_text(json.dumps({**content, "colour": "blue"}))
    with caplog.at_level(logging.WARNING):
        read_model(copy)
    assert "does not know: colour" in caplog.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"patchguard_model": 99}', "{}"])
def test_a_damaged_or_later_file_is_one_line(copy: Path, text: str) -> None:
    (copy / MODEL).write_text(text)
    with pytest.raises(PatchGuardError, match="fit again") as error:
        patchguard.load(copy)
    assert str(error.value).startswith(str(copy / MODEL))
    assert "\n" not in str(error.value)
