"""Attacking a test set in batches, on every device, with each finished batch kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from queue import SimpleQueue
from threading import Event

import numpy as np
import torch
from torch import Tensor

from patchguard.attacks.objectives.detection import normal_prototypes
from patchguard.attacks.objectives.registry import ObjectiveContext
from patchguard.attacks.objectives.statistics import PixelStatistics
from patchguard.attacks.suite import Member, build
from patchguard.detector import Detector, device_of
from patchguard.errors import Interrupted
from patchguard.evaluation.outcome import Scored
from patchguard.evaluation.scoring import score_images
from patchguard.evaluation.store import Store
from patchguard.evaluation.test_set import TestSet

LOOK_EVERY = 5.0
"""Seconds between two looks at how far the work is."""


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
        parallel: more than one worker; off for random detectors, whose draws all workers share.
        gpus: that attacks may run on besides the detector's device.
    """

    detector: Detector
    test: TestSet
    clean: Scored
    store: Store
    batch_size: int
    seed: int
    sources: Mapping[str, Detector] = field(default_factory=dict)
    parallel: bool = True
    gpus: Sequence[torch.device] = ()

    @cached_property
    def coverage(self) -> Tensor:
        """Anomalous fraction of each pixel [N, H, W]."""
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
        """What objectives are made from; ``maps`` [N, H, W] are the current ones."""
        return ObjectiveContext(
            self.statistics, maps, self.coverage, self.test.labels, self.prototypes
        )

    @property
    def batches(self) -> list[np.ndarray]:
        """Indices of the images of each batch; all batches are about equally large."""
        count = len(self.test.names)
        return np.array_split(np.arange(count), -(-count // self.batch_size))


@dataclass(frozen=True)
class Task:
    """One batch under one attack at all radii, one after the other.

    Attributes:
        member: the attack.
        norm: of its threat.
        sizes: radii, ascending.
        contexts: what its objective is made from, at each radius.
        batch: indices of the images.
        seeds: one for each radius.
        kept: where the results at each radius are kept.
        before: where those of an earlier round are, to go on from; None to go on from those at
            the smaller radius.
    """

    member: Member
    norm: str
    sizes: Sequence[float]
    contexts: Sequence[ObjectiveContext]
    batch: np.ndarray
    seeds: Sequence[int]
    kept: Sequence[str]
    before: Sequence[str] | None


@dataclass(frozen=True)
class _Worker:
    """A detector, and the sources of transfer attacks, on a device of their own."""

    detector: Detector
    sources: Mapping[str, Detector]

    def copy(self, device: torch.device) -> _Worker:
        sources = {name: deepcopy(source).to(device) for name, source in self.sources.items()}
        return _Worker(deepcopy(self.detector).to(device), sources)


def run_tasks(campaign: Campaign, tasks: Sequence[Task]) -> Iterator[float]:
    """Run tasks on every device at once; yields, every few seconds, the fraction that is done."""
    idle: SimpleQueue[_Worker] = SimpleQueue()
    stopped = Event()
    done: list[str] = []
    total = sum(len(task.kept) for task in tasks)
    with _devices(campaign) as devices:
        workers = _workers(campaign, devices[: len(tasks) if campaign.parallel else 1])
        for worker in workers:
            idle.put(worker)
        with ThreadPoolExecutor(len(workers), initializer=_one_thread) as pool:
            running = {
                pool.submit(_run_task, campaign, task, idle, stopped, done) for task in tasks
            }
            try:
                while running:
                    ended, running = wait(running, LOOK_EVERY, return_when=FIRST_COMPLETED)
                    for future in ended:
                        future.result()
                    yield len(done) / total
            finally:
                stopped.set()
                pool.shutdown(cancel_futures=True)


def _run_task(
    campaign: Campaign,
    task: Task,
    idle: SimpleQueue[_Worker],
    stopped: Event,
    done: list[str],
) -> None:
    """Attack a batch at all radii; ``done`` grows with each."""
    worker, store = idle.get(), campaign.store
    try:
        smaller: Tensor | None = None
        for place, kept in enumerate(task.kept):
            if not store.has(f"{kept}/scores"):
                earlier = None if task.before is None else _images(store, task.before[place])
                _attack_batch(
                    campaign, task, place, worker, stopped, smaller if earlier is None else earlier
                )
            smaller = _images(store, kept)
            done.append(kept)
    finally:
        idle.put(worker)


def _attack_batch(
    campaign: Campaign,
    task: Task,
    place: int,
    worker: _Worker,
    stopped: Event,
    warm: Tensor | None,
) -> None:
    """Attack a batch at one radius; keep images, norms, maps and, last, scores."""
    test, device = campaign.test, device_of(worker.detector)
    chosen = torch.from_numpy(task.batch)
    attack = build(task.member, task.norm, task.contexts[place], worker.sources)
    images = test.images[chosen].to(device)
    if not campaign.parallel:
        torch.manual_seed(task.seeds[place])
    (attacked,) = attack(
        worker.detector,
        images,
        torch.from_numpy(test.labels)[chosen].to(device),
        campaign.coverage[chosen].to(device),
        eps=[task.sizes[place]],
        generator=torch.Generator(device).manual_seed(task.seeds[place]),
        warm=None if warm is None else warm.to(device),
        each_step=_unless(stopped),
    )
    scored = score_images(worker.detector, attacked, campaign.batch_size)
    kept = task.kept[place]
    campaign.store.save(f"{kept}/images", attacked.cpu().numpy())
    campaign.store.save(f"{kept}/largest", attack.ball.size(attacked - images).cpu().numpy())
    if test.masks is not None:
        campaign.store.save(f"{kept}/maps", scored.maps)
    campaign.store.save(f"{kept}/scores", scored.scores)


def _images(store: Store, kept: str) -> Tensor:
    return torch.from_numpy(np.array(store.load(f"{kept}/images")))


def _unless(stopped: Event) -> Callable[[], None]:
    """What ends an attack at its next step when the evaluation is interrupted."""

    def go_on() -> None:
        if stopped.is_set():
            raise Interrupted("interrupted")

    return go_on


def _workers(campaign: Campaign, devices: Sequence[torch.device]) -> list[_Worker]:
    first = _Worker(campaign.detector, campaign.sources)
    return [first, *(first.copy(device) for device in devices[1:])]


@contextmanager
def _devices(campaign: Campaign) -> Iterator[list[torch.device]]:
    """One device for each worker: the GPUs, or the CPU as often as there are threads.

    On the CPU each worker has one thread, which is faster than sharing them.
    """
    first = device_of(campaign.detector)
    if first.type != "cpu":
        yield [first, *(other for other in campaign.gpus if other != first)]
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield [first] * threads
    finally:
        torch.set_num_threads(threads)


def _one_thread() -> None:
    torch.set_num_threads(1)
