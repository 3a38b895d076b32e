"""The leaderboard: who is ranked with whom, what a row tells, and one file without references."""

from __future__ import annotations

import re
from copy import deepcopy
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from evaluations import CHECKS, FAILED, metrics, result_of
from patchguard.errors import PatchGuardError
from patchguard.report.leaderboard import render_leaderboard
from patchguard.results.card import Card, CardDetector, robustness_card
from patchguard.results.files import read_as, write_json
from patchguard.results.schema import LABELLED, SELF_TEST


def write(
    folder: Path,
    name: str,
    auroc: float,
    *,
    data: str = "screw",
    sha256: str = "1b" * 32,
    suite: str = "quick",
    failed: bool = False,
    unchecked: bool = False,
    resolution: int | list[int] = 112,
    norms: tuple[str, ...] = ("linf",),
    **at_eps: float,
) -> Path:
    checks = [] if unchecked else [*CHECKS, FAILED] if failed else CHECKS
    content = deepcopy(metrics(auroc, checks=checks))
    content["protocol"]["suite"] = suite
    content["protocol"]["attacked_resolution"] = resolution
    content["protocol"]["threats"] = {
        norm: eps for norm, eps in content["protocol"]["threats"].items() if norm in norms
    }
    for entry in content["attacked"]:
        if entry["attack"] == "worst" and entry["eps"] == "1/255" and "small" in at_eps:
            both = entry["rows"]["both"]
            entry["rows"] = {"both": {**both, "image": {"auroc": at_eps["small"]}}}
    card = robustness_card(
        result_of(content),
        detector=CardDetector(name=name, kind="callable", parameters=1_230_000, sha256=None),
        data=data,
        sha256=sha256,
    )
    return write_json(card, folder / f"{name.strip('<>')}-{data}-{suite}-{sha256[:2]}.json")


class Tables(HTMLParser):
    """The text of the cells of each table, by the heading before it; and all attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.attributes: list[tuple[str, str]] = []
        self.tag, self.heading = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "h2":
            self.tag, self.heading = "h2", ""
        elif tag == "table":
            self.tables[self.heading] = []
        elif tag == "tr":
            self.tables[self.heading].append([])
        elif tag in ("td", "th"):
            self.tag = tag
            self.tables[self.heading][-1].append("")
        elif self.tag in ("td", "th"):
            self.tables[self.heading][-1][-1] += " "

    def handle_endtag(self, tag: str) -> None:
        if tag == self.tag:
            self.tag = ""

    def handle_data(self, data: str) -> None:
        if self.tag == "h2":
            self.heading += data
        elif self.tag:
            row = self.tables[self.heading][-1]
            row[-1] = " ".join(f"{row[-1]}{data}".split())


def rendered(*cards: Path) -> str:
    out = cards[0].parent / "board.html"
    assert render_leaderboard(cards, out) == out
    return out.read_text(encoding="utf-8")


def ranks(page: str, table: str) -> list[tuple[str, str]]:
    """Rank and name of the rows of a table."""
    rows: list[list[str]] = Tables(page).tables[table][1:]
    return [(row[0], row[1].split()[0]) for row in rows]


def cells(page: str, table: str, row: int = 0) -> dict[str, str]:
    found = Tables(page).tables[table]
    return dict(zip(found[0], found[1 + row], strict=True))


SCREW = "screw · suite quick · L∞"
L2 = "screw · suite quick · L2 · 112 × 112 px"


def test_rows_are_ranked_by_the_worst_case(tmp_path: Path) -> None:
    names = {"middle": 0.5, "best": 0.8, "last": 0.1}
    page = rendered(*(write(tmp_path, name, auroc) for name, auroc in names.items()))
    assert ranks(page, SCREW) == [("1", "best"), ("2", "middle"), ("3", "last")]


def test_equals_are_parted_by_the_smaller_radius(tmp_path: Path) -> None:
    weak, strong = (write(tmp_path, name, 0.0, small=x) for name, x in (("a", 0.1), ("b", 0.2)))
    assert ranks(rendered(weak, strong), SCREW) == [("1", "b"), ("2", "a")]


def test_equals_at_all_radii_share_a_rank(tmp_path: Path) -> None:
    names = {"b": 0.5, "a": 0.5, "c": 0.1}
    page = rendered(*(write(tmp_path, name, auroc) for name, auroc in names.items()))
    assert [rank for rank, _ in ranks(page, SCREW)] == ["1", "1", "3"]


def test_a_self_test_is_called_one(tmp_path: Path) -> None:
    path = write(tmp_path, "a", 0.5)
    assert "self-test" not in rendered(path)
    path.write_text(path.read_text().replace(LABELLED, SELF_TEST))
    assert "pseudo-anomalies (a self-test)" in rendered(path)


def test_unreliable_entries_come_last_without_a_rank_and_name_the_check(tmp_path: Path) -> None:
    flattered = write(tmp_path, "flattered", 0.99, failed=True)
    page = rendered(flattered, write(tmp_path, "honest", 0.1))
    assert ranks(page, SCREW) == [("1", "honest"), ("–", "flattered")]
    assert "unreliable: S14 (unbounded attack)" in cells(page, SCREW, 1)["detector"]
    assert page.count('class="unreliable"') == 1


def test_unchecked_entries_stand_between_the_checked_and_the_unreliable(tmp_path: Path) -> None:
    page = rendered(
        write(tmp_path, "flattered", 0.99, failed=True),
        write(tmp_path, "twin", 0.9, unchecked=True),
        write(tmp_path, "honest", 0.1),
    )
    assert ranks(page, SCREW) == [("1", "honest"), ("2", "twin"), ("–", "flattered")]
    assert "112 × 112 px unchecked" in cells(page, SCREW, 1)["detector"]
    classes = [value for name, value in Tables(page).attributes if name == "class"]
    assert [value for value in classes if "checked" in value] == ["checked", "unchecked"]


def test_attacks_that_were_skipped_are_marked_and_named(tmp_path: Path) -> None:
    page = rendered(write(tmp_path, "it", 0.4, norms=("linf", "l2")))
    marked = cells(page, SCREW)["detector"]
    assert marked.endswith("1 attack skipped transfer score: no detector called 'twin'")
    assert ("title", "transfer score") in Tables(page).attributes
    assert "skipped" not in cells(page, L2)["detector"]


def test_resolutions_share_a_table_only_for_linf(tmp_path: Path) -> None:
    norms = ("linf", "l2")
    small = write(tmp_path, "a", 0.6, norms=norms, resolution=112)
    page = rendered(small, write(tmp_path, "b", 0.5, norms=norms, resolution=224))
    assert list(Tables(page).tables) == [SCREW, L2, L2.replace("112", "224")]
    told = [cells(page, SCREW, row)["detector"] for row in (0, 1)]
    assert "112 × 112 px" in told[0] and "224 × 224 px" in told[1]


def test_a_resolution_that_is_no_square_is_told_by_height_and_width(tmp_path: Path) -> None:
    norms = ("linf", "l2")
    wide = write(tmp_path, "a", 0.6, norms=norms, resolution=[112, 224])
    page = rendered(wide, write(tmp_path, "b", 0.5, norms=norms, resolution=[112, 112]))
    assert "112 × 224 px" in cells(page, SCREW, 0)["detector"]
    assert list(Tables(page).tables) == [SCREW, L2, L2.replace("× 112", "× 224")]


def test_a_median_beyond_every_eps_is_never(tmp_path: Path) -> None:
    path = write(tmp_path, "it", 0.4)
    card = read_as(Card, path)
    assert card.numbers.minimal_eps
    found = card.numbers.minimal_eps.model_copy(update={"median": None, "never_flipped": 0.75})
    numbers = card.numbers.model_copy(update={"minimal_eps": found})
    write_json(card.model_copy(update={"numbers": numbers}), path)
    row = cells(rendered(path), SCREW)
    assert row["median minimal eps"] == "never 75.0 % never"


@pytest.mark.parametrize("other", [{"data": "bolt"}, {"sha256": "2c" * 32}, {"suite": "standard"}])
def test_other_data_or_suites_are_not_ranked_together(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    page = rendered(write(tmp_path, "a", 0.5), write(tmp_path, "b", 0.6, **other))
    assert page.count('<table class="board">') == 2


def test_each_norm_has_a_table(tmp_path: Path) -> None:
    both = write(tmp_path, "both", 0.5, norms=("linf", "l2"))
    tables = Tables(rendered(both, write(tmp_path, "one", 0.6))).tables
    assert list(tables) == [SCREW, L2]
    assert [len(rows) for rows in tables.values()] == [3, 2]


def test_a_row_tells_worst_case_legacy_gap_and_rates(tmp_path: Path) -> None:
    row = cells(rendered(write(tmp_path, "it", 0.4)), SCREW)
    assert row["detector"].startswith("it callable, 1.23 M parameters, 112 × 112 px ")
    assert row["clean AUROC"] == "0.971 0.91 to 0.99"
    assert row["worst AUROC, 4/255"] == "0.400 0.80 to 0.99"
    assert row["published attack, 4/255"] == "0.971 here 20 steps"
    assert row["gap to worst"] == "+0.571"
    assert row["eps at AUROC 0.5"] == "0.82/255"
    assert row["median minimal eps"] == "3.00/255 12.5 % never"
    assert row["caught, 4/255"] == "75.0 % 6.2 % alarms"
    assert row["worst pixel AUROC, 4/255"] == "0.432 floor 0.211 AUPRO 0.654"
    assert row["checks passed"] == "1 of 2 1 warned"


def test_columns_without_values_are_left_out(tmp_path: Path) -> None:
    page = rendered(write(tmp_path, "it", 0.4, norms=("linf", "l2")))
    headings = Tables(page).tables[L2][0]
    assert "median minimal eps" not in headings and "gap to worst" not in headings


def test_the_page_holds_the_cards_and_refers_to_nothing_outside(tmp_path: Path) -> None:
    card = write(tmp_path, "<script>", 0.4)
    page = rendered(card)
    assert "http" not in page and "@import" not in page and page.count("<script>") == 1
    links = [value for name, value in Tables(page).attributes if name in ("href", "src")]
    assert links == ["#card-1"]
    shown = re.search(r'<pre id="card-1">(.*?)</pre>', page, re.DOTALL)
    assert shown and unescape(shown[1]) == card.read_text(encoding="utf-8").strip()


def test_it_needs_cards(tmp_path: Path) -> None:
    with pytest.raises(PatchGuardError, match="no cards"):
        render_leaderboard([], tmp_path / "board.html")
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(
        PatchGuardError, match=r"metrics\.json is damaged: patchguard_card is missing"
    ):
        render_leaderboard([tmp_path / "metrics.json"], tmp_path / "board.html")
