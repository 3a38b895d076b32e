"""Recipes: what is shipped, what extends what, and what is wrong in one line."""

from pathlib import Path

import pytest

from patchguard.config import RECIPES, Recipe, load_recipe
from patchguard.errors import PatchGuardError
from patchguard.shipped import recipe_settings, settings_digest

SHIPPED = {
    "clean": "54d4aeb2",
    "fast": "741ccd5e",
    "paper": "0cdd4fd8",
    "pretrain": "31de0dd0",
    "strong": "ba581809",
}
"""What was measured was measured with recipes of these settings."""


def test_every_shipped_recipe_has_the_settings_it_was_measured_with() -> None:
    assert SHIPPED == {
        path.stem: settings_digest(recipe_settings(load_recipe(path.stem)))
        for path in RECIPES.glob("*.yaml")
    }
