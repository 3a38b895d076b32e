"""The threshold on image scores, from held-out normal images: split-conformal calibration.

For exchangeable normal scores, the k-th smallest of n held-out ones, k = ceil((n + 1)(1 - alpha)),
is exceeded by the score of a new normal image with probability at most alpha, for every n and every
distribution of scores (Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005;
Angelopoulos and Bates, A Gentle Introduction to Conformal Prediction, arXiv 2107.07511). The
held-out images must be normal, unused in training, and drawn like those the detector will meet.
"""

import json
import logging
import math
from dataclasses import asdict, dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy import stats

from patchguard.errors import PatchGuardError
from patchguard.files import write_whole

_Scores = npt.NDArray[np.float64]

LARGEST_DENOMINATOR = 10**9

_LOG = logging.getLogger(__name__)


def conformal_threshold(scores: npt.ArrayLike, false_alarm_rate: float) -> float:
    """The threshold that a new normal score exceeds with probability at most `false_alarm_rate`.

    `scores` `[n]` are raw image scores of held-out normal images; the verdict is anomalous where
    score > threshold. Raises `PatchGuardError` for scores that are not finite, a rate outside
    (0, 1), and fewer than `required_normals(false_alarm_rate)` scores.
    """
    held_out = _finite(scores)
    rank = _rank(held_out.size, false_alarm_rate)
    if rank > held_out.size:
        raise PatchGuardError(
            f"a false-alarm rate of {false_alarm_rate:g} needs at least "
            f"{required_normals(false_alarm_rate)} held-out normal images and there are "
            f"{held_out.size}: hold out more, or raise the rate to {_rounded_up(held_out.size)}"
        )
    return float(np.partition(held_out, rank - 1)[rank - 1])


def smallest_rate(held_out: int) -> float:
    """The smallest false-alarm rate that `held_out` normal images can guarantee."""
    return 1 / (held_out + 1)


def required_normals(false_alarm_rate: float) -> int:
    """The fewest held-out normal images that can guarantee `false_alarm_rate`."""
    return math.ceil(1 / _exact(false_alarm_rate)) - 1


@dataclass(frozen=True)
class Calibration:
    """A threshold on raw image scores, the false-alarm rate it guarantees, and the evidence.

    `scores` are those of the `held_out` normal images, ascending; `from_scores` builds one.
    """

    threshold: float
    false_alarm_rate: float
    held_out: int
    scores: tuple[float, ...]

    @classmethod
    def from_scores(cls, scores: npt.ArrayLike, false_alarm_rate: float) -> Self:
        """Calibrate on scores `[n]` of held-out normals; raises as `conformal_threshold` does."""
        threshold = conformal_threshold(scores, false_alarm_rate)
        ascending = np.sort(_finite(scores)).tolist()
        return cls(threshold, float(false_alarm_rate), len(ascending), tuple(ascending))

    def verdicts(self, scores: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """True, anomalous, where a score `[n]` exceeds the threshold."""
        return _comparable(scores) > self.threshold

    def p_values(self, scores: npt.ArrayLike) -> _Scores:
        """Conformal p-values in (0, 1] of scores `[n]`: (1 + #{held-out >= score}) / (n + 1).

        P(p <= alpha) <= alpha for a normal image; `verdicts` are `p_values <= false_alarm_rate`.
        """
        below = np.searchsorted(self.scores, _comparable(scores), side="left")
        p_values: _Scores = (1 + self.held_out - below) / (self.held_out + 1)
        return p_values

    def rate_interval(self, confidence: float = 0.9) -> tuple[float, float]:
        """Where the long-run false-alarm rate of one calibration lies with this `confidence`.

        The guarantee averages over draws of the held-out images. For one draw of continuous
        scores the realised rate follows Beta(n + 1 - k, k) (Vovk, Conditional validity of
        inductive conformal predictors, ACML 2012); the interval is its central one. Ties can
        only lower the rate.
        """
        if not 0 < confidence < 1:
            raise PatchGuardError(f"confidence is {confidence}; it must lie between 0 and 1")
        rank = _rank(self.held_out, self.false_alarm_rate)
        low, high = stats.beta(self.held_out + 1 - rank, rank).interval(confidence)
        return float(low), float(high)

    def to_json(self, path: Path) -> None:
        """Write the calibration to `path`; every float is read back exactly."""
        write_whole(path, json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def from_json(cls, path: Path) -> Self:
        """Read what `to_json` wrote.

        Raises `PatchGuardError` naming the file when it cannot be read, lacks a value, or its
        threshold is not the one that its scores and rate give.
        """
        content = _read(path)
        try:
            rebuilt = cls.from_scores(content["scores"], content["false_alarm_rate"])
        except (TypeError, ValueError, OverflowError, PatchGuardError) as fault:
            raise _broken(path, str(fault)) from None
        if json.loads(json.dumps(asdict(rebuilt))) != content:
            raise _broken(path, "its threshold, scores and rate do not belong together")
        return rebuilt


def _rank(held_out: int, false_alarm_rate: float) -> int:
    """k = ceil((n + 1)(1 - alpha)), in 1 ... n + 1."""
    return math.ceil((held_out + 1) * (1 - _exact(false_alarm_rate)))


def _exact(false_alarm_rate: float) -> Fraction:
    """The rate as the fraction that was meant.

    In floats (9 + 1)(1 - 0.7) is 3.0000000000000004, whose ceiling is not 3 but 4.
    """
    if not math.isfinite(false_alarm_rate):
        raise PatchGuardError(f"false_alarm_rate is {false_alarm_rate}; it must be a number")
    rate = Fraction(float(false_alarm_rate)).limit_denominator(LARGEST_DENOMINATOR)
    if not 0 < rate < 1:
        raise PatchGuardError(
            f"false_alarm_rate is {false_alarm_rate}; it must lie between 0 and 1, e.g. 0.05"
        )
    return rate


def _rounded_up(held_out: int) -> float:
    """`smallest_rate` to six decimals, upwards, so that what is advised is possible."""
    return -(-(10**6) // (held_out + 1)) / 10**6


def _finite(scores: npt.ArrayLike) -> _Scores:
    held_out = np.asarray(scores, dtype=np.float64)
    if held_out.ndim != 1 or held_out.size == 0:
        raise PatchGuardError(
            f"held-out normal scores have shape {held_out.shape}; give [n] with n at least 1"
        )
    if not np.isfinite(held_out).all():
        raise PatchGuardError("held-out normal scores contain NaN or infinity; check the detector")
    return held_out


def _comparable(scores: npt.ArrayLike) -> _Scores:
    # In float64, as numpy would round the threshold to the precision of float32 scores.
    values = np.asarray(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise PatchGuardError("image scores contain NaN; no verdict is possible")
    return values


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as fault:
        raise PatchGuardError(f"{path}: cannot be read ({fault.strerror})") from None
    except ValueError:
        raise _broken(path, "is not JSON") from None
    if not isinstance(content, dict):
        raise _broken(path, "is not a JSON object")
    names = {field.name for field in fields(Calibration)}
    if missing := names - content.keys():
        raise _broken(path, f"lacks {', '.join(sorted(missing))}")
    if unknown := content.keys() - names:
        told = ", ".join(sorted(unknown))
        _LOG.warning("%s: left out what this version does not know: %s", path, told)
    return {name: content[name] for name in names}


def _broken(path: Path, fault: str) -> PatchGuardError:
    return PatchGuardError(f"{path}: {fault}; calibrate the detector again")
