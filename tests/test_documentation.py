"""The pages say what they measured: nothing passes for the shipped recipe that is not it."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from patchguard.config import load_recipe
from patchguard.report.study import STUDY_MARK
from patchguard.shipped import measured_with, recipe_settings, settings_digest

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(
    page for page in DOCS.rglob("*.md") if page.read_text("utf-8").startswith(STUDY_MARK)
)
OTHER_FORM = re.compile(
    r"`(?P<name>[\w-]+)` in another form than shipped "
    r"\(settings (?P<own>\w+), shipped: (?P<shipped>\w+)\): (?P<differing>.+)\."
)
DIFFERENCE = re.compile(r"([\w.]+) (.+?) \(shipped: (.+?)\)(?:, |$)")


def faults(line: str) -> list[str]:
    """What is wrong with the statement of what a page was measured with."""
    stated = OTHER_FORM.fullmatch(line)
    if not stated:
        (name,) = re.findall(r"^`([\w-]+)`", line)
        truth = measured_with(name, load_recipe(name)).removeprefix("Measured with: ")
        return [] if line == truth else [f"is not the shipped {name}, which would be: {truth}"]
    settings = recipe_settings(load_recipe(stated["name"]))
    found = []
    if stated["shipped"] != settings_digest(settings):
        found.append(f"{stated['name']} as shipped has settings {settings_digest(settings)} now")
    for key, own, shipped in DIFFERENCE.findall(stated["differing"]):
        if json.loads(shipped) != settings[key]:
            found.append(f"{key} as shipped is {settings[key]} now, not {shipped}")
        settings[key] = json.loads(own)
    if not found and stated["own"] != settings_digest(settings):
        found.append("the differences that are named do not lead to the settings that are named")
    return found


def test_there_is_a_page_of_results() -> None:
    assert DOCS / "results.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_of_results_says_how_far_it_measured_what_is_shipped(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    recipes = re.findall(r"^- Recipe `([\w-]+)`", text, re.MULTILINE)
    lines = re.findall(r"^- Measured with: (.+)$", text, re.MULTILINE)
    assert [line.split("`")[1] for line in lines] == recipes
    for line in lines:
        assert faults(line) == [], (
            f"{page.name}: measure it again with what is shipped, or name every difference"
        )


def test_another_length_is_another_form() -> None:
    recipe = load_recipe("fast")
    line = measured_with("fast", replace(recipe, training=replace(recipe.training, steps=2600)))
    assert "training.steps 2600 (shipped: 6000)" in line
    assert faults(line.removeprefix("Measured with: ")) == []
    assert faults(line.removeprefix("Measured with: ").replace("6000", "6001"))
    assert faults(line.removeprefix("Measured with: ").replace("2600", "2601"))


def test_what_claims_to_be_shipped_has_its_settings() -> None:
    line = measured_with("fast", load_recipe("fast")).removeprefix("Measured with: ")
    assert faults(line) == []
    assert faults("`fast` as shipped (settings 00000000).")


def test_a_recipe_of_ones_own_is_not_shipped() -> None:
    assert measured_with("mine", load_recipe("fast")).endswith("which is not shipped.")
