"""The report of a run folder: one file, its numbers, and what it does when parts are missing."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import os
import re
import shutil
from dataclasses import asdict
from functools import cache
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from evaluations import CHECKS, FAILED, THREATS, metrics, protocol
from patchguard.config import load_recipe
from patchguard.deploy.calibration import Calibration
from patchguard.errors import PatchGuardError
from patchguard.report.contents import training_curves
from patchguard.report.pictures import (
    LARGEST_SIDE,
    ColourScale,
    heat_map,
    magnification,
    mask,
    perturbation,
    picture,
)
from patchguard.report.render import render_report
from patchguard.report.wording import verdict
from patchguard.results.files import read_as
from patchguard.results.schema import SELF_TEST, Result

SIZE = 16
FOLDER = "bolts & <nuts>" if os.name == "posix" else "bolts & nuts"
NAMES = ["good/<b>&0.png", "scratch/1.png"]
MEASURED = {
    "auroc_interval": "0.910 to 0.990",
    "skipped": "Not run: transfer score",
    "minimal_eps": "How small a perturbation",
    "stress": "Without an attacker",
    "checks": "Can these numbers be trusted?",
}
"""What the report shows of the parts of ``metrics.json`` that may be missing."""

FILES = {
    "metrics.json": "How well it works",
    "gallery.npz": "What it looks like",
    "anomalies.png": "Pseudo-anomalies it was trained on",
    "training": "The training loss",
    "twin": "undefended twin",
}
"""What it shows of the files of a run that may be missing."""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with everything in it, to alter."""
    return write_run(tmp_path / FOLDER)


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """A run folder with a detector and its metrics only, which renders faster."""
    folder = tmp_path / "bolts"
    folder.mkdir()
    (folder / "config.yaml").write_text(config())
    write_detector(folder, auroc=0.9123)
    return folder


@pytest.fixture(scope="module")
def rendered_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything in it, rendered once."""
    folder = write_run(tmp_path_factory.mktemp("report") / FOLDER)
    render_report(folder)
    return folder


@pytest.fixture(scope="module")
def page(rendered_run: Path) -> str:
    return (rendered_run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(page: str) -> str:
    return words(page)


def write_run(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text(config())
    write_detector(folder, auroc=0.9123)
    write_detector(folder / "twin", auroc=0.0456)
    Image.new("RGB", (64, 32), "grey").save(folder / "anomalies.png")
    write_log(folder, 0, [(9, 30.0, 0.01), (19, 20.0, None), (29, 99.0, None)])
    write_log(folder, 20, [(29, 10.0, None), (39, 5.0, 0.02)])
    return folder


@cache
def config() -> str:
    """The text of ``config.yaml``; YAML takes its time."""
    content = {
        "versions": {"python": "3.11.0", "torch": "2.6.0"},
        "device": "cpu, 2 threads",
        "foreground": "border",
        "varied_by": "horizontal flips, rotation 7",
        "images": {"train": 100, "held_out": 20, "skipped": 3},
        "training_seconds": 90.0,
        "settings": {
            "data": "/factory/bolts & <nuts>",
            "seed": 7,
            "recipe": asdict(load_recipe("fast")),
        },
    }
    return yaml.safe_dump(content)


def write_detector(folder: Path, auroc: float) -> None:
    folder.mkdir(exist_ok=True)
    Calibration.from_scores(np.linspace(-1, 1, 20), 0.1).to_json(folder / "calibration.json")
    (folder / "metrics.json").write_text(json.dumps(metrics(auroc)))
    write_gallery(folder)


def write_gallery(folder: Path, has_truth: bool = True) -> None:
    rng = np.random.default_rng(0)
    images = rng.random((len(NAMES), SIZE, SIZE, 3), dtype=np.float32)
    maps = rng.normal(size=(len(NAMES), SIZE, SIZE))
    np.savez_compressed(
        folder / "gallery.npz",
        images=images,
        truth=np.zeros_like(maps),
        has_truth=np.array(has_truth),
        maps=maps,
        scores=np.array([0.1234, 5.0]),
        attacked=images + np.float32(4 / 255) * rng.choice([-1, 1], images.shape),
        attacked_maps=maps - 1,
        attacked_scores=np.array([2.3456, -5.0]),
        names=np.array(NAMES),
        eps=np.array("4/255"),
        attack=np.array("worst"),
    )


def write_log(folder: Path, start: int, rows: list[tuple[int, float, float | None]]) -> None:
    log = folder / "training" / "csv" / f"from_step_{start:07d}" / "metrics.csv"
    log.parent.mkdir(parents=True)
    with log.open("w", newline="") as file:
        writer = csv.writer(file)
        degrees = ["attention_degree_1", "attention_degree_2"]
        writer.writerow(["attention_gradient_share", *degrees, "eps", "loss", "step"])
        for step, loss, share in rows:
            rare = ["", "", ""] if share is None else [share, 40.0, 20.0]
            writer.writerow([*rare, step / 2550, loss, step])


def alter_metrics(folder: Path, **changes: Any) -> None:
    path = folder / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rendered(folder: Path) -> str:
    return render_report(folder).read_text(encoding="utf-8")


def words(page: str) -> str:
    """The text of a page as it is read, in one line."""
    body = re.sub(r"<style.*?</style>|<svg.*?</svg>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", body)).split())


class Elements(HTMLParser):
    """Collects the tags left open and all attributes of a page."""

    EMPTY = frozenset({"meta", "img", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_file_refers_to_nothing_outside_itself(page: str) -> None:
    assert "<script" not in page and "@import" not in page and "http" not in page
    for name, value in Elements(page).attributes:
        if name in ("src", "href", "xlink:href", "srcset"):
            assert value.startswith(("data:image/", "#"))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)", page))


def test_tags_are_balanced_and_ids_are_unique(page: str) -> None:
    elements = Elements(page)
    ids = [value for name, value in elements.attributes if name == "id"]
    assert elements.open == []
    assert len(ids) == len(set(ids))


def test_the_same_run_gives_the_same_file(rendered_run: Path, page: str) -> None:
    path = render_report(rendered_run)
    assert path == rendered_run / "report.html"
    assert path.read_text(encoding="utf-8") == page


def test_the_headline_compares_clean_attacked_and_the_twin(text: str) -> None:
    assert "Good at finding defects; holds under attack at 4/255." in text
    assert "Clean image AUROC 0.971" in text
    assert "in the worst case over all attacks of the suite “quick” at 4/255" in text
    assert "it keeps 0.912 (95 % interval 0.801 to 0.992), where the undefended twin" in text
    assert "falls from 0.971 to 0.046" in text
    assert "The published attack (here 20 steps) alone, on its combined loss, says 0.971." in text


@pytest.mark.parametrize(
    ("auroc", "said"),
    [(0.79, "weakened by attack"), (0.49, "defeated by attack"), (math.nan, "without result")],
)
def test_the_verdict_follows_the_numbers(judged: Path, auroc: float, said: str) -> None:
    write_detector(judged, auroc)
    assert said in verdict(read_as(Result, judged / "metrics.json"), None).title


def test_metrics_appear_with_three_decimals_and_rates_in_percent(text: str) -> None:
    for value in (
        "0.971",
        "0.932",
        "0.912",
        "0.543",
        "0.876",
        "0.654",
        "6.2 %",
        "25.0 %",
        "75.0 %",
    ):
        assert value in text


def test_rows_run_from_clean_to_the_largest_eps(text: str) -> None:
    table = text.split("Detection: which images are anomalous")[1]
    assert "none 0.971 0.910 to 0.990 – 0.932 100.0 % 0.0 % 0.0 % 0.971 1/255 0.912" in table


def test_kinds_of_defects_are_told_apart_where_there_are_several(judged: Path, text: str) -> None:
    assert "Which defects are found" not in text
    content = metrics(0.9)
    content["scores"]["kinds"] = ["good"] * 4 + ["bent_pin"] * 2 + ["dent"] * 2
    content["scores"]["worst linf 4/255"] = [-2.0, -1.5, -1.0, 1.0, -9.0, 2.0, 3.0, 4.0]
    (judged / "metrics.json").write_text(json.dumps(content))
    table = words(rendered(judged)).split("Which defects are found")[1]
    threshold = json.loads((judged / "calibration.json").read_text())["threshold"]
    assert 0.5 < threshold < 1
    assert (
        "defect images AUROC, clean AUROC, 1/255 AUROC, 4/255 caught, clean caught, 4/255" in table
    )
    assert (
        "bent pin 2 1.000 0.000 0.500 50.0 % 50.0 % dent 2 1.000 0.000 1.000 100.0 % 100" in table
    )


def test_nan_and_null_are_dashes_and_an_attack_may_have_no_result(judged: Path) -> None:
    write_detector(judged, auroc=math.nan)
    content = metrics(math.nan)
    content["clean"]["image"]["f1_max"] = None
    alter_metrics(judged, clean=content["clean"])
    text = words(rendered(judged))
    assert "none 0.971 0.910 to 0.990 – – 100.0 %" in text
    assert "attack without result at 4/255" in text
    assert "nan" not in text.lower().split()


def test_attacks_that_all_were_skipped_are_no_sign_of_robustness(judged: Path) -> None:
    worst = [entry for entry in metrics(0.95)["attacked"] if entry["attack"] == "worst"]
    alter_metrics(judged, attacked=worst)
    page = rendered(judged)
    text = words(page)
    assert "Good at finding defects; not attacked." in text
    assert "No attack of the suite could run" in text and 'class="verdict unknown"' in page
    assert "0.950" not in text


def test_it_says_what_was_trained_on_what(text: str) -> None:
    network = load_recipe("fast").model
    for fact in (
        "data /factory/bolts & <nuts>",
        "100 normal images to train on, 20 held out for calibration, 3 unreadable and left out",
        f"{network.backbone}, windows of {network.window} px at",
        "1.5 minutes on the clock",
        "varied by horizontal flips, rotation 7",
        "adversarial training, eps up to 8/255, 1-step attack",
        "seed 7",
    ):
        assert fact in text


@pytest.mark.parametrize(
    ("length", "said"),
    [({"steps": 9}, "trained for as many steps"), ({"minutes": 9}, "trained for half the time")],
)
def test_it_says_how_long_the_twin_was_trained(
    rendered_run: Path, tmp_path: Path, length: dict[str, int], said: str
) -> None:
    copy = shutil.copytree(rendered_run, tmp_path / "run")
    content = yaml.safe_load((copy / "config.yaml").read_text())
    content["settings"]["recipe"]["training"] = length
    (copy / "config.yaml").write_text(yaml.safe_dump(content))
    assert f"{said} without an attack" in words(render_report(copy).read_text(encoding="utf-8"))


def test_the_oracle_is_labelled(text: str) -> None:
    assert "F1-max (oracle)" in text


def test_the_published_attack_stands_beside_the_worst_case_with_the_gap(text: str) -> None:
    table = text.split("What the published attack (here 20 steps) says")[1]
    assert "image AUROC, published (here 20 steps) worst case gap" in table
    assert "4/255 0.971 0.912 +0.059 0.876 0.432 +0.444 0.971 0.046 +0.926" in table


def test_fewer_steps_are_nowhere_taken_for_the_published_attack(page: str, text: str) -> None:
    told = text.split("How to read this")[0]
    assert told.count("PGD-1000") == 1 and "PGD-1000: these are not its numbers." in told
    assert "worst case, 4/255 0.912 published (here 20 steps) 0.971" in told
    assert "; PGD-20 0.971, 0.971, 0.971" in page
    assert "Dotted: the published attack (here 20 steps) alone." in told
    assert not re.search(r"published(?! \(here 20 steps\)| attack|ly| protocol takes)", told)


def test_each_attack_is_listed_with_its_share_and_the_lowest_is_marked(
    page: str, text: str
) -> None:
    assert "attack 1/255 4/255 worst for, at 4/255 worst case 0.912 0.912" in text
    assert "apgd score 0.922 0.922 62.5 % apgd dense 0.932 0.932 25.0 %" in text
    assert "legacy (here 20 steps) 0.971 0.971 0.0 % none: the clean image 12.5 %" in text
    assert "apgd linear 0.450 0.450 100.0 %" in text
    assert "Not run: transfer score (no detector called 'twin')." in text
    assert re.findall("<mark>(.*?)</mark>", page) == ["0.922"] * 2 + ["0.450"] * 2


def test_the_floor_stands_beside_the_pixel_worst_case(text: str) -> None:
    table = text.split("Localization: which pixels are anomalous")[1]
    assert "AUROC 95 % interval AUROC, floor" in table
    assert "1/255 0.432 0.400 to 0.500 0.211" in table


def test_other_norms_have_a_table_of_their_own(text: str) -> None:
    table = text.split("Other kinds of perturbation")[1]
    assert "L2 0.5 0.912 0.801 to 0.992 0.432 0.211 75.0 % 25.0 % 6.2 %" in table
    assert "L2 1.5" in table and "L2 0.5" not in text.split("Other kinds of perturbation")[0]


def test_the_headline_is_of_the_first_norm(judged: Path) -> None:
    alter_metrics(judged, protocol={**protocol(), "threats": {"l2": THREATS["l2"]}})
    text = words(rendered(judged))
    assert "holds under attack at L2 0.5." in text and "attacked, L2 4/255" in text


def test_minimal_eps_has_medians_quantiles_and_those_that_never_flip(text: str) -> None:
    part = text.split("How small a perturbation is enough")[1]
    assert "median of all images 3.00/255 median of normal images 2.00/255" in part
    assert "25 % of all images within 1.00/255" in part
    assert "never flipped 1 of 8 images" in part


def test_stress_is_told_apart_from_attacks(text: str) -> None:
    before, after = text.split("Without an attacker: light, blur, compression, noise")
    assert "blur 2 0.971" in after and "jpeg 30 0.934" in after and "blur 2" not in before


def test_checks_are_listed_with_status_number_and_meaning(page: str, text: str) -> None:
    assert "are known to fail: 1 passed, 1 warned, 1 skipped." in text
    assert "S1 parity PASS 2e−06 0.0001 The attacked graph is the deployed one." in text
    assert "S21 original resolution SKIP – – Not part of this suite." in text
    assert 'status fair">WARN' in page and "Do not rely" not in text


def test_a_failed_check_raises_the_alarm_on_top(judged: Path) -> None:
    (judged / "metrics.json").write_text(json.dumps(metrics(0.9, checks=[*CHECKS, FAILED])))
    page = rendered(judged)
    alarm = words(page).split("Good at finding defects")[0]
    assert "Do not rely on these numbers: the evaluation failed 1 of its own checks." in alarm
    assert "S14 unbounded attack: An attack without a bound" in alarm
    assert 'class="verdict unknown"' in page


@pytest.mark.parametrize(
    "kept", [("auroc_interval", "stress", "checks"), ("skipped", "minimal_eps")]
)
def test_parts_that_were_not_measured_are_left_out(judged: Path, kept: tuple[str, ...]) -> None:
    content = metrics(0.9)
    for part in {*MEASURED, "unreliable"} - {*kept}:
        del (content["clean"]["image"] if part == "auroc_interval" else content)[part]
    (judged / "metrics.json").write_text(json.dumps(content))
    text = words(rendered(judged))
    assert {part for part, shown in MEASURED.items() if shown in text} == {*kept}
    assert "Do not rely on these numbers" not in text


def test_an_evaluation_of_nothing_but_image_auroc_has_a_report(judged: Path) -> None:
    content = metrics(0.9)
    attacked = [
        {
            **{key: entry[key] for key in ("attack", "norm", "eps")},
            "rows": {"both": {"image": {"auroc": 0.9}}},
        }
        for entry in content["attacked"]
        if entry["attack"] in ("worst", "apgd score")
    ]
    content = {key: content[key] for key in ("patchguard_metrics", "protocol", "scores")}
    content |= {"clean": {"image": {"auroc": 0.95}}, "attacked": attacked}
    (judged / "metrics.json").write_text(json.dumps(content))
    text = words(rendered(judged))
    assert "Clean image AUROC 0.950" in text
    for absent in ("published", "Localization:", "worst for, at", "95 % interval 0"):
        assert absent not in text.split("How to read this")[0]


def test_all_three_rows_and_the_protocol_are_there(text: str) -> None:
    for row in ("anomalous images only (hiding defects)", "normal images only (raising alarms)"):
        assert row in text
    for entry in (
        "apgd on score: steps 50",
        "legacy steps 20",
        "threat: l2 0.5, 1.5",
        "good 4, scratch 4",
        "steps 17",
        "torch 2.6.0",
    ):
        assert entry in text


def test_calibration_states_threshold_evidence_guarantee_and_interval(
    rendered_run: Path, text: str
) -> None:
    calibration = Calibration.from_json(rendered_run / "calibration.json")
    low, high = calibration.rate_interval(0.9)
    assert f"{calibration.threshold:.3f} , set on 20 held-out normal images" in text
    assert "at most 10.0 %" in text
    assert f"between {100 * low:.1f} % and {100 * high:.1f} % with 90 % confidence" in text


def test_text_is_escaped(page: str) -> None:
    assert "<b>&0" not in page and "<nuts>" not in page
    assert "good/&lt;b&gt;&amp;0.png" in page
    assert f"<title>{escape(FOLDER)}" in page


def test_the_gallery_tells_scores_verdicts_and_magnification(text: str) -> None:
    assert "image score 0.123 (passes) → attacked 2.346 (flagged)" in text
    assert "perturbation × 31" in text and "twin’s map, attacked" in text
    assert "worst for its image score, at 4/255" in text


def test_a_perturbation_of_eps_just_spans_the_grey_values() -> None:
    for numerator in (1, 2, 4, 8, 16):
        factor = magnification(numerator / 255)
        assert factor * numerator / 255 <= 0.5 < (factor + 1) * numerator / 255
    assert magnification(1.0) == 1


def test_a_perturbation_of_pure_noise_is_shown_as_it_is() -> None:
    image = np.full((LARGEST_SIDE, LARGEST_SIDE, 3), 0.5)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=image.shape)
    uri = perturbation(image + 4 / 255 * signs, image, 31)
    shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    assert (np.sign(np.asarray(shown) / 255 - 0.5) == signs).mean() > 0.99


def test_pictures_keep_the_aspect_ratio() -> None:
    def size(uri: str) -> tuple[int, int]:
        return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).size

    wide, tall = np.zeros((LARGEST_SIDE, 2 * LARGEST_SIDE, 3)), np.zeros((4 * LARGEST_SIDE, 40, 3))
    assert size(picture(wide)) == size(mask(wide[..., 0])) == (LARGEST_SIDE, LARGEST_SIDE // 2)
    assert size(perturbation(tall, tall, 2)) == (10, LARGEST_SIDE)
    assert size(heat_map(tall[..., 0], ColourScale(0, 1))) == (10, LARGEST_SIDE)
    assert size(picture(wide[:9, :20])) == (20, 9)


def test_a_colour_scale_spans_all_its_maps() -> None:
    scale = ColourScale.over([np.linspace(0, 1, 1001), np.linspace(9, 10, 1001)])
    assert 0 <= scale.low < 0.05 and 9.95 < scale.high <= 10
    flat = ColourScale.over([np.zeros((1, 2, 2))])
    assert flat.low < flat.high


@pytest.mark.parametrize(
    "kept",
    [("metrics.json", "gallery.npz", "training"), ("metrics.json", "twin"), ("anomalies.png",)],
)
def test_missing_files_are_left_out(run: Path, kept: tuple[str, ...]) -> None:
    for name in FILES.keys() - {*kept}:
        remove(run / name)
    text = words(rendered(run))
    assert {name for name, shown in FILES.items() if shown in text} == {*kept}
    assert "Threshold and false alarms" in text


def test_a_run_that_was_only_trained_says_so(run: Path) -> None:
    for name in FILES:
        remove(run / name)
    assert "Nothing was evaluated yet." in words(rendered(run))


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_without_ground_truth_there_is_no_localization(judged: Path) -> None:
    content = metrics(0.9)
    del content["clean"]["pixel"]
    for entry in content["attacked"]:
        entry["rows"]["both"].pop("pixel", None)
    alter_metrics(judged, clean=content["clean"], attacked=content["attacked"])
    write_gallery(judged, has_truth=False)
    text = words(rendered(judged))
    assert "Localization" not in text and "pixel AUROC" not in text.split("How to read")[0]
    assert "image map attacked, 4/255" in text


def test_a_self_test_warns_and_does_not_speak_of_defects(judged: Path, text: str) -> None:
    assert "This is a self-test" not in text
    alter_metrics(judged, protocol={**protocol(), "test_set": SELF_TEST})
    text = words(rendered(judged))
    assert "This is a self-test" in text
    assert "Good at finding pseudo-anomalies" in text
    assert "Pseudo-anomalies that pass" in text and "pseudo-anomalies caught" in text


def test_the_attention_degree_of_every_block_is_drawn(page: str) -> None:
    assert "Tokens that a token attends to" in words(page)
    assert 'aria-label="attention degree over the training steps"' in page


def test_a_resumed_training_takes_the_superseded_rows_back(rendered_run: Path) -> None:
    curves = training_curves(rendered_run / "training" / "csv")
    assert curves["loss"].tolist() == [[9, 30], [19, 20], [29, 10], [39, 5]]
    assert curves["attention_gradient_share"].tolist() == [[9, 0.01], [39, 0.02]]


def test_no_log_gives_no_curves(tmp_path: Path) -> None:
    assert training_curves(tmp_path) == {}


@pytest.mark.parametrize("name", ["metrics.json", "gallery.npz", "anomalies.png", "config.yaml"])
@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\x00\xff"])
def test_a_damaged_file_is_named(judged: Path, name: str, content: bytes) -> None:
    (judged / name).write_bytes(content)
    with pytest.raises(PatchGuardError) as failure:
        render_report(judged)
    assert str(judged / name) in str(failure.value)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize("key", ["protocol", "clean", "attacked", "scores"])
def test_metrics_without_a_part_are_damaged(judged: Path, key: str) -> None:
    path = judged / "metrics.json"
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(PatchGuardError, match=r"metrics\.json is damaged"):
        render_report(judged)


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(PatchGuardError, match="is not a run folder"):
        render_report(tmp_path)
