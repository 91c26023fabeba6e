"""The entry point: which command is meant, with which arguments, and what becomes of its result.

Exit codes: 0 done (an audit passed), 1 an audit found copies, or a test that a model keeps its
training images, 2 wrong arguments or input that does not fit, 3 an audit is inconclusive, 4 a file
is missing, damaged, or cannot be read or written, or workers of a cluster failed, 70 an error that
nobody foresaw, 130 interrupted, 143 asked to end (SIGTERM).
"""

import contextlib
import inspect
import json
import logging
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import takewhile
from typing import Any, NoReturn

from synthaug._cli.arguments import is_ours
from synthaug._cli.audit import audit
from synthaug._cli.caches import export, forget, import_, info, merge, verify
from synthaug._cli.call import Call, Result
from synthaug._cli.cascade import cascade
from synthaug._cli.cite import cite
from synthaug._cli.demo import demo
from synthaug._cli.evaluation import evaluate, evaluate_labels
from synthaug._cli.generation import generate, plan
from synthaug._cli.idle import refuse_idle
from synthaug._cli.improvement import improve
from synthaug._cli.inversion import invert
from synthaug._cli.memorization import evaluate_canaries, evaluate_membership
from synthaug._cli.outputs import as_meant, check_places
from synthaug._cli.parser import Parser, arguments, bound, command_parser, meant, values
from synthaug._cli.parser import option as as_option
from synthaug._cli.scores import evaluate_density, evaluate_quality
from synthaug._cli.selection import select
from synthaug._cli.splitting import split
from synthaug._cli.sweep import sweep
from synthaug._cli.training import train
from synthaug._printable import printable
from synthaug._support.stopping import Terminated, terminate
from synthaug.errors import CachePendingError, DivergedError, MismatchError, SynthaugError

DOES_NOT_FIT = (ValueError, ImportError, MismatchError, CachePendingError, DivergedError)
"""Errors that mean exit code 2; the others that we expect mean 4."""
COMMANDS: dict[str, Any] = {
    "demo": demo,
    "improve": improve,
    "split": split,
    "train": train,
    "invert": invert,
    "cascade": cascade,
    "plan": plan,
    "generate": generate,
    "audit": audit,
    "select": select,
    "evaluate": evaluate,
    "evaluate canaries": evaluate_canaries,
    "evaluate density": evaluate_density,
    "evaluate labels": evaluate_labels,
    "evaluate membership": evaluate_membership,
    "evaluate quality": evaluate_quality,
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
COMMON = {
    "improve": "dry_run validation test checkpoint generator_steps minutes shares model steps "
    "horizontal_flip adversarial image_size device config",
    "train": "method condition trial image_size horizontal_flip steps device config",
    "invert": "estimate updates batch_size learning_rate seed image_size device config",
    "plan": "per_class ratio counts guidance_scale strength source scheduler "
    "num_inference_steps seed estimate devices config",
    "generate": "per_class ratio counts guidance_scale strength source scheduler "
    "num_inference_steps seed batch_size shard device config",
    "audit": "holdout out features fdr accept redact image_size channels device config",
    "select": "real keep rules features model steps seed dry_run device config",
    "evaluate": "audit labels fraction ratios augmentations validation model steps "
    "horizontal_flip seeds adversarial out config",
    "evaluate density": "features holdout trust_torchscript k image_size device out config",
    "evaluate labels": "threshold percentile seeds model steps horizontal_flip out config",
    "evaluate membership": "random_split level levels draws seed device out config",
    "evaluate quality": "features holdout classifier images image_size device out config",
    "sweep": "scheduler num_inference_steps guidance_scale guidance validation features select "
    "per_class seeds model steps out config",
    "cache import": "name forgotten image_size channels skip_bad encoding generator_license "
    "source_license config",
    "cache export": "format audit selection certificates private_key real masks boxes "
    "min_edge_agreement config",
}
"""The options on the short help page of a command that has too many; `--help-all` shows all."""
LEADING = {"-v", "--verbose", "-q", "--quiet", "--json"}
"""Options that may stand before the command as well."""


def build_parser() -> Parser:
    """The parser of everything: for pages that list commands, and for completion by a shell."""
    top = Parser(
        prog="synthaug",
        usage="synthaug COMMAND ... [options]",
        description="Synthetic training images, and the audit that says whether they are copies.",
    )
    version, text = f"synthaug {_version()}", "Print the version and stop."
    top.add_argument("--version", action="version", version=version, help=text)
    commands = _add_commands(top, COMMANDS)
    cache = commands.add_parser(
        "cache",
        prog="synthaug cache",
        usage="synthaug cache COMMAND ... [options]",
        description="Look after cache files.",
        help="Look after cache files.",
    )
    _add_commands(cache, CACHE_COMMANDS)
    return top


def _add_commands(parser: Parser, functions: Mapping[str, Any]) -> Any:
    commands = parser.add_subparsers(metavar="COMMAND")
    for name, function in functions.items():
        # Where a command is one word for completion, the page shows the two that it is.
        first_line = (function.__doc__ or "").partition("\n")[0]
        make = partial(commands.add_parser, name.replace(" ", "-"), help=first_line)
        command_parser(function, f"{parser.prog} {name}", make)
        commands._choices_actions[-1].metavar = name
    return commands


def choose(words: Sequence[str]) -> tuple[str, Any, list[str]]:
    """Finds the command of a command line: its name, its function, and the words that are left, all
    options with dashes. Ends the process if there is none."""
    spelled = [_dashed(word) for word in words]
    leading = list(takewhile(lambda word: word.startswith("-"), spelled))
    rest = spelled[len(leading) :]
    group = rest[:1] if rest[:1] == ["cache"] else []
    functions = CACHE_COMMANDS if group else COMMANDS
    rest = rest[len(group) :]
    if set(leading) <= LEADING:
        for count in (2, 1):  # `evaluate density` before `evaluate`
            name = " ".join(rest[:count]).replace("evaluate-", "evaluate ")
            if name in functions:
                return " ".join([*group, name]), functions[name], [*rest[count:], *leading]
    names = [*functions] if group else [*functions, "cache"]
    _refuse_command(leading, group, rest, names)


def _dashed(word: str) -> str:
    """`--per_class` means `--per-class`."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _refuse_command(
    leading: Sequence[str], group: list[str], rest: Sequence[str], names: Sequence[str]
) -> NoReturn:
    """Shows a page or a version if that was asked for, else what is wrong."""
    parser = build_parser()
    if not rest or rest[0].startswith("-") or not set(leading) <= LEADING:
        parser.parse([word for word in [*leading, *group, *rest] if word not in LEADING])
    parser.prog = " ".join(["synthaug", *group])
    commands = f"Commands: {', '.join(names)}."
    if not rest:
        parser.error(f"missing: a command. {commands}")
    parser.error(f"there is no command {rest[0]!r}.{meant(rest[0], names)} {commands}")


_PYTHON = {"dtype": "precision", "with_sources": "source"}
"""Options of every command by the names that Python has for them; see `spoken_of` for those that
only some calls have."""


def _as_options(message: str, options: Set[str]) -> str:
    """A message that names arguments as in Python, with the options that they are in the shell.

    `per_class` becomes `--per-class`, `channels=3` `--channels 3`, and a switch that is on, such as
    `deduplicate=True`, `--deduplicate`.
    """

    def option(found: re.Match[str]) -> str:
        name, value = found[1], (found[2] or "").strip("'\"")
        name = _PYTHON.get(name, name)
        if name not in options:
            return found[0]
        text = as_option(name)
        if value == "None":
            return f"no `{text}`"
        return f"`{text}`" if value in ("", "True") else f"`{text} {value}`"

    return re.sub(r"`(\w+)(?:=([^`]*))?`", option, message)


def _options(function: Any) -> set[str]:
    """The names of a command's options, as Python knows them."""
    return {argument.name for argument in arguments(function) if not argument.positional}


def _version() -> str:
    from importlib.metadata import version

    return version("synthaug")


_QUIET = {"SYNTHAUG_PROGRESS": "off", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
"""What hides our progress bars, and those of transformers and the hub."""


class _AsOptions(logging.Formatter):
    """Writes arguments as options; names in messages may come from a stranger's file."""

    def __init__(self, options: Set[str]) -> None:
        super().__init__("synthaug: %(message)s")
        self._options = options

    def format(self, record: logging.LogRecord) -> str:
        return printable(_as_options(super().format(record), self._options))


def _ours(options: Set[str]) -> Set[str]:
    """The options that the warning which is shown may name: none if it is a library's, which names
    arguments of its own."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "warnings"):
        frame = frame.f_back
    ours = frame is not None and str(frame.f_globals.get("__name__")).startswith("synthaug.")
    return options if ours else set()


@contextlib.contextmanager
def _heard(options: Set[str], *, verbose: bool, quiet: bool) -> Iterator[None]:
    """Log and warnings as single lines on standard error; no progress if it is to be quiet."""
    logger = logging.getLogger("synthaug")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_AsOptions(options))
    level, before = logger.level, {name: os.environ.get(name) for name in _QUIET}
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if verbose and not quiet else logging.WARNING)
    if quiet:  # in the environment, so that worker processes know
        os.environ.update(_QUIET)
    try:
        with warnings.catch_warnings():
            # One line, without the place in the code.
            warnings.showwarning = lambda message, *_: print(
                printable(f"synthaug: {_as_options(str(message), _ours(options))}"), file=sys.stderr
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


class _Announcement:
    """Finds no module, and says on standard error when a certain one is looked for."""

    def __init__(self, module: str) -> None:
        self._module = module

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Announces the module, and finds nothing; Python calls this on every finder."""
        del path, target
        if name == self._module:
            print(f"synthaug: loading {name} ...", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _announced(module: str, *, quiet: bool) -> Iterator[None]:
    """Says at a terminal that a module is being loaded, if that takes seconds without a word."""
    finder = _Announcement(module)
    if sys.stderr.isatty() and not quiet and module not in sys.modules:
        sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path[:] = [one for one in sys.meta_path if one is not finder]


@dataclass(frozen=True)
class Request:
    """A command line that was understood."""

    function: Any
    call: Call
    shared: Mapping[str, Any]
    """Options of every command."""


def understand(words: Sequence[str]) -> Request:
    """Parses a command line; ends the process if it makes no sense."""
    name, function, rest = choose(words)
    parser = command_parser(function, f"synthaug {name}")
    if {"-h", "--help", "--help-all"} & {*rest}:
        parser.abridge("--method", rest)
        parser.common = () if "--help-all" in rest else COMMON.get(name, "").split()
    given, shared, stated = values(parser, function, parser.parse(rest))
    known = sorted(arguments(function), key=lambda argument: not argument.positional)
    positional = {argument.name for argument in known if argument.positional}
    ordered = {argument.name: given[argument.name] for argument in known}
    call = Call(name, as_meant(name, ordered), positional, stated)
    return Request(function, call, shared)


def main(words: Sequence[str] | None = None) -> None:
    """Entry point of the command `synthaug`."""
    _open_streams()
    _let_waiting_threads_sleep()
    try:
        request = understand(sys.argv[1:] if words is None else words)
    finally:
        _print("")  # what a page of help has left to be written
    call, shared = request.call, request.shared
    if shared["print_config"]:
        _print(_config(call))
        sys.exit(0)
    with contextlib.suppress(ValueError):  # signals reach the main thread only
        signal.signal(signal.SIGTERM, terminate)
    output = sys.stderr if shared["json"] else sys.stdout
    with _exit_codes(request):
        with (
            _heard(_options(request.function), verbose=shared["verbose"], quiet=shared["quiet"]),
            _announced("torch", quiet=shared["quiet"]),
            contextlib.redirect_stdout(output),
        ):
            logging.getLogger("synthaug").info("%s", call.line)
            refuse_idle(call, {one.name: one.default for one in arguments(request.function)})
            check_places(call)
            result = request.function(**bound(request.function, call))
            result = replace(result, text=_as_options(result.text, _options(request.function)))
        _answer(result, call, as_json=shared["json"])
    sys.exit(result.code)


def _open_streams() -> None:
    """Opens those of standard output and error that the parent closed (`2>&-`): else the next file
    that is opened, such as a cache, would get what libraries print there."""
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _let_waiting_threads_sleep() -> None:
    """Has OpenMP's threads sleep while they wait for each other, unless the user says otherwise.

    By default they spin. Where other work runs beside them, as another shard or another seed does,
    one of them is soon without a core, and the others take theirs from it to no purpose: a step
    then takes many times as long as with one thread (`benchmarks/cpu_paths.py`).
    """
    if "torch" not in sys.modules and "GOMP_SPINCOUNT" not in os.environ:  # read when it is loaded
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@contextlib.contextmanager
def _exit_codes(request: Request) -> Iterator[None]:
    """Ends the process with a message and an exit code if the command fails."""
    try:
        yield
    except (SynthaugError, ValueError, ImportError, OSError) as error:
        if os.environ.get("SYNTHAUG_TRACEBACK"):
            raise
        options = _options(request.function) if is_ours(error) else set[str]()
        message = _as_options(str(error), options)
        print(printable(f"synthaug: error: {message}"), file=sys.stderr)
        print("(Set SYNTHAUG_TRACEBACK=1 to see where.)", file=sys.stderr)
        sys.exit(2 if isinstance(error, DOES_NOT_FIT) else 4)
    except KeyboardInterrupt as stop:
        kept = [text for text in stop.args if isinstance(text, str)]
        said = [*kept, "Run the same command again to resume."] if kept else ["Nothing was saved."]
        print(f"synthaug: stopped. {' '.join(said)}", file=sys.stderr)
        sys.exit(143 if isinstance(stop, Terminated) else 130)
    except Exception:  # Python's own exit code would be 1, which means that copies were found
        print(printable(traceback.format_exc()), end="", file=sys.stderr)
        print("synthaug: this is a fault of synthaug. Please report it.", file=sys.stderr)
        sys.exit(70)


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
        _print(json.dumps(record, indent=1, allow_nan=False) + "\n")
    elif result.text:
        _print(printable(result.text) + "\n")


def _print(text: str) -> None:
    """Prints to standard output, whose reader, such as `head`, may have gone with enough."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        # Else what is left in the buffer fails once more when the interpreter ends.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
