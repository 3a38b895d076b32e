"""The commands take what the verbs of the library take."""

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from patchguard.cli import COMMANDS
from patchguard.config import EvaluationConfig, load_recipe
from patchguard.errors import PatchGuardError


def given(*words: str) -> dict[str, Any]:
    name, *others = words
    return COMMANDS[name].parser(name).settings(others)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_takes_every_parameter_of_its_verb(name: str) -> None:
    text = COMMANDS[name].parser(name).format_help()
    for parameter in inspect.signature(COMMANDS[name].verb).parameters.values():
        if parameter.name in ("each", "reporter"):  # what commands fill themselves
            continue
        required = parameter.default is parameter.empty
        word = parameter.name.upper() if required else f"--{parameter.name.replace('_', '-')} "
        assert word in text
    assert not re.search(r"--\S*_|``|:\w+:`", text)


def test_what_is_not_given_is_left_to_the_verb() -> None:
    assert given("fit", "x") == {"data": "x"}
    assert given("predict", "run", "a", "b") == {"run": "run", "images": ["a", "b"]}


def test_files_may_stand_on_both_sides_of_an_option() -> None:
    expected = {"run": "run", "images": ["a", "b"], "maps": True}
    assert given("predict", "run", "a", "--maps", "b") == expected
    assert given("predict", "run", "--maps", "a", "b") == expected
    with pytest.raises(PatchGuardError, match="required: IMAGES"):
        given("predict", "run", "--maps")


def test_names_take_dashes_and_underscores_and_values_keep_theirs() -> None:
    for rate, size in (
        ("--false-alarm-rate", "--recipe.model.blur-radius=48"),
        ("--false_alarm_rate", "--recipe.model.blur_radius=48"),
    ):
        found = given("fit", "my_data", rate, "0.1", size, "--out=my_run")
        assert found["data"] == "my_data"
        assert found["out"] == "my_run"
        assert found["false_alarm_rate"] == 0.1
        assert found["recipe"].model.blur_radius == 48


def test_flags_need_no_value_and_swallow_no_input() -> None:
    assert given("predict", "run", "--maps", "a") == {"run": "run", "images": ["a"], "maps": True}
    assert given("fit", "x", "--twin", "false", "--resume")["twin"] is False
    assert given("fit", "x", "--strict=false")["strict"] is False
    assert given("evaluate", "a", "b", "--evaluation.all-checks")["evaluation"].all_checks


def test_options_change_the_recipe_that_is_named_wherever_they_stand(tmp_path: Path) -> None:
    changes = ("--recipe.training.lr", "1e-4", "--recipe.training.attention", "{2: 1, 3: 1e-3}")
    found = given("fit", "x", *changes, "--recipe", "strong")["recipe"]
    expected = load_recipe("strong")
    expected.training.lr, expected.training.attention = 1e-4, {2: 1.0, 3: 1e-3}
    assert found == expected
    assert given("fit", "x", "--recipe.model.heads=8")["recipe"].data == load_recipe("fast").data


def test_options_change_the_evaluation_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("looks: 3\nimages: 8\n", encoding="utf-8")
    words = ("--evaluation", str(path), "--evaluation.images", "null", "--evaluation.eps", "4/255")
    assert given("evaluate", "a", "b", *words)["evaluation"] == EvaluationConfig(
        looks=3, eps="4/255"
    )


@pytest.mark.parametrize("word", ["fast,mine.yaml", "[fast, mine.yaml]", "['fast', 'mine.yaml']"])
def test_several_have_commas_between_them(word: str) -> None:
    found = given("study", "a", "b", "--recipes", word, "--seeds", "0,2")
    assert found == {"data": ["a", "b"], "recipes": ["fast", "mine.yaml"], "seeds": [0, 2]}
    assert given("study", "a", "--seeds", "3")["seeds"] == 3


def test_a_type_decides_what_a_word_is() -> None:
    assert given("fit", "x", "--full-scale", "auto")["full_scale"] == "auto"
    assert given("fit", "x", "--full-scale", "255")["full_scale"] == 255
    assert given("fit", "x", "--out", "5", "--groups", "null") == {
        "data": "x",
        "out": "5",
        "groups": None,
    }
    words = ("--recipe.training.precision", "32", "--recipe.data.flips", "[]")
    recipe = given("fit", "x", *words)["recipe"]
    assert recipe.training.precision == "32"
    assert recipe.data.flips == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seed", "1.5"], "--seed is 1.5; it must be a whole number"),
        (["--strict=perhaps"], "--strict is 'perhaps'; it must be true or false"),
        (["--recipe.data.variation.shift", "0.8"], r"shift is 0.8; it must be at most 0.25"),
        (["--recipe.data.flips", "[up]"], r"flips is \['up'\]; it must be 'vertical' or "),
        (["--recipe.data.image_sise", "3"], r"image_sise 3 \(see patchguard fit --help\)"),
        (["--out"], "--out: expected one argument"),
    ],
)
def test_what_is_wrong_with_an_option_is_told_by_its_name(words: list[str], message: str) -> None:
    with pytest.raises(PatchGuardError, match=message):
        given("fit", "x", *words)
