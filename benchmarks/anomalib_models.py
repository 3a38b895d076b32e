"""Five models of anomalib under attack: fitted by anomalib on DATA, attacked in pixel space.

    python benchmarks/anomalib_models.py DATA [--backbone_weights FILE] [--vit_weights FILE]

DATA is an MVTec-style category. Backbones are a ResNet-18 and, for GeneralAD, a ViT-Ti/16: random,
which tests the adapter and the attacks rather than the models, unless weight files (safetensors,
as timm names their tensors) are given. Pixel metrics need ground truth. With --time the cost of a
forward and backward pass on 16 images is measured in place of the evaluation.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import timm
import torch
from anomalib.data import Folder
from anomalib.engine import Engine
from anomalib.models import GeneralAD, Padim, Patchcore, ReverseDistillation, Supersimplenet
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from safetensors.torch import load_file
from torch import nn
from torchvision.transforms import v2

from patchguard.config import EvaluationConfig
from patchguard.data.folder import scan_test
from patchguard.errors import PatchGuardError
from patchguard.evaluation.protocol import evaluate_detector
from patchguard.evaluation.test_set import TestSet, labelled_images
from patchguard.integrations.anomalib import AnomalibDetector
from patchguard.results.schema import CLEAN, WORST, Measured, Summary
from patchguard.runtime import named_device

CNN, VIT = "resnet18", "vit_tiny_patch16_224"
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
TIMED_BATCH, ROUNDS = 16, 5


class Model(NamedTuple):
    """A kind of model: how it is built, its backbone's place in it, and the epochs it trains."""

    build: Callable[[PreProcessor], AnomalibModule]
    backbone: str
    epochs: int = 1


def patchcore(pre_processor: PreProcessor) -> AnomalibModule:
    return Patchcore(
        CNN,
        ["layer2", "layer3"],
        pre_trained=False,
        coreset_sampling_ratio=0.02,
        pre_processor=pre_processor,
    )


def padim(pre_processor: PreProcessor) -> AnomalibModule:
    return Padim(CNN, pre_trained=False, pre_processor=pre_processor)


def reverse_distillation(pre_processor: PreProcessor) -> AnomalibModule:
    return ReverseDistillation(CNN, pre_trained=False, pre_processor=pre_processor)


def super_simple_net(pre_processor: PreProcessor) -> AnomalibModule:
    # Given a name it would download the weights of that backbone.
    backbone: Any = timm.create_model(CNN, pretrained=False)
    return Supersimplenet(
        backbone=backbone, layers=["layer2", "layer3"], pre_processor=pre_processor
    )


def general_ad(pre_processor: PreProcessor) -> AnomalibModule:
    return GeneralAD(VIT, layers=(12,), pre_trained=False, pre_processor=pre_processor)


DEVICE = named_device("auto")

MODELS = {
    "PatchCore": Model(patchcore, "model.feature_extractor.feature_extractor"),
    "PaDiM": Model(padim, "model.feature_extractor.feature_extractor"),
    "ReverseDistillation": Model(reverse_distillation, "model.encoder.feature_extractor", 20),
    "SuperSimpleNet": Model(
        super_simple_net, "model.feature_extractor.feature_extractor.feature_extractor", 20
    ),
    "GeneralAD": Model(general_ad, "model.feature_extractor.pretrained_model", 20),
}


def fitted(model: Model, data: Path, size: int, weights: Path | None) -> AnomalibModule:
    """A model that anomalib has fitted on the normal images of ``data``."""
    torch.manual_seed(0)
    resize = v2.Resize((size, size), antialias=True)
    module = model.build(PreProcessor(v2.Compose([resize, v2.Normalize(MEAN, STD)])))
    if weights is not None:
        load_backbone(module.get_submodule(model.backbone), weights)
    images = Folder(
        name=data.name,
        normal_dir=data / "train" / "good",
        train_batch_size=16,
        num_workers=0,
        test_split_mode="none",
        val_split_mode="none",
        # Collated before the model's own transform, hence of one size.
        augmentations=resize,
    )
    images.setup("fit")
    with TemporaryDirectory() as folder:
        engine = Engine(
            default_root_dir=folder,
            max_epochs=model.epochs,
            devices=1,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        engine.fit(module, train_dataloaders=images.train_dataloader())
    return module


def load_backbone(backbone: nn.Module, weights: Path) -> None:
    stored = load_file(weights)
    wanted = backbone.state_dict()
    missing = next((name for name in wanted if name not in stored), None)
    if missing is not None:
        raise PatchGuardError(f"{weights}: has no tensor {missing}; other weights are needed")
    backbone.load_state_dict({name: stored[name] for name in wanted})


def seconds_per_pass(detector: AnomalibDetector, test: TestSet) -> float:
    """Median wall time of a forward and backward pass on 16 images."""
    detector.requires_grad_(False)
    rows = torch.arange(TIMED_BATCH) % len(test.images)
    images = test.images[rows].to(DEVICE).requires_grad_()
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        score, anomaly_map = detector(images)
        (gradient,) = torch.autograd.grad(score.sum() + anomaly_map.mean(), images)
        gradient.sum().item()  # waits for the device
        times.append(time.perf_counter() - began)
    return sorted(times[1:])[ROUNDS // 2]


def rows(name: str, summary: Summary) -> Iterator[str]:
    """A line for the clean images and one for the worst case at each eps."""
    yield line(name, CLEAN, summary.clean)
    for entry in summary.attacked:
        if entry.attack == WORST:
            yield line(name, entry.scores_key, entry.both)
    failed = [check.id for check in summary.checks if check.status == "FAIL"]
    yield f"{name:<22}checks that fail: {', '.join(failed) or 'none'}"


def line(name: str, what: str, measured: Measured) -> str:
    pixel = f"{measured.pixel.auroc:12.3f}" if measured.pixel else f"{'-':>12}"
    return f"{name:<22}{what:<22}{measured.image.auroc:12.3f}{pixel}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--backbone_weights", type=Path, help=f"{CNN}, safetensors")
    parser.add_argument("--vit_weights", type=Path, help=f"{VIT} at the same size, safetensors")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--epochs", type=int, help="of the models that train")
    parser.add_argument("--suite", default="quick")
    parser.add_argument("--eps", nargs="+")
    parser.add_argument("--images", type=int, help="attack only that many test images")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--out", type=Path, help="write the metrics of all models as JSON")
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    tree = scan_test(arguments.data)
    shape = (arguments.size, arguments.size)
    test = labelled_images(tree.test, shape, tree.has_masks)
    config = EvaluationConfig(
        suite=arguments.suite,
        eps=arguments.eps,
        images=arguments.images,
        batch_size=arguments.batch_size,
    )
    outcomes = {}
    print(f"{arguments.data.name} at {arguments.size} px, torch {torch.__version__}, {DEVICE}")
    print(f"{'model':<22}{'':<22}{'image AUROC':>12}{'pixel AUROC':>12}")
    for name in arguments.models:
        model = MODELS[name]
        if arguments.epochs is not None and model.epochs > 1:
            model = model._replace(epochs=arguments.epochs)
        weights = arguments.vit_weights if name == "GeneralAD" else arguments.backbone_weights
        module = fitted(model, arguments.data, arguments.size, weights)
        detector = AnomalibDetector(module).to(DEVICE)
        if arguments.time:
            print(f"{name:<22}{seconds_per_pass(detector, test):.3f} s per pass of 16 images")
            continue
        outcomes[name] = evaluate_detector(detector, test, config).summary
        print("\n".join(rows(name, outcomes[name])), flush=True)
    if arguments.out and outcomes:
        content = {name: found.model_dump(mode="json") for name, found in outcomes.items()}
        arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
