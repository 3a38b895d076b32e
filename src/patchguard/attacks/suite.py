"""From the entries of a suite to attacks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from patchguard.attacks.apgd import APGD
from patchguard.attacks.attack import Attack
from patchguard.attacks.balls import BALLS
from patchguard.attacks.objectives import Objective, image_score, legacy
from patchguard.attacks.objectives.registry import DETECTION, LOCALIZATION, ObjectiveContext
from patchguard.attacks.patch import LocalPatch
from patchguard.attacks.pgd import PGD
from patchguard.attacks.queries import NES, RandomNoise, SimBA
from patchguard.attacks.sparse import PGDL0, SigmaZero
from patchguard.attacks.square import Square
from patchguard.attacks.starts import STARTS
from patchguard.attacks.transfer import Transfer
from patchguard.attacks.universal import UniversalPerturbation
from patchguard.config import ThreatConfig
from patchguard.constraints import Count, checked_settings, setting_types
from patchguard.detector import Detector
from patchguard.errors import PatchGuardError

LEGACY = "legacy"
"""The published attack, whose results are told apart by this name: nothing else may bear it."""

TAKEN = ("clean", "worst")
"""Names that results have for something else than an attack."""

ATTACKS: dict[str, type[Attack]] = {
    "pgd": PGD,
    "apgd": APGD,
    "square": Square,
    "simba": SimBA,
    "nes": NES,
    "noise": RandomNoise,
    "pgd-l0": PGDL0,
    "sigma-zero": SigmaZero,
    "patch": LocalPatch,
    "universal": UniversalPerturbation,
    "transfer": Transfer,
    LEGACY: PGD,
}

FIXED: dict[str, dict[str, Any]] = {
    "transfer": {"inner": APGD},
    LEGACY: {"start": 0.0, "keep_best": False},
}
"""Settings that are no matter of the suite."""


@dataclass(frozen=True)
class Member:
    """An attack of a suite, as written there.

    Attributes:
        name: unique within its threat.
        kind: key of :data:`ATTACKS`.
        objective: name of what it climbs.
        options: settings of the objective.
        settings: settings of the attack.
        starts: names in :data:`~patchguard.attacks.starts.STARTS`; the attack's own when empty.
        rounds: how often the objective's statistics are estimated anew, from the maps of the round
            before; each round is a result of its own.
        source: the detector that a transfer attack is made on.
    """

    name: str
    kind: str
    objective: str
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    starts: tuple[str, ...]
    rounds: int
    source: str | None

    @property
    def localizes(self) -> bool:
        """Its objective is about pixels, so that it needs masks."""
        return self.kind == LEGACY or self.objective in LOCALIZATION

    @property
    def whole_set(self) -> bool:
        """It looks at all images at once."""
        return self.kind == "universal"

    @property
    def passes(self) -> float:
        """About how many forward and backward passes it takes per image and size."""
        return self.rounds * _attack(self, image_score).passes


def members(threat: ThreatConfig) -> list[Member]:
    """The attacks of a threat, in their order.

    Raises:
        PatchGuardError: an unknown attack, objective, start or setting, a value of the wrong type
            or out of its range, an attack of another norm, or a name used twice.
    """
    found = [_member(dict(entry)) for entry in threat.attacks]
    for member in found:
        ball = _attack(member, image_score, threat.norm).ball.name
        if ball != threat.norm:
            raise PatchGuardError(f"suite: {member.name} attacks in {ball}, not in {threat.norm}")
    names = [member.name for member in found]
    for name in names:
        if names.count(name) > 1:
            raise PatchGuardError(f"suite: two attacks are called {name!r}; give one a `name`")
    return found


def build(
    member: Member, norm: str, context: ObjectiveContext, sources: Mapping[str, Detector]
) -> Attack:
    """The attack, ready to run.

    Args:
        member: its entry.
        norm: of its threat.
        context: what objectives with state are made from.
        sources: detectors that transfer attacks may be made on, by name.

    Raises:
        PatchGuardError: an objective whose options or context do not fit, or no such source.
    """
    objective, judge = _objectives(member, context)
    if member.source is not None:
        _one_of("source", member.source, sources)
    source = None if member.source is None else sources[member.source]
    return _attack(member, objective, norm, judge, source)


def _attack(
    member: Member,
    objective: Objective,
    norm: str | None = None,
    judge: Objective | None = None,
    source: Detector | None = None,
) -> Attack:
    make = ATTACKS[member.kind]
    settings = {**FIXED.get(member.kind, {}), **member.settings}
    if member.starts:
        settings["starts"] = [STARTS[name]() for name in member.starts]
    if norm in BALLS and "ball" in setting_types(make):
        settings["ball"] = BALLS[norm]
    if member.source is not None:
        settings["source"] = source or Detector()
    return make(objective, judge=judge, **settings)


def _objectives(member: Member, context: ObjectiveContext) -> tuple[Objective, Objective | None]:
    """What is climbed, and the true value by which the best image is chosen.

    For detection that is the image score. For localization no value of one image is the pooled
    pixel AUROC: it is the objective itself where that is a surrogate of it, else the linear one.
    """
    if member.kind == LEGACY:
        return legacy, None
    if member.objective in DETECTION:
        return DETECTION[member.objective](context, **member.options), image_score
    objective = LOCALIZATION[member.objective](context, **member.options)
    if member.objective in ("linear", "rank"):
        return objective, None
    return objective, LOCALIZATION["linear"](context)


def _member(entry: dict[str, Any]) -> Member:
    kind = entry.pop("attack")
    _one_of("attack", kind, ATTACKS)
    checked_settings(f"suite: {kind}", entry, _settings(kind))
    aim, options = _objective(entry.pop("objective", LEGACY if kind == LEGACY else "score"))
    name = entry.pop("name", LEGACY if kind == LEGACY else f"{kind} {aim}")
    if (name == LEGACY) != (kind == LEGACY) or name in TAKEN:
        raise PatchGuardError(f"suite: the name of attack {kind} cannot be {name!r}")
    starts = tuple(entry.pop("starts", ()))
    for start in starts:
        _one_of("start", start, STARTS)
    rounds, source = entry.pop("rounds", 1), entry.pop("source", None)
    if kind == "transfer" and source is None:
        raise PatchGuardError("suite: transfer needs a `source`, such as twin")
    return Member(name, kind, aim, options, entry, starts, rounds, source)


def _objective(written: str | dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Name and options of an objective."""
    options: dict[str, Any] = {"name": written} if isinstance(written, str) else dict(written)
    aim: Any = options.pop("name", None)
    known = {**DETECTION, **LOCALIZATION}
    _one_of("objective", aim, known)
    known[aim].check(options)
    return aim, options


def _settings(kind: str) -> dict[str, Any]:
    """Names and types of what an entry may set."""
    own = setting_types(ATTACKS[kind])
    if kind == LEGACY:
        return {"name": str, "steps": own["steps"]}
    return {
        **{name: _WRITTEN.get(name, type_) for name, type_ in own.items() if name not in _HIDDEN},
        "name": str,
        "objective": str | dict,
        "rounds": Count,
    }


_HIDDEN = ("judge", "ball", "inner", "eval_mode", "keep_best")
_WRITTEN: dict[str, Any] = {"starts": list[str], "source": str}
"""Types of settings that a suite gives by name."""


def _one_of(what: str, name: object, known: Collection[str]) -> None:
    if not isinstance(name, str) or name not in known:
        raise PatchGuardError(f"suite: no {what} {name!r}; known: {', '.join(sorted(known))}")
