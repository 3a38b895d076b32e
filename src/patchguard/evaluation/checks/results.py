"""S19 to S30: can the numbers of the evaluation be taken at their word?"""

from __future__ import annotations

import inspect
import math

import numpy as np
import torch
from torch import Tensor

from patchguard.attacks.objectives import image_score
from patchguard.attacks.pgd import PGD
from patchguard.attacks.suite import LEGACY
from patchguard.attacks.transfer import Resized
from patchguard.config import parse_eps, parse_size
from patchguard.detector import device_of, to_tensor
from patchguard.evaluation.checks.context import CheckContext, image_auroc
from patchguard.evaluation.checks.verdict import Verdict, at_most, skipped
from patchguard.evaluation.metrics import image_metrics

_ONE_POINT = 0.01
_FLOAT32 = 2e-7
"""What float32 leaves uncertain of the difference between two pixel values in [0, 1]."""

_ROUNDING = {"linf": 1e-6, "l2": 1e-5, "l1": 1e-5, "l0": 0.0, "patch": 1e-4}
"""What it leaves uncertain of the size of a perturbation, as a share of it: sums add up rounding,
pixels are counted, and the share of an area is that of a square of whole pixels."""

_RECORDED = ("weights_sha256", "data_sha256", "versions", "seed")
_FEWEST_IMAGES = 10
_GROUND_TRUTH = ("mask", "label", "target", "truth", "defect")


def loss_diversity(context: CheckContext) -> Verdict:
    """S19: the share of images on which another objective clearly beats the image score."""
    entries = context.attacked_at_eps
    labels = context.test.labels
    plain = [entry.scored.scores for entry in entries if entry.objective == "score"]
    others = {
        entry.attack: entry.scored.scores
        for entry in entries
        if entry.objective not in ("", "score") and entry.kind != LEGACY
    }
    if not plain or not others:
        return skipped("The suite has not both an attack on the score and one on something else.")
    default = np.where(labels, np.min(plain, axis=0), np.max(plain, axis=0))
    shares = {
        name: float(
            np.mean(np.where(labels, default - scores, scores - default) > 0.01 * context.spread)
        )
        for name, scores in others.items()
    }
    winner = max(shares, key=lambda name: shares[name])
    return at_most(
        shares[winner],
        0.2,
        f"Attacks on the score itself find the worst case nearly everywhere{_legacy(context)}.",
        f"{winner} is clearly stronger than attacks on the score on {shares[winner]:.0%} of the "
        "images, so more objectives of its kind may find more still.",
        otherwise="WARN",
    )


def quantisation(context: CheckContext) -> Verdict:
    """S20: the change of the worst-case AUROC when attacked images are stored with 8 bits."""
    worst = context.worst_at_eps
    if worst is not None and worst.norm == "linf":
        clean, attacked = context.test.images, torch.as_tensor(worst.images)
        labels, eps = context.test.labels, parse_eps(worst.eps)
    else:
        clean, attacked = context.batch.images.cpu(), context.reference.found.images.cpu()
        labels, eps = context.batch.labels.cpu().numpy(), context.eps
    stored = eight_bit_check(attacked, clean, eps)
    before = image_auroc(context.scores(attacked), labels)
    after = image_auroc(_deployed(context, stored), labels)
    return at_most(
        abs(after - before),
        _ONE_POINT,
        "Attacked images are as harmful when they are stored with 8 bits per channel.",
        f"Stored with 8 bits per channel the attacked images give an AUROC of {after:.3f} "
        f"instead of {before:.3f}: quote the former for attacks on image files.",
        otherwise="WARN",
    )


def capture_resolution(context: CheckContext) -> Verdict:
    """S21: an attack through the resize, with eps at the resolution of the camera."""
    if context.captured is None or context.deployed is None:
        return skipped("The images before resizing and the deployment path were not given.")
    height, width = context.test.images.shape[-2:]
    if all(image.shape[:2] == (height, width) for image in context.captured):
        return skipped("The images come at the detector's size, so there is no resize to attack.")
    through = Resized(context.detector, (height, width))
    attack = PGD(image_score, steps=20)
    graph, deployed = [], []
    for place, index in enumerate(context.chosen):
        image = to_tensor(context.captured[index])[None].to(device_of(context.detector))
        one = slice(place, place + 1)
        mask = torch.zeros_like(image[:, 0])
        found = attack(
            through,
            image,
            context.batch.labels[one],
            mask,
            eps=[context.eps],
            generator=context.generator(),
        )[0]
        with torch.no_grad():
            graph.append(float(through.eval()(found).score))
        deployed.append(context.deployed(found[0].permute(1, 2, 0).cpu().numpy()))
    labels = context.batch.labels.cpu().numpy()
    attacked, real = image_auroc(np.array(graph), labels), image_auroc(np.array(deployed), labels)
    inside = context.auroc(context.reference.found.values)
    numbers = f"AUROC {real:.3f}, against {inside:.3f} attacked at the detector's size"
    return at_most(
        abs(real - attacked),
        max(_ONE_POINT, context.tolerance),
        f"Attacks on images as the camera takes them survive the resize ({numbers}).",
        f"Attacks on images as the camera takes them score otherwise when deployed ({numbers}): "
        "the resize that is attacked is not the one in operation.",
        otherwise="WARN",
    )


def constraint(context: CheckContext) -> Verdict:
    """S22: by what share of its size a perturbation exceeds it, beyond rounding; NaN counts.

    Leaving the box [0, 1] counts by how far, in pixel space.
    """
    entries = [*context.attacked, *context.others]
    excess = [_excess(entry.norm, entry.eps, entry.largest) for entry in entries]
    scores = [entry.scored.scores for entry in entries]
    norms = [entry.norm for entry in entries]
    for worst in context.worst:
        images = torch.as_tensor(worst.images)
        excess.append(_outside_box(images))
        if worst.norm == "linf":
            largest = float((images - context.test.images).abs().max())
            excess.append(_excess(worst.norm, worst.eps, largest))
        scores.append(worst.scores)
        norms.append(worst.norm)
    if not excess:
        found = context.reference.found
        largest = float((found.images - context.batch.images).abs().max())
        excess = [_outside_box(found.images), _excess("linf", str(context.eps), largest)]
        scores, norms = [found.values.cpu().numpy()], ["linf"]
    finite = all(np.isfinite(each).all() for each in (context.clean_scores, *scores))
    threats = f"the threat{'s' * (len(set(norms)) > 1)} {', '.join(dict.fromkeys(norms))}"
    return at_most(
        float(np.max([0.0, *excess])) if finite else math.nan,
        0.0,
        f"No perturbation of {threats} is larger than stated, the worst images lie in [0, 1] and "
        "all scores are finite.",
        f"Some scores are not finite, a perturbation of {threats} is larger than stated or images "
        "leave [0, 1], so the worst case is not that of the stated threat.",
    )


def ties(context: CheckContext) -> Verdict:
    """S23: how much of the AUROC rests on ties counted as half won."""
    labels = context.test.labels
    found = [context.clean_scores, *(worst.scores for worst in context.worst)]
    gaps = []
    for scores in found:
        metrics = image_metrics(scores, labels)
        gaps.append(metrics.auroc - metrics.auroc_conservative)
    return at_most(
        max(gaps),
        _ONE_POINT,
        "The AUROC does not rest on images with equal scores.",
        "Many images have exactly the same score, and the AUROC counts each such pair as half "
        "won: quote the conservative AUROC.",
    )


def undefended_control(context: CheckContext) -> Verdict:
    """S24: the AUROC of a twin trained without any defence, under the ``quick`` suite."""
    if context.twin_auroc is None:
        return skipped("There is no undefended twin to try the attacks on.")
    return at_most(
        context.twin_auroc,
        0.05,
        "The quick suite breaks an undefended twin completely at the same radius, so attacks of "
        "its kind are strong enough to mean something.",
        "The quick suite does not even break an undefended twin at the same radius, so what "
        "attacks of its kind report of this detector is too kind.",
    )


def label_leakage(context: CheckContext) -> Verdict:
    """S27: are the recorded scores those of the images alone?"""
    asked = list(inspect.signature(context.detector.forward).parameters)
    leaks = [name for name in asked if any(word in name.lower() for word in _GROUND_TRUTH)]
    if leaks:
        return Verdict(
            "FAIL",
            None,
            None,
            f"The detector takes {', '.join(leaks)} beside the images: a deployed detector has "
            "no ground truth.",
        )
    worst = context.worst_at_eps
    if worst is None:
        return skipped("There are no attacked images to score again without their labels.")
    again = context.scores(torch.as_tensor(worst.images))
    value = float(np.abs(again - worst.scores).max())
    rounding = 1e-5 * float(np.abs(worst.scores).max())
    return at_most(
        float(np.maximum(0.0, value - rounding)) / context.spread,
        1e-3,
        "Attacked images get the recorded scores again from their pixels alone, without labels.",
        "Attacked images, scored again from their pixels alone, do not get the scores that were "
        "recorded, so something besides the image or chance plays a part.",
    )


def statistics(context: CheckContext) -> Verdict:
    """S28: what it takes to repeat it all, and images of each class."""
    missing = [name for name in _RECORDED if context.provenance.get(name) is None]
    if missing:
        return Verdict(
            "WARN",
            None,
            None,
            f"Nobody can repeat this evaluation: it does not record {', '.join(missing)}.",
        )
    fewest = int(np.bincount(context.test.labels.astype(int), minlength=2).min())
    enough = fewest >= _FEWEST_IMAGES
    return Verdict(
        "PASS" if enough else "WARN",
        float(fewest),
        float(_FEWEST_IMAGES),
        f"Weights, data, versions and seed are recorded, and each class has at least {fewest} "
        "images."
        if enough
        else f"One class has only {fewest} images: read the intervals, not the numbers.",
    )


def masks(context: CheckContext) -> Verdict:
    """S29: ground truth as it was drawn, present exactly where an image is anomalous."""
    drawn = context.test.masks
    if drawn is None:
        return skipped("There is no ground truth for localization.")
    wrong = [
        mask.dtype != np.bool_ or bool(mask.any()) != bool(label)
        for mask, label in zip(drawn, context.test.labels, strict=True)
    ]
    if any(wrong):
        return Verdict(
            "FAIL",
            float(np.mean(wrong)),
            0.0,
            f"{np.mean(wrong):.0%} of the masks are not binary, are empty for a defect or mark "
            "one in a normal image, so pixel metrics are wrong.",
        )
    protocol = context.provenance.get("mask_protocol")
    if protocol != "native":
        return Verdict(
            "WARN",
            None,
            None,
            f"Masks were used under the protocol {protocol or 'unknown'}, so pixel metrics do "
            "not compare with those at native resolution.",
        )
    return Verdict(
        "PASS", 0.0, 0.0, "Pixel metrics use the ground truth as it was drawn, never resized."
    )


def selection(context: CheckContext) -> Verdict:
    """S30: did the test images have a part in the choice of the checkpoint?"""
    on_test = context.provenance.get("selected_on_test")
    rule = context.provenance.get("selection_rule")
    quoted = f": {rule}" if rule else ""
    if on_test is None:
        return Verdict(
            "WARN",
            None,
            None,
            "It is not recorded whether the checkpoint was chosen on the test images; if it was, "
            "all numbers are too good.",
        )
    if on_test:
        return Verdict(
            "FAIL",
            None,
            None,
            "The checkpoint was chosen on the images it is judged by, so all numbers are too "
            f"good{quoted}.",
        )
    return Verdict(
        "PASS", None, None, f"The checkpoint was chosen without the test images{quoted}."
    )


def eight_bit_check(attacked: Tensor, clean: Tensor, eps: float) -> Tensor:
    """Attacked images at 8 bits per channel, in the ball around the image at 8 bits.

    Args:
        attacked: [N, 3, H, W] in [0, 1].
        clean: the images [N, 3, H, W] they were made from.
        eps: linf radius in pixel space.
    """
    reach = math.floor(255 * eps + 1e-6)
    change = torch.round(255 * attacked) - torch.round(255 * clean)
    return (torch.round(255 * clean) + change.clamp(-reach, reach)) / 255


def _deployed(context: CheckContext, images: Tensor) -> np.ndarray:
    """Scores [N] in deployment if there is one, else of the detector."""
    if context.deployed is None:
        return context.scores(images)
    return np.array([context.deployed(image.permute(1, 2, 0).numpy()) for image in images])


def _excess(norm: str, eps: str, largest: float) -> float:
    """By what share of its size a perturbation exceeds it beyond rounding; NaN for NaN."""
    size = parse_size(norm, eps)
    allowed = _ROUNDING[norm] * size + (_FLOAT32 if norm == "linf" else 0.0)
    return float(np.maximum(0.0, largest - size - allowed)) / size


def _outside_box(images: Tensor) -> float:
    """How far images leave [0, 1] beyond rounding; NaN for a pixel that is."""
    farthest = torch.maximum(-images.min(), images.max() - 1)
    return float((farthest - _FLOAT32).clamp_min(0))


def _legacy(context: CheckContext) -> str:
    """Whether the published attack found the worst case anywhere, in words."""
    worst = context.worst_at_eps
    published = {entry.attack for entry in context.attacked if entry.kind == LEGACY}
    if worst is None or not published or published & set(worst.winners):
        return ""
    return "; the published attack finds it nowhere"
