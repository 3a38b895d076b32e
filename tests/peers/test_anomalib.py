"""Anomalib's models with random backbones, fitted on a few images."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path

import lightning
import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

pytest.importorskip("anomalib")

from anomalib.data import InferenceBatch
from anomalib.models import (
    EfficientAd,
    GeneralAD,
    Padim,
    Patchcore,
    ReverseDistillation,
    Supersimplenet,
)
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor

from patchguard.attacks.attack import NotDifferentiable
from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.errors import PatchGuardError
from patchguard.evaluation.metrics import image_metrics
from patchguard.integrations.anomalib import AnomalibDetector

pytestmark = pytest.mark.peers

SIDE = 64
EFFICIENT_AD_SIDE = 256  # its autoencoder takes nothing smaller
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def pre_processor(size: int = SIDE) -> PreProcessor:
    resize = v2.Resize((size, size), antialias=True)
    return PreProcessor(v2.Compose([resize, v2.Normalize(MEAN, STD)]))


def discs(count: int, seed: int, defective: bool = False) -> Tensor:
    """Grey discs [count, 3, 64, 64] with noise; defective ones have a faint dark square."""
    generator = torch.Generator().manual_seed(seed)
    grid = torch.arange(SIDE) - SIDE / 2
    disc = (grid[:, None] ** 2 + grid**2 < 26**2).float()
    images = (0.15 + 0.5 * disc).expand(count, 3, SIDE, SIDE).clone()
    if defective:
        images[:, :, 24:40, 24:40] -= 0.2
    return (images + 0.02 * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def patchcore() -> Patchcore:
    module = Patchcore(
        "resnet18",
        ["layer1", "layer2"],
        pre_trained=False,
        coreset_sampling_ratio=0.02,
        pre_processor=pre_processor(),
    )
    module.model.train()
    module.model(module.pre_processor.transform(discs(12, seed=0)))
    module.model.subsample_embedding(module.coreset_sampling_ratio)
    return module


def padim() -> Padim:
    module = Padim(
        "resnet18",
        ["layer1", "layer2"],
        pre_trained=False,
        n_features=20,
        pre_processor=pre_processor(),
    )
    module.model.train()
    module.model(module.pre_processor.transform(discs(40, seed=0)))
    module.model.fit()
    return module


def efficient_ad() -> EfficientAd:
    module = EfficientAd(teacher_out_channels=8, pre_processor=PreProcessor(nn.Identity()))
    module.model.quantiles.update({name: torch.tensor(0.5) for name in ("qb_st", "qb_ae")})
    return module


def reverse_distillation() -> ReverseDistillation:
    return ReverseDistillation("resnet18", pre_trained=False, pre_processor=pre_processor())


def super_simple_net() -> Supersimplenet:
    backbone = timm.create_model("resnet18", pretrained=False)
    return Supersimplenet(backbone=backbone, layers=["layer2"], pre_processor=pre_processor())


def general_ad() -> GeneralAD:
    return GeneralAD(
        "vit_tiny_patch16_224",
        layers=(2,),
        hidden_dim=32,
        pre_trained=False,
        pre_processor=pre_processor(),
    )


FITTED: dict[str, Callable[[], AnomalibModule]] = {
    build.__name__: build
    for build in (patchcore, padim, reverse_distillation, super_simple_net, general_ad)
}
ALL = {**FITTED, "efficient_ad": efficient_ad}


@cache
def fitted(name: str) -> AnomalibModule:
    torch.manual_seed(0)
    return ALL[name]()


@pytest.fixture(params=FITTED)
def module(request: pytest.FixtureRequest) -> AnomalibModule:
    return fitted(request.param)


@contextmanager
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def pairs(size: int = SIDE) -> tuple[Tensor, Tensor]:
    """Two normal and two defective images of which nothing was fitted, and labels."""
    images = torch.cat([discs(2, seed=1), discs(2, seed=2, defective=True)])
    labels = torch.tensor([False, False, True, True])
    return nn.functional.interpolate(images, (size, size), mode="bilinear"), labels


@pytest.mark.parametrize("name", ALL)
def test_scores_and_maps_are_those_of_the_model_itself(name: str) -> None:
    module = fitted(name)
    size = EFFICIENT_AD_SIDE if name == "efficient_ad" else SIDE
    detector = AnomalibDetector(module, image_size=size)
    images = pairs(size)[0][2:3] if name == "efficient_ad" else pairs()[0]
    with torch.no_grad():
        score, anomaly_map = detector(images)
        own = module.model(module.pre_processor.transform(images))
    if name == "super_simple_net":
        score, anomaly_map = score.sigmoid(), anomaly_map.sigmoid()
    assert anomaly_map.shape == (len(images), size, size)
    torch.testing.assert_close(score, own.pred_score.flatten(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(anomaly_map, own.anomaly_map.squeeze(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    size = EFFICIENT_AD_SIDE if name == "efficient_ad" else SIDE
    detector = deepcopy(AnomalibDetector(fitted(name), image_size=size)).double()
    generator = torch.Generator().manual_seed(0)
    images = pairs(size)[0][2:3].double().requires_grad_()
    weight = torch.randn(1, size, size, generator=generator, dtype=torch.float64)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)

    def value(x: Tensor) -> Tensor:
        score, anomaly_map = detector(x)
        return score.sum() + (weight * anomaly_map).mean()

    with double_precision():
        before = value(images)
        (gradient,) = torch.autograd.grad(before, images)
        with torch.no_grad():
            rise = value(images + 1e-7 * direction) - before
    torch.testing.assert_close((gradient * direction).sum(), rise / 1e-7, rtol=1e-4, atol=1e-6)


def test_an_attack_raises_normal_scores_and_lowers_anomalous_ones(module: AnomalibModule) -> None:
    detector = AnomalibDetector(module)
    images, labels = pairs()
    attack = PGD(image_score, steps=5, start=0)
    (attacked,) = attack(detector, images, labels, torch.zeros(4, SIDE, SIDE), eps=[8 / 255])
    with torch.no_grad():
        change = detector(attacked).score - detector(images).score
    assert (change[~labels] > 0).all()
    assert (change[labels] < 0).all()


@pytest.mark.parametrize("name", ["patchcore", "padim"])
def test_memories_of_normal_patches_fall(name: str) -> None:
    detector = AnomalibDetector(fitted(name))
    images = torch.cat([discs(3, seed=1), discs(3, seed=2, defective=True)])
    labels = torch.arange(6) >= 3
    attack = PGD(image_score, steps=12)
    (attacked,) = attack(detector, images, labels, torch.zeros(6, SIDE, SIDE), eps=[8 / 255])
    with torch.no_grad():
        clean, worst = (detector(x).score.numpy() for x in (images, attacked))
    assert image_metrics(clean, labels.numpy()).auroc == 1.0
    assert image_metrics(worst, labels.numpy()).auroc == 0.0


@pytest.mark.parametrize("name", ["patchcore", "padim"])
def test_patch_embeddings_are_shown_with_gradients(name: str) -> None:
    detector = AnomalibDetector(fitted(name))
    images = discs(2, seed=1).requires_grad_()
    features = detector.inspect(images).features
    assert features is not None
    assert features.shape[:2] == (2, 16 * 16)
    (gradient,) = torch.autograd.grad(features[0].sum(), images)
    assert gradient[0].abs().sum() > 0
    assert gradient[1].abs().sum() == 0


def test_a_memorised_image_has_a_finite_gradient() -> None:
    module = patchcore()
    images = discs(2, seed=0)
    with torch.no_grad():
        features = AnomalibDetector(module).inspect(images).features
    assert features is not None
    module.model.memory_bank = features.flatten(0, 1)
    score = AnomalibDetector(module)(images.requires_grad_()).score
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert gradient.isfinite().all()


def test_gradients_are_off_where_the_caller_turns_them_off(module: AnomalibModule) -> None:
    with torch.no_grad():
        assert not AnomalibDetector(module)(pairs()[0].requires_grad_()).score.requires_grad
    assert torch.is_grad_enabled()


def test_the_detector_stays_in_eval_mode(module: AnomalibModule) -> None:
    detector = AnomalibDetector(module).train()
    assert not any(part.training for part in detector.modules())


def test_images_are_resized_inside_when_the_sizes_differ() -> None:
    detector = AnomalibDetector(fitted("padim"), image_size=96)
    images = torch.rand(2, 3, 96, 96).requires_grad_()
    score, anomaly_map = detector(images)
    assert anomaly_map.shape == (2, 96, 96)
    resized = v2.functional.resize(images, [SIDE, SIDE], antialias=True)
    torch.testing.assert_close(score, AnomalibDetector(fitted("padim"))(resized).score)
    with pytest.raises(PatchGuardError, match=r"64x64 px .* given to a detector of 96x96 px"):
        detector(resized)


def test_a_pre_processing_may_make_images_that_are_no_squares() -> None:
    model = fitted("patchcore").model
    wide = v2.Compose([v2.Resize((SIDE, 2 * SIDE), antialias=True), v2.Normalize(MEAN, STD)])
    detector = AnomalibDetector(model, transform=wide)
    assert detector.image_size == (SIDE, 2 * SIDE)
    own = AnomalibDetector(model, image_size=(40, 90), transform=wide)
    assert own(torch.rand(2, 3, 40, 90)).anomaly_map.shape == (2, 40, 90)


@pytest.mark.parametrize("resize", [v2.Resize(SIDE), nn.Identity()])
def test_a_pre_processing_that_makes_images_of_any_size_is_told(resize: nn.Module) -> None:
    with pytest.raises(PatchGuardError, match="pass image_size="):
        AnomalibDetector(fitted("padim").model, transform=resize)


def test_a_bare_torch_model_needs_its_pre_processing() -> None:
    module = fitted("padim")
    with pytest.raises(PatchGuardError, match="no pre-processing"):
        AnomalibDetector(module.model, image_size=SIDE)
    bare = AnomalibDetector(module.model, image_size=SIDE, transform=v2.Normalize(MEAN, STD))
    images = pairs()[0]
    assert torch.equal(bare(images).score, AnomalibDetector(module)(images).score)


def test_a_model_that_crops_is_refused() -> None:
    crop = Padim.configure_pre_processor((SIDE, SIDE))
    crop.transform = v2.Compose([v2.Resize((SIDE, SIDE)), v2.CenterCrop(32)])
    module = Padim("resnet18", pre_trained=False, pre_processor=crop)
    with pytest.raises(PatchGuardError, match="crops its images"):
        AnomalibDetector(module)


class Sealed(nn.Module):
    """A model that computes in inference mode, as anomalib's SuperADD does."""

    def forward(self, images: Tensor) -> InferenceBatch:
        with torch.inference_mode():
            return InferenceBatch(pred_score=images.mean((1, 2, 3)))


def test_attacks_by_gradients_say_that_a_model_has_none() -> None:
    detector = AnomalibDetector(Sealed(), image_size=SIDE, transform=nn.Identity())
    images, labels = pairs()
    with pytest.raises(NotDifferentiable):
        PGD(image_score)(detector, images, labels, torch.zeros(4, SIDE, SIDE), eps=[0.1])


def saved(module: AnomalibModule, path: Path) -> Path:
    """The checkpoint that anomalib's engine writes."""
    trainer = lightning.Trainer(
        logger=False, accelerator="cpu", barebones=False, enable_checkpointing=False
    )
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.mark.parametrize("name", ["patchcore", "padim", "reverse_distillation", "general_ad"])
def test_a_checkpoint_gives_the_same_detector(name: str, tmp_path: Path) -> None:
    module = fitted(name)
    loaded = AnomalibDetector.load(saved(module, tmp_path / "model.ckpt"))
    images = pairs()[0]
    assert loaded.image_size == (SIDE, SIDE)
    assert loaded.name == type(module).__name__
    torch.testing.assert_close(loaded(images).score, AnomalibDetector(module)(images).score)


def test_a_checkpoint_is_loaded_without_downloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = fitted("patchcore")
    path = saved(module, tmp_path / "model.ckpt")
    content = torch.load(path, weights_only=False)
    content["hyper_parameters"]["pre_trained"] = True
    torch.save(content, path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    AnomalibDetector.load(path)


def test_a_checkpoint_that_needs_unpickling_needs_trust(tmp_path: Path) -> None:
    path = saved(fitted("super_simple_net"), tmp_path / "model.ckpt")
    with pytest.raises(PatchGuardError, match="would run code from the file"):
        AnomalibDetector.load(path)
    loaded = AnomalibDetector.load(path, trust=True)
    images = pairs()[0]
    expected = AnomalibDetector(fitted("super_simple_net"))(images).score
    torch.testing.assert_close(loaded(images).score, expected)


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("executed"),)


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "hyper_parameters": Payload()}, "zipped.ckpt")
    Path("plain.ckpt").write_bytes(pickle.dumps(Payload()))
    for name in ("zipped.ckpt", "plain.ckpt"):
        with pytest.raises(PatchGuardError):
            AnomalibDetector.load(name)
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "cannot be opened"),
        (b"not a checkpoint", "not a checkpoint"),
        ({"weights": 1}, "not a Lightning checkpoint"),
        ({"state_dict": {}, "hyper_parameters": {"tentacles": 8}}, "no model of this anomalib"),
        ({"state_dict": {}, "hyper_parameters": {"n_features": 5}}, "anomalib's Padim"),
    ],
)
def test_another_file_is_refused_in_one_line(
    tmp_path: Path, content: object, complaint: str
) -> None:
    path = tmp_path / "model.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(PatchGuardError, match=complaint) as error:
        AnomalibDetector.load(path)
    assert "\n" not in str(error.value)
