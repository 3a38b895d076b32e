"""``model.json``: what has to be known of a detector to use it, beside its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar

from patchguard.config import ModelConfig, View
from patchguard.errors import PatchGuardError
from patchguard.results.files import read_as, write_json
from patchguard.results.run_folder import CONFIG, MODEL, read_plain_config
from patchguard.results.schema import Document, Record

_LOG = logging.getLogger(__name__)


class Architecture(Record):
    """The network: see :class:`patchguard.config.ModelConfig`."""

    backbone: str
    heads: int
    hidden: int
    dropout: float
    position_std: float
    window: int
    stride: float
    views: tuple[View, ...]
    blur_sigma: float
    blur_radius: int


class Preprocessing(Record):
    """What happens to images before the network: see
    :class:`patchguard.data.preprocess.Preprocessor`, and for the span of their values
    :class:`patchguard.models.patchguard.PatchGuard`."""

    shape: tuple[int, int]
    full_scale: float | None = None
    span: tuple[float, float] = (0.0, 1.0)


class Score(Record):
    """How a view is scored: see :class:`patchguard.models.patchguard.ViewScore`."""

    patches: int
    centre: float = 0.0
    scale: float = 1.0


class Labels(Record):
    """What the verdicts are called."""

    normal: str
    anomalous: str


class ModelFile(Document):
    """``model.json``."""

    FORMAT: ClassVar = "patchguard_model"
    VERSION: ClassVar = 2
    AGAIN: ClassVar = "restore it or fit again"

    architecture: Architecture
    preprocessing: Preprocessing
    scores: dict[View, Score]
    labels: Labels

    @classmethod
    def upgraded(cls, content: dict[str, Any]) -> dict[str, Any]:
        """Version 1 had square images, each seen as a whole."""
        if content.get(cls.FORMAT) != 1:
            return content
        network, images = dict(content["architecture"]), dict(content["preprocessing"])
        size = images.pop("image_size")
        scores = {"whole": {"patches": network.pop("top_k")}}
        network |= {"window": size, "stride": 1.0, "views": ["whole"]}
        images |= {"shape": [size, size]}
        return {
            **content,
            cls.FORMAT: cls.VERSION,
            "architecture": network,
            "preprocessing": images,
            "scores": scores,
        }

    @property
    def config(self) -> ModelConfig:
        """The network's settings, without any weights to start from."""
        known = self.architecture.model_dump()
        return ModelConfig(weights="none", **{**known, "views": list(self.architecture.views)})


def describe(
    config: ModelConfig, preprocessing: Preprocessing, scores: Mapping[View, Score]
) -> ModelFile:
    """The description of a detector."""
    parts = {name: getattr(config, name) for name in Architecture.model_fields}
    return ModelFile(
        architecture=Architecture(**parts),
        preprocessing=preprocessing,
        scores=dict(scores),
        labels=Labels(normal="normal", anomalous="anomalous"),
    )


def write_model(folder: Path, model: ModelFile) -> None:
    """Write ``model.json``.

    Raises:
        PatchGuardError: it cannot be written.
    """
    write_json(model, folder / MODEL)


def read_model(folder: Path) -> ModelFile:
    """The description of a run's detector.

    Runs of before ``model.json`` have it in the settings of their training, of which only what
    concerns the network and the size of the images is read.

    Raises:
        PatchGuardError: it is missing or damaged.
    """
    if (folder / MODEL).exists():
        return read_as(ModelFile, folder / MODEL)
    return _from_config(folder)


def _from_config(folder: Path) -> ModelFile:
    content = read_plain_config(folder)
    try:
        recipe = content["settings"]["recipe"]
        network = dict(recipe["model"])
        size, few = int(recipe["data"]["image_size"]), int(network.pop("top_k"))
        config = _known({**network, "window": size, "views": ["whole"]}, folder)
        images = Preprocessing(shape=(size, size), full_scale=content.get("full_scale"))
        return describe(config, images, {"whole": Score(patches=few)})
    except (KeyError, TypeError, ValueError) as error:
        raise PatchGuardError(
            f"{folder / CONFIG} does not say what network it is of: restore it or fit again"
        ) from error


def _known(network: dict[str, Any], folder: Path) -> ModelConfig:
    names = {field.name for field in fields(ModelConfig)}
    unknown = sorted(network.keys() - names)
    if unknown:
        _LOG.warning("%s: not known here and left out: %s", folder / CONFIG, ", ".join(unknown))
    known = {name: value for name, value in network.items() if name in names}
    return ModelConfig(**{**known, "weights": "none"})
