"""``model.json``: what has to be known of a detector to use it, beside its weights."""

from __future__ import annotations

import logging
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, ClassVar

from patchguard.config import ModelConfig
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
    top_k: int
    blur_sigma: float
    blur_radius: int


class Preprocessing(Record):
    """What happens to images before the network: see
    :class:`patchguard.data.preprocess.Preprocessor`."""

    image_size: int
    full_scale: float | None = None


class Labels(Record):
    """What the verdicts are called."""

    normal: str
    anomalous: str


class ModelFile(Document):
    """``model.json``."""

    FORMAT: ClassVar = "patchguard_model"
    VERSION: ClassVar = 1
    AGAIN: ClassVar = "restore it or fit again"

    architecture: Architecture
    preprocessing: Preprocessing
    labels: Labels

    @property
    def config(self) -> ModelConfig:
        """The network's settings, without any weights to start from."""
        return ModelConfig(weights="none", **self.architecture.model_dump())


def describe(config: ModelConfig, image_size: int, full_scale: float | None = None) -> ModelFile:
    """The description of a detector."""
    parts = {name: value for name, value in asdict(config).items() if name != "weights"}
    return ModelFile(
        architecture=Architecture(**parts),
        preprocessing=Preprocessing(image_size=image_size, full_scale=full_scale),
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
        network, size = dict(recipe["model"]), int(recipe["data"]["image_size"])
        return describe(_known(network, folder), size, content.get("full_scale"))
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
