"""Every change that the ablations name is one that a recipe can take."""

import runpy
from pathlib import Path

import pytest

from patchguard import fitting
from patchguard.config import FitConfig, Recipe, from_plain, load_recipe

ABLATIONS = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "ablations.py"))


@pytest.mark.parametrize("variant", ABLATIONS["VARIANTS"])
def test_a_variant_of_fast_differs_from_it_and_can_be_trained(variant: str) -> None:
    fast = load_recipe("fast")
    changed = from_plain(Recipe, ABLATIONS["changed"](fast, ABLATIONS["VARIANTS"][variant]))
    assert changed != fast
    fitting.check(FitConfig(data="x", recipe=changed))
