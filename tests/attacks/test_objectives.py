import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors import Linear
from patchguard.attacks.objectives import (
    DETECTION,
    LOCALIZATION,
    CosPGD,
    FeatureDistance,
    JensenShannon,
    Masked,
    Objective,
    ObjectiveContext,
    PixelMap,
    PixelStatistics,
    RankAware,
    SegPGD,
    TopKMean,
    Tsallis,
    dense,
    image_score,
    normal_prototypes,
    smooth_maximum,
)
from patchguard.attacks.objectives.localization import MarginObjective
from patchguard.attacks.pgd import PGD
from patchguard.detector import Inspection
from patchguard.errors import PatchGuardError
from patchguard.evaluation.metrics import pixel_metrics

LABELS = torch.tensor([True, False, True, False, True])
SIGNS = torch.where(LABELS, -1.0, 1.0).double()
MARGINS: list[type[MarginObjective]] = [SegPGD, CosPGD, Masked, JensenShannon, Tsallis]
NAMED: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in (*DETECTION, *LOCALIZATION)),
    *(("linear", {"weight": weight}) for weight in (0, 1, math.inf)),
    ("features", {"metric": "l2"}),
    ("js", {"weight": 1}),
    ("rank", {"weight": math.inf, "bandwidth": 1.0}),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def partial_masks(size: int = 6) -> Tensor:
    """Masks [5, S, S] with wholly and partly anomalous pixels; 0 for normal images."""
    masks = torch.zeros(5, size, size, dtype=torch.float64)
    masks[LABELS, 1:3, 2:5] = 1.0
    masks[LABELS, 3, 2:5] = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    return masks


def overlapping_maps(masks: Tensor, seed: int = 0) -> Tensor:
    return 10 + 3 * (random(*masks.shape, seed=seed) + 1.5 * masks)


def seen(maps: Tensor, features: Tensor | None = None) -> Inspection:
    return Inspection(maps.sum((1, 2)), maps, features=features)


def make(
    name: str, options: dict[str, Any], maps: Tensor, masks: Tensor, prototypes: Tensor
) -> Objective:
    statistics = PixelStatistics.of(maps, masks)
    context = ObjectiveContext(statistics, maps.numpy(), masks, LABELS, prototypes)
    return (DETECTION if name in DETECTION else LOCALIZATION)[name](context, **options)


# All objectives.


@pytest.mark.parametrize("progress", [0.0, 0.6])
@pytest.mark.parametrize(
    ("name", "options"), [entry for entry in NAMED if entry[0] not in ("smooth", "features")]
)
def test_gradients_with_respect_to_the_map_equal_finite_differences(
    name: str, options: dict[str, Any], progress: float
) -> None:
    masks = partial_masks()
    maps = overlapping_maps(masks).requires_grad_()
    objective = make(name, options, maps.detach(), masks, random(4, 3))
    assert torch.autograd.gradcheck(
        lambda maps: objective(seen(maps), LABELS, masks, progress), maps, atol=1e-6
    )


@pytest.mark.parametrize(("name", "options"), NAMED)
def test_values_and_gradients_of_extreme_maps_are_finite(
    name: str, options: dict[str, Any]
) -> None:
    masks = partial_masks()
    calm = overlapping_maps(masks).float()
    objective = make(name, options, calm, masks, random(4, 3).float())
    wild = calm.clone()
    wild[0], wild[1], wild[2] = 1e6, -1e6, 1e6 * torch.randn(6, 6).sign()
    for progress in (0.0, 0.5, 1.0):
        maps = wild.clone().requires_grad_()
        features = (1e6 * random(5, 7, 3).float()).requires_grad_()
        values = objective(seen(maps, features), LABELS, masks, progress)
        assert values.shape == (5,)
        assert values.dtype == torch.float32
        values.sum().backward()
        gradients = [x.grad for x in (maps, features) if x.grad is not None]
        assert all(torch.isfinite(found).all() for found in (values, *gradients))


class Featured(Linear):
    """A linear detector that shows the colours of its pixels as features."""

    def inspect(self, images: Tensor) -> Inspection:
        return Inspection(*self(images), features=images.flatten(2).transpose(1, 2))


@pytest.fixture
def attacked_by() -> Callable[[str, dict[str, Any]], tuple[Linear, Tensor, Tensor, Tensor]]:
    """Detector, images and attacked images, and masks, of a PGD that climbs an objective."""
    masks = partial_masks(8).float()
    weight = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.1
    detector = Featured(weight)
    images = 0.3 + 0.2 * torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images += 0.2 * masks[:, None]

    def attack(name: str, options: dict[str, Any]) -> tuple[Linear, Tensor, Tensor, Tensor]:
        with torch.no_grad():
            maps = detector(images).anomaly_map
        dark = normal_prototypes(detector, 0.1 * images[~LABELS], count=8)
        pgd = PGD(make(name, options, maps, masks, dark), start=0, keep_best=False, steps=10)
        generator = torch.Generator().manual_seed(0)
        (found,) = pgd(detector, images, LABELS, masks, eps=[0.1], generator=generator)
        return detector, images, found, masks

    return attack


@pytest.mark.parametrize(
    ("name", "options"),
    [entry for entry in NAMED if entry[0] in DETECTION and entry[0] != "legacy"],
)
def test_climbing_an_objective_for_detection_moves_every_score_to_the_other_side(
    attacked_by: Any, name: str, options: dict[str, Any]
) -> None:
    if name == "features":
        options = {"metric": "l2"}
    detector, images, attacked, _ = attacked_by(name, options)
    change = (detector(attacked).score - detector(images).score) * SIGNS
    assert (change > 0).all()


@pytest.mark.parametrize(
    ("name", "options"), [entry for entry in NAMED if entry[0] in LOCALIZATION]
)
def test_climbing_an_objective_for_localization_lowers_pooled_pixel_auroc(
    attacked_by: Any, name: str, options: dict[str, Any]
) -> None:
    detector, images, attacked, masks = attacked_by(name, options)
    truth = list((masks > 0.5).numpy())
    before, after = (
        pixel_metrics(list(detector(batch).anomaly_map.detach().numpy()), truth).auroc
        for batch in (images, attacked)
    )
    assert after < before - 0.05


# Detection.


def test_detection_raises_normal_and_lowers_anomalous_scores() -> None:
    maps, masks = random(5, 6, 6), partial_masks()
    found = dense(seen(maps), LABELS, masks)
    torch.testing.assert_close(found, SIGNS * maps.mean((1, 2)))
    torch.testing.assert_close(image_score(seen(maps), LABELS, masks), SIGNS * maps.sum((1, 2)))


def test_patch_logits_take_the_place_of_the_map_where_they_are_shown() -> None:
    logits, masks = random(5, 3, 3, seed=1), partial_masks()
    shown = seen(random(5, 6, 6))._replace(patch_logits=logits)
    for objective in (dense, smooth_maximum, TopKMean()):
        found = objective(shown, LABELS, masks, 0.5)
        torch.testing.assert_close(found, objective(seen(logits), LABELS, masks, 0.5))


def test_the_smooth_maximum_rises_from_above_the_mean_to_the_maximum() -> None:
    maps = 5 + random(5, 6, 6)
    values = [
        SIGNS * smooth_maximum(seen(maps), LABELS, partial_masks(), progress)
        for progress in np.linspace(0, 1, 11)
    ]
    assert (values[0] > maps.mean((1, 2))).all()
    assert (torch.stack(values).diff(dim=0) > 0).all()
    torch.testing.assert_close(values[-1], maps.amax((1, 2)), atol=0.01, rtol=0)


def test_the_gradient_of_the_smooth_maximum_is_a_softmax() -> None:
    maps = random(5, 6, 6).requires_grad_()
    smooth_maximum(seen(maps), LABELS, partial_masks(), 0.5).sum().backward()
    scores = maps.detach().flatten(1)
    temperature = scores.std(1, unbiased=False, keepdim=True) / 2
    expected = SIGNS[:, None] * torch.softmax(scores / temperature, 1)
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad.flatten(1), expected)


def test_the_smooth_maximum_of_a_constant_map_is_its_value() -> None:
    maps = torch.full((5, 6, 6), 3.0).requires_grad_()
    found = smooth_maximum(seen(maps), LABELS, partial_masks(), 1.0)
    torch.testing.assert_close(found, (3 * SIGNS).float())
    found.sum().backward()
    assert maps.grad is not None
    torch.testing.assert_close(maps.grad.abs(), torch.full((5, 6, 6), 1 / 36))


def test_top_k_goes_from_a_share_of_the_patches_to_k() -> None:
    maps = random(5, 6, 6)
    ordered = maps.flatten(1).sort(descending=True).values
    for progress, count in ((0.0, 9), (1.0, 3)):
        found = TopKMean(k=3, share=0.25)(seen(maps), LABELS, partial_masks(), progress)
        torch.testing.assert_close(found, SIGNS * ordered[:, :count].mean(1))
    whole = TopKMean(k=99)(seen(maps), LABELS, partial_masks(), 0.5)
    torch.testing.assert_close(whole, SIGNS * ordered.mean(1))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_the_feature_distance_is_the_mean_distance_to_the_nearest_prototype(
    metric: Literal["cosine", "l2"],
) -> None:
    features, prototypes = random(5, 7, 3, seed=1).requires_grad_(), random(4, 3, seed=2)
    objective = FeatureDistance(prototypes, metric=metric)
    cosine = torch.cosine_similarity(features[:, :, None], prototypes, dim=-1)
    distances = {"cosine": 1 - cosine, "l2": (features[:, :, None] - prototypes).norm(dim=-1)}
    maps, masks = random(5, 6, 6), partial_masks()
    found = objective(seen(maps, features), LABELS, masks)
    torch.testing.assert_close(found, SIGNS * distances[metric].amin(-1).mean(1))
    assert torch.autograd.gradcheck(
        lambda features: objective(seen(maps, features), LABELS, masks), features
    )


def test_the_feature_distance_has_no_stand_in_for_features() -> None:
    maps, masks = random(5, 6, 6), partial_masks()
    with pytest.raises(PatchGuardError, match="shows no features"):
        FeatureDistance(random(4, 3))(seen(maps), LABELS, masks)
    with pytest.raises(PatchGuardError, match=r"width 2 .* width 3"):
        FeatureDistance(random(4, 3))(seen(maps, random(5, 7, 2)), LABELS, masks)


def test_prototypes_are_features_of_normal_images_that_cover_them_all() -> None:
    detector = Featured(torch.ones(3, 4, 4))
    corners = torch.eye(3)[torch.arange(16) % 3].T.reshape(3, 4, 4)
    images = corners + 0.01 * torch.rand(6, 3, 4, 4)
    prototypes = normal_prototypes(detector, images, count=4, batch_size=4)
    features = images.flatten(2).transpose(1, 2).flatten(0, 1)
    assert prototypes.shape == (4, 3)
    assert (torch.cdist(prototypes, features).amin(1) < 1e-3).all()
    assert (torch.cdist(features, prototypes).amin(1) < 0.02).all()
    assert normal_prototypes(detector, images[:1], count=99).shape == (16, 3)
    with pytest.raises(PatchGuardError, match="shows no features"):
        normal_prototypes(Linear(torch.ones(3, 4, 4)), images)


# Statistics of the pixels.


def test_the_threshold_has_equal_error_rates_and_the_middle_of_a_gap() -> None:
    masks = torch.zeros(1, 2, 5)
    masks[0, 1] = 1
    crossing = torch.tensor([[[0.0, 1, 2, 3, 6], [5.0, 7, 8, 9, 10]]])
    statistics = PixelStatistics.of(crossing, masks)
    assert 5 <= statistics.threshold <= 6
    assert statistics.anomalous_fraction == 0.5
    apart = torch.tensor([[[0.0, 1, 2, 3, 4], [8.0, 9, 10, 11, 12]]])
    assert PixelStatistics.of(apart, masks).threshold == 6
    assert PixelStatistics.of(apart, masks).scale == 4
    assert PixelStatistics.of(torch.zeros(1, 2, 5), masks) == PixelStatistics(0.0, 1.0, 0.5)


def test_a_partly_anomalous_pixel_counts_as_that_many_pixels_of_both_classes() -> None:
    maps, quarters = random(2, 6, 6).numpy(), torch.randint(0, 5, (2, 6, 6)).numpy()
    whole = np.arange(4)[:, None, None, None] < quarters
    found = PixelStatistics.of(maps, quarters / 4)
    expected = PixelStatistics.of(np.stack([maps] * 4).reshape(8, 6, 6), whole.reshape(8, 6, 6))
    assert found.anomalous_fraction == pytest.approx(expected.anomalous_fraction)
    # The finer steps of single pixels may put the crossing one value further.
    between = np.abs(np.sort(maps.ravel())[:, None] - [found.threshold, expected.threshold])
    assert np.abs(np.diff(between.argmin(0))) <= 1


def test_statistics_need_both_classes_and_finite_maps() -> None:
    maps, masks = random(2, 4, 4), torch.zeros(2, 4, 4)
    with pytest.raises(PatchGuardError, match="normal and anomalous pixels"):
        PixelStatistics.of(maps, masks)
    with pytest.raises(PatchGuardError, match="normal and anomalous pixels"):
        PixelStatistics.of(maps, masks + 1)
    with pytest.raises(PatchGuardError, match="NaN or infinity"):
        PixelStatistics.of(maps / 0, masks)
    with pytest.raises(PatchGuardError, match="shape"):
        PixelStatistics.of(maps[:1], masks)


# Localization.


@pytest.mark.parametrize("weight", [0, 1, 2.5, "balanced", math.inf])
def test_the_linear_objective_weighs_the_classes(weight: float | str) -> None:
    maps, masks = random(5, 6, 6), partial_masks()
    fraction = float(masks.mean())
    found = PixelMap(fraction, weight=weight)(seen(maps), LABELS, masks)
    raised = ((1 - masks) * maps).sum((1, 2))
    lowered = (masks * maps).sum((1, 2))
    if weight == math.inf:
        expected = torch.where(LABELS, -lowered, raised)
    else:
        ratio = (1 - fraction) / fraction if weight == "balanced" else float(weight)
        expected = raised - ratio * lowered
    torch.testing.assert_close(found, expected / 36 / (1 - fraction))


@pytest.mark.parametrize("weight", [-1, math.nan, "heavy"])
def test_a_weight_is_a_number_from_0_up_or_balanced(weight: float | str) -> None:
    with pytest.raises(PatchGuardError, match="must be balanced or a number"):
        PixelMap(0.1, weight=weight)


@pytest.mark.parametrize(
    ("name", "options"), [entry for entry in NAMED if entry[0] in LOCALIZATION and not entry[1]]
)
def test_a_partly_anomalous_pixel_has_its_share_of_both_gains(
    name: str, options: dict[str, Any]
) -> None:
    masks = partial_masks()
    maps = overlapping_maps(masks)
    objective = make(name, options, maps, masks, random(4, 3))

    def value(coverage: float) -> Tensor:
        return objective(seen(maps), LABELS, torch.full_like(masks, coverage), 0.5)

    torch.testing.assert_close(value(0.25), 0.75 * value(0.0) + 0.25 * value(1.0))


@pytest.mark.parametrize("name", [name for name in LOCALIZATION if name != "linear"])
def test_the_raw_scale_of_a_map_does_not_matter(name: str) -> None:
    masks = partial_masks()
    maps = overlapping_maps(masks)
    for scaled in (1e4 * maps, 1e-4 * maps - 7):
        found, expected = (
            make(name, {}, raw, masks, random(4, 3))(seen(raw), LABELS, masks, 0.5)
            for raw in (scaled, maps)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def smoothed_auroc(maps: Tensor, masks: Tensor, bandwidth: float) -> Tensor:
    """The weighted share of pairs in order, each softened by a Cauchy distribution function."""
    values, anomalous = maps.flatten(), masks.flatten()
    order = 0.5 + torch.atan((values[:, None] - values) / bandwidth) / math.pi
    pairs = anomalous[:, None] * (1 - anomalous)
    return (pairs * order).sum() / pairs.sum()


def test_the_rank_aware_gradient_is_that_of_the_smoothed_auroc() -> None:
    masks = (partial_masks() == 1).double()  # A partly anomalous pixel is its own other class.
    maps = overlapping_maps(masks).requires_grad_()
    bandwidth = 0.25 * PixelStatistics.of(maps, masks).scale
    objective = RankAware(maps, masks, bandwidth=0.25)
    (found,) = torch.autograd.grad(objective(seen(maps), LABELS, masks).mean(), maps)
    step = 1e-5
    for index in ((0, 1, 2), (0, 0, 0), (1, 3, 3), (2, 2, 4), (4, 5, 5)):
        moved = torch.zeros_like(maps)
        moved[index] = step
        ahead, behind = (
            smoothed_auroc(maps.detach() + sign * moved, masks, bandwidth) for sign in (1, -1)
        )
        expected = -(ahead - behind) / (2 * step)
        torch.testing.assert_close(found[index], expected, rtol=0.03, atol=0)


@pytest.mark.parametrize("weight", [0, math.inf])
def test_the_rank_aware_value_is_the_smoothed_auroc(weight: float) -> None:
    masks = (partial_masks() == 1).double()
    maps = overlapping_maps(masks)
    auroc = smoothed_auroc(maps, masks, 0.25 * PixelStatistics.of(maps, masks).scale)
    values = RankAware(maps, masks, weight=weight)(seen(maps), LABELS, masks)
    if weight == 0:
        torch.testing.assert_close(values.mean(), 1 - auroc, rtol=1e-3, atol=0)
    else:
        share = masks.mean() / (1 - masks.mean())
        torch.testing.assert_close(values[LABELS].sum() / 5, -share * auroc, rtol=1e-3, atol=0)


def test_rank_aware_pixels_far_from_the_other_class_still_feel_it() -> None:
    masks = partial_masks().float()
    maps = torch.where(masks > 0, 100.0, 0.0) + 0.1 * random(5, 6, 6).float()
    objective = RankAware(maps, masks, bandwidth=0.01)
    maps.requires_grad_()
    objective(seen(maps), LABELS, masks).sum().backward()
    assert maps.grad is not None
    assert (maps.grad[masks == 0] > 0).all()
    assert (maps.grad[masks == 1] < 0).all()


def softmax_loss(kind: type[MarginObjective], right: Tensor, progress: float) -> Tensor:
    """The published loss as a function of the probability of the true class."""
    wrong = 1 - right
    if kind is JensenShannon:
        middle_right, middle_wrong = (1 + right) / 2, wrong / 2
        of_truth = -middle_right.log()
        of_prediction = right * (right / middle_right).log() + wrong * (wrong / middle_wrong).log()
        return (of_truth + of_prediction) / 2
    q = -2 + 3 * progress
    return -right.log() if q == 1 else (1 - right ** (1 - q)) / (1 - q)


def pixel_loss(kind: type[MarginObjective], margin: Tensor, progress: float) -> Tensor:
    return kind(PixelStatistics(0.0, 1.0, 0.1)).loss(margin, progress)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", [JensenShannon, Tsallis])
def test_divergences_equal_their_formulas(kind: type[MarginObjective], progress: float) -> None:
    margin = torch.linspace(-8, 8, 33, dtype=torch.float64)
    expected = softmax_loss(kind, torch.sigmoid(-margin), progress)
    torch.testing.assert_close(pixel_loss(kind, margin, progress), expected)


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", [SegPGD, CosPGD, Masked])
def test_weights_of_pixels_equal_their_formulas(
    kind: type[MarginObjective], progress: float
) -> None:
    margin = torch.linspace(-8, 8, 32, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(pixel_loss(kind, margin, progress).sum(), margin)
    wrong, right = margin > 0, torch.sigmoid(-margin)
    expected = {
        SegPGD: torch.where(wrong, progress / 2, 1 - progress / 2),
        CosPGD: right / (right**2 + (1 - right) ** 2).sqrt(),
        Masked: (~wrong).double(),
    }[kind]
    torch.testing.assert_close(found, expected.double())


def test_tsallis_goes_from_wrong_pixels_left_alone_to_cross_entropy() -> None:
    margin = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
    slopes = [
        float(torch.autograd.grad(pixel_loss(Tsallis, margin, progress).sum(), margin)[0])
        for progress in (0.0, 0.5, 0.9, 1.0)
    ]
    assert slopes == sorted(slopes)
    assert slopes[0] < 1e-3
    assert slopes[-1] == pytest.approx(float(torch.sigmoid(margin.detach())))
    near, at = (pixel_loss(Tsallis, margin, progress) for progress in (1 - 1e-5, 1.0))
    torch.testing.assert_close(near, at, rtol=1e-3, atol=0)


def test_jensen_shannon_is_bounded_by_log_2() -> None:
    found = pixel_loss(JensenShannon, torch.tensor([-1e6, -50.0, 0.0, 50.0, 1e6]), 0.0)
    assert (found >= 0).all()
    assert (found <= math.log(2) * (1 + 1e-6)).all()
    torch.testing.assert_close(found[[0, -1]], torch.tensor([0.0, math.log(2)]))


@pytest.mark.parametrize("progress", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind", MARGINS)
def test_losses_increase_and_pull_confident_correct_pixels_in_float32(
    kind: type[MarginObjective], progress: float
) -> None:
    margin = torch.linspace(-60, 60, 241, requires_grad=True)
    found = pixel_loss(kind, margin, progress)
    assert (found.diff() >= -1e-6).all()
    (slope,) = torch.autograd.grad(found.sum(), margin)
    assert (slope[margin < 0] > 0).all()
    assert (slope >= 0).all()


# Names.


def test_unknown_names_and_options_are_one_clear_line() -> None:
    nothing = ObjectiveContext(None, None, torch.zeros(5, 6, 6), LABELS, None)
    with pytest.raises(PatchGuardError, match="'rnak' is unknown; choose one of linear, rank, seg"):
        LOCALIZATION["rnak"](nothing)
    with pytest.raises(PatchGuardError, match="top_k: no setting 'K'; known: k, share"):
        DETECTION["top_k"](nothing, K=3)
    with pytest.raises(PatchGuardError, match="no setting 'weight'; known: none"):
        LOCALIZATION["masked_balanced"](nothing, weight=1)


@pytest.mark.parametrize(("name", "needs"), [("features", "features"), ("rank", "maps")])
def test_an_objective_says_what_it_lacks(name: str, needs: str) -> None:
    nothing = ObjectiveContext(None, None, torch.zeros(5, 6, 6), LABELS, None)
    with pytest.raises(PatchGuardError, match=f"{name} needs .*{needs}"):
        (DETECTION if name in DETECTION else LOCALIZATION)[name](nothing)


@pytest.mark.parametrize("name", [name for name in LOCALIZATION if name != "rank"])
def test_objectives_for_localization_need_masks(name: str) -> None:
    nothing = ObjectiveContext(None, None, torch.zeros(5, 6, 6), LABELS, None)
    with pytest.raises(PatchGuardError, match="need ground-truth masks"):
        LOCALIZATION[name](nothing)


@pytest.mark.parametrize("settings", [{"k": 0}, {"share": 0.0}, {"share": 1.5}])
def test_settings_out_of_their_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(PatchGuardError, match=r"TopKMean: .* it must be"):
        TopKMean(**settings)
    with pytest.raises(PatchGuardError, match=r"metric is .* 'cosine' or 'l2'"):
        FeatureDistance(random(4, 3), metric="l1")  # type: ignore[arg-type]
    with pytest.raises(PatchGuardError, match=r"RankAware: bandwidth is 0.0; it must be above 0"):
        RankAware(random(5, 6, 6), partial_masks(), bandwidth=0.0)
