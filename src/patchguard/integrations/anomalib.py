"""Models of anomalib (2.7 and later) as detectors; needs the extra ``anomalib``."""

from __future__ import annotations

import inspect
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from patchguard.detector import Detection, Detector, Inspection
from patchguard.errors import PatchGuardError
from patchguard.integrations.function import as_detection, check_size, shape_of

try:
    from anomalib.models.components import AnomalibModule
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from anomalib.models.image.supersimplenet.torch_model import SupersimplenetModel
    from anomalib.pre_processing import PreProcessor
    from anomalib.pre_processing.utils.spec import spec_to_transform
    from anomalib.utils.serialization import anomalib_safe_globals
except ImportError as error:
    raise PatchGuardError(
        f"anomalib models need anomalib ({error}); pip install 'patchguard-ad[anomalib]'"
    ) from error

CROPS = ("CenterCrop", "ExportableCenterCrop")
COMPONENTS = {"self", "pre_processor", "post_processor", "evaluator", "visualizer"}


class AnomalibDetector(Detector):
    """A fitted anomalib model: its own raw scores and maps, with gradients down to the pixels.

    The model's pre-processing is applied inside, in floating point, and its post-processing,
    which rescales scores to [0, 1], is left out. Scores and maps are what the model itself
    returns; those of SuperSimpleNet are taken before the sigmoid that it ends in.

    Many models run their frozen feature extractor without gradients. Within the detector that is
    lifted: values stay the same. Where a model detaches its result or runs in inference mode (CFA,
    CFlow, DFKDE, FRE, SuperADD, UniNet) no gradient arrives, attacks by gradients raise
    :class:`~patchguard.attacks.attack.NotDifferentiable`, and the others apply. A model may also
    detach part of what it computes; the finite-difference check shows that.

    PatchCore and PaDiM show their patch embeddings as ``features``.

    Args:
        module: a fitted Lightning module of anomalib, or the torch model inside one; it is put
            into eval mode and stays there, as only then it returns scores.
        image_size: height and width in pixels of the images that the detector takes, or the side
            of square ones; those that the pre-processing makes when absent. If they differ the
            images are resized inside, so that eps holds at ``image_size``.
        transform: takes the place of the module's pre-processing; for images [B, 3, H, W] in
            [0, 1] and differentiable. A bare torch model needs one, since its pre-processing
            lies in the Lightning module; ``torch.nn.Identity()`` for none.

    Raises:
        PatchGuardError: the pre-processing or its size is unknown, or it crops: a map of the
            crop is none of the image; or ``image_size`` is none.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        image_size: int | tuple[int, int] | None = None,
        transform: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model, self.transform = _parts(module, transform)
        self.image_size = _made_by(self.transform) if image_size is None else shape_of(image_size)
        self.name = type(module).__name__
        self.eval()

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        *,
        image_size: int | tuple[int, int] | None = None,
        trust: bool = False,
    ) -> Self:
        """The detector of a Lightning checkpoint (``.ckpt``) that anomalib has written.

        The kind of model is told from its settings in the checkpoint. Nothing in the file is
        executed and no backbone is downloaded, as the file holds its weights.

        Args:
            checkpoint: the file.
            image_size: as in the constructor.
            trust: unpickle the whole file, which runs any code that its author put into it;
                needed for checkpoints that hold more than tensors and plain values.

        Raises:
            PatchGuardError: no such file, no anomalib checkpoint, or one that needs ``trust``.
        """
        path = Path(checkpoint)
        content = _read(path, trust)
        kind = _kind_of(path, content)
        settings: dict[str, Any] = {}
        if "anomalib_pre_processor_config" in content:
            # Some models are built for the size that their pre-processor names.
            spec = content["anomalib_pre_processor_config"]["transform"]
            settings["pre_processor"] = PreProcessor(spec_to_transform(spec))
        try:
            with patch.object(timm, "create_model", partial(_create, timm.create_model)):
                module = kind.load_from_checkpoint(
                    path, map_location="cpu", weights_only=not trust, **settings
                )
        except (RuntimeError, TypeError, ValueError, KeyError, OSError) as error:
            raise PatchGuardError(
                f"{path}: cannot be loaded as anomalib's {kind.__name__} ({_one_line(error)})"
            ) from error
        return cls(module, image_size=image_size)

    def train(self, mode: bool = True) -> Self:
        """Does nothing but stay in eval mode: in training mode the models return no scores."""
        return super().train(False)

    def forward(self, images: Tensor) -> Detection:
        return Detection(*self.inspect(images)[:2])

    def inspect(self, images: Tensor) -> Inspection:
        """The detection and, of PatchCore and PaDiM, the patch embeddings [B, N, C].

        Raises:
            PatchGuardError: images of another size, or a model that returns no scores.
        """
        check_size(images, self.image_size)
        prepared = self.transform(images)
        with ExitStack() as stack:
            stack.enter_context(_whole_gradients(self.model))
            embeddings = stack.enter_context(_watched_embedding(self.model))
            stack.enter_context(_sparse_search(self.model))
            stack.enter_context(_KeepGradients())
            if isinstance(self.model, SupersimplenetModel):
                score, anomaly_map = _supersimplenet_logits(self.model, prepared)
            else:
                score, anomaly_map = _scores_of(self.model(prepared))
        features = embeddings[0].flatten(2).transpose(1, 2) if embeddings else None
        return Inspection(*as_detection(score, anomaly_map, images), features=features)


class _KeepGradients(TorchFunctionMode):
    """Within it code cannot switch gradients off (or on): ``torch.no_grad`` has no effect."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            return None
        return func(*args, **(kwargs or {}))


@contextmanager
def _whole_gradients(model: nn.Module) -> Iterator[None]:
    """Let the heads that stop gradients in training (SuperSimpleNet's) pass them on."""
    stopping = [module for module in model.modules() if getattr(module, "stop_grad", False)]
    for module in stopping:
        module.stop_grad = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in stopping:
            module.stop_grad = True  # type: ignore[assignment]


@contextmanager
def _watched_embedding(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that receives the patch embedding [B, C, h, w] of a forward pass, if there is one."""
    generate = getattr(model, "generate_embedding", None)
    seen: list[Tensor] = []
    if generate is None:
        yield seen
        return

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        embedding: Tensor = generate(*args, **kwargs)
        if embedding.requires_grad:
            embedding.register_hook(_zero_where_undefined)  # type: ignore[no-untyped-call]
        seen.append(embedding)
        return embedding

    with patch.object(model, "generate_embedding", watched):
        yield seen


def _zero_where_undefined(gradient: Tensor) -> Tensor:
    # A patch that lies exactly on a stored one has distance 0, whose square root has no gradient;
    # 0 is a subgradient there, and a single NaN would spoil the whole image.
    return gradient.nan_to_num(0.0, 0.0, 0.0)


@contextmanager
def _sparse_search(model: nn.Module) -> Iterator[None]:
    """Let the gradient of PatchCore's distances pass through the nearest neighbours alone.

    Values and gradients are those of the full search, whose graph holds every distance between a
    patch and the memory bank: gigabytes for a batch.
    """
    if not isinstance(model, PatchcoreModel):
        yield
        return
    search = model.nearest_neighbors

    def sparse(embedding: Tensor, n_neighbors: int) -> tuple[Tensor, Tensor]:
        distances, places = search(embedding.detach(), n_neighbors)
        if embedding.requires_grad:
            own = embedding if places.ndim == 1 else embedding[:, None]
            exact = (own - model.memory_bank[places]).norm(dim=-1)
            distances = distances + (exact - exact.detach())
        return distances, places

    with patch.object(model, "nearest_neighbors", sparse):
        yield


def _supersimplenet_logits(model: SupersimplenetModel, images: Tensor) -> tuple[Tensor, Tensor]:
    """Score [B] and map [B, 1, H, W] before the sigmoid."""
    found: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        found.append(output)

    heads = (model.segdec, model.anomaly_map_generator)
    handles = [head.register_forward_hook(keep) for head in heads]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    (_, score), anomaly_map = found
    return score, anomaly_map


def _scores_of(output: Any) -> tuple[Any, Any]:
    try:
        return output.pred_score, output.anomaly_map
    except AttributeError as error:
        raise PatchGuardError(
            f"the anomalib model returned {type(output).__name__}, not scores and maps"
        ) from error


def _parts(module: nn.Module, transform: nn.Module | None) -> tuple[nn.Module, nn.Module]:
    """The torch model and what precedes it."""
    if isinstance(module, AnomalibModule):
        model = module.model
        if transform is None:
            transform = getattr(module.pre_processor, "transform", None)
    else:
        model = module
    if transform is None:
        raise PatchGuardError(
            f"{type(module).__name__} has no pre-processing: pass the fitted Lightning module, or "
            "transform=..., torch.nn.Identity() for none"
        )
    if any(type(step).__name__ in CROPS for step in _steps(transform)):
        raise PatchGuardError(
            f"{type(module).__name__} crops its images, so that its map is none of the image; "
            "crop them beforehand and pass transform=... without the crop"
        )
    return model, transform


def _steps(transform: nn.Module) -> Iterator[nn.Module]:
    """A transform and, of a composition, all that it is made of."""
    yield transform
    for step in getattr(transform, "transforms", ()):
        yield from _steps(step)


def _made_by(transform: nn.Module) -> tuple[int, int]:
    """Height and width in pixels of the images that a transform makes, whatever it is given."""
    upright, lying = (transform(torch.zeros(1, 3, *shape)) for shape in ((24, 16), (16, 24)))
    height, width = upright.shape[-2:]
    if lying.shape != upright.shape:
        raise PatchGuardError(
            "the pre-processing does not say what size the images have; pass image_size=..."
        )
    return int(height), int(width)


def _read(path: Path, trust: bool) -> dict[str, Any]:
    safe = [item for kind in _kinds() for item in kind.checkpoint_safe_globals()]
    try:
        with path.open("rb") as file:
            zipped = zipfile.is_zipfile(file)
        if not zipped:
            raise PatchGuardError(f"{path}: not a checkpoint, or a damaged one")
        with anomalib_safe_globals(extra=safe):
            content = torch.load(path, map_location="cpu", weights_only=not trust)
    except OSError as error:
        raise PatchGuardError(f"{path}: cannot be opened ({error.strerror or error})") from error
    except pickle.UnpicklingError as error:
        raise PatchGuardError(
            f"{path}: holds more than tensors and plain values, and reading it would run code from "
            "the file; if you trust its author, add --trust (in Python trust=True)"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise PatchGuardError(f"{path}: not a checkpoint, or a damaged one") from error
    if not isinstance(content, dict) or not {"state_dict", "hyper_parameters"} <= content.keys():
        raise PatchGuardError(f"{path}: not a Lightning checkpoint of an anomalib model")
    return content


def _kinds() -> list[type[AnomalibModule]]:
    """All models of anomalib."""
    found: list[type[AnomalibModule]] = []
    waiting = [AnomalibModule]
    while waiting:
        waiting += (children := waiting.pop().__subclasses__())
        found += children
    return [kind for kind in found if not inspect.isabstract(kind)]


def _kind_of(path: Path, content: dict[str, Any]) -> type[AnomalibModule]:
    """The model whose settings those of the checkpoint are; no two have the same."""
    given = content["hyper_parameters"].keys() - COMPONENTS
    settings = {kind: inspect.signature(kind).parameters.keys() - COMPONENTS for kind in _kinds()}
    fitting = [kind for kind, known in settings.items() if given <= known]
    if not given or not fitting:
        raise PatchGuardError(f"{path}: its settings are those of no model of this anomalib")
    return min(fitting, key=lambda kind: len(settings[kind]))


def _create(create: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    return create(*args, **{**kwargs, "pretrained": False})


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
