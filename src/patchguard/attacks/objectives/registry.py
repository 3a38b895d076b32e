"""Objectives by name, as attack suites name them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from patchguard.attacks.objectives.detection import (
    FeatureDistance,
    TopKMean,
    dense,
    image_score,
    legacy,
    smooth_maximum,
)
from patchguard.attacks.objectives.localization import (
    CosPGD,
    JensenShannon,
    Masked,
    PixelMap,
    RankAware,
    SegPGD,
    Tsallis,
)
from patchguard.attacks.objectives.objective import Objective
from patchguard.attacks.objectives.statistics import PixelStatistics
from patchguard.constraints import checked_settings, setting_types
from patchguard.errors import PatchGuardError


@dataclass(frozen=True)
class ObjectiveContext:
    """What is known of detector and test set before an attack; None where there is nothing.

    Attributes:
        statistics: of the maps; None without ground-truth masks.
        maps: current maps [N, H, W] of the test set, clean or attacked.
        coverage: anomalous fraction of each pixel [N, H, W], in [0, 1].
        labels: [N] bool, True = anomalous.
        prototypes: features [M, C] of normal images; None for a detector without features.
    """

    statistics: PixelStatistics | None
    maps: np.ndarray | None
    coverage: Tensor
    labels: np.ndarray | Tensor
    prototypes: Tensor | None


@dataclass(frozen=True)
class Factory:
    """From (context, **options) to an objective.

    Attributes:
        name: of the objective.
        make: its constructor; options are its settings.
        inputs: from the context to the other parameters.
        fixed: options that are not free.
    """

    name: str
    make: Callable[..., Objective]
    inputs: tuple[Callable[[ObjectiveContext], Any], ...]
    fixed: Mapping[str, Any]

    def __call__(self, context: ObjectiveContext, **options: Any) -> Objective:
        self.check(options)
        return self.make(*(read(context) for read in self.inputs), **self.fixed, **options)

    def check(self, options: Mapping[str, Any]) -> None:
        """Are there such options, and do their values fit?

        Raises:
            PatchGuardError: they do not.
        """
        types = setting_types(self.make)
        free = {name: kind for name, kind in types.items() if name not in self.fixed}
        checked_settings(f"objective {self.name}", options, free)


class Registry(dict[str, Factory]):
    """Factories by name; an unknown name raises a PatchGuardError that lists the known ones."""

    def __missing__(self, name: str) -> Factory:
        raise PatchGuardError(f"objective {name!r} is unknown; choose one of {', '.join(self)}")


def _entry(
    name: str,
    make: Callable[..., Objective],
    *inputs: Callable[[ObjectiveContext], Any],
    **fixed: Any,
) -> tuple[str, Factory]:
    return name, Factory(name, make, inputs, fixed)


def _statistics(context: ObjectiveContext) -> PixelStatistics:
    if context.statistics is None:
        raise PatchGuardError("objectives for localization need ground-truth masks; give them")
    return context.statistics


def _fraction(context: ObjectiveContext) -> float:
    return _statistics(context).anomalous_fraction


def _maps(context: ObjectiveContext) -> np.ndarray:
    if context.maps is None:
        raise PatchGuardError("objective rank needs the anomaly maps of the whole test set")
    return context.maps


def _coverage(context: ObjectiveContext) -> Tensor:
    return context.coverage


def _prototypes(context: ObjectiveContext) -> Tensor:
    if context.prototypes is None:
        raise PatchGuardError(
            "objective features needs a detector that shows features; leave it out for this one"
        )
    return context.prototypes


DETECTION = Registry(
    (
        _entry("score", lambda: image_score),
        _entry("smooth", lambda: smooth_maximum),
        _entry("top_k", TopKMean),
        _entry("dense", lambda: dense),
        _entry("features", FeatureDistance, _prototypes),
        _entry("legacy", lambda: legacy),
    )
)

LOCALIZATION = Registry(
    (
        _entry("linear", PixelMap, _fraction),
        _entry("rank", RankAware, _maps, _coverage),
        _entry("segpgd", SegPGD, _statistics),
        _entry("cospgd", CosPGD, _statistics),
        _entry("masked", Masked, _statistics, weight=1),
        _entry("masked_balanced", Masked, _statistics, weight="balanced"),
        _entry("js", JensenShannon, _statistics),
        _entry("tsallis", Tsallis, _statistics),
    )
)
