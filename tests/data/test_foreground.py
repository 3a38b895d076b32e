from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from patchguard.arrays import BoolArray, FloatArray
from patchguard.config import ForegroundConfig, ForegroundMethod
from patchguard.data.foreground import (
    chosen_method,
    foreground_mask,
    foreground_masks,
    masks,
    resolve_method,
)
from patchguard.data.foreground.border import border_mask
from patchguard.data.foreground.saliency import mass_threshold
from patchguard.data.images import ImageSource, Pixels, read_image, read_mask
from patchguard.data.synthetic import benchmark
from patchguard.errors import PatchGuardError
from pictures import write_png

DATA = Path(os.environ.get("PATCHGUARD_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
SIZE = 200
Y, X = np.mgrid[:SIZE, :SIZE]
BORDER = ForegroundConfig(method="border")

needs_screw = pytest.mark.skipif(not (DATA / "mvtec_ad/screw").is_dir(), reason="no real images")
needs_head_ct = pytest.mark.skipif(not (DATA / "head_ct").is_dir(), reason="no real images")


def rgb(grey: np.ndarray) -> FloatArray:
    return np.repeat(np.clip(grey, 0, 1)[..., None], 3, axis=2).astype(np.float32)


def smooth_noise(rng: np.random.Generator, *sigmas: float) -> np.ndarray:
    noise = ndimage.gaussian_filter(rng.normal(size=(SIZE, SIZE)), sigmas, mode="wrap")
    return noise / noise.std()


def disk(x: float = 100, y: float = 100, radius: float = 50) -> BoolArray:
    return (X - x) ** 2 + (Y - y) ** 2 < radius**2


def on_noise(shape: BoolArray, seed: int = 0, light: float = 0.0) -> FloatArray:
    """A bright shape on a noisy background, lit unevenly from one side."""
    rng = np.random.default_rng(seed)
    grey = 0.4 + 0.05 * rng.normal(size=(SIZE, SIZE)) + light * (X / SIZE - 0.5)
    grey[shape] += 0.35
    return rgb(grey)


def overlap(a: BoolArray, b: BoolArray) -> float:
    return float((a & b).sum() / (a | b).sum())


def save(folder: Path, images: list[FloatArray]) -> list[ImageSource]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{index:03}.png" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        write_png(path, image)
    return [ImageSource(path) for path in paths]


def found_masks(
    sources: list[ImageSource], config: ForegroundConfig, cache: Path | None = None
) -> tuple[ForegroundMethod, list[BoolArray]]:
    method = chosen_method(sources, config, cache=cache)
    chosen = replace(config, method=method)
    return method, list(foreground_masks(sources, chosen, cache=cache))


@pytest.mark.parametrize("light", [0.0, 0.2])
@pytest.mark.parametrize(
    "shape",
    [disk(), disk(radius=80), disk(25, 90), disk(100, 190), disk(60, 60, 35) | disk(130, 135, 45)],
    ids=["centre", "large", "left edge", "bottom edge", "two objects"],
)
def test_border_finds_the_object(shape: BoolArray, light: float) -> None:
    assert overlap(foreground_mask(on_noise(shape, light=light), BORDER), shape) > 0.9


def test_border_fills_holes_and_ignores_specks() -> None:
    ring_and_specks = (disk(radius=60) & ~disk(radius=35)) | disk(20, 20, 4)
    mask = foreground_mask(on_noise(ring_and_specks), BORDER)
    assert overlap(mask, disk(radius=60)) > 0.9
    assert not mask[:30, :30].any()


def test_border_separates_by_texture_alone() -> None:
    rng = np.random.default_rng(0)
    contrast = np.where(disk(), 0.12, 0.01)
    image = rgb(0.5 + contrast * smooth_noise(rng, 1, 1))
    assert overlap(foreground_mask(image, BORDER), disk()) > 0.8


def test_border_accepts_a_spotless_background() -> None:
    assert overlap(foreground_mask(rgb(0.7 * disk()), BORDER), disk()) > 0.9


@pytest.mark.parametrize("shape", [(40, 31), (300, 200), (700, 1000)])
def test_mask_has_the_size_of_the_image(shape: tuple[int, int]) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    truth = ((x / shape[1] - 0.5) ** 2 + (y / shape[0] - 0.5) ** 2) < 0.3**2
    mask = foreground_mask(rgb(0.2 + 0.6 * truth), BORDER)
    assert mask.dtype == bool
    assert overlap(mask, truth) > 0.9


def noise(rng: np.random.Generator) -> FloatArray:
    return rgb(0.5 + 0.1 * rng.normal(size=(SIZE, SIZE)))


def blobs(rng: np.random.Generator) -> FloatArray:
    return rgb(0.5 + 0.12 * smooth_noise(rng, 8, 8))


def weave(rng: np.random.Generator) -> FloatArray:
    phase = rng.uniform(0, 9, 2)
    return rgb(0.5 + 0.2 * np.sin(X + phase[0]) * np.sin(Y + phase[1]) + 0.03 * noise(rng)[..., 0])


def wood(rng: np.random.Generator) -> FloatArray:
    grain = 0.08 * smooth_noise(rng, 40, 2) + 0.05 * smooth_noise(rng, 48, 8)
    return rgb(0.5 + grain) * np.array([1, 0.8, 0.55], np.float32)


def vignetted_noise(rng: np.random.Generator) -> FloatArray:
    return noise(rng) * rgb(1 - 0.3 * ((X / SIZE - 0.5) ** 2 + (Y / SIZE - 0.5) ** 2))


def fabric(rng: np.random.Generator) -> FloatArray:
    return benchmark.render("fabric", None, rng)[0].astype(np.float32)


def plate(rng: np.random.Generator) -> FloatArray:
    return benchmark.render("plate", None, rng)[0].astype(np.float32)


def tablets(rng: np.random.Generator) -> FloatArray:
    return benchmark.render("tablets", None, rng)[0].astype(np.float32)


def moving_disk(rng: np.random.Generator) -> FloatArray:
    return on_noise(disk(*rng.uniform(70, 130, 2)), int(rng.integers(1000)))


def small_disk(rng: np.random.Generator) -> FloatArray:
    return on_noise(
        disk(rng.uniform(90, 110), rng.uniform(90, 110), radius=12), int(rng.integers(1000))
    )


@pytest.mark.parametrize(
    ("draw", "method"),
    [(draw, "full") for draw in (noise, blobs, weave, wood, vignetted_noise, fabric)]
    + [(draw, "border") for draw in (moving_disk, small_disk, plate, tablets)],
)
def test_auto_tells_object_from_texture(
    draw: Callable[[np.random.Generator], FloatArray], method: ForegroundMethod
) -> None:
    images = [draw(np.random.default_rng(seed)) for seed in range(8)]
    assert resolve_method(images, ForegroundConfig()) == method


def test_auto_decides_once_for_all_images(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    textures = save(tmp_path / "textures", [noise(rng) for _ in range(4)])
    method, found = found_masks(textures, ForegroundConfig(), cache=tmp_path / "cache")
    assert method == "full"
    assert all(mask.all() for mask in found)

    objects = save(tmp_path / "objects", [moving_disk(rng) for _ in range(4)])
    method, found = found_masks(objects, ForegroundConfig(), cache=tmp_path / "cache")
    assert method == "border"
    assert all(0.1 < mask.mean() < 0.3 for mask in found)


def test_image_without_foreground_counts_whole_and_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = save(tmp_path / "images", [on_noise(disk()), rgb(np.full((SIZE, SIZE), 0.5))])
    with caplog.at_level(logging.WARNING):
        _, found = found_masks(sources, BORDER, cache=tmp_path / "cache")
    assert not found[0].all()
    assert found[1].all()
    assert "1 of 2 images" in caplog.text


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[Pixels]:
    """The images whose border mask was really computed."""
    images: list[Pixels] = []
    compute = border_mask

    def recorded(image: Pixels) -> BoolArray:
        images.append(image)
        return compute(image)

    monkeypatch.setattr(masks, "border_mask", recorded)
    return images


def test_cached_mask_is_not_computed_again(tmp_path: Path, computed: list[Pixels]) -> None:
    sources = save(tmp_path / "images", [on_noise(disk()), on_noise(disk(60))])
    first = found_masks(sources, BORDER, cache=tmp_path / "cache")
    second = found_masks(sources, BORDER, cache=tmp_path / "cache")
    assert len(computed) == 2
    assert all(np.array_equal(a, b) for a, b in zip(first[1], second[1], strict=True))


def test_cache_follows_content_not_name(tmp_path: Path, computed: list[Pixels]) -> None:
    (source,) = save(tmp_path / "images", [on_noise(disk())])
    cache = tmp_path / "cache"
    _, (mask,) = found_masks([source], BORDER, cache=cache)

    renamed = Path(shutil.copy(source.path, tmp_path / "renamed.png"))
    _, (same,) = found_masks([ImageSource(renamed)], BORDER, cache=cache)
    assert len(computed) == 1
    assert np.array_equal(mask, same)

    write_png(source.path, on_noise(disk(50)))
    _, (other,) = found_masks([source], BORDER, cache=cache)
    assert len(computed) == 2
    assert not np.array_equal(mask, other)


@pytest.mark.parametrize("damage", [b"", b"no image", b"cut"])
def test_damaged_cache_entry_is_computed_again(
    tmp_path: Path, computed: list[Pixels], damage: bytes
) -> None:
    sources = save(tmp_path / "images", [on_noise(disk())])
    cache = tmp_path / "cache"
    _, (mask,) = found_masks(sources, BORDER, cache=cache)
    (entry,) = cache.rglob("*.png")
    entry.write_bytes(entry.read_bytes()[:-40] if damage == b"cut" else damage)
    for _ in range(2):
        _, (again,) = found_masks(sources, BORDER, cache=cache)
        assert np.array_equal(mask, again)
    assert len(computed) == 2


def test_default_cache_lies_in_the_user_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found_masks(save(tmp_path / "images", [on_noise(disk())]), BORDER)
    assert len(list((tmp_path / "xdg/patchguard/foreground").rglob("*.png"))) == 1


def test_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    sources = save(tmp_path / "images", [on_noise(disk())])
    _, (mask,) = found_masks(sources, BORDER, cache=tmp_path / "file" / "cache")
    assert overlap(mask, disk()) > 0.9


def test_full_is_everything(tmp_path: Path) -> None:
    sources = save(tmp_path / "images", [on_noise(disk())[:150]])
    method, (mask,) = found_masks(sources, ForegroundConfig(method="full"), cache=tmp_path / "c")
    assert method == "full" and mask.shape == (150, SIZE) and mask.all()
    assert not (tmp_path / "c").exists()


def test_files_are_found_by_stem_or_with_mask_appended(tmp_path: Path) -> None:
    sources = save(tmp_path / "images", [on_noise(disk()), on_noise(disk(60))])
    (tmp_path / "masks").mkdir()
    write_png(tmp_path / "masks/000.png", disk())
    write_png(tmp_path / "masks/001_mask.png", disk(60))
    config = ForegroundConfig(method="files", masks=str(tmp_path / "masks"))
    method, found = found_masks(sources, config)
    assert method == "files"
    assert np.array_equal(found[0], disk())
    assert np.array_equal(found[1], disk(60))


def test_missing_mask_file_names_image_and_folder(tmp_path: Path) -> None:
    sources = save(tmp_path / "images", [on_noise(disk())])
    config = ForegroundConfig(method="files", masks=str(tmp_path / "masks"))
    with pytest.raises(PatchGuardError, match=r"masks: no foreground mask for .*000\.png"):
        found_masks(sources, config)


def test_mask_file_of_another_size_is_refused(tmp_path: Path) -> None:
    sources = save(tmp_path / "images", [on_noise(disk())])
    (tmp_path / "masks").mkdir()
    write_png(tmp_path / "masks/000.png", disk()[:, :150])
    config = ForegroundConfig(method="files", masks=str(tmp_path / "masks"))
    with pytest.raises(PatchGuardError, match=r"000\.png: the mask is 150x200 .* 200x200"):
        found_masks(sources, config)


def test_files_without_a_folder_name_the_option(tmp_path: Path) -> None:
    sources = save(tmp_path / "images", [on_noise(disk())])
    with pytest.raises(PatchGuardError, match=r"foreground\.masks"):
        found_masks(sources, ForegroundConfig(method="files"))


@pytest.fixture(scope="module")
def weight_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights: only shapes and plumbing can be judged with them."""
    timm = pytest.importorskip("timm")
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    resnet = timm.create_model("resnet18", pretrained=False)
    save_file(resnet.state_dict(), folder / "resnet18.safetensors")
    vit = timm.create_model("vit_small_patch16_224.dino", pretrained=False)
    torch.save(vit.state_dict(), folder / "vit.pth")
    return {"gradcam": folder / "resnet18.safetensors", "attention": folder / "vit.pth"}


@pytest.mark.parametrize("method", ["gradcam", "attention"])
def test_networks_with_local_weights(
    tmp_path: Path, weight_files: dict[str, Path], method: ForegroundMethod
) -> None:
    sources = save(tmp_path / "images", [on_noise(disk())[:150]])
    config = ForegroundConfig(method=method, weights=str(weight_files[method]))
    used, (mask,) = found_masks(sources, config, cache=tmp_path / "cache")
    assert used == method
    assert mask.shape == (150, SIZE)
    assert mask.any()
    _, (again,) = found_masks(sources, config, cache=tmp_path / "cache")
    assert np.array_equal(mask, again)


def test_attention_keeps_the_most_attended_pixels() -> None:
    values = np.array([[5, 1], [3, 1]], np.float32)
    assert mass_threshold(values, 0.5) == 5
    assert mass_threshold(values, 0.6) == 3


def test_weights_of_another_network_are_refused(
    tmp_path: Path, weight_files: dict[str, Path]
) -> None:
    sources = save(tmp_path / "images", [on_noise(disk())])
    config = ForegroundConfig(method="gradcam", weights=str(weight_files["attention"]))
    with pytest.raises(PatchGuardError, match=r"vit\.pth: not a weight file of timm's resnet18"):
        found_masks(sources, config, cache=tmp_path / "cache")


@pytest.mark.parametrize("method", ["gradcam", "attention"])
def test_missing_weight_file_is_named(tmp_path: Path, method: ForegroundMethod) -> None:
    sources = save(tmp_path / "images", [on_noise(disk())])
    config = ForegroundConfig(method=method, weights=str(tmp_path / "none.pth"))
    with pytest.raises(PatchGuardError, match=r"none\.pth.*foreground\.weights"):
        found_masks(sources, config, cache=tmp_path / "cache")


@pytest.mark.parametrize("method", ["gradcam", "attention"])
def test_offline_names_the_option_in_one_line(
    monkeypatch: pytest.MonkeyPatch, method: ForegroundMethod
) -> None:
    timm = pytest.importorskip("timm")

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("cannot reach the hub\nsecond line")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(PatchGuardError, match=r"foreground\.weights") as caught:
        foreground_mask(on_noise(disk()), ForegroundConfig(method=method))
    assert "\n" not in str(caught.value)


@needs_screw
def test_border_covers_the_defects_of_real_screws() -> None:
    truths = sorted((DATA / "mvtec_ad/screw/ground_truth").glob("*/*.png"))[::5]
    covered = defect = area = 0.0
    for path in truths:
        truth = read_mask(path)
        stem = path.stem.removesuffix("_mask")
        image = read_image(DATA / "mvtec_ad/screw/test" / path.parent.name / f"{stem}.png")
        mask = foreground_mask(image, BORDER)
        covered += (mask & truth).sum()
        defect += truth.sum()
        area += mask.mean() / len(truths)
    assert covered >= 0.95 * defect
    assert area <= 0.3


@pytest.mark.parametrize(
    "category",
    [
        pytest.param("mvtec_ad/screw", marks=needs_screw),
        pytest.param("head_ct", marks=needs_head_ct),
    ],
)
def test_auto_takes_real_objects_for_objects(category: str) -> None:
    paths = sorted((DATA / category / "train/good").iterdir())[::8][:16]
    assert resolve_method([read_image(path) for path in paths], ForegroundConfig()) == "border"
