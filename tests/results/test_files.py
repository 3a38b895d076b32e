"""Results as files: what is written is read, by strict parsers too; older formats; damage."""

from __future__ import annotations

import json
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import patchguard
from evaluations import metrics, result_of
from patchguard.config import FitConfig
from patchguard.errors import PatchGuardError
from patchguard.pipelines.evaluate import worst_auroc
from patchguard.pipelines.study import Planned, read
from patchguard.report import leaderboard, study
from patchguard.report.render import render_report
from patchguard.results.card import Card, headline, robustness_card
from patchguard.results.files import read_as, to_json, write_json
from patchguard.results.schema import WORST, Result


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def strict(path: Path) -> dict[str, Any]:
    """The content of a file, by a parser that takes JSON and nothing else."""
    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_result_survives_the_round_trip(tmp_path: Path) -> None:
    result = result_of(metrics(0.4))
    path = write_json(result, tmp_path / "metrics.json")
    assert read_as(Result, path) == result
    assert strict(path)["patchguard_metrics"] == 2


def test_a_resolution_is_height_and_width_and_was_the_side_of_a_square(tmp_path: Path) -> None:
    content = metrics(0.4)
    for given, found in ((112, (112, 112)), ([112, 224], (112, 224))):
        content["protocol"]["attacked_resolution"] = given
        path = write_json(result_of(content), tmp_path / "metrics.json")
        assert strict(path)["protocol"]["attacked_resolution"] == list(found)
        assert read_as(Result, path).protocol.attacked_resolution == found
    damaged = path.read_text().replace("224", "-1")
    path.write_text(damaged)
    with pytest.raises(PatchGuardError, match=r"attacked_resolution\[1\] is -1"):
        read_as(Result, path)


def test_missing_and_infinite_numbers_have_one_form_for_strict_parsers(tmp_path: Path) -> None:
    content = metrics(math.nan)
    content["scores"]["clean"] = [-math.inf, *content["scores"]["clean"][1:]]
    path = write_json(result_of(content), tmp_path / "metrics.json")
    written = strict(path)
    assert written["clean"]["image"]["ap"] is None
    assert written["scores"]["clean"][0] == "-inf"
    assert written["minimal_eps"]["values"][-1] == "inf"
    found = read_as(Result, path)
    assert math.isnan(found.clean.image.ap)
    assert found.scores_under()[0] == -math.inf
    assert found.minimal_eps and found.minimal_eps.values[-1] == math.inf


def test_names_that_are_not_text_can_be_written(tmp_path: Path) -> None:
    content = metrics(0.4)
    content["scores"]["names"][0] = "caf\udce9\n.png"
    path = write_json(result_of(content), tmp_path / "metrics.json")
    assert strict(path)["scores"]["names"][0] == r"caf\xe9\n.png"


def test_what_a_reader_does_not_know_is_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = json.loads(json.dumps(metrics(0.4)))
    content["certified"] = {"radius": 1}
    content["clean"]["image"]["auprc"] = 0.5
    content["checks"][0]["took"] = 3
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        assert to_json(read_as(Result, path)) == to_json(result_of(metrics(0.4)))
    (message,) = caplog.messages
    assert message.startswith(str(path)) and message.endswith(": auprc, certified, took")


def test_facts_that_are_added_to_the_protocol_reach_report_and_card() -> None:
    content = metrics(0.4)
    content["protocol"]["clock"] = "synchronised"
    assert result_of(content).protocol.told()["clock"] == "synchronised"


@pytest.mark.parametrize(
    ("kind", "format"), [(Result, "patchguard_metrics"), (Card, "patchguard_card")]
)
def test_a_later_format_is_refused_in_one_line(tmp_path: Path, kind: Any, format: str) -> None:
    path = tmp_path / "later.json"
    path.write_text(json.dumps({format: 9}))
    with pytest.raises(
        PatchGuardError, match=f"^{re.escape(str(path))}: {format} is 9; .*install"
    ) as failure:
        read_as(kind, path)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("clean", "image", "auroc"), "high", "clean.image.auroc is 'high'"),
        (("attacked", 0, "eps"), "4/25a", r"attacked\[0\]: .*4/25a"),
        (("attacked", 0, "rows"), {}, r"attacked\[0\].rows: both is missing"),
        (("protocol", "threats"), {}, "protocol.threats is {}"),
        (("scores", "worst linf 4/255"), [1.0], "scores: worst linf 4/255: 1 scores of 8 images"),
        (("checks", 0, "status"), "FINE", r"checks\[0\].status is 'FINE'"),
        (("protocol", "seed"), True, "protocol.seed is True"),
    ],
)
def test_a_damaged_field_is_named_in_one_line(
    tmp_path: Path, path: tuple[Any, ...], value: Any, said: str
) -> None:
    content = json.loads(json.dumps(metrics(0.4)))
    part = content
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(content))
    with pytest.raises(
        PatchGuardError, match=rf"metrics\.json is damaged: {said}.*; evaluate the detector again"
    ) as failure:
        read_as(Result, file)
    assert "\n" not in str(failure.value)


def test_scores_of_a_worst_case_may_not_be_missing(tmp_path: Path) -> None:
    content = metrics(0.4)
    del content["scores"]["worst l2 0.5"]
    file = tmp_path / "metrics.json"
    file.write_text(json.dumps(content))
    with pytest.raises(PatchGuardError, match=r"worst l2 0\.5 is missing"):
        read_as(Result, file)


def test_format_1_is_migrated_without_a_loss(run_of_format_1: Path) -> None:
    path = run_of_format_1 / "metrics.json"
    old = json.loads(path.read_text())
    assert "Infinity" in path.read_text() and "patchguard_metrics" not in old
    found = read_as(Result, path)
    assert found.clean.image.auroc_interval == tuple(old["intervals"]["image"]["auroc"])
    for entry in old["attacked"]:
        if entry["attack"] == WORST:
            (result,) = (
                each for each in found.under(WORST, entry["norm"]) if each.eps == entry["eps"]
            )
            assert result.both.image.auroc == entry["rows"]["both"]["image"]["auroc"]
            assert result.both.pixel and result.both.deployed
            assert result.both.pixel.auroc_floor == entry["floor"]["pixel"]["auroc"]
            assert (
                list(result.both.deployed.tpr_interval or ())
                == (entry["intervals"]["deployed"]["tpr"])
            )
    assert found.minimal_eps and list(found.minimal_eps.values) == old["minimal_eps"]["values"]
    assert [check.model_dump() for check in found.checks] == old["checks"]
    again = write_json(found, run_of_format_1 / "metrics.json")
    assert read_as(Result, again) == found and strict(again)["patchguard_metrics"] == 2


def test_nothing_in_format_1_is_unknown(
    run_of_format_1: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for folder in (run_of_format_1, run_of_format_1 / "twin"):
        read_as(Result, folder / "metrics.json")
        read_as(Card, folder / "card.json")
    assert not caplog.messages


def test_the_card_of_format_1_is_the_projection_of_its_metrics(run_of_format_1: Path) -> None:
    card = read_as(Card, run_of_format_1 / "card.json")
    result = read_as(Result, run_of_format_1 / "metrics.json")
    assert card == robustness_card(
        result, detector=card.detector, data=card.data.name, sha256=card.data.sha256
    )
    assert headline(card).startswith(
        "UNRELIABLE: S24 (undefended control) fails | image AUROC 1.000 clean, 1.000"
    )


def test_minimal_eps_of_format_1_may_be_null(run_of_format_1: Path) -> None:
    path = run_of_format_1 / "metrics.json"
    path.write_text(path.read_text().replace("Infinity", "null"))
    found = read_as(Result, path).minimal_eps
    assert found and found.values.count(math.inf) == 4 and math.isnan(found.median)


def test_a_run_of_format_1_is_loaded_reported_listed_and_compared(
    run_of_format_1: Path, tmp_path: Path
) -> None:
    assert patchguard.load(run_of_format_1)(torch.rand(1, 3, 32, 32)).score.isfinite()
    page = render_report(run_of_format_1).read_text(encoding="utf-8")
    assert "S24" in page and "undefended twin falls from 1.000 to 0.188" in page
    cards = sorted(run_of_format_1.rglob("card.json"))
    board = leaderboard.render_leaderboard(cards, tmp_path / "board.html")
    assert "run_format_1 twin" in board.read_text(encoding="utf-8")
    found = read(Planned(run_of_format_1, "disc", "fast", FitConfig(data="disc")))
    assert found.settings.recipe.model.window == 32
    assert found.settings.recipe.model.views == ["whole"]
    assert study.aurocs(found.metrics, "image")["4/255"] == 1.0
    assert worst_auroc(run_of_format_1 / "twin") == {"1/255": 1.0, "4/255": 0.1875}
