"""Robustness cards: what they distil, the line they give, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from evaluations import CHECKS, FAILED, LEGACY_AUROC, metrics
from patchguard.errors import PatchGuardError
from patchguard.evaluation.card import (
    eps_at_chance,
    headline,
    headline_eps,
    read_card,
    robustness_card,
    write_card,
)

DETECTOR = {"name": "bolts", "kind": "PatchGuard", "parameters": 7, "sha256": "0a" * 32}
DATA = {"name": "bolts", "sha256": "1b" * 32}


def card_of(content: dict[str, Any]) -> dict[str, Any]:
    return robustness_card(content, detector=DETECTOR, data=DATA)


def curve(*aurocs: float, clean: float = 0.9) -> dict[str, Any]:
    """Metrics whose worst image AUROC at 1/255, 2/255, ... is as given."""
    content = metrics(0.5)
    content["clean"]["image"]["auroc"] = clean
    radii = [f"{numerator}/255" for numerator in range(1, len(aurocs) + 1)]
    content["protocol"]["threats"] = {"linf": radii}
    content["attacked"] = [
        {
            "attack": "worst",
            "norm": "linf",
            "eps": eps,
            "rows": {"both": {"image": {"auroc": auroc}}},
        }
        for eps, auroc in zip(radii, aurocs, strict=True)
    ]
    return content


def test_it_holds_worst_case_floor_and_what_the_published_protocol_says() -> None:
    found = card_of(metrics(0.4))["numbers"]["attacked"]
    assert [(each["norm"], each["eps"]) for each in found] == [
        ("linf", "1/255"),
        ("linf", "4/255"),
        ("l2", "0.5"),
        ("l2", "1.5"),
    ]
    linf, l2 = found[1], found[3]
    assert linf["image_auroc"] == 0.4 and linf["image_auroc_interval"] == [0.8012, 0.9923]
    assert (linf["pixel_auroc"], linf["pixel_auroc_floor"]) == (0.4321, 0.2109)
    assert (linf["pixel_aupro"], linf["tpr"], linf["fpr"]) == (0.6543, 0.75, 0.0625)
    assert linf["tpr_interval"] == [0.5, 1.0]
    assert linf["legacy_image_auroc"] == LEGACY_AUROC
    assert linf["legacy_gap"] == pytest.approx(LEGACY_AUROC - 0.4)
    assert l2["legacy_image_auroc"] is None and l2["legacy_gap"] is None


def test_it_holds_detector_data_protocol_and_checks() -> None:
    card = card_of(metrics(0.4))
    assert card["patchguard_card"] == 1
    assert card["detector"] == DETECTOR and card["data"] == {**DATA, "normal": 4, "anomalous": 4}
    assert card["protocol"]["threats"][0] == {"norm": "linf", "eps": ["1/255", "4/255"]}
    assert card["protocol"]["settings"]["steps"] == 17
    assert "/factory" not in json.dumps(card)
    assert card["numbers"]["clean"]["image_auroc_interval"] == [0.91, 0.99]
    assert card["numbers"]["minimal_eps"]["median"] == 3 / 255
    checks = card["checks"]
    assert (checks["passed"], checks["warned"], checks["failed"], checks["skipped"]) == (1, 1, 0, 1)
    assert checks["list"] == CHECKS


def test_a_failed_check_makes_it_unreliable_whatever_the_flag_says() -> None:
    content = {**metrics(0.4, checks=[*CHECKS, FAILED]), "unreliable": False}
    card = card_of(content)
    assert card["unreliable"]
    assert "checks 1 of 3 passed, UNRELIABLE: S14 unbounded attack" in headline(card)


def test_an_evaluation_without_extras_gives_a_card() -> None:
    content = {key: metrics(0.4)[key] for key in ("protocol", "clean", "attacked")}
    for entry in content["attacked"]:
        for extra in ("intervals", "winners", "floor"):
            entry.pop(extra, None)
        for row in entry["rows"].values():
            row.pop("pixel", None)
    card = card_of(content)
    assert card["numbers"]["minimal_eps"] is None and card["checks"]["list"] == []
    assert card["numbers"]["attacked"][0]["pixel_auroc"] is None
    assert card["numbers"]["attacked"][0]["image_auroc_interval"] is None
    assert not card["unreliable"] and headline(card).endswith("no checks were run")


def test_what_is_not_finite_is_null() -> None:
    card = card_of(metrics(math.nan))
    assert card["numbers"]["attacked"][0]["image_auroc"] is None
    assert card["numbers"]["attacked"][0]["legacy_gap"] is None


@pytest.mark.parametrize(
    ("clean", "aurocs", "expected"),
    [
        (0.9, (0.8, 0.6, 0.2), (2 + 0.1 / 0.4) / 255),
        (0.9, (0.1,), 0.5 / 255),
        (0.9, (0.8, 0.5), 2 / 255),
        (0.9, (0.8, 0.7), None),
        (0.4, (0.1,), 0.0),
        (0.9, (0.7, math.nan, 0.3), 2 / 255),
        (math.nan, (0.7, 0.6), None),
    ],
)
def test_the_radius_of_chance_is_interpolated(
    clean: float, aurocs: tuple[float, ...], expected: float | None
) -> None:
    found = eps_at_chance(card_of(curve(*aurocs, clean=clean)), "linf")
    assert found is None if expected is None else found == pytest.approx(expected)


def test_the_headline_is_one_line_with_all_its_parts() -> None:
    assert headline(card_of(metrics(0.4))) == (
        "AUC 0.971 | AAUC 0.400 at linf 4/255 | gap legacy - AAUC +0.571 | "
        "eps@AUROC 0.5 0.82/255 | checks 1 of 2 passed"
    )
    never = headline(card_of(curve(0.8, 0.7)))
    assert "gap legacy - AAUC - |" in never and "eps@AUROC 0.5 never" in never


def test_the_headline_radius_is_near_4_255_or_in_the_middle() -> None:
    assert headline_eps("linf", ["8/255", "1/255", "2/255", "5/255"]) == "5/255"
    assert headline_eps("l2", ["2", "0.5", "10"]) == "2"


def test_a_card_survives_the_round_trip(tmp_path: Path) -> None:
    card = card_of(metrics(0.4))
    assert read_card(write_card(card, tmp_path / "card.json")) == card


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("patchguard_card",), 2, "patchguard_card is 2"),
        (("detector", "sha256"), "abc", "detector.sha256"),
        (("detector", "parameters"), True, "detector.parameters"),
        (("data",), [], "data is []; it must be a JSON object"),
        (("protocol", "threats", 0, "eps"), "1/255", "protocol.threats[0].eps"),
        (("numbers", "clean", "image_auroc"), 1.5, "numbers.clean.image_auroc is 1.5"),
        (("numbers", "attacked", 1, "eps"), "9/255", "numbers.attacked[1] is 'linf 9/255'"),
        (("numbers", "attacked", 0, "image_auroc_interval"), [0.1], "image_auroc_interval"),
        (("checks", "passed"), 9, "checks.passed is 9; it must be 1"),
        (("checks", "list", 0, "status"), ["PASS"], "checks.list[0].status"),
        (("checks", "list", 0, "status"), "FAIL", "checks.passed"),
        (("unreliable",), "no", "unreliable"),
    ],
)
def test_a_damaged_field_is_named_in_one_line(
    tmp_path: Path, path: tuple[Any, ...], value: Any, field: str
) -> None:
    card = card_of(metrics(0.4))
    part: Any = card
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file = tmp_path / "card.json"
    file.write_text(json.dumps(card))
    with pytest.raises(PatchGuardError) as failure:
        read_card(file)
    message = str(failure.value)
    assert message.startswith(f"{file}: ") and field in message and "\n" not in message


def test_a_hidden_failure_is_refused(tmp_path: Path) -> None:
    card = {**card_of(metrics(0.4, checks=[FAILED])), "unreliable": False}
    with pytest.raises(PatchGuardError, match="unreliable is False; it must be true"):
        write_card(card, tmp_path / "card.json")


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", "\x00", "NaN"])
def test_what_is_no_card_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "card.json"
    file.write_text(content)
    with pytest.raises(PatchGuardError, match=r"card\.json: "):
        read_card(file)
    with pytest.raises(PatchGuardError, match=r"nothing\.json: cannot be read"):
        read_card(tmp_path / "nothing.json")


@pytest.mark.parametrize("missing", ["protocol", "clean", "attacked"])
def test_metrics_without_a_part_are_named(missing: str) -> None:
    content = metrics(0.4)
    del content[missing]
    with pytest.raises(PatchGuardError, match=f"{missing} is missing"):
        card_of(content)
