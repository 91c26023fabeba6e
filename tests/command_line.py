"""Commands run in this process: what they print, the code that they exit with, their JSON."""

import contextlib
import functools
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from synthaug._cli import main
from synthaug._cli.call import Result

PAGE = Path(__file__).parents[1] / "docs" / "command_line.md"


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def run(*arguments: Any) -> Outcome:
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        main([str(argument) for argument in arguments])
    code = caught.value.code
    assert isinstance(code, int)
    return Outcome(code, out.getvalue(), err.getvalue())


def succeed(*arguments: Any) -> str:
    outcome = run(*arguments)
    assert outcome.code == 0, outcome.err
    return outcome.out


def fail(code: int, *arguments: Any) -> str:
    """The message of a run that must fail with `code`."""
    outcome = run(*arguments)
    assert outcome.code == code, outcome
    found = re.search(
        r"^synthaug: error: (.*)\n\(Set SYNTHAUG_TRACEBACK=1 to see where.\)\n\Z",
        outcome.err,
        re.MULTILINE | re.DOTALL,
    )
    assert found, outcome.err
    assert "Traceback" not in outcome.err
    return found[1]


def spy(function: Any, given: dict[str, Any]) -> Any:
    """Stands in for a command, and notes what it was called with."""

    @functools.wraps(function)
    def called(**values: Any) -> Result:
        given.update(values)
        return Result(record={})

    return called


def answer(*given: Any) -> dict[str, Any]:
    """The JSON that a command prints, alone on standard output."""
    found: dict[str, Any] = json.loads(run(*given, "--json").out)
    return found


def documented() -> dict[str, set[str]]:
    """The keys of each command's result, in the page about the command line."""
    rows = re.findall(r"^\| `([a-z ]+)` \| (`[^|]*`) \|", PAGE.read_text(), re.MULTILINE)
    return {command: set(re.findall(r"`(\w+)`", keys)) for command, keys in rows}


def check_answer(command: str, *options: Any) -> None:
    """Runs a command, whose result must have the documented keys."""
    assert set(answer(*command.split(), *options)["result"]) == documented()[command]
