"""Training batches: normal images and the pseudo-anomalies made from them in the workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from itertools import count
from typing import NamedTuple, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from patchguard.anomalies.curriculum import anomalies_at
from patchguard.anomalies.paste import make_pseudo_anomaly, sample_rng
from patchguard.config import DataConfig
from patchguard.data.stack import Stack
from patchguard.data.variation import varied
from patchguard.detector import to_tensor
from patchguard.errors import PatchGuardError


class Batch(TypedDict):
    """A batch, or one item of it.

    Attributes:
        normal: normal images [B, 3, H, W].
        anomalous: pseudo-anomalies [B, 3, H, W] made from them.
        mask: of these, [B, H, W] bool.
        index: which normal images, [B].
        flips: whether they are flipped vertically and horizontally, [B, 2] bool.
    """

    normal: Tensor
    anomalous: Tensor
    mask: Tensor
    index: Tensor
    flips: Tensor


class Draw(NamedTuple):
    """Which item of a batch: an image, in the pass over all images, at a point of the training."""

    epoch: int
    image: int
    progress: float


class TrainingImages(Dataset[Batch]):
    """Normal images; an item is made of the seed and its :class:`Draw` alone.

    Args:
        images: float32 [N, S, S, 3] in [0, 1].
        foregrounds: bool [N, S, S].
        config: pseudo-anomalies, flips and variation.
        seed: with epoch and index, the source of all of a sample's randomness.
    """

    def __init__(
        self,
        images: Stack,
        foregrounds: Stack,
        config: DataConfig,
        seed: int,
    ) -> None:
        self.images = images
        self.foregrounds = foregrounds
        self.config = config
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Draw) -> Batch:
        epoch, index, progress = item
        rng = sample_rng(self.seed, epoch, index)
        image = self.images[index]
        foreground = self.foregrounds[index]
        image, foreground, flips = varied(image, foreground, rng, self.config)
        anomalies = anomalies_at(self.config.anomalies, progress)
        anomalous, mask = make_pseudo_anomaly(image, foreground, rng, anomalies)
        return Batch(
            normal=to_tensor(image),
            anomalous=to_tensor(anomalous),
            mask=torch.tensor(mask),
            index=torch.tensor(index),
            flips=torch.tensor(flips),
        )

    def unseen(self, images: int) -> Batch:
        """Up to that many normals with pseudo-anomalies that no training batch holds."""
        chosen = np.linspace(0, len(self) - 1, min(images, len(self))).round().astype(int)
        batch: Batch = default_collate([self[Draw(_NO_EPOCH, int(index), 1.0)] for index in chosen])
        return batch


_CPU = torch.device("cpu")

_NO_EPOCH = 2**31
"""Further than any training gets."""

_MOST_WORKERS = 8
"""They prepare batches of ``strong`` faster than an H100 trains on them."""


class StepSampler(Sampler[list[Draw]]):
    """Endless batches that depend on the seed and the step alone.

    Epochs are concatenated permutations, so every batch is full and a run resumed at any step
    sees what the uninterrupted run would have seen. Of several processes each draws its share of
    the batch that one would draw.

    Args:
        images: how many there are.
        batch_size: of them in a batch, over all processes.
        seed: of the permutations.
        progress: the fraction of the training done at a step, in [0, 1].
        first_step: where to begin.
        rank: which of the processes this one is.
        world_size: how many there are.

    Raises:
        PatchGuardError: a batch cannot be split into equal shares.
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        seed: int,
        progress: Callable[[int], float],
        first_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size % world_size:
            raise PatchGuardError(
                f"training.batch_size is {batch_size}; {world_size} processes need a multiple of "
                f"{world_size}, so that all images weigh the same"
            )
        self.images = images
        self.batch_size = batch_size
        self.seed = seed
        self.progress = progress
        self.first_step = first_step
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[Draw]]:
        order_epoch, order = -1, np.empty(0, dtype=int)
        for step in count(self.first_step):
            batch, progress = [], self.progress(step)
            first, end = step * self.batch_size, (step + 1) * self.batch_size
            for place in range(first + self.rank, end, self.world_size):
                epoch, offset = divmod(place, self.images)
                if epoch != order_epoch:
                    order_epoch = epoch
                    order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
                batch.append(Draw(epoch, int(order[offset]), progress))
            yield batch


def training_loader(
    dataset: TrainingImages,
    batch_size: int,
    progress: Callable[[int], float],
    *,
    device: torch.device = _CPU,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> DataLoader[Batch]:
    """Batches from ``first_step`` on; results do not depend on the number of workers.

    Args:
        dataset: what they are made of.
        batch_size: normal images in each, and as many pseudo-anomalies.
        progress: the fraction of the training done at a step, in [0, 1].
        device: where they are needed.
        first_step: where to begin.
        rank: which of the training processes this one is.
        world_size: how many there are; each has its share of a batch.
    """
    workers = workers_for(dataset.config, device)
    sampler = StepSampler(
        len(dataset), batch_size, dataset.seed, progress, first_step, rank, world_size
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        worker_init_fn=_start_worker,
    )


def workers_for(config: DataConfig, device: torch.device) -> int:
    """How many processes prepare batches: one keeps up with a CPU, a GPU waits for one.

    Measured by ``benchmarks/throughput.py``.
    """
    if config.workers is not None:
        return config.workers
    usable = getattr(os, "sched_getaffinity", None)
    cores = len(usable(0)) if usable else os.cpu_count() or 1
    return min(_MOST_WORKERS, max(1, cores - 1)) if device.type == "cuda" else 1


def _start_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # Both may reach the whole process group; only the main process decides when to stop.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
