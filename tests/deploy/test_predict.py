"""Predictions on a disk that holds other things, stops and fills up."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

import patchguard
from patchguard import cli
from patchguard.data.images import save_png
from patchguard.data.preprocess import Preprocessor
from patchguard.deploy import predict, prediction_folder
from patchguard.deploy.calibration import Calibration
from patchguard.deploy.pipeline import Pipeline
from patchguard.deploy.prediction_folder import Prediction, PredictionFolder
from patchguard.errors import PatchGuardError
from patchguard.integrations.function import FunctionDetector
from platforms import named, needs_links


@pytest.fixture
def images(tree: Path, tmp_path: Path) -> Path:
    """Three good and three scratched images."""
    folder = tmp_path / "images"
    for kind in ("good", "scratch"):
        (folder / kind).mkdir(parents=True)
        for number in range(3):
            shutil.copy(tree / "test" / kind / f"{number:03}.png", folder / kind)
    return folder


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def files(out: Path) -> set[str]:
    found = (path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    return {name for name in found if name != ".lock"}


def test_a_second_prediction_is_refused_or_replaces_the_first_whole(
    run: Path, images: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    patchguard.predict(run, images, out=out, maps=True)
    (out / "notes.txt").write_text("mine")
    (out / "overlays/mine.png").write_bytes(b"mine")
    (out / "overlays/good/000.png.png").write_bytes(b"drawn upon")
    with pytest.raises(PatchGuardError, match="holds finished predictions; add --overwrite"):
        patchguard.predict(run, images, out=out, maps=True)
    with pytest.raises(PatchGuardError, match="of other images or with other options"):
        patchguard.predict(run, images / "scratch", out=out)
    done = patchguard.predict(run, images / "scratch", out=out, overwrite=True)
    assert len(done) == len(rows(out)) == 3
    assert (out / "overlays/good/000.png.png").read_bytes() == b"drawn upon"
    assert files(out) == {
        "notes.txt",
        "overlays/mine.png",
        "overlays/good/000.png.png",
        *(f"overlays/{number:03}.png.png" for number in range(3)),
        "predictions.jsonl",
        "scores.csv",
        "scores.json",
    }


@pytest.mark.parametrize("name", ["scores.csv", "scores.json", "overlays", "maps"])
def test_what_others_put_there_is_not_written_over(
    run: Path, images: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(PatchGuardError, match="is in the way") as error:
            patchguard.predict(run, images, out=out, overwrite=overwrite)
        assert str(error.value).startswith(str(out / name))
    assert (out / name).read_text() == "mine"


def stopping_at(count: int) -> Callable[[Prediction], None]:
    """Interrupts a prediction at its image of that number."""
    made: list[Prediction] = []

    def stop(found: Prediction) -> None:
        made.append(found)
        if len(made) == count:
            raise KeyboardInterrupt

    return stop


def test_a_stopped_prediction_goes_on_from_what_is_done(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(predict, "BATCH_SIZE", 1)
    with pytest.raises(KeyboardInterrupt):
        patchguard.predict(run, images, out=out, each=stopping_at(4))
    assert len(json.loads((out / "scores.json").read_text())) == len(rows(out)) == 4
    # A kill in the middle of a line.
    with (out / "predictions.jsonl").open("a") as journal:
        journal.write('\n{"row": {"image"')
    before = {path: path.stat().st_mtime_ns for path in (out / "overlays").rglob("*.png")}
    overlay = Mock(wraps=predict.overlay)
    monkeypatch.setattr(predict, "overlay", overlay)
    done = patchguard.predict(run, images, out=out)
    assert overlay.call_count == 2
    assert [row.image for row in done] == [row["image"] for row in rows(out)]
    assert len(done) == 6
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    with pytest.raises(PatchGuardError, match="finished"):
        patchguard.predict(run, images, out=out)


def test_a_prediction_that_is_stopped_twice_lists_what_both_found(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(predict, "BATCH_SIZE", 1)
    for more, listed in ((4, 4), (1, 4)):
        with pytest.raises(KeyboardInterrupt):
            patchguard.predict(run, images, out=out, each=stopping_at(more))
        assert len(json.loads((out / "scores.json").read_text())) == listed
        assert len(rows(out)) == listed


def test_a_changed_image_is_judged_again(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, broken = tmp_path / "out", images / "broken.png"
    broken.write_bytes(b"no image")
    first = patchguard.predict(run, images, out=out)
    assert [row.error != "" for row in first].count(True) == 1
    shutil.copy(images / "scratch/000.png", broken)
    second = patchguard.predict(run, images, out=out)
    assert not any(row.error for row in second)
    assert len(rows(out)) == 7


def test_an_image_that_changed_between_two_goes_has_one_row(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(predict, "BATCH_SIZE", 1)
    with pytest.raises(KeyboardInterrupt):
        patchguard.predict(run, images, out=out, each=stopping_at(3))
    shutil.copy(images / "scratch/000.png", images / "good/000.png")
    (images / "good/001.png").write_bytes(b"no image")
    done = patchguard.predict(run, images, out=out)
    found = rows(out)
    assert [row["image"] for row in found] == [row.image for row in done]
    assert len(found) == 6
    assert found[0]["score"] == found[3]["score"]
    assert [row["verdict"] for row in found].index("error") == 1


def test_a_kill_between_noting_a_file_and_placing_it_is_no_fault_of_others(
    run: Path, images: Path, tmp_path: Path
) -> None:
    out, image = tmp_path / "out", images / "good/000.png"
    patchguard.predict(run, image, out=out)
    with (out / "predictions.jsonl").open("a") as journal:
        name = "overlays/000.png.png"
        journal.write("\n" + json.dumps({"file": name, "sha256": "of what was to take its place"}))
    shutil.copy(images / "scratch/000.png", image)
    assert not patchguard.predict(run, image, out=out)[0].error


def test_a_folder_where_a_picture_would_go_ends_no_batch(
    run: Path, images: Path, tmp_path: Path
) -> None:
    patchguard.predict(run, images, out=tmp_path / "out")
    place = tmp_path / "out/overlays/good/000.png.png"
    place.unlink()
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    done = patchguard.predict(run, images, out=tmp_path / "out", overwrite=True)
    assert [row.error for row in done].count("") == 5
    assert "000.png.png: something else is there" in done[0].error


def test_what_a_kill_left_half_written_is_removed(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    patchguard.predict(run, images, out=out)
    left = [out / ".0123abcd.77.tmp", out / "overlays/good/.0123abcd.77.tmp"]
    mine = out / "overlays/.0123abcd.tmp"
    for path in (*left, mine):
        path.write_bytes(b"half")
    patchguard.predict(run, images, out=out, overwrite=True)
    assert not any(path.exists() for path in left)
    assert mine.read_bytes() == b"half"


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="no limit of file sizes here")
def test_a_disk_that_is_full_for_the_journal_is_told_by_its_file(
    run: Path, images: Path, tmp_path: Path
) -> None:
    script = (
        "import resource, sys; from patchguard import cli; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); sys.exit(cli.main(sys.argv[1:]))"
    )
    words = ["predict", str(run), str(images), "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"patchguard: {tmp_path / 'out'}")
    assert "cannot be written (File too large)" in last


NAMES = [b"=1+1.png", b"a\nb.png", b"\xff\xfe.png", b"-x.png", b"y" * 247 + b".png"]


@pytest.mark.parametrize("name", named(NAMES))
def test_any_name_is_a_row_and_a_picture(
    run: Path, images: Path, tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copy(images / "good/000.png", images / "good" / os.fsdecode(name))
    monkeypatch.chdir(images / "good")
    assert cli.main(["predict", str(run), ".", "--out", str(out), "--maps"]) == 0
    found = rows(out)
    assert len(found) == 4
    assert all(row["image"][0] not in "=+-@\t\r" and "\n" not in row["image"] for row in found)
    assert len(list((out / "overlays").rglob("*.png"))) == 4
    assert len(list((out / "maps").rglob("*.npy"))) == 4
    text = (out / "scores.json").read_text(encoding="utf-8")
    assert "\\ud" not in text
    assert len(json.loads(text)) == 4


def test_every_page_is_a_row(run: Path, images: Path, tmp_path: Path) -> None:
    pages = [Image.open(path) for path in sorted((images / "scratch").iterdir())]
    pages[0].save(images / "pages.tif", save_all=True, append_images=pages[1:])
    done = patchguard.predict(run, images, out=tmp_path / "out")
    of_pages = [row for row in done if row.part]
    assert [row.part for row in of_pages] == [f"page {number} of 3" for number in (1, 2, 3)]
    alone = [row.score for row in done if "scratch/" in row.image]
    assert [row.score for row in of_pages] == pytest.approx(alone, abs=1e-5)
    assert (tmp_path / "out/overlays/pages.tif.page2.png").exists()


def test_several_files_and_folders_and_one_that_is_missing(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [str(images / "good/000.png"), str(images / "scratch"), str(images / "missing.png")]
    status = cli.main(["predict", str(run), *named, str(images / "good/000.png"), "--out", "o"])
    assert status == 1
    assert "missing.png: does not exist" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@needs_links
def test_files_that_are_not_read_are_told(
    run: Path, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "notes.txt").write_text("x")
    (images / "scan.heic").write_bytes(b"x")
    (images / "gone").symlink_to(images / "nowhere")
    assert cli.main(["predict", str(run), str(images)]) == 1
    printed = capsys.readouterr()
    assert "1 file of other types not read: notes.txt" in printed.out
    assert "a kind of file that is not read" in printed.err
    assert "a link that leads nowhere" in printed.err
    assert "2 of 8 images could not be" in printed.err


def test_a_disk_that_fills_up_names_the_file_and_ends_no_batch(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = save_png

    def full(path: Path, pixels: np.ndarray) -> None:
        if len(list((tmp_path / "out/overlays").rglob("*.png"))) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, pixels)

    monkeypatch.setattr(predict, "save_png", full)
    done = patchguard.predict(run, images, out=tmp_path / "out")
    assert len(done) == 6
    failed = [row for row in done if row.error]
    assert len(failed) == 4
    assert all("No space left" in row.error and ".png.png" in row.error for row in failed)
    assert all(row.score is not None for row in failed)
    monkeypatch.undo()
    assert not any(row.error for row in patchguard.predict(run, images, out=tmp_path / "out"))


def test_two_predictions_do_not_share_a_folder(run: Path, images: Path, tmp_path: Path) -> None:
    def again(_: Prediction) -> None:
        with pytest.raises(PatchGuardError, match="another patchguard command is writing here"):
            patchguard.predict(run, images, out=tmp_path / "out")

    patchguard.predict(run, images / "good/000.png", out=tmp_path / "out", each=again)


def test_overlays_below_the_inspected_folder_are_not_inspected(run: Path, images: Path) -> None:
    out = images / "out"
    patchguard.predict(run, images, out=out)
    assert len(patchguard.predict(run, images, out=out, overwrite=True)) == 6


def test_bands_do_not_show(run: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patchguard.predict(run, images, out="whole")
    monkeypatch.setattr(predict, "_ROWS_AT_ONCE", 7)
    patchguard.predict(run, images, out="bands")
    for path in Path("whole/overlays").rglob("*.png"):
        same = Path("bands") / path.relative_to("whole")
        np.testing.assert_array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(same)))


def test_the_table_is_the_journal(run: Path, images: Path) -> None:
    patchguard.predict(run, images, out="out")
    lines = [json.loads(line) for line in Path("out/predictions.jsonl").read_text().splitlines()]
    noted = [line["row"] for line in lines if "row" in line]
    assert noted == json.loads(Path("out/scores.json").read_text())
    assert lines[-1] == {"finished": True}
    assert list(rows(Path("out"))[0]) == prediction_folder.COLUMNS


def test_maps_of_a_detector_of_another_shape_come_back_at_that_of_the_image(tmp_path: Path) -> None:
    across = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (48, 1))
    save_png(tmp_path / "ramp.png", across)
    pipeline = Pipeline(
        Preprocessor((12, 40)),
        FunctionDetector(lambda images: images.mean(1), image_size=(12, 40)),
        Calibration.from_scores(np.linspace(0, 1, 20), 0.1),
    )
    out = PredictionFolder(tmp_path / "out", {})
    out.open(overwrite=False)
    inputs = predict.find_inputs([tmp_path / "ramp.png"])
    (row,) = predict.write_predictions(pipeline, inputs, out, maps=True, each=lambda row: None)
    out.close()
    assert row.verdict != "error"
    found = np.load(tmp_path / "out/maps/ramp.png.npy")
    assert found.shape == (48, 64)
    np.testing.assert_allclose(found, across / 255, atol=0.02)
    with Image.open(tmp_path / "out/overlays/ramp.png.png") as overlay:
        assert overlay.size == (64, 48)
