"""Every change that the ablations name can be trained, and figures are compared by seed."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest

from patchguard.config import FitConfig, load_recipe
from patchguard.errors import PatchGuardError
from patchguard.pipelines import fit as fitting

ABLATIONS = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "ablations.py"))


@pytest.mark.parametrize("variant", ABLATIONS["VARIANTS"])
def test_a_variant_of_fast_differs_from_it_and_can_be_trained(variant: str) -> None:
    fast = load_recipe("fast")
    changed = ABLATIONS["changed"](fast, ABLATIONS["VARIANTS"][variant])
    assert changed != fast
    fitting.check(FitConfig(data="x", recipe=changed))


def made(out: Path, eps: tuple[str, ...] = ("4/255",)) -> list[Any]:
    """Two variants and two seeds, with clean AUROC 0.5, 0.7 and 0.6, 0.9."""
    fast = load_recipe("fast")
    recipes = {"fast": fast, "awp": ABLATIONS["changed"](fast, ABLATIONS["VARIANTS"]["awp"])}
    planned = list(ABLATIONS["runs"](["data/disc"], recipes, [0, 1], eps, out))
    aurocs = {("fast", 0): 0.5, ("fast", 1): 0.7, ("awp", 0): 0.6, ("awp", 1): 0.9}
    for run in planned:
        image = {"clean": aurocs[run.variant, run.seed]}
        kept = {"settings": run.settings, "image": image, "pixel": {}, "by_kind": {}}
        run.file.write_text(json.dumps(kept))
    return planned


def test_the_table_pairs_variants_by_seed(tmp_path: Path) -> None:
    head, *rest = ABLATIONS["table"](made(tmp_path))
    assert "seeds [0, 1]" in head
    assert rest == [
        "disc, fast",
        "  image    clean 0.600 ± 0.141",
        "disc, awp",
        "  image    clean 0.750 (+0.150) ± 0.071",
    ]


def test_figures_of_other_settings_are_refused(tmp_path: Path) -> None:
    made(tmp_path)
    recipes = {"fast": load_recipe("fast")}
    for eps, steps in (("8/255", None), ("4/255", 3)):
        recipes["fast"].training.steps = steps or recipes["fast"].training.steps
        (run,) = ABLATIONS["runs"](["data/disc"], recipes, [0], (eps,), tmp_path)
        with pytest.raises(
            PatchGuardError, match=r"disc-fast-0\.json was made with other settings"
        ):
            run.figures()
