"""From the entries of a suite to attacks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from patchguard.attacks.apgd import APGD
from patchguard.attacks.attack import Attack
from patchguard.attacks.balls import BALLS
from patchguard.attacks.objectives import image_score, legacy
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
from patchguard.detector import Detector
from patchguard.errors import PatchGuardError

ATTACKS: dict[str, Callable[..., Attack]] = {
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
    "transfer": partial(Transfer, inner=APGD),
    "legacy": partial(PGD, start=0.0, keep_best=False),
}


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
            before; the last round counts.
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
        return self.kind == "legacy" or self.objective in LOCALIZATION

    @property
    def whole_set(self) -> bool:
        """It looks at all images at once."""
        return self.kind == "universal"

    @property
    def passes(self) -> float:
        """About how many forward and backward passes it takes per image and size."""
        settings = inspect.signature(ATTACKS[self.kind]).parameters
        values = {name: settings[name].default for name in settings} | dict(self.settings)
        forwards = values.get("queries") or values.get("draws") or 0
        passes = values.get("steps") or forwards / 3
        return float(passes) * max(1, len(self.starts)) * self.rounds


def members(threat: ThreatConfig) -> list[Member]:
    """The attacks of a threat, in their order.

    Raises:
        PatchGuardError: an unknown attack, objective, start or setting, or a name used twice.
    """
    found = [_member(dict(entry)) for entry in threat.attacks]
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
        PatchGuardError: settings that do not fit.
    """
    settings = dict(member.settings)
    if member.starts:
        settings["starts"] = [STARTS[name]() for name in member.starts]
    if norm in BALLS and "ball" in inspect.signature(ATTACKS[member.kind]).parameters:
        settings["ball"] = BALLS[norm]
    if member.source is not None:
        settings["source"] = sources[member.source]
    objective, judge = _objectives(member, context)
    attack = ATTACKS[member.kind](objective, judge=judge, **settings)
    if attack.ball.name != norm:
        raise PatchGuardError(f"suite: {member.name} attacks in {attack.ball.name}, not in {norm}")
    return attack


def _objectives(member: Member, context: ObjectiveContext) -> tuple[Any, Any]:
    """What is climbed, and the true value by which the best image is chosen.

    For detection that is the image score. For localization no value of one image is the pooled
    pixel AUROC: it is the objective itself where that is a surrogate of it, else the linear one.
    """
    if member.kind == "legacy":
        return legacy, None
    if member.objective in DETECTION:
        return DETECTION[member.objective](context, **member.options), image_score
    objective = LOCALIZATION[member.objective](context, **member.options)
    if member.objective in ("linear", "rank"):
        return objective, None
    return objective, LOCALIZATION["linear"](context)


def _member(entry: dict[str, Any]) -> Member:
    kind = str(entry.pop("attack"))
    _one_of("attack", kind, ATTACKS)
    objective = entry.pop("objective", "legacy" if kind == "legacy" else "score")
    options = dict(objective) if isinstance(objective, dict) else {"name": objective}
    aim = str(options.pop("name", ""))
    _one_of("objective", aim, {*DETECTION, *LOCALIZATION})
    starts = tuple(entry.pop("starts", ()))
    for start in starts:
        _one_of("start", start, STARTS)
    name = entry.pop("name", kind if kind == "legacy" else f"{kind} {aim}")
    rounds, source = int(entry.pop("rounds", 1)), entry.pop("source", None)
    for setting in entry:
        _one_of(f"setting of {kind}", setting, _settings(kind))
    return Member(str(name), kind, aim, options, entry, starts, rounds, source)


def _settings(kind: str) -> list[str]:
    hidden = ("objective", "judge", "ball", "starts", "source", "inner", "eval_mode", "keep_best")
    return [name for name in inspect.signature(ATTACKS[kind]).parameters if name not in hidden]


def _one_of(what: str, name: object, known: Collection[str]) -> None:
    if name not in known:
        raise PatchGuardError(f"suite: no {what} {name!r}; known: {', '.join(sorted(known))}")
