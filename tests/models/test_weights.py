"""Starting from a finished run, from files, and from a checkpoint in RobustBench's format."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from patchguard.config import ModelConfig, View
from patchguard.data.windows import WHOLE_PLACE
from patchguard.errors import PatchGuardError
from patchguard.models.checkpoint import load_detector, save_detector
from patchguard.models.patchguard import PatchGuard
from patchguard.models.vit import create_backbone, embedded, encoded, normalisation
from patchguard.results.run_folder import MODEL, WEIGHTS, seal

CONVSTEM = "vit_small_convstem"
SMALL = ModelConfig(hidden=64, window=32, views=["whole"])
MEAN, STD = (0.48495, 0.456, 0.40599), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the built-in network at 32 px."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("run")
    save_detector(PatchGuard(SMALL), folder, (32, 32))
    seal(folder, MODEL, WEIGHTS)
    return folder


def logits(model: PatchGuard, images: Tensor) -> Tensor:
    found = model.inspect(images).patch_logits
    assert found is not None
    return found


def starting_from(weights: Path, **settings: object) -> ModelConfig:
    return replace(SMALL, weights=str(weights), **settings)  # type: ignore[arg-type]


def test_a_detector_that_starts_from_a_run_scores_as_the_run_does(run: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    expected, found = load_detector(run), PatchGuard(starting_from(run)).eval()
    assert torch.equal(logits(found, images), logits(expected, images))


@pytest.mark.parametrize(
    ("begun", "wanted"), [(["whole"], ["windows", "whole"]), (["windows", "whole"], ["whole"])]
)
def test_a_detector_starts_from_a_run_that_looked_otherwise(
    begun: list[View], wanted: list[View], tmp_path: Path
) -> None:
    source = PatchGuard(replace(SMALL, views=begun)).eval()
    save_detector(source, tmp_path, (32, 32))
    seal(tmp_path, MODEL, WEIGHTS)
    images, place = torch.rand(2, 3, 32, 32), torch.tensor([WHOLE_PLACE] * 2)
    found = PatchGuard(starting_from(tmp_path, views=wanted)).eval()
    torch.testing.assert_close(
        found.window_logits(images, place).logits, source.window_logits(images, place).logits
    )


def test_settings_without_weights_are_those_of_the_new_detector(run: Path) -> None:
    model = PatchGuard(starting_from(run, blur_sigma=9.0, dropout=0.0)).eval()
    images = torch.rand(2, 3, 32, 32)
    kept = load_detector(run)
    assert torch.equal(logits(model, images), logits(kept, images))
    assert not torch.equal(model(images).anomaly_map, kept(images).anomaly_map)


@pytest.mark.parametrize("backbone", ["patchguard_mini", "vit_small_patch14_reg4_dinov2"])
def test_a_run_of_another_size_gives_its_position_codes_bicubically(
    backbone: str, tmp_path: Path
) -> None:
    patch = 14 if "patch14" in backbone else 16
    source = PatchGuard(replace(SMALL, backbone=backbone, window=2 * patch))
    save_detector(source, tmp_path, (2 * patch, 2 * patch))
    seal(tmp_path, MODEL, WEIGHTS)
    model = PatchGuard(starting_from(tmp_path, backbone=backbone, window=4 * patch))
    for codes, coarse in (
        (model.backbone.pos_embed, source.backbone.pos_embed),
        (model.discriminator.position, source.discriminator.position),
    ):
        assert coarse is not None
        as_image = coarse.unflatten(1, (2, 2)).permute(0, 3, 1, 2)
        finer = functional.interpolate(as_image, size=4, mode="bicubic", antialias=True)
        torch.testing.assert_close(codes, finer.flatten(2).mT, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.discriminator.head.weight, source.discriminator.head.weight)
    assert model(torch.rand(1, 3, 4 * patch, 4 * patch)).score.isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "patchguard_mini_8"}, "model.backbone is patchguard_mini, not"),
        ({"heads": 8}, "model.heads is 4, not 8"),
        ({"hidden": 128}, "use model.hidden=64"),
    ],
)
def test_a_run_of_another_network_is_refused(
    settings: dict[str, object], message: str, run: Path
) -> None:
    with pytest.raises(PatchGuardError, match=message):
        PatchGuard(starting_from(run, **settings))


def test_a_damaged_or_unfinished_run_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(PatchGuardError, match="is not a run folder"):
        PatchGuard(starting_from(tmp_path))
    for name in (MODEL, WEIGHTS):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(PatchGuardError, match="is unfinished"):
        PatchGuard(starting_from(tmp_path))
    seal(tmp_path, MODEL, WEIGHTS)
    (tmp_path / WEIGHTS).write_bytes((run / WEIGHTS).read_bytes()[:-4])
    with pytest.raises(PatchGuardError, match="truncated or altered"):
        PatchGuard(starting_from(tmp_path))


@pytest.mark.parametrize("name", ["backbone.safetensors", "backbone.pth"])
def test_built_in_backbones_load_a_file(name: str, tmp_path: Path) -> None:
    source, file = create_backbone("patchguard_mini_8", 32), tmp_path / name
    if file.suffix == ".pth":
        torch.save({"state_dict": source.state_dict()}, file)
    else:
        save_file(source.state_dict(), file)
    loaded = create_backbone("patchguard_mini_8", 32, str(file)).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in source.state_dict().items())


def test_files_that_do_not_fit_are_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    garbage, numbers = tmp_path / "garbage.pth", tmp_path / "numbers.pth"
    garbage.write_bytes(b"not a checkpoint")
    torch.save({"epoch": 3}, numbers)
    for backbone, file, message in (
        ("patchguard_mini", garbage, "garbage.pth cannot be read"),
        ("patchguard_mini", numbers, "is not a state dict"),
        ("patchguard_mini", run / WEIGHTS, "missing: blocks.*unexpected: backbone"),
        ("vit_tiny_patch16_224", garbage, "garbage.pth cannot be read"),
        ("vit_tiny_patch16_224", run / WEIGHTS, "missing: blocks"),
    ):
        with pytest.raises(PatchGuardError, match=message) as caught:
            create_backbone(backbone, 32, str(file))
        assert "\n" not in str(caught.value)


def robustbench_state(seed: int = 0, grid: int = 14) -> dict[str, Tensor]:
    """Random tensors with the names and shapes of Singh2023Revisiting_ViT-S-ConvStem."""
    generator = torch.Generator().manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, 384),
        "pos_embed": (1, grid * grid + 1, 384),
        "patch_embed.proj.stem.12.weight": (384, 384, 1, 1),
        "patch_embed.proj.stem.12.bias": (384,),
    }
    for stage, (before, after) in enumerate(((3, 48), (48, 96), (96, 192), (192, 384))):
        shapes[f"patch_embed.proj.stem.{3 * stage}.weight"] = (after, before, 3, 3)
        shapes[f"patch_embed.proj.stem.{3 * stage}.bias"] = (after,)
        shapes[f"patch_embed.proj.stem.{3 * stage + 1}.weight"] = (after,)
        shapes[f"patch_embed.proj.stem.{3 * stage + 1}.bias"] = (after,)
    linear = {"attn.qkv": (1152, 384), "attn.proj": (384, 384)}
    linear |= {"mlp.fc1": (1536, 384), "mlp.fc2": (384, 1536)}
    for block in range(12):
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{block}.{norm}.{part}": (384,) for part in ("weight", "bias")}
        for layer, (rows, columns) in linear.items():
            shapes[f"blocks.{block}.{layer}.weight"] = (rows, columns)
            shapes[f"blocks.{block}.{layer}.bias"] = (rows,)
    shapes |= {"norm.weight": (384,), "norm.bias": (384,)}
    shapes |= {"head.weight": (1000, 384), "head.bias": (1000,)}
    return {
        name: 0.05 * torch.randn(shape, generator=generator) + ("norm" in name) * 1.0
        for name, shape in shapes.items()
    }


def as_published(state: dict[str, Tensor], outer: str = "base_model.") -> dict[str, Tensor]:
    """The names under which a network behind its normaliser is stored."""
    normaliser = {"mean": torch.tensor(MEAN), "std": torch.tensor(STD)}
    return {
        **{f"{outer}normalize.{key}": value.view(1, 3, 1, 1) for key, value in normaliser.items()},
        **{f"{outer}model.{key}": value for key, value in state.items()},
    }


def reference_features(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Patch tokens [B, N, 384] of normalised images, written in plain torch operations."""

    def layer(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        variance, mean = torch.var_mean(x, -1, correction=0, keepdim=True)
        scaled = (x - mean) / (variance + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    x = images
    for number in (0, 3, 6, 9):
        name = "patch_embed.proj.stem."
        weight, bias = (state[f"{name}{number}.{part}"] for part in ("weight", "bias"))
        x = functional.conv2d(x, weight, bias, stride=2, padding=1)
        x = functional.gelu(norm(x.movedim(1, -1), f"{name}{number + 1}")).movedim(-1, 1)
    projection = state["patch_embed.proj.stem.12.weight"][:, :, 0, 0]
    x = x.flatten(2).mT @ projection.T + state["patch_embed.proj.stem.12.bias"]
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x], 1) + state["pos_embed"]
    for number in range(12):
        block = f"blocks.{number}"
        mixed = layer(norm(x, f"{block}.norm1"), f"{block}.attn.qkv")
        query, key, value = mixed.unflatten(-1, (3, 6, 64)).permute(2, 0, 3, 1, 4)
        attended = (query @ key.mT / 64**0.5).softmax(-1) @ value
        x = x + layer(attended.transpose(1, 2).flatten(2), f"{block}.attn.proj")
        hidden = functional.gelu(layer(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + layer(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 1:]


def test_the_convstem_vit_has_the_parameters_reported_of_the_published_one() -> None:
    backbone = create_backbone(CONVSTEM, 224)
    head = 384 * 1000 + 1000
    assert sum(p.numel() for p in backbone.parameters()) + head == 22_777_576
    assert sum(tensor.numel() for tensor in robustbench_state().values()) == 22_777_576


@pytest.mark.parametrize("outer", ["base_model.", "", "module.base_model."])
def test_a_robustbench_checkpoint_computes_what_plain_torch_computes(
    outer: str, tmp_path: Path
) -> None:
    state, file = robustbench_state(grid=2), tmp_path / "vit_s_cvst_robust.pt"
    torch.save(as_published(state, outer), file)
    backbone = create_backbone(CONVSTEM, 32, str(file)).eval()
    mean, std = normalisation(backbone)
    np.testing.assert_allclose(mean.flatten(), MEAN, rtol=1e-6)
    np.testing.assert_allclose(std.flatten(), STD, rtol=1e-6)
    images = torch.rand(2, 3, 32, 32)
    normalised = (images - mean) / std
    expected = reference_features(state, normalised)
    tokens = encoded(backbone, embedded(backbone, normalised))
    torch.testing.assert_close(tokens, expected, atol=1e-4, rtol=1e-4)
    model = PatchGuard(replace(SMALL, backbone=CONVSTEM, hidden=512, weights=str(file))).eval()
    torch.testing.assert_close(model.inspect(images).features, expected, atol=1e-4, rtol=1e-4)


def test_position_codes_of_a_checkpoint_are_interpolated_to_the_window(tmp_path: Path) -> None:
    state, file = robustbench_state(), tmp_path / "checkpoint.pt"
    torch.save({"state_dict": as_published(state)}, file)
    published = state["pos_embed"]
    same, codes = (create_backbone(CONVSTEM, size, str(file)).pos_embed for size in (224, 448))
    assert same is not None and codes is not None
    assert torch.equal(same, published)
    assert torch.equal(codes[:, 0], published[:, 0])
    as_image = published[:, 1:].unflatten(1, (14, 14)).permute(0, 3, 1, 2)
    finer = functional.interpolate(as_image, size=28, mode="bicubic", antialias=True).flatten(2).mT
    torch.testing.assert_close(codes[:, 1:], finer, atol=1e-6, rtol=1e-5)


def test_a_checkpoint_without_normaliser_is_taken_to_expect_imagenets(tmp_path: Path) -> None:
    file = tmp_path / "bare.pt"
    torch.save(robustbench_state(grid=2), file)
    mean, _ = normalisation(create_backbone(CONVSTEM, 32, str(file)))
    np.testing.assert_allclose(mean.flatten(), (0.485, 0.456, 0.406), rtol=1e-6)


def test_a_checkpoint_of_another_network_names_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "foreign.pt"
    state = robustbench_state(grid=2)
    del state["norm.bias"]
    state["dist_token"] = torch.zeros(1, 1, 384)
    state["cls_token"] = torch.zeros(1, 1, 192)
    torch.save(as_published(state), file)
    complaint = "missing: norm.bias; unexpected: dist_token; of another shape: cls_token"
    with pytest.raises(PatchGuardError, match=complaint):
        create_backbone(CONVSTEM, 32, str(file))
    torch.save(as_published(robustbench_state(grid=2)) | {"normalize.std": torch.ones(1)}, file)
    with pytest.raises(PatchGuardError, match=r"normalize\.std are not 3 numbers"):
        create_backbone(CONVSTEM, 32, str(file))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(PatchGuardError, match="cannot be read") as caught:
        create_backbone(CONVSTEM, 32, str(file))
    assert "\n" not in str(caught.value)
