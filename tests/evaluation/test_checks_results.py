"""S19 to S30: quiet on a sound evaluation, and each fires on the flaw it looks for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from patchguard.data.images import resize_image
from patchguard.detector import Detection, Detector, to_tensor
from patchguard.evaluation.canaries import Constant, Linear, specimens, weights
from patchguard.evaluation.checks import CHECKS, QUICK, Check, CheckContext, run_checks
from patchguard.evaluation.checks.results import eight_bit_check
from patchguard.evaluation.outcome import Attacked, Scored, Worst

WEIGHT = weights()
TEST = specimens(WEIGHT, each=10)
EPS = 2 / 255
PROVENANCE = {
    "weights_sha256": "0" * 64,
    "data_sha256": "1" * 64,
    "versions": {"torch": torch.__version__},
    "seed": 0,
    "selected_on_test": False,
    "selection_rule": "last step",
    "mask_protocol": "native",
}


def scored(detector: Detector, images: Tensor) -> Scored:
    with torch.no_grad():
        return Scored(*(part.numpy() for part in detector(images)))


def sound(detector: Linear | None = None) -> CheckContext:
    """The evaluation of a linear detector, by its exact worst case."""
    detector = detector or Linear(WEIGHT)
    labels = torch.from_numpy(TEST.labels)
    towards = torch.where(labels[:, None, None, None], -WEIGHT, WEIGHT).sign()
    images = (TEST.images + EPS * towards).clamp(0, 1)
    found = scored(detector, images)
    largest = float((images - TEST.images).abs().max())
    return CheckContext(
        detector,
        TEST,
        clean=scored(detector, TEST.images),
        attacked=[
            Attacked("first", "linf", "2/255", found, largest, "apgd", "score"),
            Attacked("second", "linf", "2/255", found, largest, "apgd", "dense"),
        ],
        worst=[Worst("linf", "2/255", found.scores, ("first",) * 20, images)],
        eps=EPS,
        twin_auroc=0.0,
        provenance=PROVENANCE,
    )


def check(id_: str, context: CheckContext, **changes: object) -> Check:
    (found,) = run_checks(replace(context, **changes), only={id_})  # type: ignore[arg-type]
    return found


def test_a_sound_evaluation_passes_the_quick_checks() -> None:
    found = run_checks(sound())
    assert {entry.id for entry in found} == set(QUICK)
    assert {entry.id: entry.status for entry in found if entry.status != "PASS"} == {"S1": "SKIP"}


def test_every_check_is_listed_once_and_says_one_sentence() -> None:
    assert [entry.id for entry in CHECKS] == [f"S{n}" for n in range(1, 31) if n != 26]
    done: list[float] = []
    for entry in run_checks(sound(), advance=done.append):
        assert entry.meaning.endswith(".")
        assert ". " not in entry.meaning
    assert done[-1] == 1.0
    assert done == sorted(done)


def test_another_objective_that_beats_the_score_is_named() -> None:
    context = sound()
    stronger = np.where(TEST.labels, -5.0, 5.0) + context.attacked[0].scored.scores
    dense = replace(
        context.attacked[1], scored=replace(context.attacked[1].scored, scores=stronger)
    )
    found = check("S19", context, attacked=[context.attacked[0], dense])
    assert found.status == "WARN"
    assert "second" in found.meaning
    assert check("S19", context, attacked=context.attacked[:1]).status == "SKIP"
    other_name = replace(dense, attack="apgd score reduced radius", objective="score")
    assert check("S19", context, attacked=[context.attacked[0], other_name]).status == "SKIP"


def test_a_published_attack_that_finds_nothing_is_mentioned() -> None:
    context = sound()
    legacy = replace(context.attacked[1], attack="theirs", kind="legacy", objective="legacy")
    attacked = [*context.attacked, legacy]
    assert "published" in check("S19", context, attacked=attacked).meaning
    found = replace(context.worst[0], winners=("first",) * 19 + ("theirs",))
    assert "published" not in check("S19", context, attacked=attacked, worst=[found]).meaning


def test_attacks_that_8_bits_undo_are_found() -> None:
    close = specimens(WEIGHT, each=10, contrast=0.004)
    towards = torch.where(torch.from_numpy(TEST.labels)[:, None, None, None], -WEIGHT, WEIGHT)
    images = close.images + 0.4 / 255 * towards.sign()
    context = sound()
    worst = replace(context.worst[0], images=images, scores=scored(Linear(WEIGHT), images).scores)
    assert check("S20", context, test=close, worst=[worst]).status == "WARN"
    assert check("S20", context).status == "PASS"


def test_8_bit_images_stay_in_the_ball_of_8_bit_images() -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.round(255 * torch.rand(2, 3, 8, 8, generator=generator)) / 255
    attacked = (clean + 2.5 / 255 * torch.randn(clean.shape, generator=generator).sign()).clamp(
        0, 1
    )
    stored = eight_bit_check(attacked, clean, 2.5 / 255)
    torch.testing.assert_close(255 * stored, (255 * stored).round(), atol=1e-4, rtol=0)
    assert (stored - clean).abs().max() <= 2.5 / 255
    assert (stored - attacked).abs().max() <= 0.51 / 255


def halve(image: np.ndarray) -> np.ndarray:
    return image.reshape(image.shape[0] // 2, 2, image.shape[1] // 2, 2, 3).mean((1, 3))


def test_an_attack_before_the_resize_needs_the_deployed_resize() -> None:
    linear = Linear(WEIGHT)
    captured = [
        np.repeat(np.repeat(image.permute(1, 2, 0).numpy(), 2, 0), 2, 1) for image in TEST.images
    ]

    def deployed(image: np.ndarray) -> float:
        size = WEIGHT.shape[-1]
        images = torch.from_numpy(image.transpose(2, 0, 1)[None].astype(np.float32))
        small = torch.nn.functional.interpolate(
            images, size=(size, size), mode="bilinear", antialias=True
        )
        with torch.no_grad():
            return float(linear(small).score)

    def coarse(image: np.ndarray) -> float:
        return deployed(np.round(image * 8) / 8)

    context = replace(sound(linear), eps=4 / 255)
    assert check("S21", context).status == "SKIP"
    given = {"captured": captured, "deployed": deployed}
    assert check("S21", context, **given).status == "PASS"
    assert check("S21", context, captured=captured, deployed=coarse).status == "WARN"
    own_size = [halve(image) for image in captured]
    assert check("S21", context, captured=own_size, deployed=deployed).status == "SKIP"


def test_the_resize_may_be_to_an_image_that_is_no_square() -> None:
    weight = weights((12, 20))
    linear, test = Linear(weight), specimens(weight, each=10)
    captured = [np.repeat(image.permute(1, 2, 0).numpy(), 2, 0) for image in test.images]

    def deployed(image: np.ndarray) -> float:
        with torch.no_grad():
            return float(linear(to_tensor(resize_image(image, (12, 20)))[None]).score)

    context = CheckContext(linear, test, eps=4 / 255)
    assert check("S21", context, captured=captured, deployed=deployed).status == "PASS"
    own_size = [image.permute(1, 2, 0).numpy() for image in test.images]
    assert check("S21", context, captured=own_size, deployed=deployed).status == "SKIP"


@pytest.mark.parametrize("flaw", ["largest", "images", "box", "nan", "nan pixel", "clean"])
def test_broken_constraints_are_found(flaw: str) -> None:
    context = sound()
    entry, worst, clean = context.attacked[0], context.worst[0], context.clean
    assert clean is not None
    if flaw == "largest":
        entry = replace(entry, largest=2.1 / 255)
    if flaw == "images":
        worst = replace(worst, images=worst.images + 1 / 255)
    if flaw == "box":
        worst = replace(worst, norm="l2", images=worst.images + 0.9)
    if flaw == "nan":
        worst = replace(worst, scores=np.where(TEST.labels, np.nan, worst.scores))
    if flaw == "nan pixel":
        images = worst.images.clone()
        images[0, 0, 0, 0] = torch.nan
        worst = replace(worst, images=images)
    if flaw == "clean":
        clean = replace(clean, scores=np.where(TEST.labels, np.inf, clean.scores))
    found = check("S22", context, attacked=[entry], worst=[worst], clean=clean)
    assert found.status == "FAIL"


@pytest.mark.parametrize(
    ("norm", "eps", "size", "more"),
    [
        ("linf", "4/255", 4 / 255, 1e-6),
        ("l2", "0.5", 0.5, 1e-4),
        ("l1", "75", 75.0, 1e-2),
        ("l0", "10", 10.0, 1.0),
        ("patch", "0.01", 0.01, 1e-5),
    ],
)
def test_the_sizes_of_all_threats_are_looked_at(
    norm: str, eps: str, size: float, more: float
) -> None:
    def others(largest: float) -> Check:
        context = sound()
        rounded = float(np.float32(largest))
        entry = replace(context.attacked[0], norm=norm, eps=eps, largest=rounded)
        return check("S22", context, others=[entry])

    assert others(size).status == "PASS"
    assert norm in others(size).meaning
    assert others(size + more).status == "FAIL"
    assert others(np.nan).status == "FAIL"


def test_ties_are_not_hidden_by_the_auroc() -> None:
    found = check("S23", sound(Constant(WEIGHT)))
    assert (found.status, found.value) == ("FAIL", 0.5)


def test_an_undefended_twin_that_survives_shows_weak_attacks() -> None:
    assert check("S24", sound(), twin_auroc=0.4).status == "FAIL"
    assert check("S24", sound(), twin_auroc=None).status == "SKIP"


def test_the_checks_check_themselves() -> None:
    found = check("S25", sound())
    assert found.status == "PASS"
    assert found.value is not None
    assert found.value < 1e-4


class TakesMask(Linear):
    def forward(self, images: Tensor, mask: Tensor | None = None) -> Detection:
        return super().forward(images)


def test_scores_that_do_not_follow_from_the_images_are_found() -> None:
    context = sound()
    shifted = replace(context.worst[0], scores=context.worst[0].scores + 1)
    assert check("S27", context, worst=[shifted]).status == "FAIL"
    assert check("S27", context, detector=TakesMask(WEIGHT)).status == "FAIL"
    assert check("S27", context, worst=[]).status == "SKIP"


def test_what_is_missing_from_the_records_is_named() -> None:
    assert "versions" in check("S28", sound(), provenance={**PROVENANCE, "versions": None}).meaning
    few = specimens(WEIGHT, each=4)
    assert "only 4 images" in check("S28", sound(), test=few).meaning
    assert check("S28", sound(), test=few).status == "WARN"
    assert check("S28", sound()).status == "PASS"


def test_ground_truth_that_contradicts_the_labels_is_found() -> None:
    assert TEST.masks is not None
    swapped = replace(TEST, masks=TEST.masks[::-1])
    assert check("S29", sound(), test=swapped).status == "FAIL"
    grey = replace(TEST, masks=tuple(mask.astype(float) for mask in TEST.masks))
    assert check("S29", sound(), test=grey).status == "FAIL"
    assert check("S29", sound(), test=replace(TEST, masks=None)).status == "SKIP"
    other = {**PROVENANCE, "mask_protocol": "patchguard-legacy"}
    assert check("S29", sound(), provenance=other).status == "WARN"


def test_choosing_the_checkpoint_on_test_images_is_found() -> None:
    peeked = {**PROVENANCE, "selected_on_test": True, "selection_rule": "best AUROC"}
    assert check("S30", sound(), provenance=peeked).status == "FAIL"
    assert "best AUROC" in check("S30", sound(), provenance=peeked).meaning
    untested = {**PROVENANCE, "selection_rule": "the latest, no test images were looked at"}
    assert check("S30", sound(), provenance=untested).status == "PASS"
    unknown = {**PROVENANCE, "selected_on_test": None}
    assert check("S30", sound(), provenance=unknown).status == "WARN"
    assert check("S30", sound(), provenance={}).status == "WARN"
