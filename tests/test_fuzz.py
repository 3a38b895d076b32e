"""Trees of files as nobody would make them: no traceback, nothing lost, every file accounted for.

``benchmarks/fuzz_trees.py`` draws thousands more.
"""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings

from accounting import OPTIONS, Options, command_trial, scan_trial
from platforms import needs_bytes, needs_links
from trainings import detector, small_recipe
from trees import OUTSIDE, Entry, Tree, picture, trees

pytestmark = [needs_bytes, needs_links]

# Trees that showed a fault, of the tool or of the accounting, with the options that did.
PLAIN = Options(out="outside", relative=False, maps=False, again=False, drawn=False)
SUBFOLDERS_AND_A_LINK = Tree(
    (
        Entry(b"day 1/002.png", "normal", picture("png RGB", (32, 32), 2)),
        Entry(b"day 1/003.png", "normal", picture("png RGB", (32, 32), 3)),
        Entry(b"#512.txt", "link", link=b"../" + OUTSIDE.encode()),
    )
)
PAGES_IN_A_PNG = Tree(
    (Entry(b"test/NG/\xbf101.PNG", "TIFF", picture("tiff of 3 pages", (20, 33), 101)),)
)
PAGES_IN_A_BMP = Tree(
    (
        Entry(
            b"day 1/" + b"x" * 249 + b"11.bmp",
            "TIFF",
            picture("tiff of 2 pages, deep", (64, 64), 11),
        ),
    )
)


def repeated(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        # To shrink takes minutes; the benchmark prints a small tree of each kind.
        phases=[Phase.explicit, Phase.generate],
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
@example(tree=SUBFOLDERS_AND_A_LINK, options=replace(PLAIN, out="same", drawn=True))
@example(tree=SUBFOLDERS_AND_A_LINK, options=replace(PLAIN, drawn=True))
@example(tree=PAGES_IN_A_PNG, options=PLAIN)
@example(tree=PAGES_IN_A_BMP, options=replace(PLAIN, out="same"))
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
