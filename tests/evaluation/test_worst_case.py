"""The worst case: exact for scores; for maps against all choices, by brute force."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from patchguard.errors import PatchGuardError
from patchguard.evaluation.histograms import (
    Binning,
    PixelHistograms,
    PixelTruth,
    pixelwise_floor,
    select,
)
from patchguard.evaluation.metrics import image_metrics
from patchguard.evaluation.worst_case import Metric, worst_scores, worst_selection

CANDIDATES, IMAGES, SIZE = 3, 5, 8
METRICS: tuple[Metric, ...] = ("auroc", "aupro")
ALL = [np.array(choice) for choice in itertools.product(range(CANDIDATES), repeat=IMAGES)]


def pixel_problem(seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """Masks, every other one empty, and maps [K, N, S, S] of attacks that help as well as hurt.

    An attack shifts a whole map and lowers the contrast of its region, so which is worst for an
    image depends on where the other images lie.
    """
    rng = np.random.default_rng(seed)
    masks = []
    for image in range(IMAGES):
        mask = np.zeros((SIZE, SIZE), dtype=bool)
        if image % 2:
            mask[rng.integers(0, 3) : rng.integers(4, 8), rng.integers(0, 3) : 6] = True
        masks.append(mask)
    clean = rng.normal(size=(IMAGES, SIZE, SIZE)) + 2 * np.stack(masks)
    shift = rng.normal(0, 1.5, (CANDIDATES, IMAGES, 1, 1))
    contrast = rng.uniform(0, 2, (CANDIDATES, IMAGES, SIZE, SIZE)) * (1 - 2 * np.stack(masks))
    maps = clean + shift + contrast
    maps[0] = clean
    return masks, maps.astype(np.float32)


def pixel_candidates(seed: int) -> list[PixelHistograms]:
    masks, maps = pixel_problem(seed)
    truth, binning = PixelTruth(masks), Binning.of(maps[0])
    return [truth.histograms(each, binning) for each in maps]


def value_of(candidates: list[PixelHistograms], choice: np.ndarray, metric: Metric) -> float:
    return float(getattr(select(candidates, choice), metric)().value)


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_of_scores_has_a_lower_auroc(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidates, labels = rng.integers(0, 6, (3, 6)).astype(float), np.arange(6) % 2 == 0
    scores, winner = worst_scores(candidates, labels)
    every = itertools.product(range(3), repeat=6)
    lowest = min(
        image_metrics(candidates[list(choice), np.arange(6)], labels).auroc for choice in every
    )
    assert image_metrics(scores, labels).auroc == pytest.approx(lowest)
    np.testing.assert_array_equal(scores, candidates[winner, np.arange(6)])


def test_normal_images_take_the_highest_score_anomalous_ones_the_lowest() -> None:
    candidates = np.array([[1.0, 1.0, 5.0, 5.0], [2.0, 1.0, 4.0, 6.0], [2.0, 0.0, 3.0, 5.0]])
    scores, winner = worst_scores(candidates, [False, False, True, True])
    assert scores.tolist() == [2.0, 1.0, 3.0, 5.0]
    assert winner.tolist() == [1, 0, 2, 0], "ties go to the first"


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(6))
def test_descent_finds_the_worst_of_all_choices(seed: int, metric: Metric) -> None:
    candidates = pixel_candidates(seed)
    found = worst_selection(candidates, metric=metric)
    values = [value_of(candidates, choice, metric) for choice in ALL]
    assert found.value == pytest.approx(min(values), abs=1e-9)
    assert found.value == pytest.approx(value_of(candidates, found.choice, metric), abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(10, 20))
def test_worst_lies_between_the_floor_and_every_candidate(seed: int, metric: Metric) -> None:
    masks, maps = pixel_problem(seed)
    truth, binning = PixelTruth(masks), Binning.of(maps[0])
    candidates = pixel_candidates(seed)
    found = worst_selection(candidates, metric=metric).value
    assert all(found <= getattr(each, metric)().value for each in candidates)
    floor = pixelwise_floor(
        truth.histograms(maps.max(axis=0), binning), truth.histograms(maps.min(axis=0), binning)
    )
    assert getattr(floor, metric)().value <= found


@pytest.mark.parametrize("metric", METRICS)
def test_images_that_are_not_attacked_stay_clean(metric: Metric) -> None:
    candidates, anomalous = pixel_candidates(30), np.arange(IMAGES) % 2 == 1
    both = worst_selection(candidates, metric=metric)
    for attacked in (anomalous, ~anomalous):
        found = worst_selection(candidates, metric=metric, attacked=attacked, starts=[both.choice])
        assert (found.choice[~attacked] == 0).all()
        allowed = [choice for choice in ALL if (choice[~attacked] == 0).all()]
        values = [value_of(candidates, choice, metric) for choice in allowed]
        assert found.value == pytest.approx(min(values), abs=1e-9)
        assert both.value <= found.value


@pytest.mark.parametrize("metric", METRICS)
def test_worst_is_never_above_a_start_nor_above_itself(metric: Metric) -> None:
    candidates = pixel_candidates(31)
    plain = worst_selection(candidates, metric=metric)
    again = worst_selection(candidates, metric=metric, starts=[*ALL[:20], plain.choice])
    assert again.value <= plain.value
    assert all(again.value <= value_of(candidates, choice, metric) for choice in ALL[:20])


@pytest.mark.parametrize("metric", METRICS)
def test_curves_do_not_rise_when_smaller_radii_are_carried_along(metric: Metric) -> None:
    """The candidates are drawn without order: nothing but the carried one keeps the curve down."""
    masks, _ = pixel_problem(0)
    truth, binning = PixelTruth(masks), Binning(0.0, 5.0)
    carried: list[PixelHistograms] = []
    curve = []
    for seed in range(5):
        maps = pixel_problem(seed)[1]
        candidates = [*(truth.histograms(each, binning) for each in maps), *carried]
        worst = worst_selection(candidates, metric=metric)
        carried = [select(candidates, worst.choice)]
        curve.append(worst.value)
    assert (np.diff(curve) <= 0).all()


def test_clean_alone_is_its_own_worst_case() -> None:
    clean = pixel_candidates(32)[:1]
    found = worst_selection(clean)
    assert found.choice.tolist() == [0] * IMAGES
    assert found.value == clean[0].auroc().value


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("fill", [False, True])
def test_without_a_class_images_stay_clean_and_the_metric_is_nan(
    metric: Metric, fill: bool
) -> None:
    truth = PixelTruth([np.full((4, 4), fill)] * 2)
    rng = np.random.default_rng(34)
    maps = rng.normal(size=(2, 2, 4, 4)).astype(np.float32)
    candidates = [truth.histograms(each, Binning(0.0, 1.0)) for each in maps]
    found = worst_selection(candidates, metric=metric)
    assert found.choice.tolist() == [0, 0]
    assert np.isnan(found.value)


def test_ties_stay_with_the_clean_image() -> None:
    clean = pixel_candidates(33)[0]
    assert worst_selection([clean, clean, clean]).choice.tolist() == [0] * IMAGES


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: worst_scores([[0.0, np.nan]], [True, False]), "NaN"),
        (lambda: worst_scores([0.0, 1.0], [True, False]), r"\[K, N\]"),
        (lambda: worst_scores([[0.0, 1.0]], [True]), r"\[K, N\]"),
        (lambda: worst_scores(np.empty((0, 2)), [True, False]), "K at least 1"),
        (lambda: worst_selection([]), "histograms"),
        (
            lambda: worst_selection([pixel_candidates(1)[0], pixel_candidates(2)[0]]),
            "2 different binnings",
        ),
    ],
)
def test_unusable_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(PatchGuardError, match=message):
        call()
