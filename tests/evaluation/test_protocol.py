"""Whole evaluations of small detectors: the worst case, what it is made of, and resuming."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import patchguard
from detectors import Linear
from evaluations import suite_text
from patchguard.config import EvaluationConfig
from patchguard.detector import Detection, Detector
from patchguard.errors import PatchGuardError
from patchguard.evaluation import threat
from patchguard.evaluation.metrics import image_metrics
from patchguard.evaluation.protocol import DetectorFacts, Evaluation, evaluate_detector, suite_of
from patchguard.evaluation.store import DECIDING, Store, code_digest
from patchguard.evaluation.test_set import TestSet
from patchguard.integrations.function import FunctionDetector

SIZE = 16
SUITE = (
    suite_text(
        "attack: apgd, objective: score, steps: 8",
        "attack: pgd, objective: dense, steps: 4",
        "attack: pgd, objective: linear, steps: 4",
        "attack: pgd, objective: rank, steps: 4, rounds: 2",
        "attack: noise, objective: score, draws: 4",
        "attack: legacy, steps: 4",
    )
    + """minimal_eps: {steps: 5}
stress: [blur]
"""
)
QUIET = DetectorFacts(threshold=0.0, checks=False)


class Net(Detector):
    """A small smooth network: its map is local, its score the mean of the map's largest values."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 1, 3, padding=1)
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) * 0.3
        self.forwards = 0

    def forward(self, images: Tensor) -> Detection:
        self.forwards += len(images)
        anomaly_map = self.second(torch.nn.functional.gelu(self.first(images)))[:, 0]
        return Detection(anomaly_map.flatten(1).topk(8, 1).values.mean(1), anomaly_map)


@pytest.fixture(scope="module")
def test_set() -> TestSet:
    """Six smooth normal images and six with a bright square, masks at twice the size."""
    rng = np.random.default_rng(0)
    images = torch.from_numpy(rng.uniform(0.3, 0.6, (12, 3, SIZE, SIZE)).astype(np.float32))
    masks = [np.zeros((2 * SIZE, 2 * SIZE), dtype=bool) for _ in range(12)]
    for index in range(6, 12):
        images[index, :, 4:9, 5:10] += 0.35
        masks[index][8:18, 10:20] = True
    names = tuple(f"{index}.png" for index in range(12))
    return TestSet(names, ("good",) * 6 + ("square",) * 6, images, tuple(masks))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> EvaluationConfig:
    path = tmp_path_factory.mktemp("suite") / "small.yaml"
    path.write_text(SUITE)
    return EvaluationConfig(suite=str(path), batch_size=5)


@pytest.fixture(scope="module")
def evaluation(test_set: TestSet, config: EvaluationConfig) -> Evaluation:
    return evaluate_detector(Net(), test_set, config, known=QUIET)


def written(evaluation: Evaluation) -> dict[str, Any]:
    """What it found, as the file of metrics holds it."""
    content = evaluation.summary.model_dump(mode="json", exclude_defaults=True)
    return json.loads(json.dumps(content, allow_nan=False))


def auroc(summary: dict[str, Any], attack: str, eps: str, level: str, row: str = "both") -> float:
    (entry,) = (e for e in summary["attacked"] if (e["attack"], e["eps"]) == (attack, eps))
    return float(entry["rows"][row][level]["auroc"])


def test_the_worst_case_is_at_most_every_member_and_legacy(evaluation: Evaluation) -> None:
    summary = written(evaluation)
    members = {entry["attack"] for entry in summary["attacked"]} - {"worst"}
    assert members == {
        "apgd score",
        "pgd dense",
        "pgd linear",
        "pgd rank round 1",
        "pgd rank",
        "noise score",
        "legacy",
    }
    for eps in ("2/255", "8/255"):
        for level in ("image", "pixel"):
            worst = auroc(summary, "worst", eps, level)
            lowest = min(auroc(summary, name, eps, level) for name in members)
            assert worst <= lowest + 1e-3  # pixel metrics of members come from histograms
            assert worst <= summary["clean"][level]["auroc"]


def test_curves_do_not_rise_with_eps_in_any_row(evaluation: Evaluation) -> None:
    for level in ("image", "pixel"):
        for row in ("both", "anomalies", "normals"):
            curve = [written(evaluation)["clean"][level]["auroc"]] + [
                auroc(written(evaluation), "worst", eps, level, row) for eps in ("2/255", "8/255")
            ]
            assert all(larger <= smaller for smaller, larger in pairwise(curve))


def test_the_worst_images_have_the_worst_scores_and_lie_in_the_ball(
    evaluation: Evaluation, test_set: TestSet
) -> None:
    for worst, eps in zip(evaluation.worst, (2 / 255, 8 / 255), strict=True):
        with torch.no_grad():
            scores = Net()(worst.images).score.numpy()
        np.testing.assert_allclose(scores, worst.scores, atol=1e-5)
        assert (worst.images - test_set.images).abs().max() <= eps + 1e-7
        found = image_metrics(worst.scores, test_set.labels).auroc
        assert found == auroc(written(evaluation), "worst", worst.eps, "image")


def test_the_floor_lies_below_the_worst_case(evaluation: Evaluation) -> None:
    for entry in written(evaluation)["attacked"]:
        if entry["attack"] == "worst":
            worst = entry["rows"]["both"]["pixel"]["auroc"]
            assert entry["rows"]["both"]["pixel"]["auroc_floor"] <= worst + 1e-3


def test_the_summary_holds_what_is_promised(evaluation: Evaluation) -> None:
    summary = written(evaluation)
    worst = next(entry for entry in summary["attacked"] if entry["attack"] == "worst")
    assert set(worst["rows"]["both"]) == {"image", "pixel", "deployed"}
    low, high = worst["rows"]["both"]["image"]["auroc_interval"]
    assert 0 <= low <= worst["rows"]["both"]["image"]["auroc"] <= high <= 1
    assert sum(worst["winners"].values()) == pytest.approx(1)
    assert {entry["severity"] for entry in summary["stress"]} == {1, 3, 5}
    assert len(summary["minimal_eps"]["values"]) == 12
    assert "worst linf 8/255" in summary["scores"]


def test_a_linear_detector_has_no_robustness(test_set: TestSet, config: EvaluationConfig) -> None:
    """AD 0.000 and AL at most 0.05 at a radius that outweighs the difference of the classes."""
    detector = Linear(torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
    config = EvaluationConfig(config.suite, eps=["8/255", "128/255"], batch_size=6)
    summary = written(evaluate_detector(detector, test_set, config, known=QUIET))
    assert auroc(summary, "worst", "128/255", "image") == 0.0
    assert auroc(summary, "worst", "128/255", "pixel") <= 0.05


def test_a_stopped_evaluation_goes_on_without_repeating_what_is_done(
    test_set: TestSet, config: EvaluationConfig, evaluation: Evaluation, tmp_path: Path
) -> None:
    def stop(what: str, done: float) -> None:
        if done > 0.6:
            raise KeyboardInterrupt

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one worker, so that every pass is counted
    try:
        whole, before, after = Net(), Net(), Net()
        evaluate_detector(whole, test_set, config, known=QUIET)
        with pytest.raises(KeyboardInterrupt):
            evaluate_detector(before, test_set, config, known=QUIET, cache=tmp_path, advance=stop)
        resumed = evaluate_detector(after, test_set, config, known=QUIET, cache=tmp_path)
    finally:
        torch.set_num_threads(threads)
    assert resumed.summary == evaluation.summary
    assert before.forwards < whole.forwards
    assert after.forwards < whole.forwards
    once_more = len(test_set.names) * 20  # clean scores and what was running when it was stopped
    assert before.forwards + after.forwards <= whole.forwards + once_more


def test_the_number_of_workers_changes_nothing(
    test_set: TestSet, config: EvaluationConfig, evaluation: Evaluation
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        again = evaluate_detector(Net(), test_set, config, known=QUIET)
    finally:
        torch.set_num_threads(threads)
    assert again.summary == evaluation.summary


def test_without_masks_attacks_on_maps_are_left_out_and_that_is_said(
    test_set: TestSet, config: EvaluationConfig
) -> None:
    blind = TestSet(test_set.names, test_set.kinds, test_set.images, None)
    summary = written(evaluate_detector(Net(), blind, config, known=QUIET))
    assert set(summary["skipped"]) == {"pgd linear", "pgd rank", "legacy"}
    assert set(summary["skipped"].values()) == {"needs ground-truth masks"}
    assert "pixel" not in summary["clean"]


class Detached(Net):
    def forward(self, images: Tensor) -> Detection:
        return super().forward(images.detach())


def test_without_gradients_the_other_attacks_still_run(
    test_set: TestSet, config: EvaluationConfig
) -> None:
    detector = Detached()
    for weight in detector.parameters():
        weight.requires_grad_(False)
    summary = written(evaluate_detector(detector, test_set, config, known=QUIET))
    assert "carry no gradient" in summary["skipped"]["apgd score"]
    assert auroc(summary, "noise score", "8/255", "image") <= summary["clean"]["image"]["auroc"]


def test_a_subset_keeps_every_kind(test_set: TestSet, config: EvaluationConfig) -> None:
    few = EvaluationConfig(config.suite, images=4)
    found = evaluate_detector(Net(), test_set, few, known=QUIET).test
    assert found.kinds == ("good", "good", "square", "square")


def test_a_suite_that_is_not_there_is_named(test_set: TestSet) -> None:
    with pytest.raises(PatchGuardError, match="suite strong: neither a file nor one of full,"):
        evaluate_detector(Net(), test_set, EvaluationConfig(suite="strong"))


def test_one_radius_need_not_be_a_list(config: EvaluationConfig) -> None:
    suite = suite_of(EvaluationConfig(config.suite, eps="4/255"))
    assert suite.threats[0].eps == ["4/255"]


@pytest.mark.parametrize("eps", [["4/255", "4/255"], ["0/255"], ["four"]])
def test_radii_that_make_no_sense_are_refused(
    test_set: TestSet, config: EvaluationConfig, eps: list[str]
) -> None:
    with pytest.raises(PatchGuardError, match="eps"):
        evaluate_detector(Net(), test_set, EvaluationConfig(config.suite, eps=eps))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{attack: pgd, objective: {name: linear, wieght: 2}}", "wieght"),
        ("{attack: pgd, steps: many}", "steps"),
        (
            "{attack: square}]\n  - norm: linf\n    eps: [1/255]\n    attacks: [{attack: pgd}",
            "norm",
        ),
    ],
)
def test_a_mistake_in_a_suite_shows_before_any_work(
    test_set: TestSet, tmp_path: Path, line: str, complaint: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"threats:\n  - eps: [2/255]\n    attacks: [{line}]\n")
    detector = Net()
    with pytest.raises(PatchGuardError, match=complaint):
        evaluate_detector(detector, test_set, EvaluationConfig(str(path)))
    assert detector.forwards == 0


def test_suites_that_share_a_folder_keep_their_worst_images_apart(
    test_set: TestSet, config: EvaluationConfig, tmp_path: Path
) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(
        "threats:\n  - eps: [2/255, 8/255]\n    attacks: [{attack: pgd, objective: dense}]\n"
    )
    for suite in (config.suite, str(other), config.suite):
        found = evaluate_detector(
            Net(),
            test_set,
            EvaluationConfig(suite, batch_size=5),
            known=QUIET,
            cache=tmp_path / "cache",
        )
        for worst in found.worst:
            with torch.no_grad():
                scores = Net()(worst.images).score.numpy()
            np.testing.assert_allclose(scores, worst.scores, atol=1e-5)


def test_a_kill_between_attacking_and_merging_loses_nothing(
    test_set: TestSet,
    config: EvaluationConfig,
    evaluation: Evaluation,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merge, calls = threat._Running.add, []

    def killed(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        merge(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(threat._Running, "add", killed)
        evaluate_detector(Net(), test_set, config, known=QUIET, cache=tmp_path)
    resumed = evaluate_detector(Net(), test_set, config, known=QUIET, cache=tmp_path)
    assert resumed.summary == evaluation.summary
    for worst, expected in zip(resumed.worst, evaluation.worst, strict=True):
        assert torch.equal(worst.images, expected.images)


def test_what_is_known_of_a_detector_keeps_its_results_apart(
    test_set: TestSet, config: EvaluationConfig, tmp_path: Path
) -> None:
    found = [
        evaluate_detector(
            FunctionDetector(function),
            test_set,
            config,
            known=DetectorFacts(identity=name, checks=False),
            cache=tmp_path,
        ).summary.scores.attacked["worst linf 8/255"]
        for name, function in (
            ("bright", lambda images: images.mean((1, 2, 3))),
            ("dark", lambda images: -images.mean((1, 2, 3))),
        )
    ]
    assert max(found[1]) < 0 < min(found[0])


class Rounded(Net):
    """A network whose sums come out a little otherwise, as with another number of threads."""

    def __init__(self, error: float) -> None:
        super().__init__()
        self.error = error

    def forward(self, images: Tensor) -> Detection:
        score, anomaly_map = super().forward(images)
        return Detection(score * (1 + self.error), anomaly_map * (1 - self.error))


def forwards(detector: Net, *arguments: Any, cache: Path) -> int:
    """Images that pass through the detector in an evaluation."""
    evaluate_detector(detector, *arguments, known=QUIET, cache=cache)
    return detector.forwards


@pytest.mark.parametrize("error", [1e-7, -1e-6])
def test_finished_work_is_found_again_where_sums_are_rounded_otherwise(
    test_set: TestSet, config: EvaluationConfig, tmp_path: Path, error: float
) -> None:
    first = forwards(Rounded(0.0), test_set, config, cache=tmp_path)
    again = forwards(Rounded(error), test_set, config, cache=tmp_path)
    assert again == forwards(Rounded(0.0), test_set, config, cache=tmp_path)
    assert again < first / 3


def test_finished_work_is_found_again_with_another_number_of_threads(
    test_set: TestSet, config: EvaluationConfig, tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            evaluate_detector(Net(), test_set, config, known=QUIET, cache=tmp_path)
            found.append({path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")})
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]


def test_a_detector_that_changed_where_its_tensors_do_not_show_is_attacked_anew(
    test_set: TestSet, config: EvaluationConfig, tmp_path: Path
) -> None:
    first = forwards(Rounded(0.0), test_set, config, cache=tmp_path)
    assert forwards(Rounded(1e-3), test_set, config, cache=tmp_path) == first
    # And both are still known.
    for error in (0.0, 1e-3):
        assert forwards(Rounded(error), test_set, config, cache=tmp_path) < first / 3


@pytest.mark.parametrize(
    "changed",
    [
        "attacks/pgd.py",
        "evaluation/test_set.py",
        "evaluation/campaign.py",
        "evaluation/scoring.py",
        "data/images.py",
        "models/vit.py",
        "integrations/function.py",
    ],
)
def test_work_of_former_code_is_not_taken_for_that_of_todays(changed: str, tmp_path: Path) -> None:
    package = tmp_path / "patchguard"
    shutil.copytree(Path(patchguard.__file__).parent, package)
    assert code_digest(package) == code_digest()
    (package / "report" / "render.py").write_text("another page")
    assert code_digest(package) == code_digest()
    (package / changed).write_text("another way")
    assert code_digest(package) != code_digest()


def test_all_code_that_decides_is_there() -> None:
    package = Path(patchguard.__file__).parent
    assert [name for name in DECIDING if not (package / name).exists()] == []


def test_two_evaluations_do_not_share_a_folder(tmp_path: Path) -> None:
    with Store(tmp_path, "a" * 64), pytest.raises(PatchGuardError, match="is running"):
        Store(tmp_path, "a" * 64).__enter__()


def test_the_mean_of_looks_at_a_random_detector_repeats_exactly(
    test_set: TestSet, config: EvaluationConfig
) -> None:
    class Noisy(Net):
        def forward(self, images: Tensor) -> Detection:
            return super().forward(images + 0.05 * torch.randn_like(images))

    few = EvaluationConfig(config.suite, eps=["8/255"], images=4, looks=3)
    scores = []
    for _ in range(2):
        summary = written(evaluate_detector(Noisy(), test_set, few, known=QUIET))
        scores.append(summary["scores"]["worst linf 8/255"])
    assert scores[0] == scores[1]
