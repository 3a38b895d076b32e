import hashlib
import importlib
import sys
from pathlib import Path

import lightning
import pytest
import torch

import patchguard
from patchguard.deploy.calibration import Calibration
from patchguard.errors import PatchGuardError
from patchguard.integrations.load import detector_named

FACTORIES = """
import torch
from scale import SCALE
from patchguard.detector import Detection, Detector
from patchguard.errors import PatchGuardError

class Brightness(Detector):
    image_size = 32

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.tensor(SCALE))

    def forward(self, images):
        grey = self.gain * images.mean(1)
        return Detection(grey.mean((1, 2)), grey)

def function():
    def score(images):
        return images.mean((1, 2, 3))
    score.image_size = 16
    return score

def wide():
    def score(images):
        return images.mean((1, 2, 3))
    score.image_size = [16, 24]
    return score

def empty():
    def score(images):
        return images.mean((1, 2, 3))
    score.image_size = (16, 0)
    return score

def sizeless():
    return lambda images: images.mean((1, 2, 3))

def nothing():
    return None

def broken():
    raise ValueError("no weights\\nhere")

def refusing():
    raise PatchGuardError("weights.pt: does not exist")

NUMBER = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FACTORIES)
    (tmp_path / "scale.py").write_text("SCALE = 2.0\n")
    return path


def test_a_run_folder(run: Path) -> None:
    loaded = detector_named(str(run))
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(loaded.detector(images).score, patchguard.load(run)(images).score)
    assert (loaded.kind, loaded.name, loaded.shape) == ("patchguard", run.name, (32, 32))
    assert loaded.threshold == Calibration.from_json(run / "calibration.json").threshold
    weights = (run / "model.safetensors").read_bytes()
    assert loaded.sha256 == hashlib.sha256(weights).hexdigest()


def test_a_detector_of_the_user_whose_file_imports_its_neighbour(file: Path) -> None:
    loaded = detector_named(f"{file}:Brightness")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(loaded.detector(images).score, 2 * images.mean((1, 2, 3)))
    name = f"{file.stem}-Brightness"
    assert (loaded.kind, loaded.name, loaded.shape) == ("python", name, (32, 32))
    assert loaded.threshold is None
    assert not loaded.detector.training


def test_a_callable_of_the_user(file: Path) -> None:
    loaded = detector_named(f"{file}:function")
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(loaded.detector(images).score, images.mean((1, 2, 3)))
    with pytest.raises(PatchGuardError, match="detector of 16x16 px"):
        loaded.detector(torch.rand(2, 3, 32, 32))


def test_a_callable_of_the_user_for_images_that_are_no_squares(file: Path) -> None:
    loaded = detector_named(f"{file}:wide")
    assert loaded.shape == (16, 24)
    assert loaded.detector(torch.rand(2, 3, 16, 24)).anomaly_map.shape == (2, 16, 24)


def test_the_digest_of_the_users_detector_covers_code_and_weights(file: Path) -> None:
    first = detector_named(f"{file}:Brightness").sha256
    assert detector_named(f"{file}:Brightness").sha256 == first
    file.write_text(FACTORIES.replace("torch.tensor(SCALE)", "torch.tensor(SCALE * 2)"))
    second = detector_named(f"{file}:Brightness").sha256
    file.write_text(FACTORIES + "\n# changed\n")
    assert len({first, second, detector_named(f"{file}:Brightness").sha256}) == 3


@pytest.mark.peers
def test_an_anomalib_checkpoint(tmp_path: Path) -> None:
    models = pytest.importorskip("anomalib.models")
    module = models.Padim("resnet18", ["layer1"], pre_trained=False, n_features=5)
    module.model.train()
    module.model(torch.rand(8, 3, 256, 256))
    module.model.fit()
    trainer = lightning.Trainer(logger=False, accelerator="cpu")
    trainer.strategy.connect(module)
    path = tmp_path / "model.ckpt"
    trainer.save_checkpoint(path)
    loaded = detector_named(str(path))
    assert (loaded.kind, loaded.name, loaded.shape) == ("anomalib", "Padim", (256, 256))
    assert loaded.threshold is None
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.detector(torch.rand(1, 3, 256, 256)).anomaly_map.shape == (1, 256, 256)


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        ("sizeless", "attribute image_size: height and width"),
        ("empty", "attribute image_size: height and width"),
        ("nothing", r"nothing\(\) returned NoneType"),
        ("broken", "mine.py: ValueError: no weights here"),
        ("refusing", "^weights.pt: does not exist"),
        ("absent", "no function 'absent'"),
        ("NUMBER", "no function 'NUMBER'"),
    ],
)
def test_what_is_wrong_with_a_users_function_is_said_in_one_line(
    file: Path, function: str, complaint: str
) -> None:
    with pytest.raises(PatchGuardError, match=complaint) as error:
        detector_named(f"{file}:{function}")
    assert "\n" not in str(error.value)


def test_a_file_that_does_not_compile_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def detector(:\n")
    with pytest.raises(PatchGuardError, match="SyntaxError"):
        detector_named(f"{path}:detector")


def test_other_specs_are_refused_with_the_forms_there_are(tmp_path: Path, file: Path) -> None:
    (tmp_path / "weights.onnx").write_bytes(b"")
    for spec, complaint in (
        (str(tmp_path / "absent"), "does not exist; give a run folder"),
        (str(tmp_path / "absent.py") + ":make", "does not exist"),
        (str(tmp_path / "weights.onnx"), "no detector; give a run folder"),
        (str(file), "name the function"),
        (str(tmp_path), "not a run folder"),
    ):
        with pytest.raises(PatchGuardError, match=complaint) as error:
            detector_named(spec)
        assert "\n" not in str(error.value)


def test_without_anomalib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "patchguard.integrations.anomalib", raising=False)
    monkeypatch.setitem(sys.modules, "anomalib.models.components", None)
    with pytest.raises(PatchGuardError, match=r"pip install 'patchguard-ad\[anomalib\]'"):
        importlib.import_module("patchguard.integrations.anomalib")
