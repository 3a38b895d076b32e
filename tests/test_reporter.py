"""Progress and messages: on the terminal of a command, and nowhere of a library."""

import io
import logging

import pytest
from rich.console import Console

from patchguard import reporter
from patchguard.reporter import Silent, Speaking


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(reporter, "time", clock)
    return clock


def test_a_library_prints_nothing_and_its_messages_can_be_heard_in_the_log(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "patchguard"):
        Silent().tell("100 % of it")
    with Silent().progress("tenth") as advance:
        advance("training", 0.5, "  step 3")
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == ["100 % of it"]


def test_where_there_is_no_terminal_each_tenth_is_a_line(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Speaking().progress("tenth") as advance:
        for step in range(41):
            clock.now = 30.0 * step
            advance("training", step / 40, f"  step {step}")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0] == "training 10%  step 4, about 18 min left"
    assert lines[-1] == "training 100%  step 40"


def test_a_resumed_work_is_estimated_from_what_was_done_since(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Speaking().progress("tenth") as advance:
        advance("training", 0.5)
        clock.now = 60.0
        advance("training", 0.6)
    assert capsys.readouterr().out == "training 60%, about 4 min left\n"


def test_a_long_evaluation_says_a_line_a_minute(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Speaking().progress("minute") as advance:
        for second in range(0, 181, 5):
            clock.now = float(second)
            advance("disc: linf attacks", second / 180)
    assert capsys.readouterr().out.splitlines() == [
        "disc: linf attacks 33%, about 2 min left",
        "disc: linf attacks 67%, about 1 min left",
    ]


def test_on_a_terminal_there_is_a_bar_for_each_part(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()

    def console() -> Console:
        return Console(file=shown, force_terminal=True, width=120)

    monkeypatch.setattr("rich.progress.get_console", console)
    with Speaking().progress("tenth") as advance:
        advance("[disc]", 0.25, "  step 3")
        advance("other", 1.0)
    assert "[disc]" in shown.getvalue()
    assert "25.0 %  step 3" in shown.getvalue()
    assert "100.0 %" in shown.getvalue()
