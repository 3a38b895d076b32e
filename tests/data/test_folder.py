import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchguard.data.folder import require_labelled, scan, scan_test
from patchguard.data.images import ImageSource, read_image
from patchguard.data.listing import list_images
from patchguard.data.samples import Sample, defect_mask
from patchguard.data.split import split_normals
from patchguard.errors import PatchGuardError
from platforms import named, needs_links

DATA = Path(os.environ.get("PATCHGUARD_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def write(path: Path, width: int = 24, height: int = 20, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = int.from_bytes(os.fsencode(path))
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)
    return path


def write_mask(path: Path, width: int = 24, height: int = 20) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", (width, height))
    mask.paste(255, (2, 2, 5, 5))
    mask.save(path)
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
    assert not any(sample.anomalous or sample.masks for sample in folder.train)
    masks = {
        sample.path.relative_to(tree).as_posix(): [mask.path.name for mask in sample.masks]
        for sample in folder.test
    }
    assert masks == {
        "test/crack/000.png": ["000_mask.png"],
        "test/crack/001.png": ["001_mask.png"],
        "test/good/000.png": [],
        "test/good/001.png": [],
        "test/stain/a.b.tif": ["a.b.bmp"],
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
    assert not any(sample.masks for sample in scan(tree).test if not sample.anomalous)


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
    ((path, reason),) = folder.skipped
    assert path == mask
    assert reason.endswith("; left out with it: test/crack/001.png")
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


@pytest.mark.parametrize("name", ["crack/007_mask.png", "crack/000x.png", "dent/000_mask.png"])
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
    found = list_images(tree / "test")
    assert (found.others, found.faults) == ((), ())
    names = [path.relative_to(tree).as_posix() for path in found.images]
    assert names == [
        "test/crack/000.png",
        "test/crack/001.png",
        "test/good/000.png",
        "test/good/001.png",
        "test/stain/a.b.tif",
    ]
    assert [path.name for path in list_images(tree / "test/stain").images] == ["a.b.tif"]
    file = tree / "test/good/000.png"
    assert list_images(file).images == (file,)
    (tree / "notes").mkdir()
    for path in (tmp_path / "missing", tree / "notes"):
        with pytest.raises(PatchGuardError) as error:
            list_images(path)
        one_line(error, path)


def normals(root: str, count: int) -> list[Sample]:
    return [Sample(ImageSource(Path(root) / f"{number:03}.png"), "good") for number in range(count)]


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


def drawn(path: Path, seed: int = 0, side: int = 24) -> Image.Image:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, len(path.name)])
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8))


def told(folder, words: str) -> str:
    (line,) = [remark for remark in folder.remarks if words in remark]
    return line


@needs_links
def test_links_are_followed_and_loops_are_cut_and_named(tree, tmp_path):
    pool = tmp_path / "pool"
    write(pool / "a.png")
    write_mask(tree / "ground_truth/spot/a_mask.png")
    (tree / "test/spot").symlink_to(pool, target_is_directory=True)
    (tree / "train/good/up").symlink_to(tree, target_is_directory=True)
    (tree / "train/good/gone.png").symlink_to(tmp_path / "nowhere.png")
    folder = scan(tree)
    assert "spot" in {sample.kind for sample in folder.test}
    assert {path.name: reason.split(";")[0] for path, reason in folder.skipped} == {
        "gone.png": "a link that leads nowhere",
        "up": "a link back to a folder above it",
    }
    with pytest.raises(PatchGuardError, match="a link that leads nowhere"):
        scan(tree, strict=True)


@needs_links
def test_a_link_to_a_file_is_that_file(tmp_path):
    original = write(tmp_path / "elsewhere/a.png")
    (tmp_path / "data").mkdir()
    for name in ("x.png", "y.png"):
        (tmp_path / "data" / name).symlink_to(original)
    folder = scan(tmp_path / "data")
    assert [sample.path.name for sample in folder.train] == ["x.png"]
    assert "y.png of" in told(folder, "copies of")


@needs_links
def test_folders_that_link_to_each_other_end(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / name / "x.png")
    (tmp_path / "a/to_b").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "b/to_a").symlink_to(tmp_path / "a", target_is_directory=True)
    found = list_images(tmp_path)
    assert len(found.images) == 4
    assert len(found.faults) == 2


def test_files_that_are_not_read_are_counted_and_named(tree):
    (tree / "train/good/notes.txt").write_text("x")
    write(tree / "train/bad/x.png")
    (tree / "train/good/x.heic").write_bytes(b"x")
    folder = scan(tree)
    assert told(folder, "other types") == "1 file of other types not read: train/good/notes.txt"
    assert "1 image outside train/good" in told(folder, "train/bad/x.png")
    assert [(path.name, reason.split(";")[0]) for path, reason in folder.skipped] == [
        ("x.heic", "a kind of file that is not read")
    ]


@pytest.mark.parametrize("suffix", ["webp", "jp2", "ppm", "pgm", "gif", "jpe"])
def test_what_pillow_reads_safely_is_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    image = drawn(path)
    image.convert("L" if suffix == "pgm" else "RGB").save(path)
    assert [sample.path.name for sample in scan(tmp_path).train] == [path.name]


def test_every_page_of_a_tiff_is_an_image(tree):
    path, mask = tree / "test/stain/pages.tif", tree / "ground_truth/stain/pages_mask.tif"
    pages = [drawn(path, seed) for seed in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    marks = [Image.new("L", (24, 24)) for _ in pages]
    for place, mark in enumerate(marks):
        mark.putpixel((place, 3), 255)
    marks[0].save(mask, save_all=True, append_images=marks[1:])
    found = [sample for sample in scan(tree).test if sample.path == path]
    assert [sample.name for sample in found] == [
        f"stain/pages.tif page {number} of 3" for number in (1, 2, 3)
    ]
    for place, sample in enumerate(found):
        assert np.argwhere(defect_mask(sample)).tolist() == [[3, place]]
    marks[0].save(mask, save_all=True, append_images=marks[1:2])
    with pytest.raises(PatchGuardError, match=r"2 pages, and .* has 3") as error:
        scan(tree)
    one_line(error, mask)


def test_pages_of_training_images_count_and_one_damaged_file_is_named(tmp_path):
    path = tmp_path / "scan.tif"
    pages = [drawn(path, seed) for seed in range(3)]
    pages[0].save(path, save_all=True, append_images=pages[1:])
    write(tmp_path / "single.png")
    assert len(scan(tmp_path).train) == 4
    cut(path)
    folder = scan(tmp_path)
    assert len(folder.train) + len(folder.skipped) >= 2
    assert {fault[0] for fault in folder.skipped} == {path}


def test_a_thumbnail_in_a_tiff_is_no_page(tmp_path):
    path = tmp_path / "a.tif"
    image, thumbnail = drawn(path), drawn(path, side=16)
    image.encoderinfo = {}
    thumbnail.encoderinfo = {"tiffinfo": {254: 1}}
    image.save(path, save_all=True, append_images=[thumbnail])
    (sample,) = scan(tmp_path).train
    assert sample.source.part == ""


def test_the_first_frame_of_an_animation_is_read_and_named(tmp_path):
    path = tmp_path / "a.gif"
    frames = [drawn(path, seed) for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    folder = scan(tmp_path)
    (sample,) = folder.train
    assert sample.source.part == "first of 3 frames"
    assert "a.gif first of 3 frames" in told(folder, "first frame is read")


@pytest.mark.parametrize("extra", ["000/0.png", "000_mask_2.png", "000_mask/b.png", "000_1.png"])
def test_several_masks_of_one_image_are_joined(tree, extra):
    for path in (tree / "test/crack/001.png", tree / "ground_truth/crack/001_mask.png"):
        path.unlink()
    for name in ("000_mask.png", extra):
        path = tree / "ground_truth/crack" / name
        path.parent.mkdir(exist_ok=True)
        mask = Image.new("L", (24, 20))
        mask.putpixel((1 if name == extra else 0, 0), 255)
        mask.save(path)
    (sample,) = [sample for sample in scan(tree).test if sample.kind == "crack"]
    assert len(sample.masks) == 2
    assert np.argwhere(defect_mask(sample)).tolist() == [[0, 0], [0, 1]]


def test_a_number_that_tells_images_apart_tells_no_masks_apart(tree):
    write(tree / "test/crack/part.png")
    write(tree / "test/crack/part_1.png")
    write_mask(tree / "ground_truth/crack/part_2.png")
    with pytest.raises(PatchGuardError, match="mask of no image"):
        scan(tree)


@pytest.mark.parametrize(("colour", "words"), [(255, "marks every pixel"), (0, "marks no pixel")])
def test_a_mask_that_says_nothing_is_refused(tree, colour, words):
    mask = tree / "ground_truth/crack/000_mask.png"
    shape = Image.new("L", (24, 20))
    shape.putpixel((3, 3), 255)
    image = Image.new("RGBA", (24, 20), (colour, colour, colour, 255))
    image.putalpha(shape)
    image.save(mask)
    for read in (scan, scan_test):
        with pytest.raises(PatchGuardError, match=words) as error:
            read(tree)
        one_line(error, mask)


def test_a_test_folder_that_cannot_be_used_says_what_it_holds(tree):
    (tree / "test/good").rename(tree / "test/OK")
    with pytest.raises(PatchGuardError, match=r"holds OK \(2\), crack \(2\), stain \(1\) and no"):
        require_labelled(scan(tree))
    for kind in ("crack", "stain"):
        (tree / "test" / kind).rename(tree / kind)
    shutil.rmtree(tree / "ground_truth")
    (tree / "test/OK").rename(tree / "test/good")
    with pytest.raises(PatchGuardError, match=r"holds good \(2\) and no defects"):
        require_labelled(scan(tree))
    (tree / "test").rename(tree / "elsewhere")
    (tree / "test").mkdir()
    with pytest.raises(PatchGuardError, match="it is empty"):
        scan(tree)


def test_copies_are_left_out_of_training_and_named_everywhere(tree):
    shutil.copy(tree / "train/good/000.png", tree / "train/good/copy.png")
    Image.open(tree / "train/good/000.png").save(tree / "train/good/same_pixels.bmp")
    shutil.copy(tree / "train/good/000.png", tree / "test/good/seen.png")
    shutil.copy(tree / "test/good/001.png", tree / "test/good/twice.png")
    folder = scan(tree)
    assert len(folder.train) == 3
    assert told(folder, "left out").startswith("copies of other training images, left out: 2 of 5")
    assert "1 test image among the training images too" in told(folder, "seen.png")
    assert "copies of other test images: 1 of 7" in folder.remarks


def test_blank_images_are_named(tree):
    Image.new("RGB", (24, 20)).save(tree / "train/good/black.png")
    assert "black.png" in told(scan(tree), "1 training image of one colour all over")


def deep(path: Path, low: int, high: int, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(low, high + 1, (24, 20)).astype(np.uint16)
    values[0, :2] = low, high
    Image.fromarray(values).save(path)


def test_12_bit_values_in_16_bit_files(tmp_path):
    for seed in range(4):
        deep(tmp_path / f"{seed}.tif", 800, 2800, seed)
    folder = scan(tmp_path)
    assert folder.full_scale is None
    assert "800 to 2800 of 0 to 65535: the detector sees them nearly black" in told(
        folder, "values"
    )
    folder = scan(tmp_path, full_scale="auto")
    assert folder.full_scale == 4095
    assert told(folder, "values") == "the images use values 800 to 2800 of 0 to 4095"
    assert read_image(folder.train[0].source).max() == pytest.approx(2800 / 4095)
    assert read_image(scan(tmp_path, full_scale=2800).train[0].source).max() == 1
    with pytest.raises(PatchGuardError, match="values from 800 to 2800, expected 0 to 2000"):
        scan(tmp_path, full_scale=2000)


@pytest.mark.parametrize(("highest", "scale"), [(1.0, 1), (40.0, 63), (255.5, 511)])
def test_an_automatic_full_scale_holds_all_values_of_floats(tmp_path, highest, scale):
    for seed in range(3):
        values = np.random.default_rng(seed).uniform(0, highest, (24, 20)).astype(np.float32)
        values[0, 0] = highest
        Image.fromarray(values).save(tmp_path / f"{seed}.tif")
    folder = scan(tmp_path, full_scale="auto")
    assert folder.full_scale == scale
    assert "black" not in told(folder, "the images use values")
    assert read_image(folder.train[0].source).max() == pytest.approx(highest / scale)


def test_a_value_without_bounds_is_a_fault_also_with_an_automatic_full_scale(tmp_path):
    deep(tmp_path / "a.tif", 0, 100)
    values = np.full((24, 20), 0.5, np.float32)
    values[0, 0] = np.inf
    Image.fromarray(values).save(tmp_path / "b.tif")
    folder = scan(tmp_path, full_scale="auto")
    assert [path.name for path, _ in folder.skipped] == ["b.tif"]
    assert "values from 0.5 to inf, expected finite ones" in folder.skipped[0][1]


def test_images_of_any_one_colour_are_named(tmp_path):
    for number in range(3):
        Image.new("RGB", (24, 20), (200, 0, number)).save(tmp_path / f"{number}.png")
    assert "3 training images of one colour" in told(scan(tmp_path), "one colour")


def test_subfolders_whose_images_are_all_taken_as_normal_are_named(tmp_path):
    for number in range(3):
        write(tmp_path / f"OK/{number}.png")
    write(tmp_path / "NG/0.png")
    expected = "the images in all subfolders are taken as normal: NG (1), OK (3)"
    assert expected in scan(tmp_path).remarks


def test_the_range_in_use_is_told(tmp_path):
    write(tmp_path / "a.png")
    assert "of 0 to 255" in told(scan(tmp_path), "the images use values")


@pytest.mark.parametrize("as_table", [False, True])
def test_what_belongs_together_is_not_split(tmp_path, as_table):
    rows = ["file,group"]
    for part in range(6):
        for view in range(4):
            path = write(tmp_path / "data" / f"part{part}_view{view}.png")
            rows.append(f"{path.name},part{part}")
    table = tmp_path / "groups.csv"
    table.write_text("\n".join(rows))
    groups = str(table) if as_table else r"(part\d+)_"
    samples = scan(tmp_path / "data", groups=groups).train
    rest, held_out = split_normals(samples, 6, seed=0)
    assert (len(rest), len(held_out)) == (16, 8)
    assert not {sample.group for sample in rest} & {sample.group for sample in held_out}


@pytest.mark.parametrize("seed", range(4))
def test_a_large_group_is_trained_on(seed):
    samples = [
        Sample(
            ImageSource(Path(f"{number}.png")), "good", group="A" if number < 30 else f"{number}"
        )
        for number in range(36)
    ]
    rest, held_out = split_normals(samples, 10, seed)
    assert (len(rest), len(held_out)) == (30, 6)


def test_groups_that_leave_images_out_are_refused(tmp_path):
    for name in ("a1.png", "b.png", "c2.png"):
        write(tmp_path / "data" / name)
    for groups, words in (
        (r"(\d)", "no group for 1 of 3 images, first b.png"),
        ("(", "neither a CSV table nor a regular expression"),
    ):
        with pytest.raises(PatchGuardError, match=words) as error:
            scan(tmp_path / "data", groups=groups)
        assert str(error.value).startswith("--groups ")
    samples = scan(tmp_path / "data", groups=r"(\.)png").train
    with pytest.raises(PatchGuardError, match="all normal images are of one group"):
        split_normals(samples, 1, seed=0)


def test_groups_seen_in_training_are_named_in_the_test(tree):
    folder = scan(tree, groups=r"(\w)[^/]*$")
    assert "of groups that training images are of too" in told(folder, "groups")


NAMES = [b"=1+1.png", b"a\nb.png", b"\xff\xfe.png", b" .png", b"-rf.png", b"x" * 250 + b".png"]


@pytest.mark.parametrize("name", named(NAMES))
def test_any_name_is_read(tree, name):
    write(tree / "train/good" / os.fsdecode(name))
    folder = scan(tree, strict=True)
    assert len(folder.train) == 4
    assert all("\n" not in str(sample.source) for sample in folder.train)
    assert len(split_normals(folder.train, 1, seed=0)[0]) == 3
