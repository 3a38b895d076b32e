"""What the images of a data set have in common: copies, blank ones, and the range they use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from patchguard.data.images import Range
from patchguard.data.samples import Sample
from patchguard.files import counted

_LEAST_USE = 0.25
"""Images that use less of their range than this are nearly black."""


class Facts(NamedTuple):
    """What reading an image shows.

    Attributes:
        digest: of its values.
        range: of its values.
        deep: of more than 8 bits a value.
        blank: of one colour all over.
    """

    digest: str
    range: Range
    deep: bool
    blank: bool


Read = Sequence[tuple[Sample, Facts]]


def without_copies(read: Read) -> list[Sample]:
    """Of samples that are the same pixel by pixel, the first."""
    first: dict[str, Sample] = {}
    for sample, facts in read:
        first.setdefault(facts.digest, sample)
    return list(first.values())


def deep_range(found: Sequence[Facts]) -> Range | None:
    """The range that images of more than 8 bits use together; None without any."""
    ranges = [facts.range for facts in found if facts.deep]
    if not ranges:
        return None
    return Range(
        min(each.lowest for each in ranges),
        max(each.highest for each in ranges),
        max(each.full_scale for each in ranges),
    )


def remarks(normals: Read, tested: Read, full_scale: float | None) -> Iterator[str]:
    """What the user should know of training and test images.

    Args:
        normals: training images, copies among them.
        tested: test images.
        full_scale: the one chosen for images of more than 8 bits.
    """
    yield from _first_frames([*normals, *tested])
    yield from _copies(normals, tested)
    for what, read in (("training", normals), ("test", tested)):
        blank = [sample for sample, facts in read if facts.blank]
        if blank:
            yield (
                f"{counted(len(blank), f'{what} image')} of one colour all over, first "
                f"{blank[0].source}: "
                "to be removed if the camera saw nothing"
            )
    yield from _shared_groups(normals, tested)
    yield from _use(normals or tested, full_scale)


def _first_frames(read: Read) -> Iterator[str]:
    animated = [
        sample.source for sample, _ in read if sample.source.frame == 0 and sample.source.animated
    ]
    if animated:
        number = counted(len(animated), "animation")
        yield f"only the first frame is read of {number}, first {animated[0]}"


def _copies(normals: Read, tested: Read) -> Iterator[str]:
    trained: dict[str, Sample] = {}
    copies = []
    for sample, facts in normals:
        original = trained.setdefault(facts.digest, sample)
        if original is not sample:
            copies.append((sample, original))
    if copies:
        copy, original = copies[0]
        yield (
            f"copies of other training images, left out: {len(copies)} of {len(normals)}, "
            f"first {copy.source} of {original.source}"
        )
    seen = [(sample, trained[facts.digest]) for sample, facts in tested if facts.digest in trained]
    if seen:
        sample, original = seen[0]
        yield (
            f"{counted(len(seen), 'test image')} among the training images too, first "
            f"{sample.source}, "
            f"{original.source}: figures on them say nothing of new images"
        )
    different = len({facts.digest for _, facts in tested})
    if different < len(tested):
        yield f"copies of other test images: {len(tested) - different} of {len(tested)}"


def _shared_groups(normals: Read, tested: Read) -> Iterator[str]:
    trained = {sample.group for sample, _ in normals} - {None}
    shared = [sample for sample, _ in tested if sample.group in trained]
    if shared:
        yield (
            f"{counted(len(shared), 'test image')} of groups that training images are of too, "
            f"first {shared[0].source}: easier than images of new groups"
        )


def _use(read: Read, full_scale: float | None) -> Iterator[str]:
    """How much of its range the data set uses."""
    if not read:
        return
    deep = deep_range([facts for _, facts in read])
    if deep is None:
        lowest = min(facts.range.lowest for _, facts in read)
        highest = max(facts.range.highest for _, facts in read)
        yield f"the images use values {lowest:g} to {highest:g} of 0 to 255"
        return
    white = deep.full_scale if full_scale is None else full_scale
    told = f"the images use values {deep.lowest:g} to {deep.highest:g} of 0 to {white:g}"
    if deep.highest < _LEAST_USE * white:
        told += (
            ": the detector sees them nearly black; give --full-scale auto, or the camera's own "
            "number"
        )
    yield told
