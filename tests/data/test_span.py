"""What of [0, 1] a data set spans, and that a detector sees all of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from patchguard.anomalies.paste import make_pseudo_anomaly
from patchguard.config import AnomalyConfig, DataConfig, ModelConfig, View
from patchguard.data.span import LEAST, ranged, span_of
from patchguard.errors import PatchGuardError
from patchguard.models.patchguard import PatchGuard


def images(low: float, high: float, count: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.uniform(low, high, (count, 40, 60, 3)).astype(np.float32)


def test_the_span_is_that_of_nearly_all_values() -> None:
    low, high = span_of(images(0.1, 0.4))
    assert low == pytest.approx(0.1, abs=0.002) and high == pytest.approx(0.4, abs=0.002)


def test_a_reflection_or_a_dead_pixel_sets_no_scale() -> None:
    some = images(0.1, 0.4)
    some[2, 5, 5:7] = 1.0
    some[:, 0, 0] = 0.0
    assert span_of(some) == pytest.approx(span_of(images(0.1, 0.4)), abs=0.002)


def test_images_all_over_the_data_set_are_looked_at() -> None:
    some = images(0.3, 0.4, 100)
    some[-2:] += 0.3
    assert span_of(some)[1] > 0.65


@pytest.mark.parametrize("value", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_noise_is_not_stretched_to_all_there_is(value: float) -> None:
    low, high = span_of(np.full((3, 16, 16, 3), value, np.float32))
    assert 0 <= low <= value <= high <= 1
    assert high - low == pytest.approx(LEAST)


def test_a_range_that_is_given_is_kept() -> None:
    config = DataConfig(anomalies=AnomalyConfig(range=[0.2, 0.9]))
    assert ranged(config, images(0.1, 0.4)) == config
    found = ranged(DataConfig(), images(0.1, 0.4)).anomalies.range
    assert found == list(span_of(images(0.1, 0.4)))


def test_only_flat_images_are_stretched() -> None:
    assert ranged(DataConfig(), images(0.1, 0.9)) == DataConfig()
    assert ranged(DataConfig(), images(0.1, 0.5)).anomalies.range is not None


@pytest.mark.parametrize("wrong", [[0.5, 0.5], [0.9, 0.1], [0.1], [0.1, 1.2]])
def test_a_range_that_is_none_is_refused(wrong: list[float]) -> None:
    with pytest.raises(PatchGuardError, match=r"data\.anomalies\.range"):
        AnomalyConfig(range=wrong)


@pytest.mark.parametrize("views", [["windows"], ["whole"], ["windows", "whole"]])
def test_images_darkened_to_a_third_have_the_scores_of_the_original(views: list[View]) -> None:
    config = ModelConfig(window=32, hidden=64, views=views)
    bright = images(0.1, 0.9, 3)
    torch.manual_seed(0)
    original = PatchGuard(config, span=span_of(bright)).eval()
    darkened = PatchGuard(config, span=span_of(bright / 3)).eval()
    darkened.load_state_dict(original.state_dict())
    seen = torch.from_numpy(bright).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected, found = original(seen), darkened(seen / 3)
        unscaled = original(seen / 3)
    torch.testing.assert_close(found.score, expected.score, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.anomaly_map, expected.anomaly_map, atol=5e-3, rtol=0)
    assert (unscaled.score - expected.score).abs().max() > 0.01


def test_pseudo_anomalies_of_darkened_images_are_those_of_the_original_darkened() -> None:
    bright = images(0.0, 0.9, 1)[0]
    everywhere = np.ones(bright.shape[:2], dtype=bool)
    config = AnomalyConfig(range=[0.0, 0.9], contrast_floor=0.3)
    dark = replace(config, range=[0.0, 0.3])
    for seed in range(8):
        expected, mask = make_pseudo_anomaly(
            bright, everywhere, np.random.default_rng(seed), config
        )
        found, same = make_pseudo_anomaly(bright / 3, everywhere, np.random.default_rng(seed), dark)
        assert np.array_equal(same, mask)
        np.testing.assert_allclose(3 * found, expected, atol=1e-4)
        change = np.abs(found - bright / 3)[mask].mean()
        assert change >= 0.99 * 0.3 * 0.3


def test_all_channels_count_whatever_the_size() -> None:
    rng = np.random.default_rng(0)
    for side in (112, 256, 320):
        images = rng.random((4, side, side, 3), dtype=np.float32) * [0.25, 0.95, 0.7]
        assert span_of(images)[1] > 0.9
