"""S1 to S7: is the detector one whose gradients and scores can be trusted?"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from patchguard.attacks.attack import NotDifferentiable, attackable
from patchguard.detector import Detection, Detector
from patchguard.evaluation.checks.context import CheckContext
from patchguard.evaluation.checks.verdict import Verdict, at_most, skipped

_SAME = 1e-4
_DOUBLE_ERROR, _SINGLE_ERROR = 1e-3, 5e-2


def parity(context: CheckContext) -> Verdict:
    """S1: the largest difference between the score attacked and the score deployed."""
    if context.deployed is None:
        return skipped("No deployment path was given to compare the attacked detector with.")
    if context.captured is not None:
        shown = [context.captured[index] for index in context.chosen]
        graph = context.scores(context.test.images[torch.from_numpy(context.chosen)])
    else:
        levels = torch.round(255 * context.batch.images.cpu()) / 255
        shown = [image.permute(1, 2, 0).numpy() for image in levels]
        graph = context.scores(levels)
    deployed = np.array([context.deployed(image) for image in shown])
    difference = _difference(torch.from_numpy(deployed), torch.from_numpy(graph))
    return at_most(
        difference / context.spread,
        _SAME,
        "What was attacked is what is deployed: both give the same scores.",
        "The deployed detector gives other scores than the one attacked, so these robustness "
        "numbers are not about what you deploy.",
    )


def gradients(context: CheckContext) -> Verdict:
    """S2: relative error of directional derivatives of score and map, in double precision."""
    copy, exact = _in_double(context)
    limit = _DOUBLE_ERROR if exact else _SINGLE_ERROR
    images = context.batch.images[:: max(1, len(context.batch.images) // 4)]
    points = torch.cat([images, _noisy(context, images, context.eps)]).clamp(0.02, 0.98)
    with attackable(copy):
        error = _error(context, copy, points.double() if exact else points, exact)
    if _DOUBLE_ERROR < error <= _SINGLE_ERROR:
        return Verdict(
            "WARN" if exact else "PASS",
            error,
            limit,
            "Gradients agree with finite differences as far as single precision can tell, which "
            "is enough for attacks.",
        )
    return at_most(
        error,
        limit,
        "Gradients agree with finite differences, so attacks see the true slope of score and map.",
        "Gradients are wrong or cut off, so attacks by gradients prove nothing about this "
        "detector.",
    )


def determinism(context: CheckContext) -> Verdict:
    """S3: do repeated forward passes agree, in the mode in which the detector came?"""
    detector, images = context.detector, context.batch.images
    with torch.no_grad():
        looks = [detector(images) for _ in range(5)]
    value = _disagreement(looks, context)
    left_on = [module for module in detector.modules() if module.training and _depends(module)]
    if not left_on and detector.training:
        with attackable(detector), torch.no_grad():
            settled = detector(images)
        if _disagreement([looks[0], settled], context) > _SAME:
            left_on = [detector]
    if left_on:
        kinds = ", ".join(sorted({type(module).__name__ for module in left_on}))
        return Verdict(
            "FAIL",
            value,
            _SAME,
            f"The detector is in training mode ({kinds}): call eval() before you evaluate or "
            "deploy it.",
        )
    return at_most(
        value,
        _SAME,
        "The same image always gets the same score.",
        "Scores change from one look at an image to the next: average attacks over the "
        "randomness (--evaluation.looks 20) before you believe the robustness.",
        otherwise="WARN",
    )


def batch_independence(context: CheckContext) -> Verdict:
    """S4: is an image scored alike alone, in the batch, and in the batch in another order?"""
    detector, images = context.detector, context.batch.images
    with torch.no_grad():
        whole, again = detector(images), detector(images)
        if _disagreement([whole, again], context) > _SAME:
            return skipped("The detector is random, which hides what a batch does to its scores.")
        reverse = _each(detector(images.flip(0)), lambda part: part.flip(0))
        singles = [detector(image[None]) for image in images]
    alone = Detection(
        torch.cat([single.score for single in singles]),
        torch.cat([single.anomaly_map for single in singles]),
    )
    return at_most(
        _disagreement([whole, alone, reverse], context),
        _SAME,
        "The score of an image does not depend on which images are looked at with it.",
        "The score of an image depends on the other images of its batch, so it means nothing "
        "for a single image in operation and attacks on batches measure something else.",
    )


def output_range(context: CheckContext) -> Verdict:
    """S5: the share of images whose score lies at an end of the range of all scores."""
    found = [context.clean_scores, *(entry.scored.scores for entry in context.attacked)]
    return at_most(
        max(_at_the_ends(scores) for scores in found),
        0.05,
        "Scores are not squashed against an upper or lower end.",
        "Many scores lie at the very end of their range: score by logits instead of "
        "probabilities, since saturated scores hide both rank and gradient.",
    )


def gradient_health(context: CheckContext) -> Verdict:
    """S6: no image without gradient, and gradients that agree between neighbouring points."""
    images = context.batch.images
    here = _gradient(context, images)
    sizes = here.abs().flatten(1).sum(1)
    dead = float((~(sizes.isfinite() & (sizes > 0))).float().mean())
    if dead > 0:
        return Verdict(
            "FAIL",
            dead,
            0.0,
            f"{dead:.0%} of the images have no finite gradient at all, so attacks by gradients "
            "cannot move them and their robustness is unknown.",
        )
    there = [_gradient(context, _noisy(context, images, context.eps)) for _ in range(8)]
    similarity = nn.functional.cosine_similarity
    cosines = [similarity(here.flatten(1), each.flatten(1)) for each in there]
    cosine = float(torch.stack(cosines).mean())
    zeros = float((here == 0).float().mean())
    pixels = f"{zeros:.0%} of its entries are zero"
    if cosine < 0.2:
        return Verdict(
            "WARN",
            cosine,
            0.2,
            f"The gradient turns round within the radius of the attack ({pixels}), a sign of "
            "masked gradients: trust only attacks with many steps and those without gradients.",
        )
    return Verdict(
        "PASS",
        cosine,
        0.2,
        f"Every image has a gradient ({pixels}) and it points the same way nearby, which "
        "attacks need.",
    )


def stability(context: CheckContext) -> Verdict:
    """S7: the mean change of the score under small random noise, as a share of its range."""
    draws = 100 if context.full else 25
    clean = context.scores(context.batch.images)
    changes = [
        np.abs(context.scores(_noisy(context, context.batch.images, 4 / 255)) - clean)
        for _ in range(draws)
    ]
    value = float(np.minimum(np.mean(changes, axis=0) / context.spread, 1).mean())
    return at_most(
        value,
        0.1,
        "Random noise of 4/255 hardly moves the score.",
        "Random noise of 4/255 alone moves the score a lot: the score is rugged, which misleads "
        "attacks and makes verdicts unreliable without any attacker.",
        otherwise="WARN",
    )


def _in_double(context: CheckContext) -> tuple[Detector, bool]:
    """A copy in eval mode, in double precision if it works in that."""
    images = context.batch.images[:1]
    try:
        copy = deepcopy(context.detector).double().eval()
        with torch.no_grad():
            exact = copy(images.double()).score.dtype == torch.float64
    except Exception:  # whatever a foreign detector raises when its precision is changed
        exact = False
    return (copy, True) if exact else (context.detector, False)


def _error(context: CheckContext, detector: Detector, points: Tensor, exact: bool) -> float:
    """Relative error of the derivatives along random directions and along the gradient's sign."""
    weight = torch.randn(points.shape[-2:], device=points.device).to(points)

    def values(images: Tensor) -> list[Tensor]:
        torch.manual_seed(context.seed)  # of a random detector, the same function every time
        score, anomaly_map = detector(images)
        mapped = [] if context.test.masks is None else [(anomaly_map * weight).sum((1, 2))]
        return [score, *mapped]

    random = [torch.randn_like(points).sign() for _ in range(2)]
    gradients = _gradients(values, points)
    # The smallest cross no kink near a point; where derivatives are small only larger ones tell.
    steps = (1e-8, 1e-7, 1e-6, 1e-4) if exact else (1e-3, 3e-3, 1e-2)
    errors = []
    for directions in (random, *([gradient.sign()] for gradient in gradients)):
        claimed = torch.stack(
            [
                torch.stack([(gradient * each).sum((1, 2, 3)) for gradient in gradients])
                for each in directions
            ]
        )
        true = [_differences(values, points, directions, step) for step in steps]
        errors.append(torch.stack([_relative(claimed, each) for each in true]).amin(0))
    per_image = torch.stack(errors).amax((0, 1))
    # Single precision leaves single images with derivatives too small to be measured.
    return float(per_image.amax() if exact else per_image.median())


def _gradients(values: Callable[[Tensor], list[Tensor]], points: Tensor) -> list[Tensor]:
    """Gradients [B, 3, H, W] of each output."""
    images = points.detach().requires_grad_()
    found = values(images)
    if not all(each.requires_grad for each in found):
        raise NotDifferentiable("the detector's outputs carry no gradient")
    return [
        torch.autograd.grad(
            each.sum(), images, retain_graph=True, allow_unused=True, materialize_grads=True
        )[0]
        for each in found
    ]


@torch.no_grad()
def _differences(
    values: Callable[[Tensor], list[Tensor]], points: Tensor, directions: list[Tensor], step: float
) -> Tensor:
    """Central differences [directions, outputs, B]."""
    return torch.stack(
        [
            (torch.stack(values(points + step * each)) - torch.stack(values(points - step * each)))
            / (2 * step)
            for each in directions
        ]
    )


def _relative(claimed: Tensor, true: Tensor) -> Tensor:
    """Relative error [outputs, B] over directions [K, outputs, B]; 0 / 0 counts as wrong."""
    size = torch.maximum(claimed.norm(dim=0), true.norm(dim=0))
    error: Tensor = (claimed - true).norm(dim=0) / size
    return error.nan_to_num(nan=1.0)


def _gradient(context: CheckContext, images: Tensor) -> Tensor:
    """Gradient [B, 3, H, W] of the score."""
    with attackable(context.detector):
        return _gradients(lambda points: [context.detector(points).score], images)[0]


def _noisy(context: CheckContext, images: Tensor, radius: float) -> Tensor:
    noise = torch.empty_like(images).uniform_(-radius, radius)
    return (images + noise).clamp(0, 1)


def _disagreement(looks: list[Detection], context: CheckContext) -> float:
    """The largest difference of scores and of map values from the first look, each relative."""
    first = looks[0]
    map_spread = float(first.anomaly_map.max() - first.anomaly_map.min()) or 1.0
    differences = [
        (
            _difference(look.score, first.score) / context.spread,
            _difference(look.anomaly_map, first.anomaly_map) / map_spread,
        )
        for look in looks[1:]
    ]
    return float(np.max(differences))


def _difference(values: Tensor, expected: Tensor) -> float:
    """The largest absolute difference beyond what float32 arithmetic explains; NaN for a NaN."""
    rounding = 1e-5 * float(expected.abs().max())
    return float(np.maximum(0.0, float((values - expected).abs().max()) - rounding))


def _each(detection: Detection, change: Callable[[Tensor], Tensor]) -> Detection:
    return Detection(change(detection.score), change(detection.anomaly_map))


def _depends(module: nn.Module) -> bool:
    """The module is known to act otherwise in training mode."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0


def _at_the_ends(scores: np.ndarray) -> float:
    """Share of scores at the lowest or highest of all, beyond the two that must lie there."""
    lowest, highest = scores.min(), scores.max()
    margin = 1e-6 * (highest - lowest)
    crowded = np.sum((scores <= lowest + margin) | (scores >= highest - margin))
    return float(max(0, crowded - 2)) / len(scores)
