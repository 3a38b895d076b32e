"""S25: the checks, checked on detectors whose flaw is known."""

from __future__ import annotations

from collections.abc import Callable

from patchguard.attacks.apgd import APGD
from patchguard.attacks.objectives import image_score
from patchguard.evaluation.canaries import CANARIES, Linear, specimens, weights
from patchguard.evaluation.checks import detector
from patchguard.evaluation.checks.context import CheckContext, undisturbed
from patchguard.evaluation.checks.verdict import Verdict, at_most

_ALARMS: dict[str, Callable[[CheckContext], Verdict]] = {
    "S2": detector.gradients,
    "S3": detector.determinism,
    "S4": detector.batch_independence,
    "S5": detector.output_range,
    "S7": detector.stability,
}


def canaries(context: CheckContext) -> Verdict:
    """S25: distance from the closed-form worst case, and the flawed detectors not flagged."""
    weight = weights()
    test = specimens(weight)
    sound = CheckContext(Linear(weight), test)
    missed = [name for name, alarm in _ALARMS.items() if _flags(alarm, sound)]
    tried = [name for name, (_, flagged_by) in CANARIES.items() if flagged_by in _ALARMS]
    for name in tried:
        kind, flagged_by = CANARIES[name]
        if not _flags(_ALARMS[flagged_by], CheckContext(kind(weight), test)):
            missed.append(name)
    if missed:
        return Verdict(
            "FAIL",
            float(len(missed)),
            0.0,
            f"The checks are wrong about detectors with known flaws ({', '.join(missed)}), so "
            "their verdict on this one means nothing.",
        )
    return at_most(
        _distance_from_closed_form(sound),
        1e-4,
        "The attack reaches the exact worst case of a linear detector, and the checks flag "
        f"{len(tried)} of {len(tried)} detectors with a known flaw.",
        "The attack misses the exact worst case of a linear detector, so it is broken.",
    )


def _flags(alarm: Callable[[CheckContext], Verdict], context: CheckContext) -> bool:
    try:
        with undisturbed(context):
            return alarm(context).status in ("WARN", "FAIL")
    except Exception:  # raising is how a check finds that there is no gradient
        return True


def _distance_from_closed_form(context: CheckContext) -> float:
    linear, batch = context.detector, context.batch
    assert isinstance(linear, Linear)
    exact = linear.worst_scores(batch.images, batch.labels, context.eps)
    values = context.attempt(APGD(image_score, steps=50)).values
    scores = context.as_scores(values)
    return float((scores - exact).abs().max())
