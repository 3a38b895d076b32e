import os
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchguard.data.folder import Sample, list_images, scan, split_normals
from patchguard.errors import PatchGuardError

DATA = Path(os.environ.get("PATCHGUARD_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def write(path: Path, width: int = 24, height: int = 20, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


def write_mask(path: Path, width: int = 24, height: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height), 255).save(path)
    return path


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three training images; test: two good, two cracks and a stain, all with masks."""
    root = tmp_path / "part"
    for name in ("000.png", "001.jpg", "002.bmp"):
        write(root / "train/good" / name)
    for name in ("000.png", "001.png"):
        write(root / "test/good" / name)
        write(root / "test/crack" / name)
        write_mask(root / "ground_truth/crack" / name.replace(".", "_mask."))
    write(root / "test/stain/a.b.tif")
    write_mask(root / "ground_truth/stain/a.b.bmp")
    return root


def one_line(error: pytest.ExceptionInfo[PatchGuardError], path: Path) -> str:
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


def test_tree(tree):
    folder = scan(tree)
    assert [sample.path.name for sample in folder.train] == ["000.png", "001.jpg", "002.bmp"]
    assert not any(sample.anomalous or sample.mask for sample in folder.train)
    masks = {
        sample.path.relative_to(tree).as_posix(): sample.mask and sample.mask.name
        for sample in folder.test
    }
    assert masks == {
        "test/crack/000.png": "000_mask.png",
        "test/crack/001.png": "001_mask.png",
        "test/good/000.png": None,
        "test/good/001.png": None,
        "test/stain/a.b.tif": "a.b.bmp",
    }
    assert [sample.kind for sample in folder.test] == ["crack", "crack", "good", "good", "stain"]
    assert folder.has_test
    assert folder.has_masks
    assert folder.skipped == ()


def test_hidden_and_foreign_files_are_ignored(tree):
    (tree / "train/good/Thumbs.db").write_bytes(b"x")
    (tree / "train/good/notes.txt").write_text("x")
    (tree / "train/good/._000.png").write_bytes(b"x")
    (tree / "test/.DS_Store").write_bytes(b"x")
    (tree / "ground_truth/.cache").mkdir()
    (tree / "ground_truth/.cache/x.png").write_bytes(b"x")
    folder = scan(tree, strict=True)
    assert (len(folder.train), len(folder.test)) == (3, 5)


def test_a_tree_without_test_images(tree):
    for part in ("test", "ground_truth"):
        (tree / part).rename(tree.parent / part)
    folder = scan(tree)
    assert len(folder.train) == 3
    assert not folder.has_test
    assert not folder.has_masks


def test_ranking_needs_both_kinds_of_test_images(tree):
    for path in (tree / "test/good").iterdir():
        path.unlink()
    assert not scan(tree).has_test


def test_some_masks_missing(tree):
    (tree / "ground_truth/crack/001_mask.png").unlink()
    folder = scan(tree)
    assert not folder.has_masks
    assert [sample.path.name for sample in folder.unmasked] == ["001.png"]


def test_masks_of_good_images_are_not_read(tree):
    write_mask(tree / "ground_truth/good/000_mask.png", 5, 5)
    assert not any(sample.mask for sample in scan(tree).test if not sample.anomalous)


def test_corrupt_files_are_skipped_with_a_reason(tree):
    bad = [
        cut(tree / "train/good/001.jpg"),
        cut(tree / "test/crack/001.png"),
        cut(tree / "test/stain/a.b.tif"),
    ]
    folder = scan(tree)
    assert [path for path, _ in folder.skipped] == bad
    assert all("damaged or cut short" in reason for _, reason in folder.skipped)
    assert not any(str(path) in reason for path, reason in folder.skipped)
    assert (len(folder.train), len(folder.test)) == (2, 3)
    with pytest.raises(PatchGuardError, match="damaged or cut short") as error:
        scan(tree, strict=True)
    one_line(error, bad[0])


def test_an_image_with_a_corrupt_mask_is_skipped(tree):
    mask = tree / "ground_truth/crack/001_mask.png"
    mask.write_bytes(b"")
    folder = scan(tree)
    assert [path for path, _ in folder.skipped] == [mask]
    assert len(folder.test) == 4
    with pytest.raises(PatchGuardError) as error:
        scan(tree, strict=True)
    one_line(error, mask)


def test_too_small_images_are_skipped(tree):
    small = write(tree / "train/good/003.png", width=40, height=15)
    assert scan(tree).skipped == ((small, "40x15 pixels; both sides need at least 16"),)
    assert scan(tree, minimum_side=15).skipped == ()
    with pytest.raises(PatchGuardError, match="40x15") as error:
        scan(tree, strict=True)
    one_line(error, small)


def test_all_training_images_corrupt(tree):
    for path in (tree / "train/good").iterdir():
        path.write_bytes(b"")
    with pytest.raises(PatchGuardError, match=r"none of the 3 training images.*000\.png") as error:
        scan(tree)
    one_line(error, tree)


@pytest.mark.parametrize("strict", [False, True])
def test_a_mask_of_another_size(tree, strict):
    mask = write_mask(tree / "ground_truth/crack/001_mask.png", width=20, height=24)
    with pytest.raises(PatchGuardError, match=r"20x24 pixels for an image of 24x20") as error:
        scan(tree, strict=strict)
    one_line(error, mask)


def test_mask_size_is_compared_with_the_upright_image(tree):
    rotated = Image.Exif()
    rotated[274] = 6
    write(tree / "test/crack/001.png", exif=rotated)
    write_mask(tree / "ground_truth/crack/001_mask.png", width=20, height=24)
    assert scan(tree, strict=True).has_masks


@pytest.mark.parametrize("name", ["crack/007_mask.png", "crack/000.png", "dent/000_mask.png"])
def test_a_mask_of_no_image(tree, name):
    mask = write_mask(tree / "ground_truth" / name)
    with pytest.raises(PatchGuardError, match="mask of no image") as error:
        scan(tree)
    one_line(error, mask)


def test_two_masks_of_one_image(tree):
    mask = write_mask(tree / "ground_truth/crack/000_mask.tif")
    with pytest.raises(PatchGuardError, match="second mask") as error:
        scan(tree)
    one_line(error, mask)


def test_a_test_image_without_a_kind(tree):
    stray = write(tree / "test/stray.png")
    with pytest.raises(PatchGuardError, match="test/good") as error:
        scan(tree)
    one_line(error, stray)


def test_missing_and_empty_folders(tmp_path, tree):
    missing, empty, file = tmp_path / "missing", tmp_path / "empty", tmp_path / "file.png"
    empty.mkdir()
    write(file)
    for path, words in [
        (missing, "does not exist"),
        (empty, "no images in this folder"),
        (file, "not a folder"),
    ]:
        with pytest.raises(PatchGuardError, match=words) as error:
            scan(path)
        one_line(error, path)
    for path in (tree / "train/good").iterdir():
        path.unlink()
    with pytest.raises(PatchGuardError, match="normal training images belong there") as error:
        scan(tree)
    one_line(error, tree / "train/good")


def test_a_plain_folder_holds_normal_images(tmp_path):
    write(tmp_path / "b.png")
    write(tmp_path / "a.JPG")
    write(tmp_path / "defects/c.png")
    folder = scan(tmp_path)
    assert [sample.path.name for sample in folder.train] == ["a.JPG", "b.png"]
    assert {sample.kind for sample in folder.train} == {"good"}
    assert folder.test == ()


def test_a_plain_folder_of_subfolders(tmp_path):
    write(tmp_path / "tuesday/a.png")
    write(tmp_path / "monday/early/b.png")
    assert [s.path.name for s in scan(tmp_path).train] == ["b.png", "a.png"]


def test_folders_whose_normal_images_cannot_be_told(tree):
    with pytest.raises(PatchGuardError, match="name one, such as part") as error:
        scan(tree.parent)
    one_line(error, tree.parent)
    with pytest.raises(PatchGuardError, match="'good' and 'crack'") as error:
        scan(tree / "test")
    one_line(error, tree / "test")


def test_list_images(tree, tmp_path):
    names = [path.relative_to(tree).as_posix() for path in list_images(tree / "test")]
    assert names == [
        "test/crack/000.png",
        "test/crack/001.png",
        "test/good/000.png",
        "test/good/001.png",
        "test/stain/a.b.tif",
    ]
    assert [path.name for path in list_images(tree / "test/stain")] == ["a.b.tif"]
    file = tree / "test/good/000.png"
    assert list_images(file) == [file]
    (tree / "notes").mkdir()
    for path in (tmp_path / "missing", tree / "notes"):
        with pytest.raises(PatchGuardError) as error:
            list_images(path)
        one_line(error, path)


def normals(root: str, count: int) -> list[Sample]:
    return [Sample(Path(root) / f"{number:03}.png", "good") for number in range(count)]


def test_split_parts_the_samples():
    samples = normals("/data/part", 30)
    rest, held_out = split_normals(samples, 7, seed=0)
    assert (len(rest), len(held_out)) == (23, 7)
    assert sorted((*rest, *held_out), key=lambda sample: sample.path) == samples
    assert split_normals(samples, 7, seed=1)[1] != held_out


def test_split_is_the_same_in_any_order_place_and_version():
    samples = normals("/data/part", 30)
    expected = [sample.path.name for sample in split_normals(samples, 3, seed=0)[1]]
    assert expected == ["006.png", "008.png", "021.png"]
    moved = normals("elsewhere", 30)
    random.Random(0).shuffle(moved)
    assert [sample.path.name for sample in split_normals(moved, 3, seed=0)[1]] == expected


@pytest.mark.parametrize("held_out", [-1, 0, 4, 5])
def test_split_leaves_something_on_both_sides(held_out):
    with pytest.raises(PatchGuardError, match=f"cannot hold out {held_out} of 4 normal images"):
        split_normals(normals("/data", 4), held_out, seed=0)


@pytest.mark.skipif(not (DATA / "mvtec_ad/screw").is_dir(), reason="no MVTec AD screw")
def test_mvtec_screw():
    folder = scan(DATA / "mvtec_ad/screw", strict=True)
    defective = [sample for sample in folder.test if sample.anomalous]
    assert (len(folder.train), len(folder.test), len(defective)) == (320, 160, 119)
    assert folder.has_test
    assert folder.has_masks
    assert folder.skipped == ()
