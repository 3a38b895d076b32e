"""All checks, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from patchguard.attacks.attack import NotDifferentiable
from patchguard.evaluation.checks import attack, detector, results
from patchguard.evaluation.checks.canaries import canaries
from patchguard.evaluation.checks.context import CheckContext, undisturbed
from patchguard.evaluation.checks.verdict import Verdict
from patchguard.results.schema import Check


@dataclass(frozen=True)
class Registered:
    """A check, and whether it is cheap enough for every suite."""

    id: str
    name: str
    run: Callable[[CheckContext], Verdict]
    quick: bool = False


# Measured with the built-in backbone at 112 px on a busy machine, one thread: the quick checks
# took 18 s, all of them 5 minutes (about 23,000 gradients and 18,000 forward passes).
CHECKS = (
    Registered("S1", "attacked is deployed", detector.parity, quick=True),
    Registered("S2", "gradients are true", detector.gradients, quick=True),
    Registered("S3", "determinism", detector.determinism, quick=True),
    Registered("S4", "batch independence", detector.batch_independence, quick=True),
    Registered("S5", "range of scores", detector.output_range, quick=True),
    Registered("S6", "health of gradients", detector.gradient_health, quick=True),
    Registered("S7", "stability under noise", detector.stability, quick=True),
    Registered("S8", "best and last iterate", attack.silent_success, quick=True),
    Registered("S9", "convergence", attack.convergence, quick=True),
    Registered("S10", "more steps", attack.more_steps),
    Registered("S11", "more restarts", attack.restarts),
    Registered("S12", "step sizes", attack.step_sizes),
    Registered("S13", "larger radii", attack.eps_curve, quick=True),
    Registered("S14", "no limit", attack.unbounded, quick=True),
    Registered("S15", "random noise", attack.random_noise),
    Registered("S16", "attack without gradients", attack.square),
    Registered("S17", "transferred attack", attack.transfer),
    Registered("S18", "universal perturbation", attack.universal),
    Registered("S19", "diversity of objectives", results.loss_diversity, quick=True),
    Registered("S20", "8-bit images", results.quantisation, quick=True),
    Registered("S21", "attack before the resize", results.capture_resolution),
    Registered("S22", "constraints", results.constraint, quick=True),
    Registered("S23", "ties", results.ties, quick=True),
    Registered("S24", "undefended control", results.undefended_control, quick=True),
    Registered("S25", "canaries", canaries, quick=True),
    Registered("S27", "no ground truth", results.label_leakage, quick=True),
    Registered("S28", "statistics and records", results.statistics, quick=True),
    Registered("S29", "masks", results.masks, quick=True),
    Registered("S30", "choice of checkpoint", results.selection, quick=True),
)

QUICK = frozenset(check.id for check in CHECKS if check.quick)
"""What runs in every suite."""

_CUT_OFF = (
    "The scores are cut off from the pixels of the image, so attacks by gradients cannot run and "
    "prove nothing about this detector."
)


def run_checks(
    context: CheckContext,
    *,
    only: Collection[str] | None = None,
    advance: Callable[[float], None] = lambda _: None,
) -> list[Check]:
    """Run checks one after the other; the detector is left as it was.

    A check that raises has failed: what it raises becomes its meaning.

    Args:
        context: the detector and its evaluation.
        only: ids of the checks; by default all in a full check and ``QUICK`` in a quick one.
        advance: called with the fraction of the checks done, in [0, 1].
    """
    if only is None:
        only = {check.id for check in CHECKS} if context.full else QUICK
    wanted = [check for check in CHECKS if check.id in only]
    found = []
    for number, check in enumerate(wanted):
        found.append(_run(check, context))
        advance((number + 1) / len(wanted))
    return found


def _run(check: Registered, context: CheckContext) -> Check:
    try:
        with undisturbed(context):
            verdict = check.run(context)
    except NotDifferentiable:
        verdict = Verdict("FAIL", None, None, _CUT_OFF)
    except Exception as error:  # a foreign detector may raise anything
        cause = " ".join(str(error).split()) or type(error).__name__
        verdict = Verdict("FAIL", None, None, f"The check could not be run: {cause}.")
    return Check(id=check.id, name=check.name, **verdict._asdict())
