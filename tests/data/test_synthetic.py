import json
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from patchguard.data.folder import scan
from patchguard.data.synthetic import CATEGORIES, defects, render, write_benchmark
from patchguard.errors import PatchGuardError

KINDS = [(category, defect) for category in CATEGORIES for defect in defects(category)]
SMALL = {"train": 3, "test_good": 2, "test_per_defect": 1}


def rng(seed):
    return np.random.default_rng(seed)


@cache
def picture(category, defect, seed):
    return render(category, defect, rng(seed))


def files(tree):
    return {p.relative_to(tree).as_posix(): p.read_bytes() for p in tree.rglob("*.png")}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmark")
    return write_benchmark(root, categories=("plate",), **SMALL)[0]


def test_three_categories_with_at_least_four_defects():
    assert len(CATEGORIES) == 3
    assert all(len(defects(category)) >= 4 for category in CATEGORIES)


@pytest.mark.parametrize("category", CATEGORIES)
def test_normal_picture(category):
    image, mask = render(category, None, rng(0))
    assert image.shape == (256, 256, 3) and image.dtype == np.float32
    assert image.min() >= 0 and image.max() <= 1
    assert mask.shape == (256, 256) and mask.dtype == bool and not mask.any()


@pytest.mark.parametrize("category", CATEGORIES)
def test_normals_vary_but_keep_their_level(category):
    images = np.stack([picture(category, None, seed)[0] for seed in range(3)])
    assert all(np.abs(a - b).mean() > 4 / 255 for a, b in pairwise(images))
    assert np.ptp(images.mean(axis=(1, 2, 3))) < 30 / 255


@pytest.mark.parametrize(("category", "defect"), KINDS)
def test_defect_is_exactly_where_its_mask_says_and_visible(category, defect):
    for seed in range(3):
        normal, _ = picture(category, None, seed)
        image, mask = picture(category, defect, seed)
        difference = np.abs(image - normal).max(axis=2)
        assert np.all(difference[~mask] == 0)
        assert 0.0025 <= mask.mean() <= 0.06
        assert difference[mask].mean() >= 25 / 255
        # Unchanged pixels may lie inside: where a floating thread was on top anyway.
        assert (difference[mask] > 4 / 255).mean() >= 2 / 3


@pytest.mark.parametrize(("category", "defect"), KINDS)
def test_defect_survives_the_resize_to_112_pixels(category, defect):
    def small(image):
        return ndimage.uniform_filter(image, (2, 2, 1))[1::2, 1::2]

    normal, image = (small(picture(category, kind, 0)[0]) for kind in (None, defect))
    assert (np.abs(image - normal).max(axis=2) > 25 / 255).sum() >= 25


@pytest.mark.parametrize(("category", "defect"), KINDS)
def test_defect_differs_from_picture_to_picture(category, defect):
    masks = [picture(category, defect, seed)[1] for seed in range(3)]
    assert not np.array_equal(masks[0], masks[1]) and not np.array_equal(masks[1], masks[2])


@pytest.mark.parametrize("category", CATEGORIES)
def test_render_is_deterministic(category):
    defect = defects(category)[0]
    again = render(category, defect, rng(0))
    pairs = zip(again, picture(category, defect, 0), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_tree_is_laid_out_as_in_mvtec(tree):
    names = set(files(tree))
    kinds = defects("plate")
    assert len(names) == 3 + 2 + 2 * len(kinds)
    assert {"train/good/002.png", "test/good/001.png"} <= names
    for kind in kinds:
        assert {f"test/{kind}/000.png", f"ground_truth/{kind}/000_mask.png"} <= names
        with Image.open(tree / f"ground_truth/{kind}/000_mask.png") as mask:
            assert (mask.mode, mask.size) == ("L", (256, 256))
            assert set(np.unique(np.asarray(mask))) == {0, 255}
    with Image.open(tree / "train/good/000.png") as image:
        assert (image.mode, image.size) == ("RGB", (256, 256))


def test_equal_seeds_give_equal_files_and_other_seeds_do_not(tree, tmp_path):
    same = write_benchmark(tmp_path / "same", categories=("plate",), **SMALL)[0]
    assert files(same) == files(tree)
    other = files(write_benchmark(tmp_path / "other", categories=("plate",), **SMALL, seed=1)[0])
    assert all(other[name] != data for name, data in files(tree).items() if "mask" not in name)


def test_pictures_of_one_tree_all_differ(tree):
    images = [data for name, data in files(tree).items() if "mask" not in name]
    assert len(set(images)) == len(images)


def test_picture_depends_on_its_own_path_only(tree, tmp_path):
    settings: dict[str, Any] = {"train": 1, "test_good": 3, "test_per_defect": 2}
    trees = write_benchmark(tmp_path, categories=("tablets", "plate"), **settings)
    assert [t.name for t in trees] == ["tablets", "plate"]
    here, there = files(tree), files(trees[1])
    common = here.keys() & there.keys()
    assert len(common) == 1 + 2 + 2 * len(defects("plate"))
    assert all(here[name] == there[name] for name in common)


def test_complete_category_is_left_alone_and_another_rewritten(tmp_path):
    settings: dict[str, Any] = {
        "categories": ("fabric",),
        "train": 2,
        "test_good": 1,
        "test_per_defect": 1,
    }
    tree = write_benchmark(tmp_path, **settings)[0]
    marked = tree / "train/good/000.png"
    original = marked.read_bytes()
    marked.write_bytes(b"kept")
    write_benchmark(tmp_path, **settings)
    assert marked.read_bytes() == b"kept"

    (tree / "train/good/001.png").unlink()
    write_benchmark(tmp_path, **settings)
    assert marked.read_bytes() == original

    write_benchmark(tmp_path, **(settings | {"train": 1}))
    assert not (tree / "train/good/001.png").exists()
    assert json.loads((tree / ".synthetic.json").read_text())["train"] == 1
    assert [p.name for p in tmp_path.iterdir() if p.name != ".lock"] == ["fabric"]


def test_a_category_holds_nothing_that_the_commands_would_not_read(tree):
    assert not [remark for remark in scan(tree).remarks if "not read" in remark]


def test_a_category_of_before_its_settings_were_hidden_is_known(tmp_path):
    tree = write_benchmark(tmp_path, categories=("fabric",), **SMALL)[0]
    (tree / ".synthetic.json").rename(tree / "synthetic.json")
    before = (tree / "train/good/000.png").stat().st_mtime_ns
    write_benchmark(tmp_path, categories=("fabric",), **SMALL)
    assert (tree / "train/good/000.png").stat().st_mtime_ns == before
    write_benchmark(tmp_path, categories=("fabric",), **SMALL, seed=1)
    assert not (tree / "synthetic.json").exists()


def test_a_folder_of_the_user_is_not_overwritten(tmp_path):
    (tmp_path / "plate").mkdir()
    (tmp_path / "plate" / "mine.png").write_bytes(b"mine")
    with pytest.raises(PatchGuardError, match="not a synthetic category"):
        write_benchmark(tmp_path, categories=("plate",), **SMALL)
    assert (tmp_path / "plate" / "mine.png").read_bytes() == b"mine"


def test_unknown_names_list_the_known_ones(tmp_path):
    with pytest.raises(PatchGuardError, match=r"'bottle'.*plate, fabric, tablets"):
        write_benchmark(tmp_path, categories=("plate", "bottle"), **SMALL)
    assert not list(tmp_path.iterdir())
    with pytest.raises(PatchGuardError, match="plate, fabric, tablets"):
        defects("bottle")
    with pytest.raises(PatchGuardError, match=r"'spot'.*plate.*scratch"):
        render("plate", "spot", rng(0))
