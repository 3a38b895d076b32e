import numpy as np
import pytest

from patchguard.anomalies.curriculum import PLAIN_CONTRAST, PLAIN_SIDE, anomalies_at
from patchguard.anomalies.paste import make_pseudo_anomaly, sample_rng
from patchguard.config import AnomalyConfig
from patchguard.errors import PatchGuardError

CONFIG = AnomalyConfig(side_min=0.08, contrast_floor=0.05, curriculum=0.5)


def test_it_starts_plain_and_ends_with_the_settings():
    start, end = anomalies_at(CONFIG, 0.0), anomalies_at(CONFIG, 0.5)
    assert start.side_min == pytest.approx(PLAIN_SIDE)
    assert start.contrast_floor == pytest.approx(PLAIN_CONTRAST)
    assert end == CONFIG
    assert anomalies_at(CONFIG, 1.0) == CONFIG


def test_the_shortest_side_shrinks_by_equal_factors_and_contrast_by_equal_steps():
    half = anomalies_at(CONFIG, 0.25)
    assert half.side_min == pytest.approx((0.08 * PLAIN_SIDE) ** 0.5)
    assert half.contrast_floor == pytest.approx((0.05 + PLAIN_CONTRAST) / 2)


def test_settings_that_are_plainer_than_its_start_stay():
    config = AnomalyConfig(side_min=0.4, contrast_floor=0.4, curriculum=0.5)
    start = anomalies_at(config, 0.0)
    assert [start.side_min, start.contrast_floor] == pytest.approx([0.4, 0.4])


def test_sides_stay_below_the_longest():
    config = AnomalyConfig(side_max=0.1, curriculum=0.5)
    assert anomalies_at(config, 0.0).side_min == pytest.approx(0.1)


def test_without_it_nothing_changes():
    config = AnomalyConfig()
    assert anomalies_at(config, 0.0) is config


def test_first_anomalies_are_larger_and_stand_out_more():
    image = np.full((96, 96, 3), 0.5, np.float32)
    foreground = np.ones((96, 96), dtype=bool)

    def mean_area_and_change(progress):
        pairs = [
            make_pseudo_anomaly(
                image, foreground, sample_rng(0, 0, index), anomalies_at(CONFIG, progress)
            )
            for index in range(40)
        ]
        changes = [np.abs(anomalous - image)[mask].mean() for anomalous, mask in pairs]
        return np.mean([mask.mean() for _, mask in pairs]), np.mean(changes)

    early, late = mean_area_and_change(0.0), mean_area_and_change(1.0)
    assert early[0] > 1.5 * late[0]
    assert early[1] > 1.5 * late[1]


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_it_is_a_fraction_of_the_training(fraction):
    with pytest.raises(PatchGuardError, match="curriculum"):
        AnomalyConfig(curriculum=fraction)
