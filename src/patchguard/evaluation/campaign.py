"""Running the attacks of a threat: in batches, on every device, each finished piece kept."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from copy import copy as shallow_copy
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from queue import SimpleQueue
from threading import Event

import numpy as np
import torch
from torch import Tensor

from patchguard.attacks.attack import Attack, NotDifferentiable, attackable
from patchguard.attacks.objectives.detection import normal_prototypes
from patchguard.attacks.objectives.registry import ObjectiveContext
from patchguard.attacks.objectives.statistics import PixelStatistics
from patchguard.attacks.suite import Member, build, members
from patchguard.config import ThreatConfig
from patchguard.detector import Detector, Inspection, device_of
from patchguard.errors import Interrupted
from patchguard.evaluation.outcome import CLEAN, Attacked, Scored, Worst
from patchguard.evaluation.pixels import PixelCandidates
from patchguard.evaluation.store import Store, digest
from patchguard.evaluation.test_set import TestSet

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Campaign:
    """What all attacks of an evaluation have in common.

    Attributes:
        detector: in eval mode, on the device to use.
        test: the images.
        clean: what the detector says of them.
        store: where finished work is kept.
        batch_size: most images attacked at once by a worker.
        seed: of all random draws.
        sources: detectors that transfer attacks are made on, by name.
    """

    detector: Detector
    test: TestSet
    clean: Scored
    store: Store
    batch_size: int
    seed: int
    sources: Mapping[str, Detector] = field(default_factory=dict)

    @cached_property
    def coverage(self) -> Tensor:
        """Anomalous fraction of each pixel [N, S, S]."""
        return self.test.coverage()

    @cached_property
    def prototypes(self) -> Tensor | None:
        """Features of the clean normal images, where the detector shows any."""
        normal = self.test.images[torch.from_numpy(~self.test.labels)]
        with torch.no_grad():
            shown = self.detector.inspect(normal[:1].to(device_of(self.detector))).features
            if shown is None:
                return None
            return normal_prototypes(self.detector, normal)

    @cached_property
    def statistics(self) -> PixelStatistics | None:
        """Of the clean maps; None without ground truth."""
        if self.test.masks is None:
            return None
        return PixelStatistics.of(self.clean.maps, self.coverage)

    def context(self, maps: np.ndarray) -> ObjectiveContext:
        """What objectives are made from; ``maps`` [N, S, S] are the current ones."""
        return ObjectiveContext(
            self.statistics, maps, self.coverage, self.test.labels, self.prototypes
        )

    @property
    def batches(self) -> list[np.ndarray]:
        """Indices of the images of each batch; all batches are about equally large."""
        count = len(self.test.names)
        return np.array_split(np.arange(count), -(-count // self.batch_size))


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


def run_threat(campaign: Campaign, threat: ThreatConfig, advance: Advance) -> ThreatResult:
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
        found.append(replace(at_eps, selections=candidates.selections(), floor=candidates.floor()))
    return judged, found


class _Running:
    """The worst image and score so far at one radius."""

    def __init__(self, campaign: Campaign, threat: ThreatConfig, place: int) -> None:
        self.store, self.labels = campaign.store, campaign.test.labels
        self.norm, self.eps = threat.norm, threat.eps[place]
        self.key = f"{threat.norm}/worst/{digest([threat.norm, threat.eps[: place + 1]])[:12]}"
        self.scores = campaign.clean.scores.copy()
        self.winners = np.full(len(self.labels), CLEAN, dtype=object)
        kept = self.store.has(self.key)
        self.images = np.array(self.store.load(self.key) if kept else campaign.test.images.numpy())

    def add(self, name: str, scores: np.ndarray, images: np.ndarray | None) -> None:
        """Take over what is worse; without ``images`` those were taken over already."""
        better = self._worse(scores)
        self.scores = np.where(better, scores, self.scores)
        self.winners[better] = name
        if images is not None:
            self.images[better] = images[better]
            self.store.save(self.key, self.images)

    def carry(self, smaller: _Running) -> None:
        """What was found in a smaller ball lies in this one too."""
        better = self._worse(smaller.scores)
        self.scores = np.where(better, smaller.scores, self.scores)
        self.winners[better] = smaller.winners[better]
        self.images[better] = smaller.images[better]

    def _worse(self, scores: np.ndarray) -> np.ndarray:
        return np.where(self.labels, scores < self.scores, scores > self.scores)


class _MemberRun:
    """One attack of a suite on all images at all radii."""

    def __init__(self, campaign: Campaign, threat: ThreatConfig, member: Member) -> None:
        self.campaign = campaign
        self.threat = threat
        self.member = member
        self.keep_maps = campaign.test.masks is not None

    def results(self, worst: Sequence[_Running], advance: Advance) -> list[Attacked]:
        """Run what is not in the store yet; merge into ``worst``."""
        found: list[Attacked] = []
        maps: dict[str, np.ndarray] = {}
        for number in range(self.member.rounds):
            final = number == self.member.rounds - 1
            keys = [self._key(number, place) for place in range(len(self.threat.eps))]
            finished = all(self.campaign.store.has(f"{key}/scores") for key in keys)
            if not finished:
                self._run(keys, number, maps, advance)
            found = [self._finish(key, place) for place, key in enumerate(keys)]
            for place, key in enumerate(keys):
                images = None if finished else self._gathered(key, "images")
                name, scores = self.member.name, found[place].scored.scores
                worst[place].add(name, scores, images)
                self.campaign.store.drop(f"{key}/batches")
            if not final:
                maps = {entry.eps: entry.scored.maps for entry in found}
        advance(1.0)
        return found

    def _run(
        self, keys: list[str], number: int, maps: Mapping[str, np.ndarray], advance: Advance
    ) -> None:
        attacks = [self._attack(eps, maps) for eps in self.threat.eps]
        whole = np.arange(len(self.campaign.test.names))
        batches = [whole] if self.member.whole_set else self.campaign.batches
        tasks = [
            _Task(batch, index, keys, attacks, self.threat.sizes, self._seeds(number, index))
            for index, batch in enumerate(batches)
        ]
        pieces = len(tasks) * len(keys) * self.member.rounds
        before = number * len(tasks) * len(keys)
        for done in _in_parallel(self.campaign, tasks, self.keep_maps):
            advance((before + done) / pieces)

    def _attack(self, eps: str, maps: Mapping[str, np.ndarray]) -> Attack:
        context = self.campaign.context(maps.get(eps, self.campaign.clean.maps))
        return build(self.member, self.threat.norm, context, self.campaign.sources)

    def _finish(self, key: str, place: int) -> Attacked:
        """One file of scores (and maps) in the place of those of the batches."""
        store = self.campaign.store
        for name in ("maps", "largest", "scores") if self.keep_maps else ("largest", "scores"):
            if not store.has(f"{key}/{name}"):
                store.save(f"{key}/{name}", self._gathered(key, name))
        scores = np.array(store.load(f"{key}/scores"))
        maps = store.load(f"{key}/maps") if self.keep_maps else np.zeros((len(scores), 0, 0))
        return Attacked(
            self.member.name,
            self.threat.norm,
            self.threat.eps[place],
            Scored(scores, maps),
            float(store.load(f"{key}/largest").max()),
        )

    def _gathered(self, key: str, name: str) -> np.ndarray:
        store = self.campaign.store
        batches = 1 if self.member.whole_set else len(self.campaign.batches)
        return np.concatenate([store.load(f"{key}/batches/{i}/{name}") for i in range(batches)])

    def _key(self, number: int, place: int) -> str:
        """Where the results at one radius are kept: they depend on the smaller radii too."""
        member = {**asdict(self.member), "rounds": number}
        count = len(self.campaign.batches)
        told = digest([member, self.threat.norm, self.threat.eps[: place + 1], count])
        name = re.sub(r"[^a-z0-9]+", "-", self.member.name.lower())
        return f"{self.threat.norm}/{name}-{told[:12]}"

    def _seeds(self, number: int, batch: int) -> list[int]:
        name = zlib.crc32(self.member.name.encode())
        entropy = [self.campaign.seed, name, number, batch]
        states = np.random.SeedSequence(entropy).generate_state(len(self.threat.eps))
        return [int(state) for state in states]


@dataclass(frozen=True)
class _Task:
    """One batch at all radii, one after the other: each goes on from the one before."""

    batch: np.ndarray
    index: int
    keys: list[str]
    attacks: list[Attack]
    sizes: list[float]
    seeds: list[int]


def _in_parallel(campaign: Campaign, tasks: list[_Task], keep_maps: bool) -> Iterator[int]:
    """Run tasks on every device at once; yields how many (batch, radius) pieces are done."""
    detectors: SimpleQueue[Detector] = SimpleQueue()
    stopped = Event()
    with _workers(campaign.detector) as workers:
        replicas = _replicas(campaign.detector, min(workers, len(tasks)))
        for replica in replicas:
            detectors.put(replica)
        with ThreadPoolExecutor(len(replicas), initializer=_one_thread) as pool:
            running = [
                pool.submit(_run_task, campaign, task, detectors, stopped, keep_maps)
                for task in tasks
            ]
            done = 0
            try:
                for future in as_completed(running):
                    done += future.result()
                    yield done
            finally:
                stopped.set()
                pool.shutdown(cancel_futures=True)


def _run_task(
    campaign: Campaign,
    task: _Task,
    detectors: SimpleQueue[Detector],
    stopped: Event,
    keep_maps: bool,
) -> int:
    detector = detectors.get()
    try:
        warm: Tensor | None = None
        for place, key in enumerate(task.keys):
            kept = f"{key}/batches/{task.index}"
            if not campaign.store.has(f"{kept}/scores"):
                attack = _stoppable(task.attacks[place], stopped)
                _attack_batch(campaign, task, place, detector, attack, warm, kept, keep_maps)
            warm = torch.from_numpy(np.array(campaign.store.load(f"{kept}/images")))
        return len(task.keys)
    finally:
        detectors.put(detector)


def _attack_batch(
    campaign: Campaign,
    task: _Task,
    place: int,
    detector: Detector,
    attack: Attack,
    warm: Tensor | None,
    kept: str,
    keep_maps: bool,
) -> None:
    """Attack a batch at one radius; keep images, norms, maps and, last, scores."""
    test, device = campaign.test, device_of(detector)
    chosen = torch.from_numpy(task.batch)
    images = test.images[chosen].to(device)
    (attacked,) = attack(
        detector,
        images,
        torch.from_numpy(test.labels)[chosen].to(device),
        campaign.coverage[chosen].to(device),
        eps=[task.sizes[place]],
        generator=torch.Generator(device).manual_seed(task.seeds[place]),
        warm=None if warm is None else warm.to(device),
    )
    with attackable(detector, attack.eval_mode), torch.no_grad():
        detection = detector(attacked)
    found = {"images": attacked, "largest": attack.ball.size(attacked - images)}
    if keep_maps:
        found["maps"] = detection.anomaly_map
    found["scores"] = detection.score
    for name, tensor in found.items():
        campaign.store.save(f"{kept}/{name}", tensor.detach().float().cpu().numpy())


def _stoppable(attack: Attack, stopped: Event) -> Attack:
    """The attack, which raises as soon as the evaluation is interrupted."""
    judge = attack.judge

    def judged(seen: Inspection, labels: Tensor, masks: Tensor, progress: float) -> Tensor:
        if stopped.is_set():
            raise Interrupted("interrupted")
        return judge(seen, labels, masks, progress)

    copy = shallow_copy(attack)
    copy.judge = judged
    return copy


def _replicas(detector: Detector, workers: int) -> list[Detector]:
    """One detector for each worker: on each GPU one, on the CPU as many as there are threads."""
    if device_of(detector).type == "cuda":
        return [deepcopy(detector).to(f"cuda:{index}") for index in range(workers)]
    return [detector, *(deepcopy(detector) for _ in range(workers - 1))]


@contextmanager
def _workers(detector: Detector) -> Iterator[int]:
    """How many workers there are. On the CPU each has one thread, which is faster than sharing."""
    if device_of(detector).type == "cuda":
        yield torch.cuda.device_count()
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _unfit(campaign: Campaign, member: Member) -> str | None:
    """Why an attack cannot run here, if it cannot."""
    if member.localizes and campaign.test.masks is None:
        return "needs ground-truth masks"
    if member.source is not None and member.source not in campaign.sources:
        return f"no {member.source} to transfer from"
    if member.objective == "features" and campaign.prototypes is None:
        return "the detector shows no features"
    return None
