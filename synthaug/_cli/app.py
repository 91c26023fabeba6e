"""The parser and the entry point.

Exit codes: 0 done (an audit passed), 1 an audit found copies, 2 wrong arguments or input that does
not fit, 3 an audit is inconclusive, 4 a file is missing, damaged, or cannot be read or written, or
workers of a cluster failed, 70 an error that nobody foresaw, 130 interrupted, 143 asked to end
(SIGTERM).
"""

import contextlib
import json
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from typing import Any

from synthaug._cli.caches import export, forget, import_, info, merge, verify
from synthaug._cli.call import Call, Result
from synthaug._cli.cascade import cascade
from synthaug._cli.cite import cite
from synthaug._cli.demo import demo
from synthaug._cli.generation import generate, plan
from synthaug._cli.inversion import invert
from synthaug._cli.judgement import (
    audit,
    evaluate,
    evaluate_density,
    evaluate_labels,
    evaluate_quality,
)
from synthaug._cli.sweep import sweep
from synthaug._cli.training import train
from synthaug.errors import (
    CachePendingError,
    DivergedError,
    MismatchError,
    SynthaugError,
)

DOES_NOT_FIT = (
    ValueError,
    ImportError,
    MismatchError,
    CachePendingError,
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
    "evaluate-labels": evaluate_labels,
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
    "evaluate-labels",
    "evaluate-quality",
    "cite",
    "info",
    "verify",
    "export",
}
"""Commands that an interruption sets back to their beginning; others go on where they were."""


def build_parser() -> Any:
    """The parser of the whole command line."""
    from synthaug._cli.parser import Formatter, Parser, command_parser

    def add(commands: Any, name: str, function: Any, above: str = "synthaug") -> None:
        parser, shown = command_parser(function), name.replace("evaluate-", "evaluate ")
        commands.add_subcommand(name, parser, help=_first_line(function))
        commands._choices_actions[-1].metavar = shown
        parser.prog = f"{above} {shown}"
        parser.usage = " ".join([parser.prog, *_metavars(parser), "[options]"])

    top = Parser(
        prog="synthaug",
        usage="synthaug COMMAND ... [options]",
        description="Synthetic training images, and the audit that says whether they are copies.",
        formatter_class=Formatter,
        version=_version(),
        allow_abbrev=False,
    )
    commands = top.add_subcommands(dest="command", metavar="COMMAND")
    for name, function in COMMANDS.items():
        add(commands, name, function)
    cache = Parser(description="Look after cache files.", formatter_class=Formatter)
    commands.add_subcommand("cache", cache, help="Look after cache files.")
    cache.prog, cache.usage = "synthaug cache", "synthaug cache COMMAND ... [options]"
    actions = cache.add_subcommands(dest="action", metavar="COMMAND")
    for name, function in CACHE_COMMANDS.items():
        add(actions, name, function, above="synthaug cache")
    return top


def _metavars(parser: Any) -> list[str]:
    """The arguments by position, as the usage shows them."""
    placed = [action for action in parser._actions if not action.option_strings]
    return [f"{a.metavar} ..." if a.nargs == "+" else a.metavar for a in placed]


def _first_line(function: Any) -> str:
    return (function.__doc__ or "").partition("\n")[0]


def words(given: Sequence[str]) -> list[str]:
    """What the parser gets: one order and one spelling of what may be written in several.

    - `--per_class` means `--per-class`, and `1.0,1.5` means `[1.0, 1.5]` where numbers are taken;
      where lists alone are taken, `1.0` means `[1.0]`;
    - `evaluate density` becomes one word: as `evaluate` takes arguments of its own, it has no
      commands below it;
    - `--json`, `--verbose`, `--quiet` may stand before the command;
    - `--config` comes first, so that the command line counts more, wherever it stands.
    """
    from synthaug._cli.parser import (
        SHARED,
        arguments,
        check_config,
        takes_lists_alone,
        takes_numbers,
    )

    found = [_dashed(text) for text in given]
    at = next((i for i, word in enumerate(found) if not word.startswith("-")), len(found))
    found, before = found[at:], found[:at]
    if before and set(before) - {"-v", "--verbose", "-q", "--quiet", "--json"}:
        return [*before, *found]  # --help, --version, or a mistake
    if (name := "-".join(found[:2])) in COMMANDS:
        found[:2] = [name]
    depth = 2 if found[:1] == ["cache"] else 1
    command, rest = found[:depth], found[depth:]
    functions = CACHE_COMMANDS if depth == 2 else COMMANDS
    if not command or command[-1] not in functions:
        return [*found, *before]
    known = list(arguments(functions[command[-1]]))
    listed = {
        "--" + one.name.replace("_", "-"): takes_lists_alone(one.type)
        for one in known
        if takes_numbers(one.type)
    }
    config: list[str] = []
    others: list[str] = []
    for word in (words_left := iter(rest)):
        option, equals, value = word.partition("=")
        if option == "--config" and (file := value if equals else next(words_left, None)):
            program = " ".join(["synthaug", *command]).replace("evaluate-", "evaluate ")
            check_config(file, [*(one.name for one in known), *SHARED], program)
            config.append(f"--config={file}")
        elif option in listed:
            text = value if equals else next(words_left, None)
            others += (
                [option] if text is None else [f"{option}={_listed(text, alone=listed[option])}"]
            )
        else:
            others.append(word)
    return [*command, *config, *others, *before]


def _dashed(text: str) -> str:
    """`--per_class` means `--per-class`."""
    if not text.startswith("--"):
        return text
    name, equals, value = text.partition("=")
    return name.replace("_", "-") + equals + value


def _listed(text: str, *, alone: bool) -> str:
    number, more = r"\s*[-+]?[\d.]+(e[-+]?\d+)?\s*", "*" if alone else "+"
    found = re.fullmatch(rf"{number}(,{number}){more}", text, re.IGNORECASE)
    return f"[{text}]" if found else text


def _as_options(message: str, options: Set[str]) -> str:
    """A message that names arguments as in Python, with the options that they are in the shell.

    `per_class` becomes `--per-class`, `channels=3` `--channels 3`, and a switch that is on, such as
    `deduplicate=True`, `--deduplicate`.
    """

    def option(found: re.Match[str]) -> str:
        name, value = found[1], (found[2] or "").strip("'\"")
        name = {"dtype": "precision", "with_sources": "source"}.get(name, name)
        if name not in options:
            return found[0]
        text = "--" + name.replace("_", "-")
        if value == "None":
            return f"no `{text}`"
        return f"`{text}`" if value in ("", "True") else f"`{text} {value}`"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", option, message)


def _options(function: Any) -> set[str]:
    """The names of a command's options, as Python knows them."""
    from synthaug._cli.parser import arguments

    return {argument.name for argument in arguments(function) if not argument.positional}


def _version() -> str:
    from importlib.metadata import version

    return version("synthaug")


class _Terminated(KeyboardInterrupt):
    """What a batch system asks for before it kills: to stop as if Ctrl-C had been pressed."""


def _terminate(*_: Any) -> None:
    raise _Terminated


_QUIET = {"SYNTHAUG_PROGRESS": "off", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""What hides our progress bars, and those of transformers and the hub."""


@contextlib.contextmanager
def _heard(*, verbose: bool, quiet: bool) -> Iterator[None]:
    """Log and warnings as single lines on standard error; no progress if it is to be quiet."""
    logger = logging.getLogger("synthaug")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("synthaug: %(message)s"))
    level, before = logger.level, {name: os.environ.get(name) for name in _QUIET}
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose and not quiet else logging.WARNING)
    if quiet:  # in the environment, so that worker processes know
        os.environ.update(_QUIET)
    try:
        with warnings.catch_warnings():
            # One line, without the place in the code.
            warnings.showwarning = lambda message, *_: print(
                f"synthaug: {message}", file=sys.stderr
            )
            yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        for name, value in before.items():
            if value is not None:
                os.environ[name] = value
            elif quiet:
                del os.environ[name]


@dataclass(frozen=True)
class _Request:
    """A command line that was understood."""

    name: str
    function: Any
    values: dict[str, Any]
    """The arguments of the function."""
    call: Call
    shared: dict[str, Any]
    """Options of every command."""


def _understood(given: Sequence[str]) -> _Request:
    """Parses a command line; ends the process if it makes no sense."""
    from synthaug._cli.parser import SHARED, arguments, bound

    parsed = build_parser().parse_args(words(given))
    name, chosen, functions = parsed.command, parsed[parsed.command], COMMANDS
    shown = name.replace("evaluate-", "evaluate ")
    if name == "cache":
        name, functions = chosen.action, CACHE_COMMANDS
        chosen, shown = chosen[name], f"cache {name}"
    values = chosen.as_dict()
    shared = {option: values.pop(option) for option in SHARED}
    known = sorted(arguments(functions[name]), key=lambda one: not one.positional)
    positional = {one.name for one in known if one.positional}
    call = Call(shown, {one.name: values[one.name] for one in known}, positional)
    return _Request(name, functions[name], bound(functions[name], values, call), call, shared)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command `synthaug`."""
    request = _understood(sys.argv[1:] if arguments is None else arguments)
    shared, call = request.shared, request.call
    if shared["print_config"]:
        print(_config(call), end="")
        sys.exit(0)
    with contextlib.suppress(ValueError):  # signals reach the main thread only
        signal.signal(signal.SIGTERM, _terminate)
    output = sys.stderr if shared["json"] else sys.stdout
    try:
        with (
            _heard(verbose=shared["verbose"], quiet=shared["quiet"]),
            contextlib.redirect_stdout(output),
        ):
            logging.getLogger("synthaug").info("%s", call.line)
            result = request.function(**request.values)
        _answer(result, call, as_json=shared["json"])
    except (SynthaugError, ValueError, ImportError, OSError) as error:
        if os.environ.get("SYNTHAUG_TRACEBACK"):
            raise
        message = _as_options(str(error), _options(request.function))
        print(f"synthaug: error: {message}", file=sys.stderr)
        print("(Set SYNTHAUG_TRACEBACK=1 to see where.)", file=sys.stderr)
        sys.exit(2 if isinstance(error, DOES_NOT_FIT) else 4)
    except KeyboardInterrupt as stop:
        resumes = (
            "" if request.name in START_ANEW else " What was done is kept; run again to go on."
        )
        print(f"synthaug: stopped.{resumes}", file=sys.stderr)
        sys.exit(143 if isinstance(stop, _Terminated) else 130)
    except Exception:  # Python's own exit code would be 1, which means that copies were found
        traceback.print_exc()
        print("synthaug: this is a fault of synthaug. Please report it.", file=sys.stderr)
        sys.exit(70)
    sys.exit(result.code)


def _config(call: Call) -> str:
    """The call as a configuration file."""
    import yaml

    settings = yaml.safe_dump(call.settings, sort_keys=False, allow_unicode=True)
    return f"# synthaug {call.command} --config THIS_FILE\n{settings}"


def _answer(result: Result, call: Call, *, as_json: bool) -> None:
    """Prints the result, in one of the processes if there are several."""
    if os.environ.get("RANK", "0") != "0":
        return
    if as_json:
        record = {
            "command": call.command,
            "version": _version(),
            "arguments": call.settings,
            "exit_code": result.code,
            "result": json.loads(json.dumps(result.record), parse_constant=lambda name: None),
        }
        print(json.dumps(record, indent=1, allow_nan=False))
    elif result.text:
        print(result.text)
