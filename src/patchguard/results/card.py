"""The robustness card: a result in one small JSON that says how it was found.

One card belongs to one detector, one data set and one protocol. It holds the threat model, the
numbers, the checks of the evaluation itself, hashes of weights and data, and versions, so that a
reader can tell which cards may be compared. What was not measured, and every number that is not
finite, is null. The idea of a small file for each model with an ``unreliable`` flag is
RobustBench's (Croce et al., NeurIPS 2021 Datasets and Benchmarks).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from operator import not_
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, model_validator

from patchguard.data.samples import GOOD
from patchguard.results.schema import (
    LEGACY,
    SELF_TEST,
    STATUSES,
    WORST,
    AtRadius,
    AttackResult,
    Check,
    Document,
    Finite,
    Flag,
    Measured,
    MinimalRadii,
    Record,
    Resolution,
    Result,
    Tally,
    Text,
    ascending,
    finite_or_none,
    headline_eps,
)

CHANCE = 0.5

CARRIED_OVER = "suite", "test_set", "seed", "attacked_resolution", "versions", "device", "seconds"
"""Facts of a protocol that a card tells as they are."""

PUBLISHED_STEPS = 1000
"""Of the attack in the published protocol; suites made for minutes give it fewer."""


def _finite_ends(value: Any) -> Any:
    unknown = isinstance(value, tuple) and not all(map(math.isfinite, value))
    return None if unknown else value


FiniteShare = Annotated[
    Annotated[float, Field(strict=True, ge=0, le=1)] | None, BeforeValidator(finite_or_none)
]
FiniteEnds = Annotated[
    tuple[Annotated[float, Field(strict=True)], Annotated[float, Field(strict=True)]] | None,
    BeforeValidator(_finite_ends),
]
Word = Annotated[Text, Field(min_length=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None


class CardDetector(Record):
    """The detector; ``sha256`` of its weights, None where there is no file of weights."""

    name: Word
    kind: Word
    parameters: Tally
    sha256: Sha256


class CardData(Record):
    """The test images: the name of their folder, their ``sha256``, and how many there are."""

    name: Word
    sha256: Sha256
    normal: Tally
    anomalous: Tally


class CardThreat(Record):
    """The radii of a norm, ascending."""

    norm: Word
    eps: tuple[Word, ...]


class CardProtocol(Record):
    """How the numbers came about.

    ``attacks`` that ran, with their settings, and ``skipped`` ones with the reason are by name and
    norm, as ``apgd score (linf)``: what cannot run in one norm may run in another. ``legacy_steps``
    are None where the published attack did not run; ``settings`` hold what has no field here.
    """

    suite: Word
    threats: tuple[CardThreat, ...]
    attacks: dict[str, Word]
    skipped: dict[str, Word]
    legacy_steps: Tally | None
    settings: dict[str, Any]
    test_set: Word | None
    seed: Tally
    attacked_resolution: Resolution
    versions: dict[str, Any]
    device: Word
    seconds: Finite


class CardMetrics(Record):
    """Clean metrics, or those with both classes attacked."""

    image_auroc: FiniteShare
    image_auroc_interval: FiniteEnds
    pixel_auroc: FiniteShare
    pixel_auroc_interval: FiniteEnds
    pixel_aupro: FiniteShare
    tpr: FiniteShare
    tpr_interval: FiniteEnds
    fpr: FiniteShare
    fpr_interval: FiniteEnds


class CardWorst(CardMetrics, AtRadius):
    """The worst case at one radius, and what the published attack says there."""

    pixel_auroc_floor: FiniteShare
    legacy_image_auroc: FiniteShare
    legacy_pixel_auroc: FiniteShare
    legacy_gap: Finite


class EpsAtChance(Record):
    """The size of a threat at which the worst image AUROC is 0.5; None if none measured is."""

    norm: Word
    eps: Finite


class CardMinimalEps(Record):
    """Medians, None where they are infinite; the shares beyond reach tell that apart."""

    norm: Word
    threshold: Finite
    median: Finite
    median_normals: Finite
    median_anomalies: Finite
    never_flipped: FiniteShare
    never_flipped_normals: FiniteShare
    never_flipped_anomalies: FiniteShare


class CardNumbers(Record):
    """Every number of a card."""

    clean: CardMetrics
    attacked: tuple[CardWorst, ...]
    eps_at_chance: tuple[EpsAtChance, ...]
    minimal_eps: CardMinimalEps | None


class CardChecks(Record):
    """The checks and how many came to which end."""

    passed: Tally
    warned: Tally
    failed: Tally
    skipped: Tally
    list: tuple[Check, ...]

    @property
    def run(self) -> int:
        """How many came to a verdict."""
        return self.passed + self.warned + self.failed

    @property
    def failures(self) -> tuple[Check, ...]:
        return tuple(check for check in self.list if check.status == "FAIL")


class Card(Document):
    """``card.json``."""

    FORMAT: ClassVar = "patchguard_card"
    VERSION: ClassVar = 1

    detector: CardDetector
    data: CardData
    protocol: CardProtocol
    numbers: CardNumbers
    checks: CardChecks
    unreliable: Flag

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        told = {(threat.norm, eps) for threat in self.protocol.threats for eps in threat.eps}
        for place, found in enumerate(self.numbers.attacked):
            if (found.norm, found.eps) not in told:
                raise ValueError(
                    f"numbers.attacked[{place}] is '{found.norm} {found.eps}'; it must be at a "
                    "radius in protocol.threats"
                )
        statuses: list[str] = [check.status for check in self.checks.list]
        for status, name in STATUSES.items():
            count, listed = getattr(self.checks, name), statuses.count(status)
            if count != listed:
                raise ValueError(
                    f"checks.{name} is {count}; it must be {listed}, as in checks.list"
                )
        if self.checks.failures and not self.unreliable:
            raise ValueError("unreliable is False; it must be true where a check fails")
        return self

    @property
    def self_test(self) -> bool:
        """No labelled defects were at hand, so that it says nothing of any."""
        return self.protocol.test_set == SELF_TEST

    def headline_result(self) -> CardWorst | None:
        """The worst case that stands for the first threat; None where nothing attacked."""
        norm = self.protocol.threats[0].norm
        results = {found.eps: found for found in self.numbers.attacked if found.norm == norm}
        return results[headline_eps(norm, list(results))] if results else None

    def eps_at_chance(self, norm: str) -> float | None:
        """See :class:`EpsAtChance`."""
        found = self.numbers.eps_at_chance
        return next((entry.eps for entry in found if entry.norm == norm), None)


def robustness_card(
    result: Result, *, detector: CardDetector, data: str, sha256: str | None
) -> Card:
    """Distil a result into a card.

    Args:
        result: where everything is taken from.
        detector: whose result it is.
        data: name of the test images.
        sha256: of the test images.
    """
    return Card(
        detector=detector,
        data=CardData(name=data, sha256=sha256, **dict(result.protocol.images)),
        protocol=_protocol(result),
        numbers=_numbers(result),
        checks=_checks(result.checks),
        unreliable=result.unreliable,
    )


def headline(card: Card) -> str:
    """The card in one line, for terminals and logs: what was not measured is not in it.

    The worst case is the one over the suite with every image attacked, at the radius that stands
    for the first threat.
    """
    clean, found = card.numbers.clean, card.headline_result()
    whose = ["self-test on pseudo-anomalies"] if card.self_test else []
    worst = f"{_worst(found.image_auroc)} at {found.norm} {found.eps}" if found else ""
    parts = [f"image AUROC {_told(clean.image_auroc)} clean, {worst or 'not attacked'}"]
    if found and found.pixel_auroc is not None:
        pixel = _told(clean.pixel_auroc)
        parts.append(f"pixel AUROC {pixel} clean, {_worst(found.pixel_auroc)}")
    if found:
        parts += [*_published(card, found), *_at_chance(card, found)]
    return " | ".join([*_alarm(card), *whose, *parts, *_skipped(card), _tally(card.checks)])


def published_steps(steps: int | None) -> str:
    """How long the published attack was run, so that nobody takes fewer steps for all of them."""
    if steps is None:
        return "steps unknown"
    if steps == PUBLISHED_STEPS:
        return f"PGD-{steps}"
    return f"here {steps} {'step' if steps == 1 else 'steps'}"


def eps_text(norm: str, value: float | None) -> str:
    """A radius for people: linf in steps of an 8-bit image."""
    if value is None or not math.isfinite(value):
        return "never"
    return f"{255 * value:.2f}/255" if norm == "linf" else f"{value:.3g}"


def _worst(value: float | None) -> str:
    return f"{_told(value)} in the worst case"


def _alarm(card: Card) -> list[str]:
    if not card.unreliable:
        return []
    failed = [f"{check.id} ({check.name})" for check in card.checks.failures]
    if not failed:
        return ["UNRELIABLE"]
    return [f"UNRELIABLE: {', '.join(failed)} {'fails' if len(failed) == 1 else 'fail'}"]


def _published(card: Card, found: CardWorst) -> list[str]:
    auroc = found.legacy_image_auroc
    if auroc is None:
        return []
    steps = published_steps(card.protocol.legacy_steps)
    return [f"the published attack alone ({steps}) says {_told(auroc)}"]


def _at_chance(card: Card, found: CardWorst) -> list[str]:
    eps = card.eps_at_chance(found.norm)
    if eps is not None:
        return [f"AUROC 0.5 at {found.norm} {eps_text(found.norm, eps)}"]
    return [] if found.image_auroc is None else [f"above AUROC 0.5 at every {found.norm} eps"]


def _skipped(card: Card) -> list[str]:
    count = len(card.protocol.skipped)
    return [f"{count} {'attack' if count == 1 else 'attacks'} skipped"] if count else []


def _tally(checks: CardChecks) -> str:
    if not checks.run:
        return "unchecked: no self-check was run"
    warned = f", {checks.warned} warned" if checks.warned else ""
    return f"{checks.passed} of {checks.run} checks passed{warned}"


def _protocol(result: Result) -> CardProtocol:
    protocol = result.protocol
    ran = {f"{entry.attack} ({entry.norm})" for entry in result.attacked}
    legacy = any(entry.attack == LEGACY for entry in result.attacked)
    apart = {*CardProtocol.model_fields, "data", "images", "kinds", "test_sha256"}
    return CardProtocol(
        threats=tuple(
            CardThreat(norm=norm, eps=tuple(ascending(norm, eps)))
            for norm, eps in protocol.threats.items()
        ),
        attacks={name: told for name, told in protocol.attacks.items() if name in ran},
        skipped={
            # The reason is given by name alone.
            name: result.skipped.get(name.rpartition(" (")[0], "no reason was given")
            for name in protocol.attacks
            if name not in ran
        },
        legacy_steps=protocol.legacy_steps if legacy else None,
        settings={key: told for key, told in protocol.told().items() if key not in apart},
        **{name: getattr(protocol, name) for name in CARRIED_OVER},
    )


def _numbers(result: Result) -> CardNumbers:
    clean = CardMetrics(**_measured(result.clean))
    worst = [
        _at_radius(found, result)
        for norm, radii in result.protocol.threats.items()
        for found in result.under(WORST, norm)
        if found.eps in radii
    ]
    return CardNumbers(
        clean=clean,
        attacked=tuple(worst),
        eps_at_chance=tuple(
            EpsAtChance(norm=norm, eps=_eps_at_chance(clean, worst, norm)) for norm in result.norms
        ),
        minimal_eps=_minimal_eps(result.minimal_eps, result.scores.kinds),
    )


def _measured(values: Measured) -> dict[str, Any]:
    """The fields of :class:`CardMetrics`."""
    parts = values.model_dump()
    flat = dict(parts["deployed"] or {})
    for part in ("image", "pixel"):
        flat |= {f"{part}_{name}": value for name, value in (parts[part] or {}).items()}
    return {name: flat.get(name) for name in CardMetrics.model_fields}


def _at_radius(worst: AttackResult, result: Result) -> CardWorst:
    published = result.under(LEGACY, worst.norm)
    legacy = next((each.both for each in published if each.eps == worst.eps), None)
    kinder = _measured(legacy) if legacy else {}
    return CardWorst(
        norm=worst.norm,
        eps=worst.eps,
        **_measured(worst.both),
        pixel_auroc_floor=worst.both.pixel.auroc_floor if worst.both.pixel else None,
        legacy_image_auroc=kinder.get("image_auroc"),
        legacy_pixel_auroc=kinder.get("pixel_auroc"),
        legacy_gap=kinder.get("image_auroc", math.nan) - worst.both.image.auroc,
    )


def _eps_at_chance(clean: CardMetrics, worst: Sequence[CardWorst], norm: str) -> float | None:
    """The radius at which the worst image AUROC reaches 0.5, linear between those measured."""
    measured = [(0.0, clean.image_auroc)]
    measured += [(found.radius, found.image_auroc) for found in worst if found.norm == norm]
    before: tuple[float, float] | None = None
    for eps, auroc in measured:
        if auroc is None:
            continue
        if auroc <= CHANCE:
            return eps if before is None else _crossing(before, (eps, auroc))
        before = (eps, auroc)
    return None


def _crossing(before: tuple[float, float], after: tuple[float, float]) -> float:
    (eps, auroc), (next_eps, next_auroc) = before, after
    return eps + (next_eps - eps) * (auroc - CHANCE) / (auroc - next_auroc)


def _minimal_eps(found: MinimalRadii | None, kinds: Sequence[str]) -> CardMinimalEps | None:
    if found is None:
        return None
    never = list(map(math.isinf, found.values))
    normal = [kind == GOOD for kind in kinds]
    return CardMinimalEps(
        **found.model_dump(exclude={"values"}),
        never_flipped=_share(never),
        never_flipped_normals=_share(list(compress(never, normal))),
        never_flipped_anomalies=_share(list(compress(never, map(not_, normal)))),
    )


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _checks(checks: tuple[Check, ...]) -> CardChecks:
    statuses: list[str] = [check.status for check in checks]
    counts = {name: statuses.count(status) for status, name in STATUSES.items()}
    return CardChecks(**counts, list=checks)


def _told(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
