"""Typed settings: the source of the command line's options and of the YAML recipes.

Nothing here imports torch, so that ``patchguard --help`` stays fast.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args, get_type_hints

from patchguard.errors import PatchGuardError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

ForegroundMethod = Literal["auto", "border", "gradcam", "attention", "full", "files"]
AnomalyShape = Literal["rectangle", "ellipse", "irregular", "line"]
Norm = Literal["linf", "l2", "l1", "l0", "patch"]
AnomalyBlend = Literal["opaque", "soft", "transparent"]
Axis = Literal["vertical", "horizontal"]
AXES: tuple[Axis, ...] = get_args(Axis)
"""In the order of an image's dimensions."""


@dataclass
class ForegroundConfig:
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
class AnomalyConfig:
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
    """

    shapes: list[AnomalyShape] = field(
        default_factory=lambda: ["rectangle", "ellipse", "irregular", "line"]
    )
    blends: list[AnomalyBlend] = field(default_factory=lambda: ["opaque", "soft", "transparent"])
    side_min: float = 0.08
    side_max: float = 0.5
    count_max: int = 2
    contrast_floor: float = 0.05
    copies: float = 0.0
    removals: float = 0.0
    curriculum: float = 0.0

    def __post_init__(self) -> None:
        def require(met: bool, name: str, allowed: str) -> None:
            _require(met, f"data.anomalies.{name}", getattr(self, name), allowed)

        require(len(self.shapes) > 0, "shapes", "at least one shape")
        require(len(self.blends) > 0, "blends", "at least one blend")
        require(0 < self.side_min <= 1, "side_min", "above 0, at most 1")
        require(
            self.side_min <= self.side_max <= 1, "side_max", f"in [side_min = {self.side_min}, 1]"
        )
        require(self.count_max >= 1, "count_max", "at least 1")
        require(0 <= self.contrast_floor <= 0.5, "contrast_floor", "in [0, 0.5]")
        for name in ("copies", "removals", "curriculum"):
            require(0 <= getattr(self, name) <= 1, name, "in [0, 1]")


@dataclass
class VariationConfig:
    """How far normal images are varied before anything is pasted into them; 0 leaves them alone.

    Where the position or the angle of a part is itself the defect, it must not vary.

    Args:
        rotation: largest rotation in degrees, either way.
        zoom: largest change of size, as a fraction, either way.
        shift: largest shift along each axis before turning and zooming, as a fraction of the side.
        contrast: largest change of contrast, as a fraction, either way.
        brightness: largest change of all values, which are in [0, 1].
    """

    rotation: float = 0.0
    zoom: float = 0.0
    shift: float = 0.0
    contrast: float = 0.0
    brightness: float = 0.0

    def __post_init__(self) -> None:
        for name, most in (
            ("rotation", 180),
            ("zoom", 1),
            ("shift", 0.25),
            ("contrast", 1),
            ("brightness", 0.5),
        ):
            value = getattr(self, name)
            _require(0 <= value <= most, f"data.variation.{name}", value, f"in [0, {most}]")

    @property
    def moves(self) -> bool:
        """Whether anything changes its place."""
        return bool(self.rotation or self.zoom or self.shift)

    @property
    def lights(self) -> bool:
        """Whether contrast or brightness changes."""
        return bool(self.contrast or self.brightness)


@dataclass
class DataConfig:
    """How images become training batches.

    Args:
        image_size: side in pixels of the square the detector sees.
        foreground: how the foreground is found.
        anomalies: how pseudo-anomalies are made.
        flips: of the training images, each half of the time: ``vertical`` (upside down) and
            ``horizontal`` (left and right exchanged).
        variation: random movements and light of the training images.
        stray: how far a flip, the movement or the light may take training images from the nearest
            other one, as a multiple of how far they are from it unchanged, so 1 or more. A flip
            that takes them further is left out, movement and light are weakened until they do not.
            0 takes all as it is. See :mod:`patchguard.data.likeness`.
        workers: processes that prepare batches; when absent 1 on a CPU, up to 8 with a GPU.
    """

    image_size: int = 112
    foreground: ForegroundConfig = field(default_factory=ForegroundConfig)
    anomalies: AnomalyConfig = field(default_factory=AnomalyConfig)
    flips: list[Axis] = field(default_factory=lambda: list(AXES))
    variation: VariationConfig = field(default_factory=VariationConfig)
    stray: float = 0.0
    workers: int | None = None

    def __post_init__(self) -> None:
        _require(self.image_size >= 16, "data.image_size", self.image_size, "at least 16")
        bounded = self.stray == 0 or 1 <= self.stray < math.inf
        _require(bounded, "data.stray", self.stray, "0, or 1 or more")
        _require(
            len(set(self.flips)) == len(self.flips), "data.flips", self.flips, "without repetition"
        )
        negative = self.workers is not None and self.workers < 0
        _require(not negative, "data.workers", self.workers, "0 or more")


@dataclass
class ModelConfig:
    """The network.

    Args:
        backbone: ``patchguard_mini``, ``patchguard_mini_8`` (patches of 8 px, for small defects),
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
        top_k: the image score is the mean of this many largest patch logits.
        blur_sigma: standard deviation in pixels of the Gaussian that smooths the map.
        blur_radius: radius in pixels at which that Gaussian is cut.
    """

    backbone: str = "patchguard_mini"
    weights: str = "none"
    heads: int = 4
    hidden: int = 512
    dropout: float = 0.2
    position_std: float = 1.0
    top_k: int = 3
    blur_sigma: float = 3.0
    blur_radius: int = 7

    def __post_init__(self) -> None:
        _require(self.heads >= 1, "model.heads", self.heads, "at least 1")
        _require(self.hidden >= 1, "model.hidden", self.hidden, "at least 1")
        _require(0 <= self.dropout < 1, "model.dropout", self.dropout, "in [0, 1)")
        _require(self.position_std >= 0, "model.position_std", self.position_std, "0 or more")
        _require(self.top_k >= 1, "model.top_k", self.top_k, "at least 1")
        _require(self.blur_sigma > 0, "model.blur_sigma", self.blur_sigma, "above 0")
        _require(self.blur_radius >= 0, "model.blur_radius", self.blur_radius, "0 or more")


@dataclass
class InnerAttackConfig:
    """The attack inside adversarial training.

    Args:
        objective: what it raises: the training ``loss``, or ``legacy``, the mean of the normal
            patch logits minus that of the anomalous ones, as published.
        eps: final radius in pixel space, written n/255; 0/255 trains without an attack.
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
    ramp: float = 0.8
    steps: int = 1
    step_size: float = 1.0
    start: float = 2.0
    project: bool = False
    persistent: bool = False
    monitor: int = 100
    dropout: bool = False
    keep_clean: bool = False

    def __post_init__(self) -> None:
        parse_eps(self.eps)
        _require(0 <= self.ramp <= 1, "training.attack.ramp", self.ramp, "in [0, 1]")
        _require(self.steps >= 1, "training.attack.steps", self.steps, "at least 1")
        _require(self.step_size > 0, "training.attack.step_size", self.step_size, "above 0")
        _require(self.start >= 0, "training.attack.start", self.start, "0 or more")
        _require(self.monitor >= 0, "training.attack.monitor", self.monitor, "0 or more")
        _require(
            self.project or not self.persistent,
            "training.attack.project",
            self.project,
            "true with training.attack.persistent, or perturbations grow to twice eps",
        )


@dataclass
class TrainingConfig:
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

    steps: int | None = None
    epochs: float | None = None
    minutes: float | None = None
    batch_size: int = 16
    lr: float = 8e-4
    lr_final: float = 0.0125
    weight_decay: float = 0.05
    gradient_clip: float = 1.0
    ema: float = 0.995
    anomalous_weight: float = 1.0
    least_cover: float = 0.0
    awp: float = 0.0
    head_first: float = 0.0
    attention: dict[int, float] = field(default_factory=dict)
    precision: Literal["32", "bf16"] = "32"
    attack: InnerAttackConfig = field(default_factory=InnerAttackConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "epochs", "minutes"):
            length = getattr(self, name)
            met = length is None or 0 < length < math.inf
            _require(met, f"training.{name}", length, "above 0 and finite")
        _require(self.batch_size >= 1, "training.batch_size", self.batch_size, "at least 1")
        _require(0 < self.lr < math.inf, "training.lr", self.lr, "above 0 and finite")
        _require(0 <= self.lr_final <= 1, "training.lr_final", self.lr_final, "in [0, 1]")
        for name in ("weight_decay", "gradient_clip", "anomalous_weight", "awp"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"training.{name}", value, "0 or more and finite")
        _require(0 <= self.ema < 1, "training.ema", self.ema, "in [0, 1)")
        _require(0 <= self.least_cover < 1, "training.least_cover", self.least_cover, "in [0, 1)")
        _require(0 <= self.head_first < 1, "training.head_first", self.head_first, "in [0, 1)")
        for block, weight in self.attention.items():
            name = f"training.attention.{block}"
            _require(0 <= weight < math.inf, name, weight, "0 or more and finite")

    @property
    def length(self) -> str:
        """Such as ``1500 steps``."""
        for unit in ("steps", "epochs", "minutes"):
            length = getattr(self, unit)
            if length is not None:
                return f"{length:.10g} {unit}"
        return "no length"


@dataclass
class Recipe:
    """Everything that decides what a training run produces, besides the images and the seed."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass
class ThreatConfig:
    """What an attacker may do, and the attacks that try it.

    Args:
        norm: the ball: ``linf``, ``l2``, ``l1``; ``l0`` (number of pixels); ``patch`` (a square).
        eps: its sizes: n/255 for linf, Euclidean or absolute sums of pixel changes for l2 and l1,
            a number of pixels for l0, a fraction of the image's area for patch.
        attacks: one mapping each: ``attack``, ``objective`` (a name, or a mapping with ``name``),
            optionally ``name``, ``starts``, ``rounds``; the rest are settings of the attack.
    """

    eps: list[str]
    attacks: list[dict[str, Any]]
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        _require(bool(self.eps), f"eps of the {self.norm} threat", self.eps, "a list of sizes")
        self.eps = sorted(self.eps, key=lambda text: parse_size(self.norm, text))
        twice = len(set(self.sizes)) < len(self.eps)
        _require(not twice, f"eps of the {self.norm} threat", self.eps, "different sizes")
        _require(self.sizes[0] > 0, f"eps of the {self.norm} threat", self.eps, "above 0")
        _require(bool(self.attacks), f"attacks of the {self.norm} threat", [], "at least one")
        for attack in self.attacks:
            _require("attack" in attack, "an entry of attacks", attack, "a mapping with `attack`")

    @property
    def sizes(self) -> list[float]:
        """``eps`` as numbers, ascending."""
        return [parse_size(self.norm, text) for text in self.eps]


@dataclass
class Suite:
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
        norms = [threat.norm for threat in self.threats]
        _require(bool(norms), "threats", norms, "a list of at least one threat")
        _require(len(set(norms)) == len(norms), "threats", norms, "one threat for each norm")


@dataclass
class EvaluationConfig:
    """How a detector is attacked.

    Args:
        suite: quick, standard, full, legacy, multi-norm or a YAML file.
        eps: sizes of the suite's first threat, one or a list, in place of its own.
        all_checks: run the slow self-checks too.
        images: attack only about that many test images, the same share, but at least one, of each
            kind; all when absent.
        looks: of a detector that is random by design, the mean of that many looks is attacked and
            judged (expectation over transformation); 1 for all others.
        batch_size: images attacked at once by each worker.
    """

    suite: str = "quick"
    eps: list[str] | str | None = None
    all_checks: bool = False
    images: int | None = None
    looks: int = 1
    batch_size: int = 32

    def __post_init__(self) -> None:
        _require(self.eps not in ([], ""), "evaluation.eps", self.eps, "a list of radii")
        few = self.images is not None and self.images < 2
        _require(not few, "evaluation.images", self.images, "at least 2")
        _require(self.looks >= 1, "evaluation.looks", self.looks, "at least 1")
        _require(self.batch_size >= 1, "evaluation.batch_size", self.batch_size, "at least 1")


@dataclass
class FitConfig:
    """All settings of a fit: with the images, they decide everything in the run folder.

    Args:
        data: an MVTec-style tree or a plain folder of normal images.
        seed: of the split, the weights and every random draw.
        false_alarm_rate: share of normal images that may be flagged, guaranteed by calibration.
        twin: also train the undefended twin that the report compares with.
        strict: fail at the first file that cannot be read, instead of leaving it out.
        full_scale: the value that counts as white in images of more than 8 bits; ``auto`` for the
            least 2^n - 1 that holds all values of the training images; when absent the largest
            that their format holds.
        groups: which normal images belong together, so that no part or patient is both trained on
            and held out: a CSV table with the columns file and group, or a regular expression
            whose first parenthesis in the path is the group.
        recipe: how to train.
        evaluation: how to attack.
    """

    data: str
    seed: int = 0
    false_alarm_rate: float = 0.05
    twin: bool = True
    strict: bool = False
    full_scale: float | Literal["auto"] | None = None
    groups: str | None = None
    recipe: Recipe = field(default_factory=Recipe)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        _require(self.seed >= 0, "seed", self.seed, "0 or more")
        rate = self.false_alarm_rate
        _require(0 < rate < 1, "false_alarm_rate", rate, "between 0 and 1")
        scale = self.full_scale
        bounded = scale is None or scale == "auto" or 0 < float(scale) < math.inf
        _require(bounded, "full_scale", scale, "auto, or above 0 and finite")


def _require(met: bool, name: str, value: object, allowed: str) -> None:
    if not met:
        raise PatchGuardError(f"{name} is {value}; it must be {allowed}")


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

    Raises:
        PatchGuardError: no such recipe, or a setting of the wrong name or type.
    """
    return _from_yaml(Recipe, _yaml_path("recipe", RECIPES, name))


def recipe_path(name: str) -> Path:
    """The file of a recipe that can be loaded.

    Raises:
        PatchGuardError: as :func:`load_recipe`.
    """
    load_recipe(name)
    return _yaml_path("recipe", RECIPES, name)


def load_suite(name: str) -> Suite:
    """The suite of that name or in that YAML file.

    Raises:
        PatchGuardError: no such suite, or a setting of the wrong name or type.
    """
    return _from_yaml(Suite, _yaml_path("suite", SUITES, name))


def _yaml_path(what: str, folder: Path, name: str) -> Path:
    for candidate in (folder / f"{name}.yaml", Path(name)):
        if candidate.is_file():
            return candidate
    known = ", ".join(sorted(path.stem for path in folder.glob("*.yaml")))
    raise PatchGuardError(f"{what} {name}: neither a file nor one of {known}")


T = TypeVar("T")


def _from_yaml(kind: type[T], path: Path) -> T:
    import yaml

    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PatchGuardError(f"{path} is not YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise PatchGuardError(f"{path} holds no settings (lines such as 'name: value')")
    try:
        return from_plain(kind, content)
    except PatchGuardError as error:
        raise PatchGuardError(f"{path}: {error}") from error


def from_plain(kind: type[T], content: dict[str, Any]) -> T:
    """One of the dataclasses above from plain values, checked against its types.

    Raises:
        PatchGuardError: an unknown name or a value of the wrong type.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    _check_sections(kind, content)
    name = kind.__name__.removesuffix("Config").lower()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, name)
    try:
        return cast(T, instantiate(parser, parser.parse_object({name: content}))[name])
    except (ArgumentError, TypeError) as error:
        raise PatchGuardError(in_our_words(str(error)).replace(f"{name}.", "", 1)) from error


def _check_sections(kind: type, content: Mapping[str, Any], prefix: str = "") -> None:
    """jsonargparse takes what is no mapping for none at all."""
    for name, hint in get_type_hints(kind).items():
        if not is_dataclass(hint) or name not in content:
            continue
        if not isinstance(content[name], Mapping):
            raise PatchGuardError(f"{prefix}{name} holds no settings (lines such as 'name: value')")
        _check_sections(cast(type, hint), content[name], f"{prefix}{name}.")


_KINDS = {"str": "text (in YAML with quotes)"}
"""What people call a type; others have their own name."""


def in_our_words(message: str) -> str:
    """What jsonargparse says of a setting, in one line: its name, its value, what is wrong."""
    line = " ".join(message.split())
    unknown = re.fullmatch(r".* does not accept option '([^']+)'", line)
    if unknown:
        return f"{unknown[1]}: there is no such setting"
    wrong = re.fullmatch(r"""Parser key "([\w.]+)": (.*Expected.*) G\w+ value: (.*)""", line)
    if not wrong:
        return re.sub(r"""^Parser key "([\w.]+)": """, r"\1: ", line)
    name, reasons, given = wrong.groups()
    found = re.findall(r"Expected (?:a )?(?:<class '(\w+)'>|typing.Literal\[(.*?)\])", reasons)
    wanted = [_KINDS.get(kind, kind) or f"one of {values}" for kind, values in found]
    told = dict.fromkeys(each for each in wanted if each != "NoneType")
    return f"{name} {given}: expected {' or '.join(told)}"


def instantiate(parser: ArgumentParser, parsed: Namespace) -> Namespace:
    """Dataclasses from parsed values; jsonargparse 4.49 renamed it, anomalib needs an older one."""
    method = getattr(parser, "instantiate", None) or parser.instantiate_classes
    return cast("Namespace", method(parsed))
