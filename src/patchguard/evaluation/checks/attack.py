"""S8 to S18: do the attacks find the worst there is?"""

from __future__ import annotations

from copy import deepcopy
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from patchguard.attacks.apgd import APGD
from patchguard.attacks.attack import Attack, attackable, uniform
from patchguard.attacks.objectives import PixelMap, image_score
from patchguard.attacks.pgd import PGD
from patchguard.attacks.queries import RandomNoise
from patchguard.attacks.square import Square
from patchguard.config import parse_eps
from patchguard.detector import Detector
from patchguard.evaluation.checks.context import (
    GRADIENTLESS,
    Attempt,
    Batch,
    CheckContext,
    Recorder,
    attack_kind,
    auroc,
)
from patchguard.evaluation.checks.verdict import Verdict, at_most, skipped
from patchguard.evaluation.metrics import pixel_metrics

_CLEARLY = 0.01
"""A difference of scores counts from this share of their range on."""


def silent_success(context: CheckContext) -> Verdict:
    """S8: how much worse the last iterate is than the best one, and is the best one kept?"""
    best = context.reference.trace.amax(0)
    kept = float(((best - context.reference.found.values) / context.spread).amax())
    if kept > _CLEARLY:
        return Verdict(
            "FAIL",
            kept,
            _CLEARLY,
            "The best image that the attack found no longer gets the score it was chosen for, so "
            "the worst case is understated: the scores are random or depend on the batch.",
        )
    return at_most(
        float((best - context.reference.trace[-1]).mean()) / context.spread,
        _CLEARLY,
        "The attack ends at the best image it found, so nothing is lost by when it stops.",
        "The attack passes better images than the one it ends at: results by the last iterate, "
        "as in much published work, would flatter this detector.",
        otherwise="WARN",
    )


def convergence(context: CheckContext) -> Verdict:
    """S9: progress of the running best over the last 10 steps, and what twice the steps find."""
    running = context.reference.trace.cummax(0).values
    gained = running[-1] - running[-min(11, len(running))]
    progress = gained / (running[-1] - running[0]).clamp_min(1e-12)
    settled = at_most(
        float(progress.mean()),
        0.05,
        "The attack has converged: its last 10 steps gain next to nothing.",
        "The attack was still gaining when it stopped: give it more steps before you trust the "
        "worst case.",
        otherwise="WARN",
    )
    if settled.status != "PASS" or not context.full:
        return settled
    longer = context.attempt(APGD(image_score, steps=2 * len(context.reference.trace)))
    gain = context.auroc(context.reference.found.values) - context.auroc(longer.values)
    if gain > context.tolerance:
        return Verdict(
            "WARN",
            gain,
            context.tolerance,
            "Twice the steps lower the AUROC further: give the attacks more steps.",
        )
    return settled


def more_steps(context: CheckContext) -> Verdict:
    """S10: the AUROC must not rise from FGSM to PGD-10, APGD-100 and APGD-300."""
    found = [
        context.attempt(PGD(image_score, steps=1, start=0, step_size=1.0)),
        context.attempt(PGD(image_score, steps=10)),
        context.reference.found,
        context.attempt(APGD(image_score, steps=3 * len(context.reference.trace))),
    ]
    curve = [context.auroc(attempt.values) for attempt in found]
    shown = ", ".join(f"{value:.3f}" for value in curve)
    return at_most(
        max(after - before for before, after in pairwise(curve)),
        context.tolerance,
        f"Attacks with more steps are at least as strong (AUROC {shown}).",
        f"An attack with more steps is weaker (AUROC {shown}), which only misleading gradients "
        "explain: the robustness is not real.",
    )


def restarts(context: CheckContext) -> Verdict:
    """S11: what restarts 6 to 10 add to the first 5."""
    recorder, steps = Recorder(), 20
    attack = PGD(recorder, judge=image_score, steps=steps, starts=[uniform] * 10)
    context.attempt(attack)
    trace = torch.stack(recorder.values)
    curve = [context.auroc(trace[: steps * count].amax(0)) for count in (1, 5, 10)]
    shown = ", ".join(f"{value:.3f}" for value in curve)
    return at_most(
        curve[1] - curve[2],
        context.tolerance,
        f"More random restarts change nothing (AUROC {shown} with 1, 5, 10).",
        f"More random restarts keep lowering the AUROC ({shown} with 1, 5, 10): the worst case "
        "is understated.",
        otherwise="WARN",
    )


def step_sizes(context: CheckContext) -> Verdict:
    """S12: how far PGD with the best of five step sizes gets below APGD."""
    adaptive = context.auroc(context.reference.found.values)
    swept = [
        context.auroc(context.attempt(PGD(image_score, steps=40, step_size=2.5 * factor)).values)
        for factor in (0.1, 0.25, 0.5, 1, 2)
    ]
    return at_most(
        adaptive - min(swept),
        context.tolerance,
        "No step size of PGD does better than the adaptive attack.",
        "PGD with another step size beats the adaptive attack, so the worst case is understated: "
        "add it to the suite.",
        otherwise="WARN",
    )


def eps_curve(context: CheckContext) -> Verdict:
    """S13: the largest rise of the AUROC from one radius to the next."""
    curve = _curve(context)
    if len(curve) < 2:
        return skipped("No attacked results at any radius to draw a curve from.")
    shown = ", ".join(f"{value:.3f}" for value in curve)
    return at_most(
        max(after - before for before, after in pairwise(curve)),
        1e-9,
        f"The AUROC never rises with the radius of the attack ({shown}).",
        f"The AUROC rises with the radius ({shown}) although a larger ball holds the smaller "
        "one: the attacks are too weak there.",
    )


def unbounded(context: CheckContext) -> Verdict:
    """S14: without a limit on the perturbation every image must reach the other side."""
    value = context.auroc(context.attempt(APGD(image_score, steps=50), eps=1.0).values)
    maps = _unbounded_maps(context) if context.full and context.test.masks is not None else 0.0
    if value <= 0 and maps > 0.05:
        return Verdict(
            "FAIL",
            maps,
            0.05,
            "Even without any limit the attack cannot turn the anomaly maps round, so its "
            "results on localization mean nothing.",
        )
    broken = _broken_at(context)
    return at_most(
        value,
        0.0,
        "Without a limit on the perturbation the attack turns every pair round, as it must"
        f"{broken}.",
        "Even without any limit the attack cannot turn every pair of images round, so its "
        "failure at small radii says nothing about robustness.",
    )


def noise(context: CheckContext) -> Verdict:
    """S15: share of images on which random noise beats gradients."""
    return _against_gradients(
        context, "noise", RandomNoise(image_score, draws=500), 0.01, "Random noise"
    )


def square(context: CheckContext) -> Verdict:
    """S16: share of images on which Square beats gradients."""
    return _against_gradients(
        context, "square", Square(image_score, queries=500), 0.002, "An attack without gradients"
    )


def transfer(context: CheckContext) -> Verdict:
    """S17: how far attacks made on another detector get below those on this one."""
    found = _from_results(context, "transfer")
    if found is None and context.full and any(True for _ in context.detector.parameters()):
        attack = PGD(image_score, steps=20)
        values = context.attempt(attack, on=_neighbour(context)).values
        found = context.auroc(context.reference.found.values) - context.auroc(values)
    if found is None:
        return skipped("No attack was transferred from another detector.")
    return at_most(
        found,
        context.tolerance,
        "Attacks made on another detector are no stronger than those made on this one.",
        "Attacks made on another detector are stronger than those that see this one's gradients, "
        "a sure sign of masked gradients.",
    )


def universal(context: CheckContext) -> Verdict:
    """S18: how far one perturbation for all images gets below one for each."""
    found = _from_results(context, "universal")
    if found is None and context.full:
        values = _universal(context).values
        found = context.auroc(context.reference.found.values) - context.auroc(values)
    if found is None:
        return skipped("No perturbation common to all images was tried.")
    return at_most(
        found,
        context.tolerance,
        "One perturbation for all images is no stronger than one made for each.",
        "One perturbation for all images is stronger than one made for each, so the attacks on "
        "single images are too weak.",
    )


def _curve(context: CheckContext) -> list[float]:
    """Image AUROC at eps 0 and at each radius evaluated, ascending."""
    labels = context.test.labels
    scores = {parse_eps(worst.eps): worst.scores for worst in context.worst}
    if not scores:
        for radius in {entry.eps for entry in context.attacked}:
            found = [entry.scored.scores for entry in context.attacked if entry.eps == radius]
            scores[parse_eps(radius)] = _worst_scores(found, labels)
    if not scores:
        return []
    ascending = [scores[radius] for radius in sorted(scores)]
    return [auroc(each, labels) for each in (context.clean_scores, *ascending)]


def _worst_scores(found: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    worst: np.ndarray = np.where(labels, np.min(found, axis=0), np.max(found, axis=0))
    return worst


def _broken_at(context: CheckContext) -> str:
    """The smallest radius evaluated at which the ranking is no better than chance, in words."""
    labels = context.test.labels
    broken = [
        worst.eps
        for worst in sorted(context.worst, key=lambda worst: parse_eps(worst.eps))
        if auroc(worst.scores, labels) <= 0.5
    ]
    return f"; its ranking falls to chance at eps {broken[0]}" if broken else ""


def _unbounded_maps(context: CheckContext) -> float:
    """Pooled pixel AUROC, at the detector's size, after an attack without limit."""
    masks = context.batch.masks
    attack = APGD(PixelMap(float(masks.mean())), steps=50)
    images = context.attempt(attack, eps=1.0).images
    with attackable(context.detector), torch.no_grad():
        maps = context.detector(images).anomaly_map.float().cpu().numpy()
    return pixel_metrics(list(maps), list((masks > 0.5).cpu().numpy())).auroc


def _against_gradients(
    context: CheckContext, kind: str, attack: Attack, limit: float, subject: str
) -> Verdict:
    """The share of images on which an attack without gradients clearly beats those with."""
    share = _share_beaten(context, kind)
    if share is None and context.full:
        gain = context.attempt(attack).values - context.reference.found.values
        share = float((gain / context.spread > _CLEARLY).float().mean())
    if share is None:
        return skipped(f"{subject} was not tried; a full check does.")
    return at_most(
        share,
        limit,
        f"{subject} never does better than attacks by gradients.",
        f"{subject} does better than attacks by gradients on {share:.0%} of the images, so the "
        "gradients mislead and the robustness is not real.",
    )


def _sides(context: CheckContext, kind: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Scores at ``eps`` of the attacks of one kind, and of those by gradients."""
    entries = context.attacked_at_eps
    ours = [entry.scored.scores for entry in entries if attack_kind(entry.attack) == kind]
    gradient = [
        entry.scored.scores
        for entry in entries
        if attack_kind(entry.attack) not in (*GRADIENTLESS, "legacy")
    ]
    return ours, gradient


def _share_beaten(context: CheckContext, kind: str) -> float | None:
    """Share of all images that this kind of attack drives clearly further; None without results."""
    ours, gradient = _sides(context, kind)
    if not ours or not gradient:
        return None
    labels = context.test.labels
    gain = _worst_scores(ours, labels) - _worst_scores([context.clean_scores, *gradient], labels)
    return float(np.mean(np.where(labels, -gain, gain) / context.spread > _CLEARLY))


def _from_results(context: CheckContext, kind: str) -> float | None:
    """How far the AUROC under this kind lies below that under attacks by gradients."""
    ours, gradient = _sides(context, kind)
    if not ours or not gradient:
        return None
    labels = context.test.labels
    sides = [auroc(_worst_scores(each, labels), labels) for each in (gradient, ours)]
    return sides[0] - sides[1]


def _neighbour(context: CheckContext) -> Detector:
    """A detector near this one: each weight changed at random by a tenth of its layer's spread."""
    copy = deepcopy(context.detector)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.std(correction=0))
    return copy


def _universal(context: CheckContext) -> Attempt:
    """One perturbation for each class, made on all chosen images of it by their mean gradient."""
    batch, recorded = context.batch, []
    for label in (False, True):
        members = batch.labels == label
        part = Batch(batch.images[members], batch.labels[members], batch.masks[members])
        recorded.append(context.attempt(_Shared(image_score, steps=20), batch=part))
    return Attempt(
        torch.cat([each.images for each in recorded]), torch.cat([each.values for each in recorded])
    )


class _Shared(PGD):
    """PGD on the mean over the batch: the same step for all images."""

    def random_start(self, images: Tensor, eps: float, generator: torch.Generator | None) -> Tensor:
        return images

    def normalise(self, gradient: Tensor, attacked: Tensor, stride: float | Tensor) -> Tensor:
        shared = gradient.mean(0, keepdim=True).expand_as(gradient)
        return super().normalise(shared, attacked, stride)
