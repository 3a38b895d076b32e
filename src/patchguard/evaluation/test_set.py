"""What an evaluation runs on: images at the detector's resolution, ground truth at its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor

from patchguard.anomalies.paste import make_pseudo_anomaly, sample_rng
from patchguard.config import AnomalyConfig
from patchguard.data.images import ImageSource, read_image, read_pixels
from patchguard.data.samples import Sample, defect_mask
from patchguard.data.stack import Stack
from patchguard.detector import to_tensor


@dataclass(frozen=True)
class TestSet:
    """Labelled images.

    Attributes:
        names: one for each image, for tables and files.
        kinds: ``good`` or the kind of defect.
        images: [N, 3, H, W] in [0, 1], at the detector's resolution.
        masks: bool [H, W] at the resolution of the ground truth, or None without ground truth.
        sha256: of the images and masks they were made from, the same for every detector.
        sources: what they were read from; empty for images that were made.
    """

    __test__ = False

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    images: Tensor
    masks: tuple[np.ndarray, ...] | None
    sha256: str = ""
    sources: tuple[ImageSource, ...] = ()

    @property
    def labels(self) -> np.ndarray:
        """[N] bool, True = anomalous."""
        return np.array([kind != "good" for kind in self.kinds])

    def subset(self, count: int) -> TestSet:
        """About ``count`` images, always the same: an equal share, but at least one, of a kind."""
        if count >= len(self.kinds):
            return self
        rng = np.random.default_rng(0)
        share = count / len(self.kinds)
        chosen: list[int] = []
        for kind in sorted(set(self.kinds)):
            of_kind = np.flatnonzero(np.array(self.kinds) == kind)
            wanted = math.ceil(share * len(of_kind))
            chosen += rng.choice(of_kind, wanted, replace=False).tolist()
        chosen.sort()
        return TestSet(
            names=tuple(self.names[index] for index in chosen),
            kinds=tuple(self.kinds[index] for index in chosen),
            images=self.images[chosen],
            masks=None if self.masks is None else tuple(self.masks[index] for index in chosen),
            sha256=hashlib.sha256(f"{self.sha256} {chosen}".encode()).hexdigest(),
            sources=tuple(self.sources[index] for index in chosen) if self.sources else (),
        )

    def coverage(self) -> Tensor:
        """Anomalous fraction of each pixel of the images, [N, H, W]; 0 without masks."""
        height, width = self.images.shape[-2:]
        if self.masks is None:
            return torch.zeros(len(self.names), height, width)
        return torch.stack([_area_average(mask, (height, width)) for mask in self.masks])


def labelled_images(samples: Sequence[Sample], shape: tuple[int, int], with_masks: bool) -> TestSet:
    """The test images of a folder, resized to the detector; masks stay as they are.

    Args:
        samples: with their masks.
        shape: height and width in pixels of the images that the detector takes.
        with_masks: read the masks, too.

    Raises:
        PatchGuardError: as :func:`patchguard.data.samples.defect_mask`.
    """
    images, masks = [], []
    content = hashlib.sha256()
    for sample in samples:
        for source in (sample.source, *(sample.masks if with_masks else ())):
            content.update(source.path.read_bytes())
        pixels = read_pixels(sample.source)
        images.append(to_tensor(pixels.resized(shape)))
        if with_masks:
            masks.append(defect_mask(sample) if sample.masks else np.zeros(pixels.shape, bool))
    return TestSet(
        names=tuple(sample.name for sample in samples),
        kinds=tuple(sample.kind for sample in samples),
        images=torch.stack(images),
        masks=tuple(masks) if with_masks else None,
        sha256=content.hexdigest(),
        sources=tuple(sample.source for sample in samples),
    )


class OriginalImages(Sequence[np.ndarray]):
    """The images [H, W, 3] in [0, 1] of files as they were captured, read when asked for."""

    def __init__(self, sources: Sequence[ImageSource]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> OriginalImages: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | OriginalImages:
        if isinstance(index, slice):
            return OriginalImages(self._sources[index])
        return read_image(self._sources[index])


def pseudo_test_set(
    names: Sequence[str],
    images: Sequence[np.ndarray] | Stack,
    foregrounds: Sequence[np.ndarray] | Stack,
    config: AnomalyConfig,
    seed: int,
) -> TestSet:
    """Held-out normal images and one pseudo-anomaly made from each.

    A self-test for folders without labelled defects. It says whether training worked, not how
    real defects will fare: they differ from pseudo-anomalies.

    Args:
        names: of the images.
        images: float32 [H, W, 3] in [0, 1].
        foregrounds: bool [H, W].
        config: as in training.
        seed: of the pseudo-anomalies.
    """
    made = [
        make_pseudo_anomaly(image, foreground, sample_rng(seed, 0, index), config)
        for index, (image, foreground) in enumerate(zip(images, foregrounds, strict=True))
    ]
    empty = [np.zeros(image.shape[:2], dtype=bool) for image in images]
    source = hashlib.sha256()
    for image in (*images, *(pair[0] for pair in made)):
        source.update(image.tobytes())
    return TestSet(
        names=(*(f"good/{name}" for name in names), *(f"pseudo/{name}" for name in names)),
        kinds=("good",) * len(names) + ("pseudo",) * len(names),
        images=torch.stack([to_tensor(image) for image in (*images, *(pair[0] for pair in made))]),
        masks=(*empty, *(pair[1] for pair in made)),
        sha256=source.hexdigest(),
    )


def _area_average(mask: np.ndarray, shape: tuple[int, int]) -> Tensor:
    channels = torch.from_numpy(mask)[None, None].float()
    return torch.nn.functional.adaptive_avg_pool2d(channels, shape)[0, 0]
