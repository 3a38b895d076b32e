"""S8 to S18: do the attacks find the worst there is?"""

from __future__ import annotations

import math
from copy import deepcopy
from itertools import pairwise

import numpy as np
import torch

from patchguard.attacks.apgd import APGD
from patchguard.attacks.attack import Attack, attackable, uniform
from patchguard.attacks.objectives import PixelMap, image_score
from patchguard.attacks.objectives.registry import DETECTION
from patchguard.attacks.pgd import PGD
from patchguard.attacks.queries import RandomNoise
from patchguard.attacks.square import Square
from patchguard.attacks.universal import UniversalPerturbation
from patchguard.config import parse_eps
from patchguard.detector import Detector
from patchguard.evaluation.checks.context import GRADIENT, CheckContext, Recorder, image_auroc
from patchguard.evaluation.checks.verdict import Verdict, at_most, skipped
from patchguard.evaluation.metrics import pixel_metrics
from patchguard.evaluation.worst_case import worst_scores

_CLEARLY = 0.01
"""A difference of scores counts from this share of their range on."""

_BY_CHANCE, _WEAK = 1 / 8, 1 / 4
"""Shares of images that a sound suite may miss the worst of, and that only a weak one misses."""

_HALF_A_POINT = 0.005
"""A rise of the AUROC on the whole test set counts from here on."""


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
    """S9: do the checks' own attack, its last 10 steps or twice its steps find anything worse?

    The share of images that the own attack drives clearly further than the whole suite, or how far
    the AUROC under it lies below the suite's worst case; then the attack's own convergence.
    """
    suite = _suite(context)
    if suite.status == "FAIL":
        return suite
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
    if settled.status != "PASS":
        return settled
    if suite.status == "WARN" or not context.full:
        return settled if suite.status == "SKIP" else suite
    longer = context.attempt(APGD(image_score, steps=2 * len(context.reference.trace)))
    gain = context.auroc(context.reference.found.values) - context.auroc(longer.values)
    if gain > context.tolerance:
        return Verdict(
            "WARN",
            gain,
            context.tolerance,
            "Twice the steps lower the AUROC further: give the attacks more steps.",
        )
    return settled if suite.status == "SKIP" else suite


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
    """S13: the largest rise of the AUROC from one radius to the next, under fresh attacks.

    The worst case of a suite never rises, since what is found in a small ball is carried along to
    larger ones. So each radius gets an attack of its own that knows nothing of the others.
    """
    multiples, steps = ((1 / 4, 1 / 2, 1, 2, 4, 8), 50) if context.full else ((1 / 2, 1, 2), 20)
    attack = APGD(image_score, steps=steps)
    found = [context.attempt(attack, eps=context.eps * each).values for each in multiples]
    curve = [context.auroc(values) for values in found]
    shown = ", ".join(f"{value:.3f}" for value in curve)
    rise = max(after - before for before, after in pairwise(curve))
    lost = max(float((before - after).mean()) for before, after in pairwise(found))
    lost /= _range(context, context.as_scores(torch.stack(found)).cpu().numpy())
    if rise > context.tolerance:
        return Verdict(
            "FAIL",
            rise,
            context.tolerance,
            f"The AUROC rises with the radius ({shown}) although a larger ball holds the smaller "
            "one, so the gradients mislead and the robustness is not real.",
        )
    if lost > _CLEARLY:
        return Verdict(
            "FAIL",
            lost,
            _CLEARLY,
            "Attacks move the scores less in a larger ball although it holds the smaller one, so "
            "the gradients mislead and the robustness is not real.",
        )
    if rises := _rising_members(context):
        name = max(rises, key=lambda name: rises[name])
        return Verdict(
            "WARN",
            rises[name],
            _HALF_A_POINT,
            f"The AUROC under {name} rises with the radius although a larger ball holds the "
            "smaller one, so that attack is too weak there.",
        )
    return Verdict(
        "PASS",
        max(0.0, rise),
        context.tolerance,
        f"Attacks made anew at each radius are never weaker in a larger ball (AUROC {shown}).",
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


def random_noise(context: CheckContext) -> Verdict:
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
        values = context.attempt(UniversalPerturbation(image_score, steps=20)).values
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


def _suite(context: CheckContext) -> Verdict:
    """Does the suite get as far as the checks' own attack on the images chosen?"""
    worst = context.worst_at_eps
    if worst is None or not math.isclose(parse_eps(worst.eps), context.eps, rel_tol=1e-6):
        return skipped("There is no worst case at the radius at which the checks attack.")
    own = context.reference.found.values
    reached = context.as_scores(torch.from_numpy(worst.scores[context.chosen]).to(own.device))
    gap = context.auroc(reached) - context.auroc(own)
    gain = (own - reached) / _range(context, worst.scores)
    share = float((gain > _CLEARLY).float().mean())
    steps = len(context.reference.trace)
    if gap > context.tolerance:
        return Verdict(
            "FAIL",
            gap,
            context.tolerance,
            f"A single attack of {steps} steps gets an AUROC lower by {gap:.3f} than the worst "
            "case of the whole suite on the same images: the suite is too weak for its numbers to "
            "mean anything.",
        )
    return at_most(
        share,
        _BY_CHANCE,
        f"The suite finds what a single attack of {steps} steps finds, and that attack has "
        "converged.",
        f"A single attack of {steps} steps finds clearly worse than the whole suite on "
        f"{share:.0%} of the images tried: the suite is too weak, give it more attacks and steps.",
        otherwise="FAIL" if share > _WEAK else "WARN",
    )


def _range(context: CheckContext, attacked: np.ndarray) -> float:
    """The range of clean or of attacked scores, whichever is wider.

    Where attacks move scores far, chance moves them by more than a share of the clean range.
    """
    return max(context.spread, float(np.ptp(attacked)))


def _rising_members(context: CheckContext) -> dict[str, float]:
    """By attack on the score, how far its AUROC rises from one radius to the next; rises only."""
    curves: dict[str, dict[float, float]] = {}
    for entry in context.attacked:
        if entry.kind in GRADIENT and entry.objective in DETECTION:
            value = image_auroc(entry.scored.scores, context.test.labels)
            curves.setdefault(entry.attack, {})[parse_eps(entry.eps)] = value
    rises = {
        name: max(
            (curve[after] - curve[before] for before, after in pairwise(sorted(curve))), default=0.0
        )
        for name, curve in curves.items()
    }
    return {name: rise for name, rise in rises.items() if rise > _HALF_A_POINT}


def _worst_scores(found: list[np.ndarray], labels: np.ndarray) -> np.ndarray:
    return worst_scores(np.stack(found), labels)[0]


def _broken_at(context: CheckContext) -> str:
    """The smallest radius evaluated at which the ranking is no better than chance, in words."""
    labels = context.test.labels
    broken = [
        worst.eps
        for worst in sorted(context.worst, key=lambda worst: parse_eps(worst.eps))
        if image_auroc(worst.scores, labels) <= 0.5
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
    ours = [entry.scored.scores for entry in entries if entry.kind == kind]
    gradient = [entry.scored.scores for entry in entries if entry.kind in GRADIENT]
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
    sides = [image_auroc(_worst_scores(each, labels), labels) for each in (gradient, ours)]
    return sides[0] - sides[1]


def _neighbour(context: CheckContext) -> Detector:
    """A detector near this one: each weight changed at random by a tenth of its layer's spread."""
    copy = deepcopy(context.detector)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) * parameter.std(correction=0))
    return copy
