"""Folders of images: MVTec-style trees and plain folders of normal images."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Literal

from patchguard.data.census import Facts, deep_range, remarks, without_copies
from patchguard.data.images import ImageSource, read_mask, read_pixels, sources_in
from patchguard.data.listing import (
    MOST_NAMED,
    Fault,
    Listing,
    list_folder,
    list_images,
    named,
    others_told,
)
from patchguard.data.masks import masks_by_image
from patchguard.data.samples import GOOD, Sample, union_of
from patchguard.data.split import grouped
from patchguard.errors import PatchGuardError
from patchguard.files import counted, printable

_TESTED_PARTS = ("test", "ground_truth")
_TREE_PARTS = frozenset({"train", *_TESTED_PARTS})
_MOST_THREADS = 4
"""Each holds an image, which may be large."""

FullScale = float | Literal["auto"] | None


@dataclass(frozen=True)
class ImageFolder:
    """The readable images of a data set, sorted by path.

    Args:
        train: normal images, of which no two are the same.
        test: normal and anomalous images; empty for a plain folder.
        skipped: files left out that should be read, each with the reason.
        remarks: what the user should know of these images, a line each.
        full_scale: of images of more than 8 bits, where it is not that of their format.
    """

    root: Path
    train: tuple[Sample, ...]
    test: tuple[Sample, ...]
    skipped: tuple[Fault, ...]
    remarks: tuple[str, ...] = ()
    full_scale: float | None = None

    @property
    def has_test(self) -> bool:
        """The test set holds normal *and* anomalous images, as ranking metrics need."""
        return len({sample.anomalous for sample in self.test}) == 2

    @property
    def has_masks(self) -> bool:
        """There are anomalous test images and each has a mask, as pixel metrics need."""
        return any(sample.anomalous for sample in self.test) and not self.unmasked

    @property
    def unmasked(self) -> tuple[Sample, ...]:
        """Anomalous test images without a mask."""
        return tuple(s for s in self.test if s.anomalous and not s.masks)


def scan(
    root: Path,
    *,
    strict: bool = False,
    minimum_side: int = 16,
    full_scale: FullScale = None,
    groups: str | None = None,
) -> ImageFolder:
    """Find the images of a data set and decode every one of them.

    A folder with any of ``train``, ``test`` or ``ground_truth`` is an MVTec-style tree: normal
    images in ``train/good``, test images in ``test/<kind>`` (normal ones in ``test/good``), masks
    in ``ground_truth/<kind>``: ``<image>_mask`` or ``<image>`` with any image suffix, several with
    numbers behind (``<image>_mask_1``) or in a folder named like the image; their union counts.
    ``test`` and ``ground_truth`` may be missing, and so may some masks. Other folders in ``train``
    and masks of ``good`` images are not read.

    Any other folder holds normal images: those directly inside or, if there are none, those of
    its subfolders. Links are followed. Hidden files are ignored everywhere, and files of other
    types counted. Each page of a TIFF is an image of its own. Of training images that are the same
    pixel by pixel the first is kept.

    Args:
        strict: raise at the first unreadable or too small file instead of skipping it.
        minimum_side: least height and width of an image in pixels.
        full_scale: the value that counts as white in images of more than 8 bits; ``auto`` for the
            least 2^n - 1 that holds all values of the training images; None for what their format
            can hold.
        groups: which images belong together: see :func:`patchguard.data.split.grouped`.

    Raises:
        PatchGuardError: there is no such folder, no (readable) training image, a mask that
            belongs to no image, marks nothing or everything or differs from its image in size, a
            folder ``test`` without any image, or a folder whose normal images cannot be told; with
            ``strict`` also as above.
    """
    listing = list_folder(root)
    is_tree = any((root / part).is_dir() for part in _TREE_PARTS)
    train = _training_files(root, listing) if is_tree else _plain(root, listing)
    read_scale = math.inf if full_scale == "auto" else full_scale
    reading = _Reading(root, strict, minimum_side, read_scale, list(listing.faults))
    normals = reading.read(_samples(train, reading))
    if not normals:
        path, reason = reading.faults[len(listing.faults)]
        raise PatchGuardError(
            f"{root}: none of the {len(train)} training images can be used; {path}: {reason}"
        )
    tested = reading.read(_test_samples(root, listing, reading)) if is_tree else []
    if is_tree and not tested and os.path.lexists(root / "test"):
        raise _without_images(root / "test", reading.faults)
    scale = _resolved(full_scale, normals)
    if groups is not None:
        normals, tested = (_with_groups(part, root, groups) for part in (normals, tested))
    unread = _unread(root, listing, train, is_tree)
    return ImageFolder(
        root,
        _scaled(without_copies(normals), scale),
        _scaled((sample for sample, _ in tested), scale),
        tuple(reading.faults),
        (*unread, *remarks(normals, tested, scale)),
        scale,
    )


def scan_test(
    root: Path, *, strict: bool = False, minimum_side: int = 16, full_scale: float | None = None
) -> ImageFolder:
    """The test part of an MVTec-style tree alone; ``train`` is neither needed nor read.

    Raises:
        PatchGuardError: no test folder, or as :func:`scan` for test images and masks.
    """
    if not root.exists():
        raise PatchGuardError(f"{root}: does not exist")
    if not (root / "test").is_dir():
        raise PatchGuardError(f"{root}: no folder 'test' with the labelled images")
    parts = [list_folder(root / part) for part in _TESTED_PARTS if (root / part).is_dir()]
    listing = _joined(parts)
    reading = _Reading(root, strict, minimum_side, full_scale, list(listing.faults))
    tested = reading.read(_test_samples(root, listing, reading))
    return ImageFolder(
        root,
        (),
        tuple(sample for sample, _ in tested),
        tuple(reading.faults),
        (*others_told(listing, root), *remarks([], tested, full_scale)),
        full_scale,
    )


def require_labelled(folder: ImageFolder) -> None:
    """Refuse a test folder that does not hold both normal and anomalous images.

    Raises:
        PatchGuardError: it says what the folder holds and what to do.
    """
    if folder.has_test:
        return
    test = folder.root / "test"
    counts = Counter(sample.kind for sample in folder.test)
    told = ", ".join(f"{printable(kind)} ({count})" for kind, count in sorted(counts.items()))
    if not counts:
        raise _without_images(test, folder.skipped)
    if GOOD in counts:
        raise PatchGuardError(
            f"{test}: holds {told} and no defects; put them in test/<name of the defect>, or move "
            "the folder away for a self-test"
        )
    raise PatchGuardError(
        f"{test}: holds {told} and no '{GOOD}'; give the folder of normal test images that name, "
        "or move the folder 'test' away for a self-test"
    )


def _without_images(test: Path, faults: Sequence[Fault]) -> PatchGuardError:
    below = [fault for fault in faults if fault[0].is_relative_to(test)]
    nothing = "it is empty" if test.is_dir() else "it is no folder"
    path, reason = below[0] if below else (test, nothing)
    return PatchGuardError(
        f"{test}: no image that can be read ({printable(path.name)}: {reason}); normal test images "
        f"belong in test/{GOOD}, others in test/<name of the defect>"
    )


class _Reading:
    """Decodes samples; what cannot be used is left out and remembered, with what belongs to it.

    Args:
        root: of the data set.
        strict: raise instead.
        minimum_side: least height and width in pixels.
        full_scale: of images of more than 8 bits.
        faults: found before; they count with ``strict``.
    """

    def __init__(
        self,
        root: Path,
        strict: bool,
        minimum_side: int,
        full_scale: float | None,
        faults: list[Fault],
    ) -> None:
        self.root = root
        self.strict = strict
        self.minimum_side = minimum_side
        self.full_scale = full_scale
        self.faults: list[Fault] = []
        for fault in faults:
            self.skip(fault)

    def skip(self, fault: Fault, others: Iterable[Path] = ()) -> None:
        """Leave a file out, and others with it."""
        path, reason = fault
        if self.strict:
            raise PatchGuardError(f"{path}: {reason}")
        below = [printable(other.relative_to(self.root)) for other in others if other != path]
        left = f"; left out with it: {', '.join(below)}" if below else ""
        self.faults.append((path, f"{reason}{left}"))

    def sources(self, path: Path, others: Iterable[Path] = ()) -> tuple[ImageSource, ...]:
        """The images of a file; none when it cannot be read, and others are left out with it."""
        try:
            return sources_in(path, self.full_scale)
        except PatchGuardError as error:
            self.skip((path, _reason(error, path)), others)
            return ()

    def read(self, samples: Sequence[Sample]) -> list[tuple[Sample, Facts]]:
        """Samples whose files decode, with what was seen."""
        readable = []
        # Threads, since nearly all the time goes into decoders, which release the GIL.
        with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
            outcomes = pool.map(_examined, samples, repeat(self.minimum_side))
            for sample, outcome in zip(samples, outcomes, strict=True):
                if isinstance(outcome, Facts):
                    readable.append((sample, outcome))
                else:
                    self.skip(outcome, [sample.path, *(mask.path for mask in sample.masks)])
        return readable


def _examined(sample: Sample, minimum_side: int) -> Facts | Fault:
    """What a sample is like, or its first file that cannot be used, and why."""
    try:
        pixels = read_pixels(sample.source)
    except PatchGuardError as error:
        return sample.path, _reason(error, sample.source)
    height, width = pixels.shape
    if min(height, width) < minimum_side:
        small = f"{width}x{height} pixels; both sides need at least {minimum_side}"
        return sample.path, " ".join(filter(None, (sample.source.part, small)))
    fault = _mask_fault(sample, pixels.shape)
    return fault or Facts(pixels.digest, pixels.range, pixels.deep, pixels.blank)


def _mask_fault(sample: Sample, shape: tuple[int, int]) -> Fault | None:
    """The first mask of a sample that cannot be read."""
    masks = []
    for source in sample.masks:
        try:
            masks.append(read_mask(source))
        except PatchGuardError as error:
            return source.path, _reason(error, source)
        height, width = masks[-1].shape
        if (height, width) != shape:
            raise PatchGuardError(
                f"{source}: mask of {width}x{height} pixels for an image of "
                f"{shape[1]}x{shape[0]}; export it at the size of {sample.source}"
            )
    if masks:
        union_of(sample, masks)
    return None


def _reason(error: PatchGuardError, source: ImageSource | Path) -> str:
    """Why a file cannot be used, without the file."""
    told = str(error).removeprefix(f"{source}: ")
    part = source.part if isinstance(source, ImageSource) else ""
    return " ".join(filter(None, (part, told)))


def _training_files(root: Path, listing: Listing) -> list[Path]:
    normals = root / "train" / GOOD
    train = [path for path in listing.images if path.is_relative_to(normals)]
    if not train:
        raise PatchGuardError(f"{normals}: no images; the normal training images belong there")
    return train


def _plain(root: Path, listing: Listing) -> list[Path]:
    if not listing.images:
        list_images(root)
    inside = [path for path in listing.images if path.parent == root]
    if not inside:
        _require_normals(root, listing.images)
    return inside or list(listing.images)


def _require_normals(root: Path, found: Sequence[Path]) -> None:
    """Refuse subfolders that hold more than normal images."""
    folders = [path.relative_to(root).parent.parts for path in found]
    trees = [parts for parts in folders if _TREE_PARTS.intersection(parts)]
    if trees:
        raise PatchGuardError(f"{root}: holds whole data sets; name one, such as {trees[0][0]}")
    good = [GOOD in parts for parts in folders]
    if any(good) and not all(good):
        other = folders[good.index(False)][-1]
        raise PatchGuardError(
            f"{root}: holds '{GOOD}' and '{other}' images; name the folder of normal images"
        )


def _samples(paths: Iterable[Path], reading: _Reading) -> list[Sample]:
    return [Sample(source, GOOD) for path in paths for source in reading.sources(path)]


def _test_samples(root: Path, listing: Listing, reading: _Reading) -> list[Sample]:
    images = {}
    for path in _below(root / "test", listing):
        key = path.relative_to(root / "test")
        if len(key.parts) == 1:
            raise PatchGuardError(
                f"{path}: no kind; move it to test/{GOOD} or to test/<name of the defect>"
            )
        images[path] = key.with_suffix("")
    masks = masks_by_image(root, _below(root / "ground_truth", listing), set(images.values()))
    samples = []
    for path, key in images.items():
        samples += [
            Sample(source, key.parts[0], of_source)
            for source, of_source in _with_masks(path, masks.get(key, []), reading)
        ]
    return samples


def _with_masks(
    path: Path, masks: Sequence[Path], reading: _Reading
) -> list[tuple[ImageSource, tuple[ImageSource, ...]]]:
    """The pages of an image, each with that page of each of its mask files.

    None where one of the files cannot be read.
    """
    pages = reading.sources(path, masks)
    of_masks = [reading.sources(mask, [path]) for mask in masks] if pages else []
    if not pages or not all(of_masks):
        return []
    for mask, found in zip(masks, of_masks, strict=True):
        if len(found) != len(pages):
            raise PatchGuardError(
                f"{mask}: {len(found)} pages, and {path} has {len(pages)}; save a mask page for "
                "each page of the image"
            )
    return [(page, tuple(found[place] for found in of_masks)) for place, page in enumerate(pages)]


def _below(folder: Path, listing: Listing) -> list[Path]:
    return [path for path in listing.images if path.is_relative_to(folder)]


def _unread(root: Path, listing: Listing, train: Sequence[Path], is_tree: bool) -> Iterator[str]:
    """What lies in the folder and takes no part."""
    read = set(train)
    if is_tree:
        read.update(_below(root / "test", listing), _below(root / "ground_truth", listing))
    left = [path for path in listing.images if path not in read]
    if left:
        where = (
            f"outside train/{GOOD}, test and ground_truth"
            if is_tree
            else "in subfolders, as there are images directly in the folder"
        )
        yield f"{counted(len(left), 'image')} {where} not read: {named(left, root)}"
    if not is_tree:
        yield from _all_normal(root, train)
    yield from others_told(listing, root)


def _all_normal(root: Path, train: Sequence[Path]) -> Iterator[str]:
    """A line where a folder might hold more than normal images."""
    counts = Counter(path.relative_to(root).parts[0] for path in train)
    if len(counts) > 1 and len(counts) < len(train):
        told = [f"{printable(name)} ({count})" for name, count in sorted(counts.items())]
        more = f" and {len(told) - MOST_NAMED} more" if len(told) > MOST_NAMED else ""
        yield (
            "the images in all subfolders are taken as normal: "
            f"{', '.join(told[:MOST_NAMED])}{more}"
        )


def _joined(parts: Sequence[Listing]) -> Listing:
    return Listing(
        tuple(path for part in parts for path in part.images),
        tuple(path for part in parts for path in part.others),
        tuple(fault for part in parts for fault in part.faults),
    )


def _resolved(full_scale: FullScale, normals: Sequence[tuple[Sample, Facts]]) -> float | None:
    """The full scale as a number: with ``auto``, that of the training images."""
    if full_scale != "auto":
        return full_scale
    deep = deep_range([facts for _, facts in normals])
    return None if deep is None else 2.0 ** max(1, math.ceil(deep.highest).bit_length()) - 1


def _scaled(samples: Iterable[Sample], scale: float | None) -> tuple[Sample, ...]:
    return tuple(
        replace(sample, source=replace(sample.source, full_scale=scale)) for sample in samples
    )


def _with_groups(
    read: Sequence[tuple[Sample, Facts]], root: Path, groups: str
) -> list[tuple[Sample, Facts]]:
    samples = grouped([sample for sample, _ in read], root, groups)
    return [(sample, facts) for sample, (_, facts) in zip(samples, read, strict=True)]
