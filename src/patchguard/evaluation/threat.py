"""The attacks of one threat on a test set, and the worst of what they find."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from patchguard.attacks.attack import NotDifferentiable
from patchguard.attacks.suite import Member, members
from patchguard.config import ThreatConfig
from patchguard.evaluation.campaign import Campaign, Task, run_tasks
from patchguard.evaluation.outcome import Attacked, Scored, Worst
from patchguard.evaluation.pixels import PixelCandidates
from patchguard.evaluation.store import digest
from patchguard.evaluation.worst_case import worst_scores
from patchguard.results.schema import CLEAN

_Advance = Callable[[float], None]


@dataclass(frozen=True)
class ThreatResult:
    """What the attacks of one threat found.

    Attributes:
        attacked: one entry for each attack and radius, in the order of the suite.
        worst: one entry for each radius, ascending.
        skipped: attacks that could not run, with the reason.
    """

    attacked: list[Attacked]
    worst: list[Worst]
    skipped: dict[str, str]


def run_threat(campaign: Campaign, threat: ThreatConfig, advance: _Advance) -> ThreatResult:
    """Attack every image with every attack at every radius, and keep the worst.

    Args:
        campaign: detector, images and store.
        threat: the attacks and radii.
        advance: called with the fraction of the work done, in [0, 1].

    Raises:
        PatchGuardError: a suite that asks for what does not exist.
    """
    planned = members(threat)
    skipped = {member.name: reason for member in planned if (reason := _unfit(campaign, member))}
    planned = [member for member in planned if member.name not in skipped]
    total = sum(member.passes for member in planned) or 1.0
    worst = [_Running(campaign, threat, place) for place in range(len(threat.eps))]
    attacked: list[Attacked] = []
    done = 0.0
    for member in planned:
        run = _MemberRun(campaign, threat, member)
        share = member.passes / total

        def progress(fraction: float, done: float = done, share: float = share) -> None:
            advance(done + share * fraction)

        try:
            attacked += run.results(worst, progress)
        except NotDifferentiable as reason:
            skipped[member.name] = str(reason)
        done += share
    for smaller, larger in pairwise(worst):
        larger.carry(smaller)
    found = [
        Worst(threat.norm, eps, each.scores, tuple(each.winners), torch.from_numpy(each.images))
        for eps, each in zip(threat.eps, worst, strict=True)
    ]
    if campaign.test.masks is not None:
        attacked, found = _with_pixels(campaign, attacked, found)
    return ThreatResult(attacked, found, skipped)


def _with_pixels(
    campaign: Campaign, attacked: Sequence[Attacked], worst: Sequence[Worst]
) -> tuple[list[Attacked], list[Worst]]:
    """The same with pixel metrics of each attack, and the worst of localization at each radius."""
    candidates = PixelCandidates(campaign.test, campaign.clean)
    judged: list[Attacked] = []
    found: list[Worst] = []
    for at_eps in worst:
        for entry in attacked:
            if entry.eps == at_eps.eps:
                judged.append(replace(entry, pixel=candidates.add(entry)))
        found.append(replace(at_eps, mixtures=candidates.mixtures(), floor=candidates.floor()))
    return judged, found


class _Running:
    """The worst image and score so far at one radius."""

    def __init__(self, campaign: Campaign, threat: ThreatConfig, place: int) -> None:
        self.store, self.labels = campaign.store, campaign.test.labels
        self.norm, self.eps = threat.norm, threat.eps[place]
        self.key = f"{threat.norm}/worst/{place}"
        self.scores = campaign.clean.scores.copy()
        self.winners = np.full(len(self.labels), CLEAN, dtype=object)
        kept = self.store.has(self.key)
        self.images = np.array(self.store.load(self.key) if kept else campaign.test.images.numpy())

    def add(self, name: str, scores: np.ndarray, images: np.ndarray | None) -> None:
        """Take over what is worse; without ``images`` those were taken over already."""
        better = self._take(scores)
        self.winners[better] = name
        if images is not None:
            self.images[better] = images[better]
            self.store.save(self.key, self.images)

    def carry(self, smaller: _Running) -> None:
        """What was found in a smaller ball lies in this one too."""
        better = self._take(smaller.scores)
        self.winners[better] = smaller.winners[better]
        self.images[better] = smaller.images[better]

    def _take(self, scores: np.ndarray) -> np.ndarray:
        """Where these scores are worse, they are the worst from now on."""
        self.scores, which = worst_scores(np.stack([self.scores, scores]), self.labels)
        better: np.ndarray = which == 1
        return better


class _MemberRun:
    """One attack of a suite on all images at all radii, in all its rounds."""

    def __init__(self, campaign: Campaign, threat: ThreatConfig, member: Member) -> None:
        self.campaign, self.threat, self.member = campaign, threat, member
        count = len(campaign.test.names)
        self.batches = [np.arange(count)] if member.whole_set else campaign.batches
        self.parts = ["scores", "largest"]
        if campaign.test.masks is not None:
            self.parts.append("maps")

    def results(self, worst: Sequence[_Running], advance: _Advance) -> list[Attacked]:
        """Run what is not in the store yet; merge into ``worst``.

        Each round is an attack of its own among the results, as its maps may be the worst.
        """
        found: list[Attacked] = []
        rounds = self.member.rounds
        for number in range(rounds):
            keys = [self._key(number, place) for place in range(len(self.threat.eps))]
            if not all(self._finished(key) for key in keys):
                maps = [entry.scored.maps for entry in found[-len(keys) :]]
                for done in run_tasks(self.campaign, self._tasks(number, keys, maps)):
                    advance((number + done) / rounds)
            name = self.member.name + (f" round {number + 1}" if number < rounds - 1 else "")
            found += [
                self._merged(name, key, place, worst[place]) for place, key in enumerate(keys)
            ]
        for number in range(rounds):
            for place in range(len(self.threat.eps)):
                self.campaign.store.drop(f"{self._key(number, place)}/batches")
        advance(1.0)
        return found

    def _tasks(self, number: int, keys: list[str], maps: Sequence[np.ndarray]) -> list[Task]:
        """The batches of a round; ``maps`` are those of the round before at each radius."""
        clean = self.campaign.clean.maps
        contexts = [
            self.campaign.context(maps[place] if number else clean) for place in range(len(keys))
        ]
        before = [self._key(number - 1, place) for place in range(len(keys))] if number else None
        return [
            Task(
                member=self.member,
                norm=self.threat.norm,
                sizes=self.threat.sizes,
                contexts=contexts,
                batch=batch,
                seeds=self._seeds(number, index),
                kept=[f"{key}/batches/{index}" for key in keys],
                before=before and [f"{key}/batches/{index}" for key in before],
            )
            for index, batch in enumerate(self.batches)
        ]

    def _merged(self, name: str, key: str, place: int, worst: _Running) -> Attacked:
        """Results at one radius, in one file each in the place of one for each batch.

        The images are taken over before: a file that is there says that they were.
        """
        store = self.campaign.store
        if not self._finished(key):
            worst.add(name, self._gathered(key, "scores"), self._gathered(key, "images"))
            for part in reversed(self.parts):
                store.save(f"{key}/{part}", self._gathered(key, part))
        scores = np.array(store.load(f"{key}/scores"))
        worst.add(name, scores, None)
        maps = store.load(f"{key}/maps") if "maps" in self.parts else np.zeros((len(scores), 0, 0))
        return Attacked(
            name,
            self.threat.norm,
            self.threat.eps[place],
            Scored(scores, maps),
            float(store.load(f"{key}/largest").max()),
            kind=self.member.kind,
            objective=self.member.objective,
        )

    def _finished(self, key: str) -> bool:
        return self.campaign.store.has(f"{key}/scores")

    def _gathered(self, key: str, part: str) -> np.ndarray:
        store = self.campaign.store
        pieces = range(len(self.batches))
        return np.concatenate([store.load(f"{key}/batches/{index}/{part}") for index in pieces])

    def _key(self, number: int, place: int) -> str:
        """Where the results at one radius are kept: they depend on the smaller radii too."""
        member = {**asdict(self.member), "rounds": number}
        told = [member, self.threat.norm, self.threat.eps[: place + 1], len(self.batches)]
        name = re.sub(r"[^a-z0-9]+", "-", self.member.name.lower())
        return f"{self.threat.norm}/{name}-{digest(told)[:12]}"

    def _seeds(self, number: int, batch: int) -> list[int]:
        name = zlib.crc32(self.member.name.encode())
        entropy = [self.campaign.seed, name, number, batch]
        states = np.random.SeedSequence(entropy).generate_state(len(self.threat.eps))
        return [int(state) for state in states]


def _unfit(campaign: Campaign, member: Member) -> str | None:
    """Why an attack cannot run here, if it cannot."""
    if member.localizes and campaign.test.masks is None:
        return "needs ground-truth masks"
    if member.source is not None and member.source not in campaign.sources:
        return f"no {member.source} to transfer from"
    if member.objective == "features" and campaign.prototypes is None:
        return "the detector shows no features"
    return None
