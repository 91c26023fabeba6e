"""Progress: a bar where somebody watches, lines in a log, nothing where it is unwanted."""

import io
import sys
import time

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
