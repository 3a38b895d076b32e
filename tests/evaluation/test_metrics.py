"""Ranking metrics against scikit-learn, anomalib, brute force and closed forms."""

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from patchguard.errors import PatchGuardError
from patchguard.evaluation.metrics import (
    auroc_by_kind,
    image_metrics,
    pixel_metrics,
    rates_at,
)
from patchguard.evaluation.pixels import metrics_of
from patchguard.results.schema import ImageMetrics, PixelMetrics

Maps = list[np.ndarray]

# (scores of n items, from a generator): untied, heavily tied, far from 0, and both at once.
DRAWS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "continuous": lambda rng, n: rng.normal(size=n),
    "float32": lambda rng, n: rng.normal(size=n).astype(np.float32),
    "float16": lambda rng, n: rng.normal(size=n).astype(np.float16),
    "integers": lambda rng, n: rng.integers(0, 5, n),
    "two values": lambda rng, n: rng.integers(0, 2, n),
    "constant": lambda rng, n: np.full(n, 7.0),
    "beyond the sigmoid": lambda rng, n: rng.normal(40, 1, n).astype(np.float32),
    "beyond the sigmoid, tied": lambda rng, n: rng.normal(40, 1, n).round(1),
    "tiny": lambda rng, n: rng.normal(size=n) * 1e-30,
}


def dumped(metrics: ImageMetrics | PixelMetrics) -> dict[str, float]:
    return metrics.model_dump(exclude_unset=True)


def labelled(draw: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return DRAWS[draw](rng, n), np.append(rng.random(n - 2) < 0.3, [False, True])


def sklearn_f1_max(labels: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-300)))


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize(("n", "seed"), [(2, 0), (7, 1), (60, 2), (1000, 3)])
def test_image_metrics_equal_scikit_learn(draw: str, n: int, seed: int) -> None:
    scores, labels = labelled(draw, n, seed)
    metrics = image_metrics(scores, labels)
    assert metrics.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.ap == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert metrics.f1_max == pytest.approx(sklearn_f1_max(labels, scores), abs=1e-12)


@pytest.mark.parametrize("draw", DRAWS)
def test_conservative_auroc_is_the_share_of_pairs_strictly_in_order(draw: str) -> None:
    scores, labels = labelled(draw, 80, 5)
    wins = scores[labels][:, None] > scores[~labels][None, :]
    assert image_metrics(scores, labels).auroc_conservative == pytest.approx(wins.mean(), abs=1e-12)


@pytest.mark.parametrize("draw", DRAWS)
def test_f1_is_reached_by_verdicts_above_its_threshold(draw: str) -> None:
    scores, labels = labelled(draw, 80, 6)
    metrics = image_metrics(scores, labels)
    tpr, fpr = rates_at(scores, labels, metrics.f1_max_threshold)
    hits, alarms = tpr * labels.sum(), fpr * (~labels).sum()
    assert 2 * hits / (hits + alarms + labels.sum()) == pytest.approx(metrics.f1_max)


def test_scores_equal_to_the_threshold_are_normal() -> None:
    # 0.1 in float32 is above 0.1, and the threshold must not be rounded to float32 either.
    scores = np.array([0.1, 0.2, 0.3, 0.4], dtype=np.float32)
    labels = [0, 1, 0, 1]
    assert rates_at(scores, labels, float(scores[2])) == (0.5, 0.0)
    assert rates_at(scores, labels, 0.1) == (1.0, 1.0)
    assert rates_at(scores, labels, math.inf) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0], (1.0, 1.0, 1.0, 1.0)),
        ([4.0, 3.0, 2.0, 1.0], (0.0, 0.0, (1 / 3 + 2 / 4) / 2, 2 / 3)),
        ([5.0, 5.0, 5.0, 5.0], (0.5, 0.0, 0.5, 2 / 3)),
        ([-np.inf, 0.0, 0.0, np.inf], (0.875, 0.75, (1 + 2 / 3) / 2, 0.8)),
    ],
    ids=["perfect", "reversed", "constant", "infinite"],
)
def test_closed_forms(scores: list[float], expected: tuple[float, ...]) -> None:
    metrics = image_metrics(scores, [False, False, True, True])
    assert (metrics.auroc, metrics.auroc_conservative, metrics.ap, metrics.f1_max) == pytest.approx(
        expected
    )


def test_one_class_is_nan_where_nothing_can_be_ranked() -> None:
    without_anomalies = dumped(image_metrics([1.0, 2.0], [False, False]))
    assert all(math.isnan(value) for value in without_anomalies.values())
    without_normals = image_metrics([1.0, 2.0], [True, True])
    assert math.isnan(without_normals.auroc) and math.isnan(without_normals.auroc_conservative)
    assert (without_normals.ap, without_normals.f1_max) == (1.0, 1.0)
    assert math.isnan(rates_at([1.0, 2.0], [True, True], 1.5)[1])


def random_maps(draw: str, seed: int) -> tuple[Maps, Maps]:
    """Eight 24 x 24 maps, two of normal images, scores a little higher on ragged regions."""
    rng = np.random.default_rng(seed)
    masks = [rng.random((24, 24)) < rng.uniform(0.02, 0.3) for _ in range(6)]
    masks += [np.zeros((24, 24), dtype=bool)] * 2
    maps = [DRAWS[draw](rng, 24 * 24).reshape(24, 24) for _ in masks]
    step = np.ptp(maps[0]) / 3
    return [(m + step * t).astype(m.dtype) for m, t in zip(maps, masks, strict=True)], masks


def flat(arrays: Maps) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays])


def regions_of(mask: np.ndarray) -> list[np.ndarray]:
    """The 8-connected regions of a mask, by flood fill."""
    unseen, regions = {tuple(pixel) for pixel in np.argwhere(mask)}, []
    while unseen:
        front, region = [unseen.pop()], np.zeros_like(mask)
        while front:
            row, column = front.pop()
            region[row, column] = True
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & unseen
            unseen -= around
            front.extend(around)
        regions.append(region)
    return regions


def brute_force_aupro(maps: Maps, masks: Maps, fpr_limit: float) -> float:
    """Every distinct score as a threshold; area by the trapezium rule, cut at the limit."""
    regions = [(m, region) for m, t in zip(maps, masks, strict=True) for region in regions_of(t)]
    normal = np.concatenate([m[~t] for m, t in zip(maps, masks, strict=True)])
    area, fpr, pro = 0.0, 0.0, 0.0
    for threshold in np.unique(flat(maps))[::-1]:
        new_fpr = float(np.mean(normal >= threshold))
        new_pro = float(np.mean([np.mean(m[region] >= threshold) for m, region in regions]))
        if new_fpr > fpr_limit:
            at_limit = pro + (new_pro - pro) * (fpr_limit - fpr) / (new_fpr - fpr)
            return (area + (fpr_limit - fpr) * (pro + at_limit) / 2) / fpr_limit
        area += (new_fpr - fpr) * (pro + new_pro) / 2
        fpr, pro = new_fpr, new_pro
    return area / fpr_limit


@pytest.mark.parametrize("draw", DRAWS)
def test_pixel_metrics_equal_scikit_learn_on_pooled_pixels(draw: str) -> None:
    maps, masks = random_maps(draw, 1)
    metrics = pixel_metrics(maps, masks)
    scores, labels = flat(maps), flat(masks)
    assert metrics.auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.ap == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert metrics.f1_max == pytest.approx(sklearn_f1_max(labels, scores), abs=1e-12)


@pytest.mark.parametrize("draw", ["continuous", "float16", "integers", "constant", "two values"])
@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1.0])
def test_aupro_equals_brute_force(draw: str, fpr_limit: float) -> None:
    maps, masks = random_maps(draw, 2)
    maps, masks = maps[4:7], masks[4:7]
    expected = brute_force_aupro(maps, masks, fpr_limit)
    assert pixel_metrics(maps, masks, fpr_limit=fpr_limit).aupro == pytest.approx(expected)


@pytest.mark.peers
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("fpr_limit", [0.05, 0.3, 1.0])
def test_aupro_equals_anomalib(draw: str, fpr_limit: float) -> None:
    """anomalib 2.7 also joins ties into one step and interpolates at the limit.

    It adds in float32, hence the tolerance, and ranks in float32, hence the rounding first.
    """
    aupro = pytest.importorskip("anomalib.metrics.aupro")
    torch = pytest.importorskip("torch")
    maps, masks = random_maps(draw, 3)
    maps = [m.astype(np.float32) for m in maps]
    peer = aupro._AUPRO(fpr_limit=fpr_limit)
    peer.update(torch.from_numpy(np.stack(maps)), torch.from_numpy(np.stack(masks)).int())
    ours = pixel_metrics(maps, masks, fpr_limit=fpr_limit).aupro
    assert ours == pytest.approx(float(peer.compute()), abs=2e-6)


def test_pixels_touching_at_a_corner_are_one_region() -> None:
    """One found pixel of a two-pixel region overlaps it by half, not one region of two wholly.

    A second region, of one pixel and found, tells the two apart: 3/4 against 2/3.
    """
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 0] = mask[1, 1] = mask[3, 3] = True
    found = np.zeros((4, 4))
    found[0, 0] = found[3, 3] = 1.0
    found[1, 1] = -1.0
    assert pixel_metrics([found], [mask]).aupro == pytest.approx(3 / 4)


def test_every_region_counts_the_same_whatever_its_area() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[:10, :10] = mask[15, 15] = True
    found = np.zeros((20, 20))
    found[15, 15], found[:10, :10] = 1.0, -1.0
    assert pixel_metrics([found], [mask]).aupro == pytest.approx(1 / 2)


def test_pixel_closed_forms() -> None:
    mask = np.zeros((10, 10), dtype=bool)
    mask[:2, :5] = True
    assert pixel_metrics([mask.astype(float)], [mask]) == PixelMetrics(
        auroc=1.0, ap=1.0, f1_max=1.0, aupro=1.0
    )
    assert dumped(pixel_metrics([-mask.astype(float)], [mask])) == pytest.approx(
        {"auroc": 0.0, "ap": 0.1, "f1_max": 2 / 11, "aupro": 0.0}
    )
    # All pixels in one step: overlap = false positive rate, whose mean up to 0.3 is 0.15.
    assert dumped(pixel_metrics([np.zeros((10, 10))], [mask])) == pytest.approx(
        {"auroc": 0.5, "ap": 0.1, "f1_max": 2 / 11, "aupro": 0.15}
    )


def test_pixel_metrics_without_anomalies_or_without_normals() -> None:
    maps = [np.arange(12.0).reshape(3, 4)]
    assert all(math.isnan(v) for v in dumped(pixel_metrics(maps, [np.zeros((3, 4))])).values())
    full = pixel_metrics(maps, [np.ones((3, 4))])
    assert math.isnan(full.auroc) and math.isnan(full.aupro)
    assert (full.ap, full.f1_max) == (1.0, 1.0)


def test_maps_of_different_sizes_are_pooled() -> None:
    rng = np.random.default_rng(8)
    shapes = [(5, 9), (16, 4), (11, 11)]
    maps, masks = [rng.normal(size=s) for s in shapes], [rng.random(s) < 0.2 for s in shapes]
    assert pixel_metrics(maps, masks).aupro == pytest.approx(brute_force_aupro(maps, masks, 0.3))


def many_maps(images: int, size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Maps whose values drift from image to image, and a square defect on every other one."""
    rng = np.random.default_rng(11)
    maps, masks = [], []
    for index in range(images):
        mask = np.zeros((size, size), dtype=bool)
        if index % 2:
            top, left = rng.integers(0, size // 2, 2)
            mask[top : top + size // 3, left : left + rng.integers(2, size // 3)] = True
        noise = rng.normal(0.02 * index, 1, (size, size)) + 1.5 * mask
        maps.append(noise.astype(np.float32))
        masks.append(mask)
    return maps, masks


def test_blocks_of_normal_pixels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, masks = many_maps(images=12, size=24)
    whole = pixel_metrics(maps, masks)
    monkeypatch.setattr("patchguard.evaluation.metrics._BLOCK", 100)
    assert pixel_metrics(maps, masks) == whole


@pytest.mark.parametrize("most", [2**8, 2**10, 2**12])
def test_with_more_scores_than_are_told_apart_metrics_are_off_by_a_few_parts(
    monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    maps, masks = many_maps(images=60, size=48)
    exact = pixel_metrics(maps, masks).model_dump(exclude_unset=True)
    monkeypatch.setattr("patchguard.evaluation.metrics.MOST_STEPS", most)
    found = pixel_metrics(maps, masks).model_dump(exclude_unset=True)
    assert found == pytest.approx(exact, abs=4 / most)


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of 1000 masks of 1024 x 1024: those maps alone would take 4 GB, ours 4 MB."""
    monkeypatch.setattr("patchguard.evaluation.metrics.MOST_STEPS", 2**11)
    monkeypatch.setattr("patchguard.evaluation.metrics._BLOCK", 2**12)
    small = [np.random.default_rng(index).normal(size=(8, 8)).astype("f4") for index in range(1000)]
    _, masks = many_maps(images=1000, size=32)

    def peak(images: int) -> int:
        tracemalloc.start()
        metrics_of(small[:images], masks[:images])
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    peak(10)
    assert peak(1000) < 1.3 * peak(250)
    assert peak(1000) < 1_000_000


@pytest.mark.parametrize(
    "increasing",
    [np.exp, lambda x: 1e-6 * x - 40, lambda x: 3 * x + 100, lambda x: x**3, np.arctan],
    ids=["exp", "shrink", "affine", "cube", "arctan"],
)
@pytest.mark.parametrize("draw", ["continuous", "integers"])
def test_invariant_under_strictly_increasing_maps(
    increasing: Callable[[np.ndarray], np.ndarray], draw: str
) -> None:
    maps, masks = random_maps(draw, 9)
    maps = [m.astype(float) for m in maps]
    squashed = [increasing(m) for m in maps]
    assert np.unique(flat(squashed)).size == np.unique(flat(maps)).size
    assert pixel_metrics(squashed, masks) == pixel_metrics(maps, masks)
    ours, same = (image_metrics(flat(m), flat(masks)) for m in (maps, squashed))
    assert dumped(same) | {"f1_max_threshold": 0} == dumped(ours) | {"f1_max_threshold": 0}


@pytest.mark.parametrize("draw", ["continuous", "integers"])
def test_invariant_under_permutations(draw: str) -> None:
    scores, labels = labelled(draw, 300, 10)
    order = np.random.default_rng(11).permutation(300)
    assert image_metrics(scores[order], labels[order]) == image_metrics(scores, labels)
    maps, masks = random_maps(draw, 12)
    backwards = pixel_metrics(maps[::-1], masks[::-1])
    assert dumped(backwards) == pytest.approx(dumped(pixel_metrics(maps, masks)), abs=1e-12)


def test_swapping_classes_and_signs_keeps_auroc() -> None:
    scores, labels = labelled("integers", 200, 13)
    assert image_metrics(-scores, ~labels).auroc == image_metrics(scores, labels).auroc


def test_metrics_are_plain_floats() -> None:
    maps, masks = random_maps("float32", 14)
    values = dumped(pixel_metrics(maps, masks)) | dumped(image_metrics(flat(maps), flat(masks)))
    assert {type(value) for value in values.values()} == {float}
    assert isinstance(image_metrics([0.0, 1.0], [0, 1]), ImageMetrics)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: image_metrics([0.0, math.nan], [0, 1]), "image scores: contains NaN"),
        (lambda: image_metrics([0.0, 1.0], [0, 2]), "image labels: holds values other than"),
        (lambda: image_metrics([0.0, 1.0], [0]), "image scores have shape"),
        (lambda: image_metrics([], []), "image scores have shape"),
        (lambda: rates_at([math.nan], [1], 0.0), "image scores: contains NaN"),
        (lambda: pixel_metrics([], []), "0 anomaly maps and 0 masks"),
        (lambda: pixel_metrics([np.zeros((2, 2))], []), "1 anomaly maps and 0 masks"),
        (
            lambda: pixel_metrics(
                [np.zeros((2, 2)), np.full((2, 2), math.nan)], [np.zeros((2, 2))] * 2
            ),
            "anomaly map 1: contains NaN",
        ),
        (lambda: pixel_metrics([np.zeros((2, 2))], [np.zeros((2, 3))]), "anomaly map 0 has shape"),
        (lambda: pixel_metrics([np.zeros(4)], [np.zeros(4)]), "anomaly map 0 has shape"),
        (lambda: pixel_metrics([np.zeros((2, 2))], [np.full((2, 2), 0.5)]), "mask 0: holds values"),
        (lambda: pixel_metrics([np.eye(2)], [np.eye(2)], fpr_limit=0.0), "fpr_limit"),
        (lambda: pixel_metrics([np.eye(2)], [np.eye(2)], fpr_limit=30.0), "fpr_limit"),
    ],
)
def test_unusable_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(PatchGuardError, match=message):
        call()


def test_kinds_are_ranked_against_normal_images_alone() -> None:
    kinds = ["good", "good", "dent", "burr"]
    found = auroc_by_kind([0.0, 2.0, 1.0, 3.0], kinds)
    assert list(found.items()) == [("burr", 1.0), ("dent", 0.5)]
