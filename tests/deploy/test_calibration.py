"""The conformal threshold: its exact rank, its guarantee, and the file it is kept in."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from patchguard.deploy.calibration import (
    Calibration,
    conformal_threshold,
    required_normals,
    smallest_rate,
)
from patchguard.errors import PatchGuardError


@pytest.mark.parametrize(
    ("n", "rate", "rank"),
    [
        (19, 0.05, 19),  # (19 + 1)(1 - 0.05) is 19 exactly
        (20, 0.05, 20),
        (39, 0.05, 38),
        (38, 0.05, 38),
        (9, 0.1, 9),
        (9, 0.3, 7),
        (9, 0.7, 3),  # in floats 10 * (1 - 0.7) is above 3
        (19, 0.95, 1),
        (99, 0.01, 99),
        (1, 0.5, 1),
        (2, 1 / 3, 2),
    ],
)
def test_threshold_is_the_kth_smallest(n: int, rate: float, rank: int) -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1, n + 1)).astype(np.float32)
    assert conformal_threshold(scores, rate) == rank


def test_rank_agrees_with_exact_arithmetic_for_every_percent() -> None:
    for percent in range(1, 100):
        for n in range(required_normals(percent / 100), 120):
            rank = math.ceil((n + 1) * (1 - Fraction(percent, 100)))
            assert conformal_threshold(np.arange(1, n + 1), percent / 100) == rank


def test_smallest_rate_and_required_normals_are_inverse() -> None:
    for n in range(1, 300):
        assert required_normals(smallest_rate(n)) == n
        assert conformal_threshold(np.arange(n), smallest_rate(n)) == n - 1
    assert [required_normals(rate) for rate in (0.5, 0.1, 0.05, 0.01, 0.03)] == [1, 9, 19, 99, 33]


def test_too_few_normals_names_how_many_are_needed_and_a_rate_that_works() -> None:
    with pytest.raises(PatchGuardError, match=r"at least 19 held-out.*there are 18.*to 0\.052632$"):
        conformal_threshold(np.arange(18), 0.05)
    assert conformal_threshold(np.arange(18), 0.052632) == 17


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 5.0, math.nan])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(PatchGuardError, match="false_alarm_rate"):
        conformal_threshold(np.arange(100), rate)


@pytest.mark.parametrize("scores", [[], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]]])
def test_unusable_scores_are_refused(scores: list[float]) -> None:
    with pytest.raises(PatchGuardError, match="held-out normal scores"):
        conformal_threshold(scores, 0.5)


@pytest.mark.parametrize(("n", "rate"), [(19, 0.05), (30, 0.05), (50, 0.1), (7, 0.3)])
def test_false_alarm_guarantee_holds_by_simulation(n: int, rate: float) -> None:
    """Over calibrations the rate averages (n + 1 - k) / (n + 1), for continuous scores."""
    trials = 10_000
    scores = np.random.default_rng(n).gumbel(size=(trials, n + 1))
    alarms = sum(row[-1] > conformal_threshold(row[:-1], rate) for row in scores)
    expected = (n + 1 - math.ceil((n + 1) * (1 - Fraction(str(rate))))) / (n + 1)
    assert expected <= rate
    assert abs(alarms / trials - expected) < 4 * math.sqrt(expected / trials)


def test_ties_can_only_lower_the_false_alarm_rate() -> None:
    rng = np.random.default_rng(3)
    scores = rng.integers(0, 4, size=(5_000, 40))
    alarms = np.mean([row[-1] > conformal_threshold(row[:-1], 0.2) for row in scores])
    assert alarms < 0.2
    assert not Calibration.from_scores(np.full(19, 2.5), 0.05).verdicts([2.5, 2.4]).any()


def test_verdicts_are_p_values_up_to_the_rate() -> None:
    rng = np.random.default_rng(4)
    for rate in (0.05, 0.1, 0.3, 0.7):
        calibration = Calibration.from_scores(rng.integers(0, 30, 59), rate)
        new = np.concatenate([np.arange(-1, 32), rng.uniform(-2, 32, 200)])
        assert (calibration.verdicts(new) == (calibration.p_values(new) <= rate)).all()


def test_p_values_count_the_held_out_scores_at_or_above() -> None:
    calibration = Calibration.from_scores([3.0, 1.0, 2.0, 2.0], 0.2)
    expected = [1.0, 1.0, 4 / 5, 2 / 5, 1 / 5]
    assert calibration.p_values([0.0, 1.0, 2.0, 2.5, 9.0]).tolist() == expected


def test_float32_scores_equal_to_the_threshold_are_normal() -> None:
    scores = np.random.default_rng(5).normal(size=19).astype(np.float32)
    calibration = Calibration.from_scores(scores, 0.05)
    assert not calibration.verdicts(scores).any()
    assert calibration.verdicts(np.nextafter(scores.max(), np.float32(np.inf))[None]).all()


def test_nan_gets_no_verdict() -> None:
    with pytest.raises(PatchGuardError, match="NaN"):
        Calibration.from_scores(np.arange(19), 0.05).verdicts([math.nan])


def test_rate_interval_covers_the_realised_rate_of_one_calibration() -> None:
    """For uniform scores the realised rate is 1 - threshold."""
    n, trials, rng = 60, 3_000, np.random.default_rng(6)
    low, high = Calibration.from_scores(rng.uniform(size=n), 0.1).rate_interval(0.9)
    realised = 1 - np.array([conformal_threshold(rng.uniform(size=n), 0.1) for _ in range(trials)])
    sd = math.sqrt(0.05 * 0.95 / trials)
    assert abs(np.mean(realised < low) - 0.05) < 4 * sd
    assert abs(np.mean(realised > high) - 0.05) < 4 * sd


def test_rate_interval_closed_form() -> None:
    """With k = n the rate is the gap above the largest of n: P(rate > x) = (1 - x)^n."""
    low, high = Calibration.from_scores(np.arange(19), 0.05).rate_interval(0.8)
    assert (low, high) == pytest.approx((1 - 0.9 ** (1 / 19), 1 - 0.1 ** (1 / 19)))
    assert stats.beta(1, 19).mean() == pytest.approx(0.05)


def test_json_round_trip_is_exact(tmp_path: Path) -> None:
    scores = np.random.default_rng(7).normal(40, 1, 33).astype(np.float32)
    calibration = Calibration.from_scores(scores, 1 / 30)
    calibration.to_json(tmp_path / "calibration.json")
    assert Calibration.from_json(tmp_path / "calibration.json") == calibration


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": -100.0},
        {"threshold": math.nan},
        {"threshold": "18"},
        {"false_alarm_rate": 0.5},
        {"false_alarm_rate": "often"},
        {"false_alarm_rate": None},
        {"held_out": 1000},
        {"scores": [1.0, math.inf]},
        {"scores": ["a"]},
        {"scores": 10**400},
        {"scores": []},
        {"scores": list(range(18))},
        {"scores": list(range(19, 38))},
    ],
)
def test_tampered_file_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "calibration.json"
    Calibration.from_scores(np.arange(19), 0.05).to_json(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(PatchGuardError, match=r"calibration\.json: .*calibrate") as fault:
        Calibration.from_json(path)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("key", ["threshold", "false_alarm_rate", "held_out", "scores"])
def test_missing_value_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "calibration.json"
    Calibration.from_scores(np.arange(19), 0.05).to_json(path)
    content = json.loads(path.read_text())
    del content[key]
    path.write_text(json.dumps(content))
    with pytest.raises(PatchGuardError, match=rf"calibration\.json: lacks {key}"):
        Calibration.from_json(path)


@pytest.mark.parametrize("text", ["", '{"threshold": 1.0', "[]", "3"])
def test_truncated_or_foreign_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "calibration.json"
    path.write_text(text)
    with pytest.raises(PatchGuardError, match=r"calibration\.json: is not"):
        Calibration.from_json(path)


def test_what_a_later_version_adds_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, calibration = tmp_path / "calibration.json", Calibration.from_scores([1.0, 2, 3, 4], 0.25)
    calibration.to_json(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": 1}))
    assert Calibration.from_json(path) == calibration
    assert "later" in caplog.text


def test_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(PatchGuardError, match=r"absent\.json: cannot be read"):
        Calibration.from_json(tmp_path / "absent.json")
