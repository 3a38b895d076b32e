"""What an evaluation found, as ``metrics.json`` holds it: every number has its one place here.

Missing and undefined numbers are ``null`` in the file and nan in memory; infinite ones are
``"inf"`` and ``"-inf"``. So every JSON parser reads the file, strict ones too.

The file's ``patchguard_metrics`` is the version of this format. It grows where a field changes its
meaning or its place, not where one is added: readers leave out what they do not know and say so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

from patchguard.config import parse_size
from patchguard.data.samples import GOOD
from patchguard.errors import PatchGuardError
from patchguard.files import printable

CLEAN, WORST, LEGACY = "clean", "worst", "legacy"
"""No attack, the worst case over the suite, and the published attack, where attacks are named."""

SELF_TEST = "self-test: held-out normals and pseudo-anomalies made from them"
LABELLED = "labelled test images"
"""What an evaluation may be of."""

Status = Literal["PASS", "WARN", "FAIL", "SKIP"]
STATUSES = {"PASS": "passed", "WARN": "warned", "FAIL": "failed", "SKIP": "skipped"}
"""What a check may say, and how that is counted."""

HEADLINE_EPS = 4 / 255
"""Where a suite has several radii of linf, the headline is of the one nearest to this."""


def _number_of(value: Any) -> Any:
    if value is None:
        return math.nan
    return float(value) if value in ("inf", "-inf") else value


def _json_of(value: float) -> float | str | None:
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def _pair_of(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else value


def finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


Number = Annotated[
    float,
    Field(strict=True),
    BeforeValidator(_number_of),
    PlainSerializer(_json_of, when_used="json"),
]
Numbers = tuple[Number, ...]
Ends = tuple[Number, Number]
Finite = Annotated[Annotated[float, Field(strict=True)] | None, BeforeValidator(finite_or_none)]
"""A finite number; None where there is none."""
Tally = Annotated[int, Field(strict=True, ge=0)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, BeforeValidator(_shown)]
Resolution = Annotated[tuple[Tally, Tally], BeforeValidator(_pair_of)]
"""Height and width in pixels; former versions wrote the side of a square."""


class Record(BaseModel):
    """A part of a result, which never changes.

    The names that a reader does not know are added to ``unknown`` of the validation's context.
    """

    model_config = ConfigDict(frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _tell_unknown(cls, content: Any, info: ValidationInfo) -> Any:
        closed = cls.model_config.get("extra") != "allow"
        if info.context is not None and closed and isinstance(content, dict):
            info.context["unknown"] |= content.keys() - cls.model_fields.keys()
        return content


class Document(Record):
    """A file of its own, with the name and version of its format.

    Attributes:
        AGAIN: how to have it made once more, said where it is damaged.
    """

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int]
    AGAIN: ClassVar = "evaluate the detector again"

    @classmethod
    def upgraded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """The content of a file as this version has it, where an earlier one wrote it."""
        return content


class ImageMetrics(Record):
    """How well image scores rank anomalous above normal; each value in [0, 1].

    `auroc` counts a tie as half a win, `auroc_conservative` as a loss: a collapsed detector that
    gives every image the same score has 0.5 and 0. `ap` is the step-wise average precision.
    `f1_max` is an oracle, since its threshold is chosen on the labels; verdicts
    `score > f1_max_threshold` reach it.
    AUROC is nan when a class is absent, the others when no image is anomalous.
    """

    auroc: Number
    auroc_conservative: Number = math.nan
    ap: Number = math.nan
    f1_max: Number = math.nan
    f1_max_threshold: Number = math.nan
    auroc_interval: Ends | None = None


class PixelMetrics(Record):
    """How well anomaly maps rank anomalous above normal pixels, pooled over images.

    `auroc`, `ap` and `f1_max` are as in `ImageMetrics`. `aupro` is the area under the per-region
    overlap curve up to the false-positive-rate limit, divided by that limit (Bergmann et al.,
    IJCV 2021). AUROC and AUPRO are nan when a class is absent, the others when no pixel is
    anomalous. `auroc_floor` is what no attack can go below.
    """

    auroc: Number
    ap: Number = math.nan
    f1_max: Number = math.nan
    aupro: Number = math.nan
    auroc_interval: Ends | None = None
    auroc_floor: Number = math.nan


class Rates(Record):
    """The shares of anomalous (`tpr`) and normal (`fpr`) images above the calibrated threshold."""

    tpr: Number
    fpr: Number
    tpr_interval: Ends | None = None
    fpr_interval: Ends | None = None

    @property
    def fnr(self) -> float:
        """The share of anomalous images that pass."""
        return 1 - self.tpr


class Measured(Record):
    """Metrics by what they judge; None where that was not measured."""

    image: ImageMetrics
    pixel: PixelMetrics | None = None
    deployed: Rates | None = None


class StressResult(Measured):
    """Metrics under a natural disturbance of one severity."""

    name: Text
    severity: Tally


class AtRadius(Record):
    """Something at one radius of a threat."""

    norm: Text
    eps: Text

    @property
    def radius(self) -> float:
        return parse_size(self.norm, self.eps)

    @model_validator(mode="after")
    def _has_a_radius(self) -> Self:
        try:
            self.radius  # noqa: B018
        except PatchGuardError as fault:
            raise ValueError(str(fault)) from fault
        return self


class AttackResult(AtRadius):
    """Metrics under one attack at one eps, by row: ``both`` classes attacked, or one.

    ``winners`` and ``pixel_winners`` are, for images and pixels, the attacks that make up the
    worst case, with their shares of the images.
    """

    attack: Text
    rows: dict[str, Measured]
    winners: dict[Text, Number] = {}
    pixel_winners: dict[Text, Number] = {}

    @field_validator("rows")
    @classmethod
    def _has_both(cls, rows: dict[str, Measured]) -> dict[str, Measured]:
        if "both" not in rows:
            raise ValueError("both is missing")
        return rows

    @property
    def both(self) -> Measured:
        return self.rows["both"]

    @property
    def scores_key(self) -> str:
        """Where ``ImageScores`` holds the image scores under this attack."""
        return f"{self.attack} {self.norm} {self.eps}"


class MinimalRadii(Record):
    """The smallest perturbations that bring images across the threshold.

    ``values`` `[N]` are infinite where none that was tried did; the medians are nan where unknown.
    """

    norm: Text
    threshold: Number = math.nan
    median: Number = math.nan
    median_normals: Number = math.nan
    median_anomalies: Number = math.nan
    values: Numbers


class ImageScores(Record, extra="allow"):
    """Names, kinds and scores of the ``N`` images: clean, and by ``AttackResult.scores_key``.

    ``decided_by`` names the view of the detector whose score was the highest, of the clean images;
    empty for a detector with a single view.
    """

    names: tuple[Text, ...] = ()
    kinds: tuple[Text, ...]
    clean: Numbers
    decided_by: tuple[Text, ...] = ()
    __pydantic_extra__: dict[str, Numbers] = Field(init=False)

    @model_validator(mode="after")
    def _are_as_many_as_images(self) -> Self:
        for name, values in {CLEAN: self.clean, **self.attacked}.items():
            if len(values) != len(self.kinds):
                raise ValueError(f"{name}: {len(values)} scores of {len(self.kinds)} images")
        return self

    @property
    def attacked(self) -> dict[str, Numbers]:
        return self.__pydantic_extra__


class Check(Record):
    """A check of the evaluation itself, and what came of it.

    Attributes:
        id: S1 to S30.
        name: what is checked.
        status: SKIP where it cannot apply.
        value: what was measured.
        limit: what the value is compared with.
        meaning: one sentence on what that means for the user.
    """

    id: Text
    name: Text
    status: Status
    value: Finite
    limit: Finite
    meaning: Text


class Images(Record):
    """How many images of each class."""

    normal: Tally
    anomalous: Tally


class Protocol(Record, extra="allow"):
    """How the numbers came about; facts that a later version adds are kept and shown.

    Attributes:
        legacy_steps: of the published attack; None where the suite has none.
        test_set: ``SELF_TEST`` or ``LABELLED``.
        test_sha256: of the test images and their masks.
        kinds: how many images of each.
        threats: radii by norm; the first norm is that of the headline.
        attacks: what each attack of the suite is, by ``name (norm)``.
        looks: passes that make one score of a random detector.
        seconds: on the clock.
    """

    legacy_steps: Tally | None = None
    suite: Text
    test_set: Text | None = None
    test_sha256: Text | None = None
    data: Text
    images: Images
    kinds: dict[Text, Tally] = {}
    ground_truth: Text | None = None
    threats: dict[str, tuple[Text, ...]] = Field(min_length=1)
    attacks: dict[Text, Text]
    looks: Tally | None = None
    attacked_resolution: Resolution
    seed: Tally
    device: Text
    versions: dict[Text, Text]
    seconds: Number = math.nan

    def told(self) -> dict[str, Any]:
        """Every fact by name, those without a value left out."""
        return self.model_dump(mode="json", exclude_none=True)


class Summary(Record):
    """What an evaluation found, without how.

    ``skipped`` says why attacks of the suite were not run; ``unreliable``, that a check failed.
    """

    clean: Measured
    attacked: tuple[AttackResult, ...]
    skipped: dict[Text, Text] = {}
    minimal_eps: MinimalRadii | None = None
    stress: tuple[StressResult, ...] = ()
    scores: ImageScores
    checks: tuple[Check, ...] = ()
    unreliable: Flag = Field(default=False, validate_default=True)

    @field_validator("unreliable")
    @classmethod
    def _sees_failures(cls, flag: bool, info: ValidationInfo) -> bool:
        return flag or any(check.status == "FAIL" for check in info.data.get("checks", ()))

    @model_validator(mode="after")
    def _has_the_scores(self) -> Self:
        for result in self.attacked:
            if result.attack == WORST and result.scores_key not in self.scores.attacked:
                raise ValueError(f"scores: {result.scores_key} is missing")
        return self


class Result(Summary, Document):
    """``metrics.json``."""

    FORMAT: ClassVar = "patchguard_metrics"
    VERSION: ClassVar = 2

    protocol: Protocol

    @property
    def norms(self) -> tuple[str, ...]:
        """The norms of the threats; the first is the one of the headline."""
        return tuple(self.protocol.threats)

    @property
    def self_test(self) -> bool:
        """The anomalies were made, not found: nothing here was measured on real defects."""
        return self.protocol.test_set == SELF_TEST

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "FAIL")

    @property
    def anomalous(self) -> npt.NDArray[np.bool_]:
        """Which images are, ``[N]``."""
        anomalous: npt.NDArray[np.bool_] = np.array(self.scores.kinds, dtype=str) != GOOD
        return anomalous

    def scores_under(self, result: AttackResult | None = None) -> npt.NDArray[np.float64]:
        """The image scores ``[N]`` under an attack; the clean ones without one."""
        values = self.scores.attacked[result.scores_key] if result else self.scores.clean
        return np.array(values, dtype=np.float64)

    def under(self, attack: str, norm: str | None = None) -> tuple[AttackResult, ...]:
        """The results of an attack in a norm (the first without one), by ascending eps.

        There is no worst case where every attack was skipped: it would be the clean one.
        """
        found = [result for result in self.attacked if result.norm == (norm or self.norms[0])]
        if all(result.attack == WORST for result in found):
            return ()
        found = [result for result in found if result.attack == attack]
        return tuple(sorted(found, key=lambda result: result.radius))

    def headline(self) -> AttackResult | None:
        """The worst case that stands for the first norm; None where nothing attacked."""
        found = {result.eps: result for result in self.under(WORST)}
        return found[headline_eps(self.norms[0], list(found))] if found else None

    def members(self) -> tuple[str, ...]:
        """The attacks of the suite in the first norm, in its order."""
        names = (each.attack for each in self.attacked if each.norm == self.norms[0])
        return tuple(name for name in dict.fromkeys(names) if name != WORST)


def ascending(norm: str, eps: Sequence[str]) -> list[str]:
    """Radii of a threat by size."""
    return sorted(eps, key=lambda text: parse_size(norm, text))


def headline_eps(norm: str, eps: Sequence[str]) -> str:
    """The radius that stands for a threat: nearest to 4/255 for linf, else the middle one."""
    radii = ascending(norm, eps)
    if norm == "linf":
        return min(radii, key=lambda text: abs(parse_size(norm, text) - HEADLINE_EPS))
    return radii[(len(radii) - 1) // 2]
