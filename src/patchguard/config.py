"""Typed settings: the source of the command line's options and of the YAML recipes.

Nothing here imports torch, so that ``patchguard --help`` stays fast.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args, get_origin

import yaml
from annotated_types import Ge, Gt, Le, Len, Lt, MinLen

from patchguard.constraints import (
    BelowOne,
    Count,
    Natural,
    NotNegative,
    Positive,
    Proportion,
    Settings,
    Share,
    check_value,
    is_settings,
    setting_types,
)
from patchguard.errors import PatchGuardError

ForegroundMethod = Literal["auto", "border", "gradcam", "attention", "full", "files"]
AnomalyShape = Literal["rectangle", "ellipse", "irregular", "line"]
Norm = Literal["linf", "l2", "l1", "l0", "patch"]
AnomalyBlend = Literal["opaque", "soft", "transparent"]
View = Literal["windows", "whole"]
Axis = Literal["vertical", "horizontal"]
AXES: tuple[Axis, ...] = get_args(Axis)
"""In the order of an image's dimensions."""
LENGTHS = ("steps", "epochs", "minutes")
"""The settings of a training that give its length."""


@dataclass
class ForegroundConfig(Settings, section="data.foreground"):
    """How the foreground of a normal image is found.

    Args:
        method: see :mod:`patchguard.data.foreground`.
        weights: local weight file for ``gradcam`` or ``attention``; the hub when absent.
        masks: folder of mask images named like the images, for ``files``.
    """

    method: ForegroundMethod = "auto"
    weights: str | None = None
    masks: str | None = None


@dataclass
class AnomalyConfig(Settings, section="data.anomalies"):
    """How pseudo-anomalies are made; lengths are relative to the foreground.

    The published method is ``shapes: [rectangle]``, ``blends: [opaque]``, ``count_max: 1``.

    Args:
        shapes: outlines of the pasted patch, one drawn per patch.
        blends: ``opaque``, ``soft`` (fading in from the outline) or ``transparent`` (40 to 100 %
            opaque), one drawn per patch.
        side_min: shortest side of a patch, as a fraction of the square root of the foreground area.
        side_max: longest side of a patch, in the same unit; sides are log-uniform in between.
        count_max: most patches per image.
        contrast_floor: least mean absolute change of a patch's pixels, none counted for more than
            twice that; at most 0.5.
        copies: share of the patches tried that are neither distorted nor rotated (lines are
            still made brighter or darker), like something missing or in the wrong place; those
            that change too little are tried again.
        removals: share of the patches tried that take away what is there: the target is painted
            over with the colour around it, and what this changes is the patch. The share of
            copies is one of the rest.
        curriculum: fraction of the training over which patches, large and of high contrast at
            first, become those described here.
        range: darkest and brightest value of the data, in [0, 1]: contrasts are fractions of what
            lies between; that of the training normals when absent.
    """

    shapes: Annotated[list[AnomalyShape], MinLen(1)] = field(
        default_factory=lambda: ["rectangle", "ellipse", "irregular", "line"]
    )
    blends: Annotated[list[AnomalyBlend], MinLen(1)] = field(
        default_factory=lambda: ["opaque", "soft", "transparent"]
    )
    side_min: Share = 0.08
    side_max: Share = 0.5
    count_max: Count = 2
    contrast_floor: Annotated[float, Ge(0), Le(0.5)] = 0.05
    copies: Proportion = 0.0
    removals: Proportion = 0.0
    curriculum: Proportion = 0.0
    range: Annotated[list[Proportion], Len(2, 2)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = f"in [side_min = {self.side_min}, 1]"
        self.require(self.side_min <= self.side_max, "side_max", allowed)
        ascending = self.range is None or self.range[0] < self.range[1]
        self.require(ascending, "range", "two ascending values in [0, 1]")


@dataclass
class VariationConfig(Settings, section="data.variation"):
    """How far normal images are varied before anything is pasted into them; 0 leaves them alone.

    Where the position or the angle of a part is itself the defect, it must not vary.

    Args:
        rotation: largest rotation in degrees, either way.
        zoom: largest change of size, as a fraction, either way.
        shift: largest shift along each axis before turning and zooming, as a fraction of the side.
        contrast: largest change of contrast, as a fraction, either way.
        brightness: largest change of all values, which are in [0, 1].
    """

    rotation: Annotated[float, Ge(0), Le(180)] = 0.0
    zoom: Proportion = 0.0
    shift: Annotated[float, Ge(0), Le(0.25)] = 0.0
    contrast: Proportion = 0.0
    brightness: Annotated[float, Ge(0), Le(0.5)] = 0.0

    @property
    def moves(self) -> bool:
        """Whether anything changes its place."""
        return bool(self.rotation or self.zoom or self.shift)

    @property
    def lights(self) -> bool:
        """Whether contrast or brightness changes."""
        return bool(self.contrast or self.brightness)


@dataclass
class DataConfig(Settings, section="data"):
    """How images become training batches.

    Args:
        resolution: longer side in pixels of the images that the detector sees, aspect ratio kept;
            ``native`` for that of the training images, ``auto`` for that as far as 64 windows
            cover it. With the whole as the only view, the window is all it sees.
        foreground: how the foreground is found.
        anomalies: how pseudo-anomalies are made.
        flips: of the training images, each half of the time: ``vertical`` (upside down) and
            ``horizontal`` (left and right exchanged).
        variation: random movements and light of the training images.
        stray: how far a flip, the movement or the light may take training images from the nearest
            other one, as a multiple of how far they are from it unchanged, so 1 or more. A flip
            that takes them further is left out, movement and light are weakened until they do not.
            0 takes all as it is. See :mod:`patchguard.data.likeness`.
        wholes: share of the training examples that show the whole, squeezed into a window.
        anywhere: share of the regions of training, and of the windows in a region, that lie
            anywhere; the others show a part of the foreground.
        workers: processes that prepare batches; when absent 1 on a CPU, up to 8 with a GPU.
    """

    resolution: Annotated[int, Ge(16)] | Literal["auto", "native"] = "auto"
    foreground: ForegroundConfig = field(default_factory=ForegroundConfig)
    anomalies: AnomalyConfig = field(default_factory=AnomalyConfig)
    flips: list[Axis] = field(default_factory=lambda: list(AXES))
    variation: VariationConfig = field(default_factory=VariationConfig)
    stray: NotNegative = 0.0
    wholes: Proportion = 0.25
    anywhere: Proportion = 0.2
    workers: Natural | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.stray == 0 or self.stray >= 1, "stray", "0, or 1 or more")
        self.require(len(set(self.flips)) == len(self.flips), "flips", "without repetition")


@dataclass
class ModelConfig(Settings, section="model"):
    """The network.

    Args:
        backbone: ``patchguard_mini``, ``patchguard_mini_8`` (patches of 8 px, for small defects),
            ``patchguard_swift`` (a stem that begins with a stride of 4, a quarter less work),
            ``vit_small_convstem`` (ViT-S with a convolutional stem), or the name of any timm
            Vision Transformer.
        weights: what the training starts from: ``none``, ``hub`` (timm's pretrained weights), a
            local weight file of the backbone (for ``vit_small_convstem`` also RobustBench's
            Singh2023Revisiting_ViT-S-ConvStem), or the folder of a finished run.
        heads: attention heads of the discriminator block.
        hidden: width of the discriminator's MLP.
        dropout: dropout of the discriminator block.
        position_std: standard deviation of the position code that is added to the tokens before
            the discriminator block, at the start of training; 1 as published.
        window: side in pixels of the square windows that the network looks at.
        stride: most between the beginnings of neighbouring windows, as a fraction of a window.
        views: ``windows`` that cover the image at its resolution, the ``whole`` squeezed into one
            window, or both, the finer one first.
        top: the image score is the mean of this share of the patch logits, the largest, at least
            one; of several shares the one is taken that suits the images, for each view.
        blur_sigma: standard deviation in pixels of the Gaussian that smooths the map.
        blur_radius: radius in pixels at which that Gaussian is cut.
    """

    backbone: str = "patchguard_mini"
    weights: str = "none"
    heads: Count = 4
    hidden: Count = 512
    dropout: BelowOne = 0.2
    position_std: NotNegative = 1.0
    window: Annotated[int, Ge(16)] = 112
    stride: Share = 0.6
    views: Annotated[list[View], MinLen(1)] = field(default_factory=lambda: ["windows", "whole"])
    top: Annotated[list[Proportion], MinLen(1)] = field(
        default_factory=lambda: [0.02, 0.0, 0.01, 0.05]
    )
    blur_sigma: Positive = 3.0
    blur_radius: Natural = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = (["windows"], ["whole"], ["windows", "whole"])
        self.require(self.views in allowed, "views", "[windows], [whole] or [windows, whole]")


@dataclass
class InnerAttackConfig(Settings, section="training.attack"):
    """The attack inside adversarial training.

    Args:
        objective: what it raises: the training ``loss``, or ``legacy``, the mean of the normal
            patch logits minus that of the anomalous ones, as published.
        eps: final radius in pixel space, written n/255; 0/255 trains without an attack. On data
            that use less than half of [0, 1] it is smaller in proportion.
        ramp: fraction of the training at which eps has grown to its final value, linearly from 0.
        steps: gradient steps.
        step_size: step as a multiple of eps / steps.
        start: radius of the uniform random start as a multiple of eps; 0 starts at the image.
        project: clip the perturbation to eps (off in N-FGSM, whose noise may exceed it).
        persistent: a normal image starts from where its last attack ended; needs ``project``
            and images that do not move.
        monitor: steps between looks for catastrophic overfitting of a single-step attack, which
            becomes PGD-2 where it shows; 0 never looks.
        dropout: leave dropout on inside the attack, as the released code does.
        keep_clean: train on the clean images as well as on the attacked ones.
    """

    objective: Literal["loss", "legacy"] = "loss"
    eps: str = "8/255"
    ramp: Proportion = 0.8
    steps: Count = 1
    step_size: Positive = 1.0
    start: NotNegative = 2.0
    project: bool = False
    persistent: bool = False
    monitor: Natural = 100
    dropout: bool = False
    keep_clean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_eps(self.eps)
        self.require(
            self.project or not self.persistent,
            "project",
            "true with training.attack.persistent, or perturbations grow to twice eps",
        )


@dataclass
class TrainingConfig(Settings, section="training"):
    """Optimisation.

    Exactly one of ``steps``, ``epochs`` and ``minutes`` gives the length; runs given in steps
    or epochs are exactly reproducible.

    Args:
        steps: optimiser steps.
        epochs: passes over the normal images.
        minutes: wall-clock minutes.
        batch_size: normal images per step; as many pseudo-anomalies join them.
        lr: learning rate of AdamW at the start.
        lr_final: final learning rate as a fraction of ``lr`` (cosine decay).
        weight_decay: AdamW's weight decay.
        gradient_clip: largest gradient norm; 0 leaves gradients alone.
        ema: decay of the averaged weights that become the detector; 0 keeps the last weights.
        anomalous_weight: weight of an anomalous patch in the loss; a normal one has 1.
        least_cover: share of a patch that an anomaly must cover; patches with less of one, which
            under attack look like normal ones, take no part in the loss.
        awp: size of the adversarial weight perturbation, relative to the norm of each weight, at
            the final eps; 0 leaves it out.
        head_first: fraction of the training in which only the discriminator learns, for
            pretrained backbones.
        attention: weight of the attention term by backbone block, counted from 1.
        precision: ``32`` or ``bf16`` (mixed).
        attack: the inner attack.
    """

    steps: Count | None = None
    epochs: Positive | None = None
    minutes: Positive | None = None
    batch_size: Count = 16
    lr: Positive = 8e-4
    lr_final: Proportion = 0.0125
    weight_decay: NotNegative = 0.05
    gradient_clip: NotNegative = 1.0
    ema: BelowOne = 0.995
    anomalous_weight: NotNegative = 1.0
    least_cover: BelowOne = 0.0
    awp: NotNegative = 0.0
    head_first: BelowOne = 0.0
    attention: dict[int, NotNegative] = field(default_factory=dict)
    precision: Literal["32", "bf16"] = "32"
    attack: InnerAttackConfig = field(default_factory=InnerAttackConfig)

    def changed(self, **changes: Any) -> Self:
        """With these settings; a length takes the place of another."""
        others = {} if changes.keys().isdisjoint(LENGTHS) else dict.fromkeys(LENGTHS)
        return super().changed(**others | changes)

    @property
    def length(self) -> str:
        """Such as ``1500 steps``."""
        for unit in LENGTHS:
            length = getattr(self, unit)
            if length is not None:
                return f"{length:.10g} {unit}"
        return "no length"


@dataclass
class Recipe(Settings, section=""):
    """Everything that decides what a training run produces, besides the images and the seed."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class ThreatConfig(Settings, section="threats"):
    """What an attacker may do, and the attacks that try it.

    Args:
        norm: the ball: ``linf``, ``l2``, ``l1``; ``l0`` (number of pixels); ``patch`` (a square).
        eps: its sizes: n/255 for linf, Euclidean or absolute sums of pixel changes for l2 and l1,
            a number of pixels for l0, a fraction of the image's area for patch.
        attacks: one mapping each: ``attack``, ``objective`` (a name, or a mapping with ``name``),
            optionally ``name``, ``starts``, ``rounds``; the rest are settings of the attack.
    """

    eps: Annotated[list[str], MinLen(1)]
    attacks: Annotated[list[dict[Any, Any]], MinLen(1)]
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.eps = sorted(self.eps, key=lambda text: parse_size(self.norm, text))
        self.require(len(set(self.sizes)) == len(self.eps), "eps", "different sizes")
        self.require(self.sizes[0] > 0, "eps", "above 0")
        named = all("attack" in attack for attack in self.attacks)
        self.require(named, "attacks", "mappings with `attack`")

    @property
    def sizes(self) -> list[float]:
        """``eps`` as numbers, ascending."""
        return [parse_size(self.norm, text) for text in self.eps]


@dataclass
class Suite(Settings, section=""):
    """An evaluation, as data: see ``attacks/suites``.

    Args:
        threats: the first is the one that verdicts and checks speak of.
        minimal_eps: settings of the search for each image's minimal eps; none without.
        stress: natural disturbances, reported apart from attacks.
        all_checks: run the slow self-checks too, not only the quick ones.
    """

    threats: list[ThreatConfig]
    minimal_eps: dict[str, Any] | None = None
    stress: list[str] = field(default_factory=list)
    all_checks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        norms = [threat.norm for threat in self.threats]
        self.require(0 < len(norms) == len(set(norms)), "threats", "one threat for each norm")


@dataclass
class EvaluationConfig(Settings, section="evaluation"):
    """How a detector is attacked.

    Args:
        suite: quick, standard, full, legacy, multi-norm or a YAML file.
        eps: sizes of the suite's first threat, one or a list, in place of its own.
        all_checks: run the slow self-checks too.
        images: attack only about that many test images, the same share, but at least one, of each
            kind; when absent, ``minutes`` decides.
        minutes: attack about as many test images as this machine can in that time, chosen as with
            ``images``; the fewer they are, the wider are the intervals. All when absent.
        looks: of a detector that is random by design, the mean of that many looks is attacked and
            judged (expectation over transformation); 1 for all others.
        batch_size: images attacked at once by each worker.
    """

    suite: str = "quick"
    eps: list[str] | str | None = None
    all_checks: bool = False
    images: Annotated[int, Ge(2)] | None = None
    minutes: Positive | None = 20
    looks: Count = 1
    batch_size: Count = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.eps not in ([], ""), "eps", "a list of radii")


@dataclass
class FitConfig(Settings, section=""):
    """All settings of a fit: with the images, they decide everything in the run folder.

    They are those of :func:`patchguard.api.fit`.
    """

    data: str
    seed: Natural = 0
    false_alarm_rate: Annotated[float, Gt(0), Lt(1)] = 0.05
    twin: bool = True
    strict: bool = False
    full_scale: Positive | Literal["auto"] | None = None
    groups: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def parse_eps(text: str) -> float:
    """Radius in pixel space from ``n/255`` notation (or a plain number in [0, 1]).

    Raises:
        PatchGuardError: not a number, or outside [0, 1].
    """
    numerator, _, denominator = text.partition("/")
    try:
        value = float(numerator) / float(denominator or 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 <= value <= 1:
        raise PatchGuardError(f"eps {text!r} is not a radius in [0, 1]; write it as n/255")
    return value


def parse_size(norm: str, text: str) -> float:
    """The size of a ball as written in a suite, in the units of :class:`ThreatConfig`.

    Raises:
        PatchGuardError: not a number, or outside the range that the norm allows.
    """
    if norm == "linf":
        return parse_eps(text)
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    largest = 1.0 if norm == "patch" else math.inf
    if not 0 < value <= largest or (norm == "l0" and not value.is_integer()):
        raise PatchGuardError(f"eps {text!r} is no size of the {norm} threat")
    return value


RECIPES = Path(__file__).parent / "training" / "recipes"
SUITES = Path(__file__).parent / "attacks" / "suites"


def load_recipe(name: str) -> Recipe:
    """The recipe of that name (see ``training/recipes``) or in that YAML file.

    One that ``extends`` another recipe holds only what differs from it.

    Raises:
        PatchGuardError: no such recipe, one that extends itself, or a setting of the wrong name or
            type.
    """
    return _read_recipe(_yaml_path("recipe", RECIPES, name), ())


def _read_recipe(path: Path, above: tuple[Path, ...]) -> Recipe:
    """A recipe's file; ``above`` are those that extend it, directly or not."""
    if path.resolve() in above:
        raise PatchGuardError(f"{path} extends itself")
    content = _read_yaml(path)
    name = content.pop("extends", None)
    base = None
    if name is not None:
        try:
            found = _yaml_path("recipe", RECIPES, str(name), path.parent)
        except PatchGuardError as error:
            raise PatchGuardError(f"{path}: extends: {error}") from error
        base = _read_recipe(found, (*above, path.resolve()))
    return _from_file(Recipe, path, content, base)


def load_suite(name: str) -> Suite:
    """The suite of that name or in that YAML file.

    Raises:
        PatchGuardError: no such suite, or a setting of the wrong name or type.
    """
    path = _yaml_path("suite", SUITES, name)
    return _from_file(Suite, path, _read_yaml(path))


def load_evaluation(file: str) -> EvaluationConfig:
    """The settings of an evaluation in a YAML file.

    Raises:
        PatchGuardError: no such file, or a setting of the wrong name or type.
    """
    if not Path(file).is_file():
        raise PatchGuardError(f"--evaluation {file}: there is no such file of settings")
    return _from_file(EvaluationConfig, Path(file), _read_yaml(Path(file)))


def _yaml_path(what: str, folder: Path, name: str, beside: Path = Path()) -> Path:
    for candidate in (folder / f"{name}.yaml", beside / name):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise PatchGuardError(f"{what} {name}: neither a file nor one of {known}")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PatchGuardError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise PatchGuardError(f"{path} {_NO_SETTINGS}")
    return content


class Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number, as people expect."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


T = TypeVar("T", bound=Settings)
_NO_SETTINGS = "holds no settings (lines such as 'name: value')"


def _from_file(kind: type[T], path: Path, content: dict[str, Any], base: T | None = None) -> T:
    try:
        return from_plain(kind, content, base)
    except PatchGuardError as error:
        raise PatchGuardError(f"{path}: {error}") from error


def from_plain(kind: type[T], content: Mapping[str, Any], base: T | None = None) -> T:
    """One of the dataclasses above from plain values, checked against its types.

    Args:
        kind: which one.
        content: values by name, as YAML has them.
        base: what the settings that ``content`` does not name are taken from; the defaults when
            absent.

    Raises:
        PatchGuardError: an unknown name, a missing one or a value that does not fit.
    """
    types = setting_types(kind)
    values = {}
    for name, value in content.items():
        if name not in types:
            raise PatchGuardError(f"{kind.prefix}{name}: there is no such setting")
        values[name] = _part(types[name], kind.prefix + name, value, getattr(base, name, None))
    if base is not None:
        return base.changed(**values)
    for each in fields(kind):
        if each.default is MISSING and each.default_factory is MISSING and each.name not in values:
            raise PatchGuardError(f"{kind.prefix}{each.name} is missing")
    return kind(**values)


def _part(kind: Any, name: str, value: Any, base: Any) -> Any:
    """The value of a setting, which may consist of settings itself."""
    if is_settings(kind):
        if not isinstance(value, Mapping):
            raise PatchGuardError(f"{name} {_NO_SETTINGS}")
        return from_plain(kind, value, base)
    if get_origin(kind) is list and isinstance(value, list):
        return [_part(get_args(kind)[0], name, each, None) for each in value]
    return check_value(name, value, kind)
