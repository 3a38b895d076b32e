"""One image of a data set, with what is known of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import numpy as np

from patchguard.arrays import BoolArray
from patchguard.data.images import ImageSource, read_mask
from patchguard.errors import PatchGuardError

GOOD = "good"


@dataclass(frozen=True)
class Sample:
    """One image.

    Args:
        source: file, and page of it.
        kind: ``"good"`` for a normal image, else the name of its defect.
        masks: of its ground truth, where there is one, whose union counts; a normal image has none.
        group: images that belong together share one: of one part, one patient.
    """

    source: ImageSource
    kind: str
    masks: tuple[ImageSource, ...] = ()
    group: str | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self.source.path

    @property
    def anomalous(self) -> bool:
        return self.kind != GOOD

    @property
    def name(self) -> str:
        """Kind and file name, for tables."""
        return f"{self.kind}/{self.source.named(Path(self.path.name))}"


def defect_mask(sample: Sample) -> BoolArray:
    """The union of a sample's masks, `[H, W]`, True = anomalous.

    Raises:
        PatchGuardError: a mask cannot be read, or as :func:`union_of`.
    """
    return union_of(sample, [read_mask(source) for source in sample.masks])


def union_of(sample: Sample, masks: Sequence[BoolArray]) -> BoolArray:
    """The union of masks of one size.

    Raises:
        PatchGuardError: they mark no pixel, or every one.
    """
    union = reduce(np.logical_or, masks)
    first = sample.masks[0]
    if not union.any():
        raise PatchGuardError(f"{first}: the mask marks no pixel; draw the defect or remove it")
    if union.all():
        raise PatchGuardError(
            f"{first}: the mask marks every pixel (is its shape in the transparency, which does "
            "not count?); draw the defect in white on black or remove it"
        )
    return union
