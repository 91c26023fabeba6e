"""The parser and the entry point.

Exit codes: 0 done (an audit passed), 1 an audit found copies, 2 wrong arguments or input that does
not fit, 3 an audit is inconclusive, 4 a file is missing, damaged, or cannot be read or written, 70
an error that nobody foresaw, 130 interrupted, 143 asked to end (SIGTERM).
"""

import contextlib
import inspect
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence, Set
from typing import Any

from synthaug._cli._caches import export, forget, import_, info, merge, verify
from synthaug._cli._cascade import cascade
from synthaug._cli._cite import cite
from synthaug._cli._generation import PlanOptions, generate, plan
from synthaug._cli._inversion import invert
from synthaug._cli._judgement import (
    audit,
    demo,
    evaluate,
    evaluate_density,
    evaluate_quality,
)
from synthaug._cli._sweep import sweep
from synthaug._cli._training import train
from synthaug._errors import (
    AuditMismatchError,
    CacheMismatchError,
    CachePendingError,
    CheckpointMismatchError,
    DataMismatchError,
    DivergedError,
    SynthaugError,
)

DOES_NOT_FIT = (
    ValueError,
    ImportError,
    AuditMismatchError,
    CacheMismatchError,
    CachePendingError,
    CheckpointMismatchError,
    DataMismatchError,
    DivergedError,
)
"""Errors that mean exit code 2; the others that we expect mean 4."""


COMMANDS: dict[str, Any] = {
    "demo": demo,
    "train": train,
    "invert": invert,
    "cascade": cascade,
    "plan": plan,
    "generate": generate,
    "audit": audit,
    "evaluate": evaluate,
    "evaluate-density": evaluate_density,
    "evaluate-quality": evaluate_quality,
    "sweep": sweep,
    "cite": cite,
}
CACHE_COMMANDS: dict[str, Any] = {
    "info": info,
    "verify": verify,
    "merge": merge,
    "export": export,
    "import": import_,
    "forget": forget,
}
START_ANEW = {
    "plan",
    "audit",
    "evaluate-density",
    "evaluate-quality",
    "cite",
    "info",
    "verify",
    "export",
}
"""Commands that an interruption sets back to their beginning; others go on where they were."""


def build_parser() -> Any:
    """The parser of the whole command line."""
    from argparse import RawDescriptionHelpFormatter

    from docstring_parser import parse as parse_docstring
    from jsonargparse import ArgumentParser, DefaultHelpFormatter

    class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
        """Keeps the example line of a docstring on a line of its own."""

    def command(function: Any) -> Any:
        parser = ArgumentParser(
            description=(function.__doc__ or "").split("Args:")[0].replace("\n    ", "\n").strip(),
            formatter_class=Formatter,
        )
        parser.add_argument("--config", action="config", help="A YAML file with these arguments.")
        parameters = inspect.signature(function).parameters.values()
        switches = [p.name for p in parameters if isinstance(p.default, bool)]
        files = [p.name for p in parameters if p.annotation == list[str]]
        has_plan = "options" in function.__annotations__
        skip: set[str | int] = {*switches, *files, *(["options"] if has_plan else [])}
        parser.add_function_arguments(function, as_group=False, as_positional=True, skip=skip)
        if has_plan:
            parser.add_class_arguments(PlanOptions, as_group=False)
        texts = {p.arg_name: p.description for p in parse_docstring(function.__doc__ or "").params}
        for name in files:  # as many as there are, where jsonargparse would want a JSON list
            parser.add_argument(name, nargs="+", help=texts[name])
        for name in switches:  # a plain switch, where jsonargparse would want `--name true`
            parser.add_argument(f"--{name}", action="store_true", help=texts[name])
        return parser

    parser = ArgumentParser(
        prog="synthaug",
        description="Synthetic training images, and the audit that says whether they are copies.",
        formatter_class=Formatter,
        version=_version(),
    )
    parser.add_argument("--verbose", "-v", action="store_true", help="Log what is decided.")
    commands = parser.add_subcommands(dest="command")
    for name, function in COMMANDS.items():
        added = commands.add_subcommand(name, command(function), help=_first_line(function))
        added.prog = added.prog.replace("evaluate-", "evaluate ")  # see `words`
    cache = ArgumentParser(description="Look after cache files.", formatter_class=Formatter)
    commands.add_subcommand("cache", cache, help="Look after cache files.")
    actions = cache.add_subcommands(dest="action")
    for name, function in CACHE_COMMANDS.items():
        actions.add_subcommand(name, command(function), help=_first_line(function))
    return parser


def _first_line(function: Any) -> str:
    return (function.__doc__ or "").partition("\n")[0]


def words(given: Sequence[str]) -> list[str]:
    """What the parser gets: `--per_class` for `--per-class`, one word for `evaluate density`.

    As `evaluate` takes arguments of its own, it has no commands below it.
    """
    found = [_underscored(text) for text in given]
    at = next((i for i, word in enumerate(found) if not word.startswith("-")), 0)
    if (name := "-".join(found[at : at + 2])) in ("evaluate-density", "evaluate-quality"):
        found[at : at + 2] = [name]
    return found


def _underscored(text: str) -> str:
    """`--per-class` means `--per_class`."""
    if not text.startswith("--"):
        return text
    name, equals, value = text.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _as_options(message: str, options: Set[str]) -> str:
    """A message that names arguments as in Python, with the options that they are in the shell.

    `per_class` becomes `--per-class`, `channels=3` `--channels 3`, and a switch that is on, such as
    `deduplicate=True`, `--deduplicate`.
    """

    def option(found: re.Match[str]) -> str:
        name, value = found[1], (found[2] or "").strip("'\"")
        if name not in options:
            return found[0]
        text = "--" + name.replace("_", "-")
        if value == "None":
            return f"no `{text}`"
        return f"`{text}`" if value in ("", "True") else f"`{text} {value}`"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", option, message)


def _options(function: Any) -> set[str]:
    """The names of a command's options, as Python knows them."""
    parameters = inspect.signature(function).parameters.values()
    own = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    return own | (
        {*PlanOptions.__dataclass_fields__} if "options" in function.__annotations__ else set()
    )


def _version() -> str:
    from importlib.metadata import version

    return version("synthaug")


class _Terminated(KeyboardInterrupt):
    """What a batch system asks for before it kills: to stop as if Ctrl-C had been pressed."""


def _terminate(*_: Any) -> None:
    raise _Terminated


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `synthaug`."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parsed = build_parser().parse_args(words(given))
    level = logging.INFO if parsed.verbose else logging.WARNING
    logging.basicConfig(level=level, format="synthaug: %(message)s")
    chosen, functions = parsed[parsed.command], COMMANDS
    name = parsed.command
    if name == "cache":
        name, functions = chosen.action, CACHE_COMMANDS
        chosen = chosen[name]
    values = {k: v for k, v in chosen.as_dict().items() if k != "config"}
    function: Any = functions[name]
    if "options" in function.__annotations__:
        own = {k: values.pop(k) for k in PlanOptions.__dataclass_fields__}
        values["options"] = PlanOptions(**own)
    with contextlib.suppress(ValueError):  # signals reach the main thread only
        signal.signal(signal.SIGTERM, _terminate)
    try:
        with warnings.catch_warnings():
            # One line, without the place in the code.
            warnings.showwarning = lambda message, *_: print(
                f"synthaug: {message}", file=sys.stderr
            )
            code = function(**values)
    except (SynthaugError, ValueError, ImportError, OSError) as error:
        if os.environ.get("SYNTHAUG_TRACEBACK"):
            raise
        print(f"synthaug: error: {_as_options(str(error), _options(function))}", file=sys.stderr)
        print("(Set SYNTHAUG_TRACEBACK=1 to see where.)", file=sys.stderr)
        sys.exit(2 if isinstance(error, DOES_NOT_FIT) else 4)
    except KeyboardInterrupt as stop:
        resumes = "" if name in START_ANEW else " What was done is kept; run again to go on."
        print(f"synthaug: stopped.{resumes}", file=sys.stderr)
        sys.exit(143 if isinstance(stop, _Terminated) else 130)
    except Exception:  # Python's own exit code would be 1, which means that copies were found
        traceback.print_exc()
        print("synthaug: this is a fault of synthaug. Please report it.", file=sys.stderr)
        sys.exit(70)
    sys.exit(code or 0)
