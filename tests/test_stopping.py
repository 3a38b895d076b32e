"""Signals are the command line's business; the verbs run in any thread."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import patchguard
from patchguard.config import EvaluationConfig, Recipe
from patchguard.results.run_folder import RESUME, read_config
from patchguard.stopping import heeding_stops, request_stop, signals_stop

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request_where_requests_are_heeded_and_an_interrupt_elsewhere(
    number: signal.Signals,
) -> None:
    before = handlers()
    with signals_stop():
        with heeding_stops() as stop:
            assert not stop.asked
            signal.raise_signal(number)
            assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert handlers() == before


def test_a_request_is_not_remembered_for_the_next_training() -> None:
    with heeding_stops():
        request_stop()
    with heeding_stops() as stop:
        assert not stop.asked


def test_handlers_are_left_alone_outside_the_main_thread() -> None:
    def inside() -> list[object]:
        with signals_stop():
            return handlers()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == handlers()


@pytest.mark.usefixtures("few_checks")
def test_fit_evaluate_and_predict_run_in_another_thread_on_a_named_device_and_print_nothing(
    tree: Path,
    tiny_recipe: Recipe,
    tiny_evaluation: EvaluationConfig,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = handlers()

    def work() -> int:
        run = patchguard.fit(
            tree,
            out=tmp_path / "run",
            recipe=tiny_recipe,
            steps=4,
            twin=False,
            false_alarm_rate=0.2,
            evaluation=tiny_evaluation,
            device="cpu",
        )
        patchguard.evaluate(run, tree, evaluation=tiny_evaluation, device="cpu")
        good = tree / "test" / "good"
        found = patchguard.predict(run, good, out=tmp_path / "predictions", device="cpu")
        return len(found)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() == 6
    assert (tmp_path / "run" / "report.html").exists()
    assert handlers() == before
    assert capsys.readouterr() == ("", "")
    recorded = read_config(tmp_path / "run")[1]["device"]
    assert recorded == f"cpu, {torch.get_num_threads()} threads"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process without a signal")
def test_sigterm_saves_the_training_and_exits_with_130(tree: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["--recipe.model.window", "32", "--recipe.model.hidden", "64"]
    length = ["--steps", "100000", "--false_alarm_rate", "0.2", "--out", str(out)]
    command = [sys.executable, "-m", "patchguard", "fit", str(tree), *small, *length]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(1200):
            if list(out.glob("training/csv/*/metrics.csv")) or process.poll() is not None:
                break
            time.sleep(0.1)
        process.terminate()
        _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    assert "add --resume" in error
    assert (out / RESUME).exists()
