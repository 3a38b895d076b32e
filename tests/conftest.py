"""A small object data set, and one finished run on it that tests share."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image, ImageDraw
from safetensors.torch import save_file

import patchguard
import trainings
from evaluations import suite_text
from patchguard import config
from patchguard.config import EvaluationConfig, Recipe
from patchguard.evaluation.checks import run as checks
from patchguard.models.patchguard import PatchGuard
from patchguard.results.model_file import read_model
from patchguard.results.run_folder import CALIBRATION, CONFIG, METRICS, WEIGHTS, seal


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """A folder that the first of pytest's processes makes; the others wait for it and share it."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made_once(name: str, make: Callable[[Path], object]) -> Path:
        folder, made = shared / name, shared / f"{name}.made"
        with FileLock(shared / f"{name}.lock"):
            if not made.exists():
                make(folder)
                made.touch()
        return folder

    return made_once


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images beside the repository; the test is skipped where there are none."""
    default = Path(__file__).parents[2] / "shared" / "data"
    path = Path(os.environ.get("PATCHGUARD_DATA", default))
    if not path.exists():
        pytest.skip(f"no real images at {path}")
    return path


def draw_part(rng: np.random.Generator, scratched: bool) -> tuple[Image.Image, Image.Image]:
    """A light disc on a dark ground, 64x48 px, and the mask of its scratch."""
    image = Image.new("RGB", (64, 48), (30, 30, 40))
    mask = Image.new("L", (64, 48))
    x, y = (int(v) for v in rng.integers(-3, 4, 2))
    ImageDraw.Draw(image).ellipse((14 + x, 6 + y, 50 + x, 42 + y), fill=(180, 180, 170))
    if scratched:
        for canvas, colour in ((image, (20, 20, 20)), (mask, 255)):
            ImageDraw.Draw(canvas).line((24 + x, 16 + y, 38 + x, 30 + y), fill=colour, width=4)
    noise = rng.normal(0, 3, (48, 64, 3))
    noisy = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(noisy), mask


@pytest.fixture(scope="session")
def tree(once: Once) -> Path:
    """An MVTec-style tree: 24 normals to train on, 6 good and 6 scratched to test on."""
    return once("data", _draw_tree) / "disc"


def _draw_tree(folder: Path) -> None:
    root = folder / "disc"
    rng = np.random.default_rng(0)
    for place, count, scratched in (
        ("train/good", 24, False),
        ("test/good", 6, False),
        ("test/scratch", 6, True),
    ):
        for number in range(count):
            image, mask = draw_part(rng, scratched)
            _save(image, root / place / f"{number:03}.png")
            if scratched:
                _save(mask, root / "ground_truth/scratch" / f"{number:03}_mask.png")


@pytest.fixture(scope="session")
def tiny_recipe() -> Recipe:
    """The fast recipe for a few steps, on images squeezed to 32 px."""
    return trainings.small_recipe()


@pytest.fixture(scope="session", autouse=True)
def few_steps(once: Once) -> Iterator[None]:
    """Built-in suites whose APGD takes 5 steps; ``attacks/test_suite.py`` reads what is shipped."""

    def write(folder: Path) -> None:
        folder.mkdir()
        for suite in config.SUITES.glob("*.yaml"):
            text = suite.read_text(encoding="utf-8")
            (folder / suite.name).write_text(text.replace("steps: 50", "steps: 5"), "utf-8")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "SUITES", once("suites", write))
        yield


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only those self-checks that attack nothing."""
    monkeypatch.setattr(checks, "QUICK", trainings.SELF_CHECKS)


TINY_SUITE = suite_text(
    "attack: pgd, objective: score, steps: 3",
    "attack: pgd, objective: linear, steps: 3",
    "attack: legacy, steps: 3",
)


@pytest.fixture(scope="session")
def tiny_evaluation(once: Once) -> EvaluationConfig:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "tiny.yaml").write_text(TINY_SUITE)

    return EvaluationConfig(suite=str(once("suite", write) / "tiny.yaml"))


@pytest.fixture(scope="session")
def run(
    tree: Path,
    tiny_recipe: Recipe,
    tiny_evaluation: EvaluationConfig,
    once: Once,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A finished run on ``tree``, which each of pytest's processes has for itself."""

    def train(folder: Path) -> None:
        patchguard.fit(
            tree,
            out=folder / "disc",
            recipe=tiny_recipe,
            evaluation=tiny_evaluation,
            false_alarm_rate=0.2,
        )

    own = tmp_path_factory.mktemp("run") / "disc"
    return Path(shutil.copytree(once("trained", train) / "disc", own))


@pytest.fixture
def run_of_format_1(tmp_path: Path) -> Path:
    """A finished run with a twin as the first format left it; its weights are made here."""
    kept = Path(__file__).parent / "fixtures" / "run_format_1"
    run = Path(shutil.copytree(kept, tmp_path / "old"))
    for folder in (run, run / "twin"):
        torch.manual_seed(0)
        detector = PatchGuard(read_model(folder).config)
        save_file(detector.state_dict(), folder / WEIGHTS)
        seal(folder, CONFIG, WEIGHTS, CALIBRATION, METRICS)
    return run


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
