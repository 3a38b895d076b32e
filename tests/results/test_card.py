"""Robustness cards: what they distil, the line they give, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from evaluations import CHECKS, FAILED, LEGACY_AUROC, metrics, result_of
from patchguard.errors import PatchGuardError
from patchguard.results.card import (
    Card,
    CardDetector,
    headline,
    published_steps,
    robustness_card,
)
from patchguard.results.files import read_as, to_json, write_json
from patchguard.results.schema import SELF_TEST, headline_eps

DETECTOR = CardDetector(name="bolts", kind="PatchGuard", parameters=7, sha256="0a" * 32)
DATA = {"name": "bolts", "sha256": "1b" * 32, "normal": 4, "anomalous": 4}


def card_of(content: dict[str, Any]) -> Card:
    return robustness_card(result_of(content), detector=DETECTOR, data="bolts", sha256="1b" * 32)


def written(content: dict[str, Any]) -> dict[str, Any]:
    """The JSON of the card."""
    return json.loads(to_json(card_of(content)))


def curve(*aurocs: float, clean: float = 0.9) -> dict[str, Any]:
    """Metrics whose worst image AUROC at 1/255, 2/255, ... is as given."""
    content = metrics(0.5)
    content["clean"]["image"]["auroc"] = clean
    radii = [f"{numerator}/255" for numerator in range(1, len(aurocs) + 1)]
    content["protocol"]["threats"] = {"linf": radii}
    content["scores"] |= {f"worst linf {eps}": content["scores"]["clean"] for eps in radii}
    content["attacked"] = [
        {
            "attack": attack,
            "norm": "linf",
            "eps": eps,
            "rows": {"both": {"image": {"auroc": auroc}}},
        }
        for eps, auroc in zip(radii, aurocs, strict=True)
        for attack in ("worst", "apgd score")
    ]
    return content


def test_it_holds_worst_case_floor_and_what_the_published_protocol_says() -> None:
    found = written(metrics(0.4))["numbers"]["attacked"]
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
    card = written(metrics(0.4))
    assert card["patchguard_card"] == 1
    assert card["detector"] == DETECTOR.model_dump() and card["data"] == DATA
    assert card["protocol"]["threats"][0] == {"norm": "linf", "eps": ["1/255", "4/255"]}
    assert card["protocol"]["settings"] == {
        "ground_truth": "native resolution, never resized",
        "steps": 17,
    }
    assert "/factory" not in json.dumps(card)
    assert card["numbers"]["clean"]["image_auroc_interval"] == [0.91, 0.99]
    assert card["numbers"]["minimal_eps"]["median"] == 3 / 255
    checks = card["checks"]
    assert (checks["passed"], checks["warned"], checks["failed"], checks["skipped"]) == (1, 1, 0, 1)
    assert checks["list"] == CHECKS


def test_it_tells_the_attacks_that_ran_from_those_that_did_not() -> None:
    protocol = written(metrics(0.4))["protocol"]
    assert protocol["attacks"] == {
        "apgd score (linf)": "apgd on score: steps 50",
        "legacy (linf)": "legacy on legacy: steps 20",
        "apgd score (l2)": "apgd on score: steps 50",
    }
    assert protocol["skipped"] == {"transfer score (linf)": "no detector called 'twin'"}
    assert protocol["legacy_steps"] == 20


def without(content: dict[str, Any], *attacks: str) -> dict[str, Any]:
    """The metrics as they are where those attacks could not run."""
    kept = [entry for entry in content["attacked"] if entry["attack"] not in attacks]
    skipped = {**content["skipped"], **dict.fromkeys(attacks, "needs ground-truth masks")}
    return {**content, "attacked": kept, "skipped": skipped}


def test_steps_of_a_published_attack_that_did_not_run_are_null() -> None:
    protocol = written(without(metrics(0.4), "legacy"))["protocol"]
    assert protocol["legacy_steps"] is None
    assert protocol["skipped"]["legacy (linf)"] == "needs ground-truth masks"


def test_a_worst_case_over_no_attack_is_no_result() -> None:
    everything = {entry["attack"] for entry in metrics(0.4)["attacked"]} - {"worst"}
    card = card_of(without(metrics(0.4), *everything))
    assert card.numbers.attacked == () and card.protocol.attacks == {}
    assert headline(card) == (
        "image AUROC 0.971 clean, not attacked | 4 attacks skipped | 1 of 2 checks passed, 1 warned"
    )


def test_a_median_that_never_flips_is_told_apart_from_one_that_was_not_measured() -> None:
    content = metrics(0.4)
    found = written(content)["numbers"]["minimal_eps"]
    shares = ("never_flipped", "never_flipped_normals", "never_flipped_anomalies")
    assert [found[name] for name in shares] == [1 / 8, 0, 1 / 4]
    values = ["inf", "inf", *[0.01] * 6]
    content["minimal_eps"] |= {"median_normals": "inf", "values": values}
    found = written(content)["numbers"]["minimal_eps"]
    assert found["median_normals"] is None
    assert [found[name] for name in shares] == [1 / 4, 1 / 2, 0]


def test_a_failed_check_makes_it_unreliable_whatever_the_flag_says() -> None:
    content = {**metrics(0.4, checks=[*CHECKS, FAILED]), "unreliable": False}
    card = card_of(content)
    assert card.unreliable
    alarm = "UNRELIABLE: S14 (unbounded attack) fails | image AUROC 0.971 clean, 0.400"
    assert headline(card).startswith(alarm)
    assert headline(card).endswith("1 of 3 checks passed, 1 warned")
    both = card_of(metrics(0.4, checks=[FAILED, {**FAILED, "id": "S2"}]))
    assert headline(both).startswith(
        "UNRELIABLE: S14 (unbounded attack), S2 (unbounded attack) fail | "
    )


def test_an_evaluation_without_extras_gives_a_card() -> None:
    parts = ("patchguard_metrics", "protocol", "clean", "attacked", "scores")
    content = {key: metrics(0.4)[key] for key in parts}
    for entry in content["attacked"]:
        entry.pop("winners", None)
        image = {"auroc": entry["rows"]["both"]["image"]["auroc"]}
        entry["rows"] = {"both": {"image": image}}
    card = written(content)
    assert card["numbers"]["minimal_eps"] is None and card["checks"]["list"] == []
    assert card["numbers"]["attacked"][0]["pixel_auroc"] is None
    assert card["numbers"]["attacked"][0]["image_auroc_interval"] is None
    assert not card["unreliable"]
    line = headline(card_of(content))
    assert line.endswith("unchecked: no self-check was run")
    assert "pixel" not in line


def test_what_is_not_finite_is_null() -> None:
    card = written(metrics(math.nan))
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
    found = card_of(curve(*aurocs, clean=clean)).eps_at_chance("linf")
    assert found is None if expected is None else found == pytest.approx(expected)


def test_the_headline_is_one_line_with_all_its_parts() -> None:
    assert headline(card_of(metrics(0.4))) == (
        "image AUROC 0.971 clean, 0.400 in the worst case at linf 4/255 | "
        "pixel AUROC 0.876 clean, 0.432 in the worst case | "
        "the published attack alone (here 20 steps) says 0.971 | AUROC 0.5 at linf 0.82/255 | "
        "1 attack skipped | 1 of 2 checks passed, 1 warned"
    )
    never = headline(card_of(curve(0.8, 0.7)))
    assert "published" not in never and "above AUROC 0.5 at every linf eps" in never


def test_the_headline_says_that_it_is_of_a_self_test() -> None:
    content = metrics(0.4)
    content["protocol"]["test_set"] = SELF_TEST
    line = headline(card_of(content))
    assert line.startswith("self-test on pseudo-anomalies | image AUROC 0.971 clean, ")


def test_the_headline_is_of_the_first_threat() -> None:
    content = metrics(0.4)
    content["protocol"]["threats"] = {"l2": ["1.5", "0.5"], "linf": ["4/255", "1/255"]}
    line = headline(card_of(content))
    assert line.startswith("image AUROC 0.971 clean, 0.400 in the worst case at l2 0.5 | ")
    assert "AUROC 0.5 at l2 0.412" in line and "published" not in line


@pytest.mark.parametrize(
    ("steps", "words"),
    [(1000, "PGD-1000"), (100, "here 100 steps"), (1, "here 1 step"), (None, "steps unknown")],
)
def test_fewer_steps_are_not_the_published_attack(steps: int | None, words: str) -> None:
    assert published_steps(steps) == words


def test_the_headline_radius_is_near_4_255_or_in_the_middle() -> None:
    assert headline_eps("linf", ["8/255", "1/255", "2/255", "5/255"]) == "5/255"
    assert headline_eps("l2", ["2", "0.5", "10"]) == "2"


def test_a_card_survives_the_round_trip(tmp_path: Path) -> None:
    card = card_of(metrics(0.4))
    assert read_as(Card, write_json(card, tmp_path / "card.json")) == card


@pytest.mark.parametrize(
    ("path", "value", "field"),
    [
        (("patchguard_card",), 2, "patchguard_card is 2"),
        (("detector", "sha256"), "abc", "detector.sha256"),
        (("detector", "parameters"), True, "detector.parameters"),
        (("data",), [], "data is [] (input should be"),
        (("protocol", "skipped"), {"apgd": None}, "protocol.skipped"),
        (("protocol", "legacy_steps"), 2.5, "protocol.legacy_steps"),
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
    card = written(metrics(0.4))
    part: Any = card
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    file = tmp_path / "card.json"
    file.write_text(json.dumps(card))
    with pytest.raises(PatchGuardError) as failure:
        read_as(Card, file)
    message = str(failure.value)
    assert message.startswith(str(file)) and field in message and "\n" not in message


def test_a_hidden_failure_is_refused(tmp_path: Path) -> None:
    card = {**written(metrics(0.4, checks=[FAILED])), "unreliable": False}
    file = tmp_path / "card.json"
    file.write_text(json.dumps(card))
    with pytest.raises(PatchGuardError, match="unreliable is False; it must be true"):
        read_as(Card, file)


@pytest.mark.parametrize("content", ["", "[1, 2]", "{}", "\x00", "NaN"])
def test_what_is_no_card_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "card.json"
    file.write_text(content)
    with pytest.raises(PatchGuardError, match=r"card\.json is damaged: .*; evaluate the detector"):
        read_as(Card, file)
    with pytest.raises(PatchGuardError, match=r"nothing\.json: cannot be read"):
        read_as(Card, tmp_path / "nothing.json")
