"""Commands that are killed lose nothing; ``benchmarks/kills.py`` kills hundreds of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).parents[1] / "benchmarks" / "kills.py"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="it forks")
def test_a_killed_prediction_and_a_killed_fit_can_be_given_again() -> None:
    # A process of its own: one that has computed already cannot be forked safely.
    words = [sys.executable, str(KILLS), "--kills", "2", "--only", "predict", "fit"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
