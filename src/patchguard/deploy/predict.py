"""Scores, verdicts and maps for new images, at the resolution they came in."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from patchguard.arrays import FloatArray
from patchguard.data.images import ImageSource, Pixels, eight_bit, read_pixels, save_png
from patchguard.data.listing import Listing, list_images
from patchguard.deploy.pipeline import Judgement, Pipeline
from patchguard.deploy.prediction_folder import MAPS, OVERLAYS, Prediction, PredictionFolder
from patchguard.errors import PatchGuardError
from patchguard.files import absolute, printable, short_name

BATCH_SIZE = 16
_BATCH_BYTES = 2**26
"""Images are read until they fill a batch or this much memory; one may be larger than that."""
_ROWS_AT_ONCE = 256


class Inputs(NamedTuple):
    """What was named to be inspected.

    Attributes:
        listing: every file, each once.
        root: the folder that holds them all.
    """

    listing: Listing
    root: Path


def find_inputs(named: Sequence[Path]) -> Inputs:
    """The files that are named, and those below the folders that are named.

    One of several that does not exist is a fault of the listing.

    Raises:
        PatchGuardError: there is no image at all, or no folder holds all of them.
    """
    listings, faults = [], []
    for path in named:
        try:
            listings.append(list_images(path))
        except PatchGuardError as error:
            faults.append((path, str(error).removeprefix(f"{path}: ")))
    if not listings:
        path, reason = faults[0]
        raise PatchGuardError(f"{path}: {reason}")
    images = {absolute(path): path for found in listings for path in found.images}
    others = {absolute(path): path for found in listings for path in found.others}
    faults += [fault for found in listings for fault in found.faults]
    folders = [path if path.is_dir() else path.parent for path in named]
    try:
        root = os.path.commonpath([absolute(folder) for folder in folders])
    except ValueError:
        raise PatchGuardError(
            f"{named[0]} and the others lie on different drives; give one drive at a time"
        ) from None
    return Inputs(
        Listing(tuple(images.values()), tuple(others.values()), tuple(faults)), Path(root)
    )


def write_predictions(
    pipeline: Pipeline,
    inputs: Inputs,
    out: PredictionFolder,
    *,
    maps: bool,
    each: Callable[[Prediction], None],
) -> list[Prediction]:
    """Predict files; what is done stays written, whatever happens later.

    ``scores.csv``, ``scores.json``, ``overlays/*.png`` and, with ``maps``, raw float32
    ``maps/*.npy`` go to ``out``, under each image's path relative to the root of the inputs. An
    image that cannot be read, judged or drawn is a row with its error.

    Args:
        pipeline: what judges.
        inputs: the files.
        out: the folder, opened.
        maps: write raw maps too.
        each: called with each prediction as it is made.
    """
    done: list[Prediction] = []

    def add(prediction: Prediction) -> None:
        done.append(prediction)
        each(prediction)

    try:
        for path, reason in inputs.listing.faults:
            add(Prediction(printable(path), error=printable(reason)))
        for batch in _batches(pipeline, inputs.listing.images, out):
            for source, found in _judged(pipeline, batch):
                if not isinstance(found, Prediction):
                    found = _written(pipeline, source, found, inputs.root, out, maps=maps)
                    out.add(source, found)
                add(found)
        out.finish(_with_former(out, done))
    except BaseException:
        with suppress(PatchGuardError):  # what went wrong first is told
            out.write_rows(_with_former(out, done))
        raise
    return done


def _with_former(out: PredictionFolder, done: Sequence[Prediction]) -> list[Prediction]:
    """What is done, and before it the rows that were finished earlier and not met this time."""
    met = set(done)
    return [*(row for row in out.rows if row not in met), *done]


class _Seen(NamedTuple):
    """An image as it was read, or what became of it."""

    source: ImageSource
    outcome: Pixels | Prediction | PatchGuardError


class _Judged(NamedTuple):
    pixels: Pixels
    judgement: Judgement


def _batches(
    pipeline: Pipeline, paths: Sequence[Path], out: PredictionFolder
) -> Iterator[list[_Seen]]:
    batch: list[_Seen] = []
    size = 0
    for seen in _seen(pipeline, paths, out):
        batch.append(seen)
        if isinstance(seen.outcome, Pixels):
            size += seen.outcome.values.nbytes
        if len(batch) == BATCH_SIZE or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _seen(pipeline: Pipeline, paths: Sequence[Path], out: PredictionFolder) -> Iterator[_Seen]:
    for path in paths:
        if out.holds(path):
            continue
        try:
            sources = pipeline.preprocessor.sources(path)
        except PatchGuardError as error:
            yield _Seen(ImageSource(path), error)
            continue
        for source in sources:
            try:
                yield _Seen(source, out.done(source) or read_pixels(source))
            except PatchGuardError as error:
                yield _Seen(source, error)


def _judged(
    pipeline: Pipeline, batch: Sequence[_Seen]
) -> Iterator[tuple[ImageSource, Prediction | _Judged | PatchGuardError]]:
    """Verdicts on a batch, in order."""
    pixels = [seen.outcome for seen in batch if isinstance(seen.outcome, Pixels)]
    judgements = iter(pipeline(pixels) if pixels else [])
    for source, outcome in batch:
        if isinstance(outcome, Pixels):
            yield source, _Judged(outcome, next(judgements))
        else:
            yield source, outcome


def _written(
    pipeline: Pipeline,
    source: ImageSource,
    found: _Judged | PatchGuardError,
    root: Path,
    out: PredictionFolder,
    *,
    maps: bool,
) -> Prediction:
    """The row of an image; its pictures are written first."""
    row = Prediction(printable(source.path), source.part)
    if isinstance(found, PatchGuardError):
        return replace(row, error=_reason(found, source))
    pixels, judgement = found
    row = replace(
        row,
        score=judgement.score,
        p_value=judgement.p_value,
        verdict="anomalous" if judgement.anomalous else "normal",
    )
    place = absolute(source.path).relative_to(root)
    anomaly_map = pipeline.preprocessor.back(judgement.anomaly_map, pixels.shape)
    try:
        picture = Path(OVERLAYS) / _named(place, source, ".png")
        shown = overlay(pixels, pipeline, anomaly_map)
        out.write(picture, lambda path: save_png(path, shown))
        if maps:
            out.write(
                Path(MAPS) / _named(place, source, ".npy"), lambda path: _save(path, anomaly_map)
            )
    except PatchGuardError as error:
        return replace(row, error=printable(str(error)))
    return replace(row, overlay=printable(picture.as_posix()))


def overlay(image: Pixels, pipeline: Pipeline, anomaly_map: FloatArray) -> npt.NDArray[np.uint8]:
    """The image in grey with the map [H, W] laid over it in colour, [H, W, 3] in 0 to 255.

    Made in bands of rows: an image of 100 megapixels would take gigabytes in floats.
    """
    height, width = image.shape
    picture = np.empty((height, width, 3), np.uint8)
    for first in range(0, height, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE, height)
        heat = pipeline.heat(anomaly_map[first:last])
        picture[first:last] = eight_bit(_blend(image.rows(first, last), heat))
    return picture


def _blend(image: FloatArray, heat: FloatArray) -> FloatArray:
    """The image [H, W, 3] in grey, with heat [H, W] in [0, 1] laid over it in colour."""
    grey = np.repeat(image.mean(-1, keepdims=True), 3, axis=-1)
    colour = np.stack(
        [np.ones_like(heat), np.clip(2 - 2 * heat, 0, 1) * 0.8, np.zeros_like(heat)], axis=-1
    )
    alpha = (0.75 * heat)[..., None]
    blended: FloatArray = (grey * (1 - alpha) + colour * alpha).astype(np.float32)
    return blended


def _named(place: Path, source: ImageSource, suffix: str) -> Path:
    """The path of an image with a suffix behind, and the page where a file holds several."""
    page = f".page{source.frame + 1}" if source.part.startswith("page") else ""
    return place.with_name(short_name(place.name, f"{page}{suffix}"))


def _reason(error: PatchGuardError, source: ImageSource) -> str:
    told = str(error)
    for name in (str(source), str(source.path)):
        told = told.removeprefix(f"{name}: ")
    return printable(told)


def _save(path: Path, anomaly_map: FloatArray) -> None:
    with path.open("wb") as file:
        np.save(file, anomaly_map.astype(np.float32), allow_pickle=False)
