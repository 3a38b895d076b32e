"""Checks of a detector and its evaluation, S1 to S30: what could make the numbers too good.

S26 is free: it is that of certificates, which no detector carries yet.

After the checklist of Carlini et al. (2019), AutoAttack's own checks (Croce and Hein 2020), the
indicators of attack failure (Pintor et al., NeurIPS 2022) and Tramer et al. (2020).
"""

from patchguard.evaluation.checks.context import CheckContext
from patchguard.evaluation.checks.run import CHECKS, QUICK, run_checks
from patchguard.results.schema import Check

__all__ = ["CHECKS", "QUICK", "Check", "CheckContext", "run_checks"]
