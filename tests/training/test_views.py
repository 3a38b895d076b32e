"""How the views of a detector are scored: as ranks pseudo-anomalies above held-out normals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from patchguard.config import AnomalyConfig, ModelConfig, View
from patchguard.data.windows import squeezed
from patchguard.models.patchguard import PatchGuard, Seen, ViewScore
from patchguard.training.prepare import Normals
from patchguard.training.views import choose_scores

SIDE, WINDOW, CELL = 64, 32, 8
PLAIN = {"shapes": ["rectangle"], "blends": ["opaque"], "count_max": 1}


class Deviating(PatchGuard):
    """Its patch logits are how far the patches are from grey; views of ``blind`` see noise."""

    def __init__(self, views: list[View], top: list[float], blind: tuple[View, ...] = ()) -> None:
        super().__init__(ModelConfig(window=WINDOW, hidden=64, views=views, top=top))
        self.blind = blind

    def look(self, images: Tensor, view: View, features: bool = False) -> Seen:
        shown = squeezed(images, WINDOW) if view == "whole" else images
        logits = functional.avg_pool2d((shown - 0.5).abs().mean(1), CELL)
        if view in self.blind:
            # The first pixel of an image is no part of any anomaly.
            logits = logits * 0 + images[:, :1, :1, 0]
        return Seen(logits, None)


def held_out(images: np.ndarray) -> Normals:
    foregrounds = np.zeros(images.shape[:3], dtype=bool)
    foregrounds[:, 8:-8, 8:-8] = True
    return Normals(tuple(f"{n}.png" for n in range(len(images))), images, foregrounds)


def spotted(count: int = 12) -> Normals:
    """Grey images with one spot that is far from grey, the nearer to white the later the image."""
    images = np.full((count, SIDE, SIDE, 3), 0.5, np.float32)
    images[:, :CELL, :CELL] = np.linspace(0.98, 1.0, count)[:, None, None, None]
    return held_out(images)


def grained(count: int = 12) -> Normals:
    """Images of grain, of which there is more in some than in others."""
    rng = np.random.default_rng(0)
    images = (
        rng.uniform(-1, 1, (count, SIDE, SIDE, 3))
        * np.linspace(0.05, 0.25, count)[:, None, None, None]
    )
    return held_out((0.5 + images).astype(np.float32))


LARGE = AnomalyConfig(**PLAIN, side_min=0.6, side_max=0.9, contrast_floor=0.2)  # type: ignore[arg-type]
SMALL = AnomalyConfig(**PLAIN, side_min=0.2, side_max=0.2, contrast_floor=0.5)  # type: ignore[arg-type]


def chosen(detector: PatchGuard, normals: Normals, anomalies: AnomalyConfig, eps: float = 0.0):
    return choose_scores(detector.eval(), normals, anomalies, eps=eps, seed=0)


def test_where_normals_have_spots_many_patches_are_averaged() -> None:
    detector = Deviating(["windows"], [0.0, 0.5])
    evidence = chosen(detector, spotted(), LARGE)
    assert detector.scores["windows"].patches == 32
    one, many = evidence["windows"]["candidates"]
    assert (one["patches"], many["patches"]) == (1, 32)
    assert one["clean"] < 0.9 < many["clean"]


def test_where_normals_are_grained_and_defects_are_spots_few_are() -> None:
    detector = Deviating(["windows"], [0.5, 0.0])
    evidence = chosen(detector, grained(), SMALL)
    assert detector.scores["windows"].patches == 1
    one, many = evidence["windows"]["candidates"]
    assert one["clean"] > many["clean"]


def test_at_least_one_patch_is_averaged_and_equal_numbers_are_tried_once() -> None:
    detector = Deviating(["whole"], [0.0, 0.01, 0.02])
    evidence = chosen(detector, spotted(), LARGE)
    assert [each["patches"] for each in evidence["whole"]["candidates"]] == [1]


def test_an_attack_lowers_what_the_choice_is_made_by() -> None:
    detector = Deviating(["windows"], [0.0, 0.5])
    faint = AnomalyConfig(**PLAIN, side_min=0.6, side_max=0.9, contrast_floor=0.02)  # type: ignore[arg-type]
    evidence = chosen(detector, grained(), faint, eps=0.4)
    for candidate in evidence["windows"]["candidates"]:
        assert candidate["attacked"] < candidate["clean"]


def test_one_view_is_left_raw() -> None:
    detector = Deviating(["windows"], [0.1])
    evidence = chosen(detector, grained(), LARGE)
    assert detector.scores == {"windows": ViewScore(6, 0.0, 1.0)}
    assert evidence["windows"]["centre"] == 0.0 and evidence["windows"]["scale"] == 1.0


def scaled(detector: PatchGuard, normals: Normals) -> dict[View, Tensor]:
    images = torch.from_numpy(np.array(normals.images)).permute(0, 3, 1, 2)
    return detector.view_scores(detector.views(images))


def test_scores_of_normals_spread_by_one_around_nought() -> None:
    detector, normals = Deviating(["windows", "whole"], [0.5]), grained()
    evidence = chosen(detector, normals, LARGE)
    for view, scores in scaled(detector, normals).items():
        assert scores.std(correction=0) == pytest.approx(1, abs=0.01)
        (found,) = evidence[view]["candidates"]
        weight = min(1.0, max(0.01, found["clean"] + found["attacked"] - 1))
        assert float(scores.quantile(0.5)) == pytest.approx(np.log(weight), abs=0.01)


def test_a_blind_view_has_little_to_say() -> None:
    normals = grained()
    detector = Deviating(["windows", "whole"], [0.5], blind=("whole",))
    evidence = chosen(detector, normals, LARGE)
    (found,) = evidence["whole"]["candidates"]
    assert found["clean"] == pytest.approx(0.5, abs=0.01)
    scores = scaled(detector, normals)
    assert scores["whole"].median() < scores["windows"].median() - 2


def test_the_same_seed_makes_the_same_choice() -> None:
    found = [
        chosen(Deviating(["windows", "whole"], [0.0, 0.1, 0.5]), grained(), LARGE, eps=0.05)
        for _ in range(2)
    ]
    assert found[0] == found[1]
