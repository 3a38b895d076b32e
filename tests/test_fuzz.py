"""Trees of files as nobody would make them: no traceback, nothing lost, every file accounted for.

``benchmarks/fuzz_trees.py`` draws thousands more.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from accounting import OPTIONS, Options, command_trial, scan_trial
from platforms import needs_bytes, needs_links
from trainings import detector, small_recipe
from trees import Tree, trees

pytestmark = [needs_bytes, needs_links]


def repeated(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        # To shrink takes minutes; the benchmark prints a small tree of each kind.
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return detector(tmp_path_factory.mktemp("small"))


@repeated(300)
@given(tree=trees())
def test_scanning_a_tree_uses_or_lists_every_file(tree: Tree) -> None:
    assert scan_trial(tree) == []


@repeated(40)
@given(tree=trees(), options=OPTIONS)
def test_every_file_of_a_tree_gets_a_row_or_a_line(
    tree: Tree, options: Options, small_run: Path
) -> None:
    assert command_trial(tree, options, small_run, small_recipe()) == []


@pytest.mark.slow
@repeated(300)
@given(tree=trees(), options=OPTIONS)
def test_every_file_of_many_trees_gets_a_row_or_a_line(
    tree: Tree, options: Options, small_run: Path
) -> None:
    assert command_trial(tree, options, small_run, small_recipe()) == []
