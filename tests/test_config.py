"""Recipes: what is shipped, what extends what, and what is wrong in one line."""

from pathlib import Path

import pytest

from patchguard.config import (
    RECIPES,
    AnomalyConfig,
    DataConfig,
    FitConfig,
    ModelConfig,
    Recipe,
    TrainingConfig,
    from_plain,
    load_recipe,
)
from patchguard.errors import PatchGuardError
from patchguard.shipped import recipe_settings, settings_digest

SHIPPED = {
    "clean": "cf922c5b",
    "fast": "8f121802",
    "paper": "b3771049",
    "pretrain": "748099be",
    "strong": "9c3dfd13",
}
"""Of today's recipes: a change here is a change of what is shipped, and pages of results say so."""


def written(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_every_shipped_recipe_has_the_settings_it_was_measured_with() -> None:
    found = {path.stem: load_recipe(path.stem) for path in RECIPES.glob("*.yaml")}
    digests = {name: settings_digest(recipe_settings(recipe)) for name, recipe in found.items()}
    assert digests == SHIPPED


def test_a_recipe_holds_only_what_differs_from_the_one_it_extends(tmp_path: Path) -> None:
    mine = written(tmp_path / "mine.yaml", "extends: fast\ndata: {anomalies: {count_max: 3}}")
    expected = load_recipe("fast")
    expected.data.anomalies.count_max = 3
    assert load_recipe(mine) == expected


def test_a_file_is_extended_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    written(tmp_path / "kept" / "base.yaml", "extends: strong\ntraining: {lr: 1e-4}")
    mine = written(tmp_path / "mine.yaml", "extends: kept/base.yaml\nmodel: {heads: 8}")
    found = load_recipe(mine)
    assert found.training.lr == 1e-4
    assert found.model.heads == 8
    assert found.data == load_recipe("strong").data


def test_without_a_base_what_is_not_named_has_its_default(tmp_path: Path) -> None:
    mine = written(tmp_path / "mine.yaml", "model: {heads: 8}")
    assert load_recipe(mine).data == DataConfig()


def test_a_length_takes_the_place_of_the_bases(tmp_path: Path) -> None:
    mine = written(tmp_path / "mine.yaml", "extends: fast\ntraining: {minutes: 3}")
    assert load_recipe(mine).training.length == "3 minutes"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("extends: slow", "mine.yaml: extends: recipe slow: neither a file nor one of clean, fast"),
        ("extends: [fast]", "mine.yaml: extends: recipe .*neither a file nor"),
        ("extends: mine.yaml", "mine.yaml extends itself"),
        ("extends: other.yaml", "mine.yaml extends itself"),
        ("extends: broken.yaml", "^[^:]*broken.yaml: training.ema is 1; it must be below 1"),
        ("extends: fast\nmodel: {tops: 3}", "mine.yaml: model.tops: there is no such setting"),
        ("extends: fast\ndata: {anomalies: {side_min: 0.6}}", "side_max is 0.5; it must be in"),
    ],
)
def test_a_base_that_cannot_be_had_is_one_line(content: str, message: str, tmp_path: Path) -> None:
    written(tmp_path / "other.yaml", "extends: mine.yaml")
    written(tmp_path / "broken.yaml", "training: {ema: 1}")
    with pytest.raises(PatchGuardError, match=message) as raised:
        load_recipe(written(tmp_path / "mine.yaml", content))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (AnomalyConfig, {"side_min": 2}, "data.anomalies.side_min is 2; it must be at most 1"),
        (AnomalyConfig, {"shapes": ["star"]}, r"shapes is \['star'\]; it must be 'rectangle', "),
        (ModelConfig, {"window": "8"}, "model.window is '8'; it must be a whole number"),
        (ModelConfig, {"views": ["whole", "windows"]}, r"must be \[windows\], \[whole\] or"),
        (ModelConfig, {"views": ["whole", "whole"]}, "model.views is"),
        (DataConfig, {"stray": 0.5}, "data.stray is 0.5; it must be 0, or 1 or more"),
        (TrainingConfig, {"attention": {2: -1}}, "training.attention is .* at least 0"),
        (TrainingConfig, {"lr": float("inf")}, "training.lr is inf; it must be finite"),
        (FitConfig, {"data": "x", "full_scale": -1}, "full_scale is -1; .* above 0 or 'auto'"),
        (FitConfig, {}, "^data is missing"),
        (Recipe, {"data": 3}, "^data holds no settings"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_it_must_be(
    kind: type, content: dict[str, object], message: str
) -> None:
    with pytest.raises(PatchGuardError, match=message):
        from_plain(kind, content)
