"""Progress: a bar where somebody watches, lines in a log, nothing where it is unwanted."""

import io
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from synthaug._support import progress
from synthaug._support.progress import Lines, bar, counted


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _no_choice_is_made(monkeypatch):
    for name in ("SYNTHAUG_PROGRESS", "SYNTHAUG_PROGRESS_SECONDS", "RANK"):
        monkeypatch.delenv(name, raising=False)


def logged(monkeypatch, seconds_per_step: float, steps: int = 10, initial: int = 0) -> list[str]:
    """What a job prints that is not watched."""
    now = [0.0]
    stream = io.StringIO()
    monkeypatch.setattr("synthaug._support.progress.time.monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", stream)
    with bar(steps, "train", "step", initial=initial) as shown:
        for _ in range(steps - initial):
            now[0] += seconds_per_step
            shown.set_postfix(loss="0.1")
            shown.update()
    return stream.getvalue().splitlines()


def test_a_log_gets_a_plain_line_every_half_minute_with_rate_and_time_left(monkeypatch):
    assert logged(monkeypatch, 10) == [
        "synthaug: train: 3 of 10 steps (30 %), 0.1 a second, 0:30 so far, 1:10 left, loss 0.1",
        "synthaug: train: 6 of 10 steps (60 %), 0.1 a second, 1:00 so far, 0:40 left, loss 0.1",
        "synthaug: train: 9 of 10 steps (90 %), 0.1 a second, 1:30 so far, 0:10 left, loss 0.1",
        "synthaug: train: 10 of 10 steps (100 %), 0.1 a second, 1:40 so far, loss 0.1",
    ]


def test_what_an_earlier_run_did_counts_as_done_but_not_as_fast(monkeypatch):
    assert logged(monkeypatch, 3600, steps=8, initial=6)[0] == (
        "synthaug: train: 7 of 8 steps (88 %), 0.000278 a second, 1:00:00 so far, 1:00:00 left, "
        "loss 0.1"
    )


def test_a_short_job_leaves_no_trace_in_a_log(monkeypatch):
    assert logged(monkeypatch, 1) == []


def test_the_last_line_comes_once(monkeypatch):
    lines = logged(monkeypatch, 40, steps=2)
    assert [line.split(" (")[0] for line in lines] == [
        "synthaug: train: 1 of 2 steps",
        "synthaug: train: 2 of 2 steps",
    ]


def test_the_time_between_lines_can_be_chosen(monkeypatch):
    monkeypatch.setenv("SYNTHAUG_PROGRESS_SECONDS", "5")
    assert len(logged(monkeypatch, 1)) == 2
    monkeypatch.setenv("SYNTHAUG_PROGRESS_SECONDS", "soon")
    with pytest.raises(ValueError, match=r"SECONDS is 'soon', expected a number"):
        Lines(1, "train", "step")


@pytest.mark.parametrize(
    ("variables", "progress", "drawn"),
    [
        ({}, True, True),
        ({}, False, False),
        ({"SYNTHAUG_PROGRESS": "off"}, True, False),
        ({"RANK": "1"}, True, False),
        ({"RANK": "0"}, True, True),
    ],
)
def test_a_terminal_gets_a_bar_unless_nobody_wants_it_or_another_process_shows_it(
    monkeypatch, variables, progress, drawn
):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert list(counted("abc", bar(3, "read", "image", progress=progress))) == ["a", "b", "c"]
    text = stream.getvalue()
    assert ("3/3" in text, "\r" in text) == (drawn, drawn)


def test_an_unknown_way_of_showing_progress_is_refused(monkeypatch):
    monkeypatch.setenv("SYNTHAUG_PROGRESS", "loud")
    with pytest.raises(ValueError, match="SYNTHAUG_PROGRESS is 'loud', expected one of auto, bar"):
        bar(1, "read", "image")


@pytest.mark.parametrize(
    ("mode", "delay", "shown"),
    [
        ("bar", 0, "draw:   0%|"),
        ("bar", 0.01, "draw:   0%|"),
        ("lines", 0, "draw: 0 of 2 images (0"),
    ],
)
def test_a_job_whose_first_step_takes_long_is_not_silent(monkeypatch, mode, delay, shown):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_TICK", 0.01)
    monkeypatch.setenv("SYNTHAUG_PROGRESS", mode)
    monkeypatch.setenv("SYNTHAUG_PROGRESS_SECONDS", "0.03")
    with bar(2, "draw", "image", delay=delay):
        until = time.monotonic() + 30
        while stream.getvalue().count(shown) < 3 and time.monotonic() < until:
            time.sleep(0.01)
    ended = stream.getvalue()
    assert ended.count(shown) >= 3
    time.sleep(0.05)  # long enough for a tick, if there were one after the end
    assert stream.getvalue() == ended


def ticking_fast(monkeypatch, stream) -> None:
    """Bars on `stream` are drawn again and again."""
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "_TICK", 1e-5)
    monkeypatch.setenv("SYNTHAUG_PROGRESS", "bar")


class SlowTerminal(Terminal):
    """Takes its time, when a bar is drawn between its updates."""

    drawing = threading.Event()

    def write(self, text: str) -> int:
        if threading.current_thread() is not threading.main_thread():
            self.drawing.set()
            time.sleep(0.1)
        return super().write(text)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="This system does not fork.")
def test_a_child_that_is_forked_while_a_bar_is_drawn_can_show_one_of_its_own(monkeypatch):
    stream = SlowTerminal()
    ticking_fast(monkeypatch, stream)
    with bar(2, "outer", "image"):
        assert stream.drawing.wait(30)
        child = os.fork()
        if child == 0:
            signal.alarm(2)  # ends a child that waits for a lock
            with bar(2, "inner", "image"):
                os._exit(0)
        assert os.waitpid(child, 0)[1] == 0


def test_an_error_stands_on_a_line_of_its_own_below_a_bar_that_came_late(monkeypatch):
    stream = Terminal()
    ticking_fast(monkeypatch, stream)
    with bar(2, "draw", "image", delay=2):
        until = time.monotonic() + 30
        while "draw" not in stream.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    assert stream.getvalue().endswith("\n")


@pytest.mark.parametrize("stream", [None, SimpleNamespace(write=len, flush=bool)])
def test_a_job_goes_on_where_nobody_can_be_shown_a_bar(monkeypatch, capsys, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("SYNTHAUG_PROGRESS_SECONDS", "0")
    assert list(counted("ab", bar(2, "read", "image"))) == ["a", "b"]
    assert capsys.readouterr().out == ""


def test_bars_say_which_part_of_a_longer_job_they_are_of(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("SYNTHAUG_PROGRESS_SECONDS", "0")
    with progress.part(2, 9, "setting"), bar(1, "generate", "image") as shown:
        shown.update()
    with bar(1, "generate", "image") as shown:
        shown.update()
    names = [line.split(":")[1].strip() for line in stream.getvalue().splitlines()]
    assert names == ["setting 2 of 9, generate", "generate"]
