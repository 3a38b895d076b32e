"""Training batches: normal images and the pseudo-anomalies made from them in the workers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from patchguard.anomalies.curriculum import anomalies_at
from patchguard.anomalies.paste import anomaly_in_window, make_pseudo_anomaly, sample_rng
from patchguard.arrays import BoolArray, FloatArray
from patchguard.config import AnomalyConfig, DataConfig, View
from patchguard.data.stack import Stack
from patchguard.data.variation import flipped, vary
from patchguard.data.windows import (
    WHOLE_PLACE,
    box_around,
    place_of,
    squeezed_image,
    squeezed_mask,
)
from patchguard.detector import to_tensor
from patchguard.errors import PatchGuardError


class Batch(TypedDict):
    """A batch, or one item of it.

    Attributes:
        normal: windows [B, 3, w, w] of normal images, or such images squeezed into one.
        anomalous: windows [B, 3, w, w] of pseudo-anomalies made from them.
        mask: of these, [B, w, w] bool.
        places: where the normal and the anomalous windows lie, [B, 2, 4]: top, left, height and
            width as fractions of the image.
        index: which normal images, [B].
        flips: whether they are flipped vertically and horizontally, [B, 2] bool.
    """

    normal: Tensor
    anomalous: Tensor
    mask: Tensor
    places: Tensor
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
        images: float32 [N, H, W, 3] in [0, 1].
        foregrounds: bool [N, H, W].
        config: pseudo-anomalies, flips and variation.
        in_windows: the same where images are seen in windows; as ``config`` when absent.
        window: side in pixels of what the network sees at once.
        views: which views it has.
        seed: with epoch and index, the source of all of a sample's randomness.
    """

    def __init__(
        self,
        images: Stack,
        foregrounds: Stack,
        config: DataConfig,
        seed: int,
        *,
        window: int,
        views: Sequence[View],
        in_windows: DataConfig | None = None,
    ) -> None:
        self.images = images
        self.foregrounds = foregrounds
        self.config = config
        self.in_windows = in_windows or config
        self.seed = seed
        self.window = window
        self.wholes = config.wholes if len(views) > 1 else float("whole" in views)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Draw) -> Batch:
        epoch, index, progress = item
        rng = sample_rng(self.seed, epoch, index)
        anomalies = anomalies_at(self.config.anomalies, progress)
        shown = self._whole if rng.random() < self.wholes else self._windows
        normal, anomalous, mask, places, flips = shown(index, rng, anomalies)
        return Batch(
            normal=to_tensor(normal),
            anomalous=to_tensor(anomalous),
            mask=torch.tensor(mask),
            places=torch.tensor(places, dtype=torch.float32),
            index=torch.tensor(index),
            flips=torch.tensor(flips),
        )

    def _whole(self, index: int, rng: np.random.Generator, anomalies: AnomalyConfig) -> _Shown:
        """A normal image squeezed into a window, and a pseudo-anomaly made of that."""
        image = squeezed_image(self.images[index], self.window)
        foreground = squeezed_mask(self.foregrounds[index], self.window)
        image, foreground, flips = flipped(image, foreground, rng, self.config)
        normal, foreground = vary(image, foreground, rng, self.config.variation)
        anomalous, mask = make_pseudo_anomaly(normal, foreground, rng, anomalies)
        return _Shown(normal, anomalous, mask, [WHOLE_PLACE] * 2, flips)

    def _windows(self, index: int, rng: np.random.Generator, anomalies: AnomalyConfig) -> _Shown:
        """A window of a normal image, and one of a pseudo-anomaly made from the same region.

        Only the region is varied: what windows lie in, twice as wide as one.
        """
        shape = self.foregrounds[index].shape
        image, foreground = (
            _at_least(stack[index], self.window) for stack in (self.images, self.foregrounds)
        )
        image, foreground, flips = flipped(image, foreground, rng, self.in_windows)
        anywhere = self.config.anywhere
        region = box_around(foreground, 2 * self.window, rng, anywhere=anywhere)
        normal, shown = vary(image, foreground, rng, self.in_windows.variation, region)
        anomalous, mask, box = anomaly_in_window(
            normal, shown, rng, anomalies, self.window, anywhere
        )
        boxes = [box_around(shown, self.window, rng, anywhere=anywhere), box]
        return _Shown(
            boxes[0].of(normal),
            box.of(anomalous),
            box.of(mask),
            [
                place_of(box._replace(top=region.top + box.top, left=region.left + box.left), shape)
                for box in boxes
            ],
            flips,
        )

    def unseen(self, images: int) -> Batch:
        """Up to that many normals with pseudo-anomalies that no training batch holds."""
        chosen = np.linspace(0, len(self) - 1, min(images, len(self))).round().astype(int)
        batch: Batch = default_collate([self[Draw(_NO_EPOCH, int(index), 1.0)] for index in chosen])
        return batch


class _Shown(NamedTuple):
    """What an item shows: windows [w, w, 3], the mask [w, w], the two places and the flips."""

    normal: FloatArray
    anomalous: FloatArray
    mask: BoolArray
    places: list[tuple[float, float, float, float]]
    flips: list[bool]


def _at_least(image: NDArray[Any], window: int) -> NDArray[Any]:
    """Continued by reflection below and to the right where a side is below ``window``."""
    missing = [(0, max(0, window - side)) for side in image.shape[:2]]
    if not any(more for _, more in missing):
        return image
    return np.pad(image, missing + [(0, 0)] * (image.ndim - 2), mode="symmetric")


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
