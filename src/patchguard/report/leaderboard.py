"""A page that compares robustness cards, those of one protocol in one table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import NamedTuple

from patchguard.errors import PatchGuardError
from patchguard.files import write_whole
from patchguard.report.page import GENERATOR, render_page
from patchguard.report.wording import DASH, gap, norm_name, number, percent, resolution
from patchguard.results.card import (
    PUBLISHED_STEPS,
    Card,
    CardMetrics,
    CardWorst,
    eps_text,
    headline,
    published_steps,
)
from patchguard.results.files import read_as, to_json
from patchguard.results.schema import ascending, headline_eps

TRUST = ("checked", "unchecked", "unreliable")
"""What checks make of an evaluation, in the order of the rows."""


MARKS = (GENERATOR.encode(), b"<title>Robustness leaderboard")
"""Of which a page that may be written again has one; those of former versions have the second."""


class Key(NamedTuple):
    """What cards have in common whose numbers compare."""

    data: str
    sha256: str
    suite: str
    norm: str
    resolution: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A card and where its JSON lies on the page."""

    card: Card
    anchor: str

    @property
    def headline(self) -> str:
        return headline(self.card)

    @property
    def json(self) -> str:
        return to_json(self.card)


@dataclass(frozen=True)
class Cell:
    """What a table shows, in small print below it, and the number or word it is sorted by."""

    text: str
    key: float | str | None
    small: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A detector; ``rank`` is None where a check of its evaluation failed.

    ``skipped`` are the attacks on it in the norm of the table that did not run, with the reason.
    """

    rank: int | None
    entry: Entry
    cells: tuple[Cell, ...]
    failed: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def trust(self) -> str:
        """What the checks of its evaluation make of it."""
        return TRUST[_distrust(self.entry.card)]


@dataclass(frozen=True)
class _Group:
    """Cards whose numbers compare: the same data, suite and norm.

    And, in norms that grow with the number of pixels, the same ``resolution``; it is empty for
    linf.
    """

    data: str
    sha256: str | None
    images: str
    suite: str
    norm: str
    resolution: str
    eps: str
    headings: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def ranked_by(self) -> str:
        """The heading of the column that decides the ranks."""
        return _worst_at(self.eps)


def render_leaderboard(cards: Sequence[Path], out: Path) -> Path:
    """Write one HTML file about robustness cards.

    Numbers under different protocols are not ranked together: there is a table for every data
    set, suite and norm, and, but for linf, resolution. A table is ranked by the worst image AUROC
    at one radius. Entries whose evaluation ran no check of itself come after all that did; those
    that failed one come last, without a rank.

    Args:
        cards: files that :func:`~patchguard.results.files.write_json` wrote.
        out: HTML file to write; it refers to nothing outside itself.

    Returns:
        ``out``.

    Raises:
        PatchGuardError: no cards, or a file that is no card.
    """
    if not cards:
        raise PatchGuardError("leaderboard: no cards; name at least one card.json")
    entries = [Entry(read_as(Card, path), f"card-{place}") for place, path in enumerate(cards, 1)]
    content = {
        "groups": _groups(entries),
        "entries": entries,
        "norm_name": norm_name,
        "published_steps": PUBLISHED_STEPS,
    }
    write_whole(out, render_page("leaderboard.html.j2", content))
    return out


def _groups(entries: Sequence[Entry]) -> list[_Group]:
    found: dict[Key, list[Entry]] = {}
    for entry in entries:
        for norm in dict.fromkeys(result.norm for result in entry.card.numbers.attacked):
            found.setdefault(_key(entry.card, norm), []).append(entry)
    return [_group(key, found[key]) for key in sorted(found, key=_order)]


def _key(card: Card, norm: str) -> Key:
    data, protocol = card.data, card.protocol
    # The same radius in l2, l1 or l0 is less for each pixel of a larger image.
    shape = () if norm == "linf" else protocol.attacked_resolution
    return Key(data.name, data.sha256 or "", protocol.suite, norm, shape)


def _order(key: Key) -> Key:
    """By data and suite; linf before the other norms."""
    return key._replace(norm="" if key.norm == "linf" else key.norm)


def _group(key: Key, entries: Sequence[Entry]) -> _Group:
    norm = key.norm
    radii = [set(_by_eps(entry.card, norm)) for entry in entries]
    shared = set.intersection(*radii)
    at = headline_eps(norm, sorted(shared or set.union(*radii)))
    eps = ascending(norm, list(set.union(*radii)))
    ranked = sorted(entries, key=lambda entry: _standing(entry.card, norm, [at, *eps]))
    headings, cells = _columns([_cells(entry.card, norm, at, eps) for entry in ranked])
    card = entries[0].card
    defects = "pseudo-anomalies (a self-test)" if card.self_test else "anomalous images"
    standings = [_standing(entry.card, norm, [at, *eps]) for entry in ranked]
    return _Group(
        data=card.data.name,
        sha256=card.data.sha256,
        images=f"{card.data.normal} normal and {card.data.anomalous} {defects}",
        suite=card.protocol.suite,
        norm=norm,
        resolution=resolution(key.resolution) if key.resolution else "",
        eps=at,
        headings=headings,
        rows=tuple(
            Row(
                rank=None if entry.card.unreliable else 1 + standings.index(standing),
                entry=entry,
                cells=of_entry,
                failed=tuple(f"{check.id} ({check.name})" for check in entry.card.checks.failures),
                skipped=_skipped(entry.card, norm),
            )
            for entry, of_entry, standing in zip(ranked, cells, standings, strict=True)
        ),
    )


def _standing(card: Card, norm: str, eps: Sequence[str]) -> tuple[float, ...]:
    """Ascending from the first place to the last; equals at one radius are parted by the next.

    Cards equal at every radius share a place.
    """
    results = _by_eps(card, norm)
    worst = [getattr(results.get(each), "image_auroc", None) for each in eps]
    return _distrust(card), *(inf if auroc is None else -auroc for auroc in worst)


def _distrust(card: Card) -> int:
    """The place in ``TRUST``."""
    if card.unreliable:
        return 2
    return 0 if card.checks.run else 1


def _skipped(card: Card, norm: str) -> tuple[tuple[str, str], ...]:
    suffix = f" ({norm})"
    return tuple(
        (name.removesuffix(suffix), reason)
        for name, reason in card.protocol.skipped.items()
        if name.endswith(suffix)
    )


def _cells(card: Card, norm: str, at: str, eps: Sequence[str]) -> dict[str, Cell]:
    """What a row shows, by the heading of its column."""
    results = _by_eps(card, norm)
    here = results.get(at)
    return {
        "detector": _detector(card),
        "clean AUROC": _auroc(card.numbers.clean),
        **{_worst_at(each): _auroc(results.get(each)) for each in eps},
        f"published attack, {at}": _published(card, here),
        "gap to worst": _gap(here.legacy_gap if here else None),
        "eps at AUROC 0.5": _chance(card, norm),
        "median minimal eps": _minimal_eps(card, norm),
        f"caught, {at}": _caught(here),
        f"worst pixel AUROC, {at}": _pixel(here),
        "checks passed": _checks(card),
    }


def _worst_at(eps: str) -> str:
    return f"worst AUROC, {eps}"


def _columns(
    rows: Sequence[Mapping[str, Cell]],
) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """The headings and cells of the columns in which anything was measured."""
    headings = tuple(name for name in rows[0] if any(row[name].key is not None for row in rows))
    return headings, [tuple(row[name] for name in headings) for row in rows]


def _detector(card: Card) -> Cell:
    detector, size = card.detector, resolution(card.protocol.attacked_resolution)
    about = f"{detector.kind}, {_in_short(detector.parameters)} parameters, {size}"
    return Cell(detector.name, detector.name.lower(), (about,))


def _in_short(count: int) -> str:
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.3g}\N{NO-BREAK SPACE}{letter}"
    return str(count)


def _auroc(measured: CardMetrics | None) -> Cell:
    if measured is None:
        return _number(None)
    ends = measured.image_auroc_interval
    small = (f"{ends[0]:.2f} to {ends[1]:.2f}",) if ends else ()
    return _number(measured.image_auroc, *small)


def _pixel(worst: CardWorst | None) -> Cell:
    if worst is None:
        return _number(None)
    beside = {"floor": worst.pixel_auroc_floor, "AUPRO": worst.pixel_aupro}
    small = [f"{word} {number(value)}" for word, value in beside.items() if value is not None]
    return _number(worst.pixel_auroc, *small)


def _caught(worst: CardWorst | None) -> Cell:
    tpr, fpr = (worst.tpr, worst.fpr) if worst else (None, None)
    small = () if fpr is None else (f"{percent(fpr)} alarms",)
    return Cell(DASH if tpr is None else percent(tpr), tpr, small)


def _number(value: float | None, *small: str) -> Cell:
    return Cell(DASH if value is None else number(value), value, small)


def _published(card: Card, worst: CardWorst | None) -> Cell:
    auroc = worst.legacy_image_auroc if worst else None
    steps = published_steps(card.protocol.legacy_steps)
    return _number(auroc, *(() if auroc is None else (steps,)))


def _gap(value: float | None) -> Cell:
    return Cell(DASH if value is None else gap(value), value)


def _chance(card: Card, norm: str) -> Cell:
    value = card.eps_at_chance(norm)
    # As JavaScript reads it: never is farther than every radius.
    return Cell(eps_text(norm, value), "Infinity" if value is None else value)


def _minimal_eps(card: Card, norm: str) -> Cell:
    found = card.numbers.minimal_eps
    if found is None or found.norm != norm or found.never_flipped is None:
        return Cell(DASH, None)
    median, never = found.median, found.never_flipped
    small = (f"{percent(never)} never",) if never else ()
    return Cell(eps_text(norm, median), "Infinity" if median is None else median, small)


def _checks(card: Card) -> Cell:
    checks = card.checks
    if not checks.run:
        return Cell("none run", None)
    warned = (f"{checks.warned} warned",) if checks.warned else ()
    return Cell(f"{checks.passed} of {checks.run}", checks.passed / checks.run, warned)


def _by_eps(card: Card, norm: str) -> dict[str, CardWorst]:
    return {result.eps: result for result in card.numbers.attacked if result.norm == norm}
