"""From the signature of a function to the options of a command, and from words to its arguments.

Parameters by position stay so; those by keyword become options, with the help of the docstring.
A parameter whose type is a dataclass stands for all its fields, in groups of their own: one for the
class, and one for each class that it is composed of. `Call` is filled in by `main`.

argparse takes the words apart. What they say is converted and checked here, because the same holds
for a configuration file, whose values count less than those of the words, and more than defaults.
"""

import argparse
import dataclasses
import difflib
import inspect
import json
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from synthaug._cli.call import Call
from synthaug._printable import printable
from synthaug._support.reading import read_text

SHARED = {
    "config": "A YAML file with any of these arguments. Those of the command line count more.",
    "print_config": "Print such a file, which repeats this call, and stop.",
    "json": "Print the result as one JSON object, and nothing else on standard output.",
    "verbose": "Log what is decided, and all settings.",
    "quiet": "No progress on standard error; warnings and errors alone.",
}
"""Options of every command."""
HELP_ALL = "Show every option and stop."
EMPTY = inspect.Parameter.empty
PLAIN = {
    int: ("INT", "a whole number"),
    float: ("FLOAT", "a number"),
    dict: ("JSON", "a JSON object"),
}
"""What stands for a value of a type on a help page, and in a message."""
SEVERAL = (list, tuple, Sequence)
"""Types of several values."""


@dataclasses.dataclass(frozen=True)
class Argument:
    """One argument of a command."""

    name: str
    type: Any
    default: Any
    help: str
    group: str = ""
    """Title of the group that shows it; "" for the command's own."""
    positional: bool = False

    @property
    def shown(self) -> str:
        """The name as the shell has it: `--batch-size`, or `out` by position."""
        return self.name if self.positional else option(self.name)


def arguments(function: Callable[..., Any]) -> Iterator[Argument]:
    """The arguments of a command, in the order of its parameters, each name once."""
    explained, shown = texts(function), set[str]()
    for name, parameter in inspect.signature(function).parameters.items():
        kind, default = parameter.annotation, parameter.default
        if kind is Call:
            continue
        if dataclasses.is_dataclass(kind):
            for argument in _fields(kind):
                if argument.name not in shown:
                    shown.add(argument.name)
                    yield argument
        else:
            positional = parameter.kind is not parameter.KEYWORD_ONLY and default is EMPTY
            yield Argument(name, kind, default, explained[name], positional=positional)


def _fields(kind: Any) -> Iterator[Argument]:
    """The fields of a dataclass, part by part."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for part in (*(base for base in kind.__bases__ if base is not object), kind):
        explained, title = texts(part), (part.__doc__ or "").partition("\n")[0].removesuffix(".")
        for name in inspect.get_annotations(part):
            default = fields[name].default
            default = EMPTY if default is dataclasses.MISSING else default
            yield Argument(name, fields[name].type, default, explained[name], title)


@cache
def texts(documented: Any) -> dict[str, str]:
    """Returns texts about arguments, or fields, out of a docstring or the docstrings of fields."""
    from docstring_parser import parse_from_object

    own = {
        part.arg_name: " ".join((part.description or "").split())
        for part in parse_from_object(documented).params
    }
    config = vars(documented).get("described_by")
    return own if config is None else {**texts(config), **own}


def bound(function: Callable[..., Any], call: Call) -> dict[str, Any]:
    """The flat arguments of a call as the function takes them."""
    taken: dict[str, Any] = {}
    values = call.arguments
    for name, parameter in inspect.signature(function).parameters.items():
        kind = parameter.annotation
        if kind is Call:
            taken[name] = call
        elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
            taken[name] = kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})
        else:
            taken[name] = values[name]
    return taken


class Parser(argparse.ArgumentParser):
    """Says in two lines what is wrong. It returns only what was given: `values` adds the rest."""

    common: Sequence[str] = ()
    """Names of the options that a short help page shows; empty for a page with all of them."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            argument_default=argparse.SUPPRESS,
            allow_abbrev=False,
            **settings,
        )

    def error(self, message: str) -> NoReturn:
        """Prints the message and ends the process with exit code 2."""
        print(printable(f"synthaug: error: {message}"), file=sys.stderr)
        print(f"(See `{self.prog} --help`.)", file=sys.stderr)
        sys.exit(2)

    def abridge(self, option: str, words: Sequence[str]) -> None:
        """Leaves out of the help page what is for other values of an option than the words give.

        A group of options is for the values that its title names: `Cold diffusion (--method cold)`.
        """
        if option not in self._option_string_actions:
            return
        chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        chooser.add_argument(option, dest="value")
        value = chooser.parse_known_args(words)[0].value
        hidden = False
        for group in self._action_groups:
            values = (group.title or "").partition(option)[2]
            if values and value not in re.findall(r"\w+", values):
                hidden = True
                for action in group._group_actions:
                    action.help = argparse.SUPPRESS
        if hidden:
            self.epilog = f"More options: {self.prog} {option} {option[2:].upper()} --help"

    def format_help(self) -> str:
        """Returns the page with all options, or the short one if `common` names some."""
        if not self.common:
            return super().format_help()
        known = {action.dest: action for action in self._actions}
        chosen = [
            group._group_actions
            for group in self._action_groups
            if "(--" in (group.title or "")  # for the value of an option: see `abridge`
        ]
        sections = {
            "positional arguments": self._positionals._group_actions,
            "Common options": [known[name] for name in self.common],
            "Options for this choice": [one for actions in chosen for one in actions],
        }
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        for title, actions in sections.items():
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        formatter.add_text(self.epilog)
        formatter.add_text(f"All options: {self.prog} --help-all")
        return formatter.format_help()

    def parse(self, words: Sequence[str]) -> dict[str, Any]:
        """Parses words into values by name; refuses unknown options with the nearest known one."""
        given, unknown = self.parse_known_args(words)
        if not unknown:
            return vars(given)
        options = [name for action in self._actions for name in action.option_strings]
        for word in unknown:
            if word.startswith("-"):
                self.error(f"there is no option {word}.{meant(word.partition('=')[0], options)}")
        self.error(f"Unexpected argument: {' '.join(unknown)}.")


def command_parser(
    function: Callable[..., Any], program: str, make: Callable[..., Parser] = Parser
) -> Parser:
    """The parser of one command; `make` is given how it is described."""
    known = list(arguments(function))
    placed = [
        argument.name.upper() + (" ..." if argument.type == list[str] else "")
        for argument in known
        if argument.positional
    ]
    parser = make(
        prog=program,
        usage=" ".join([program, *placed, "[options]"]),
        description=(function.__doc__ or "").split("Args:")[0].replace("\n    ", "\n").strip(),
    )
    groups: dict[str, Any] = {"": parser}
    for argument in known:
        if argument.group not in groups:
            groups[argument.group] = parser.add_argument_group(argument.group)
        _add(groups[argument.group], argument)
    shared = parser.add_argument_group("Configuration and output")
    shared.add_argument("--config", metavar="FILE", help=SHARED["config"])
    for name in ("print_config", "json"):
        shared.add_argument(option(name), action="store_true", help=SHARED[name])
    shared.add_argument("--help-all", action="help", help=HELP_ALL)
    for name in ("verbose", "quiet"):
        shared.add_argument(f"-{name[0]}", option(name), action="store_true", help=SHARED[name])
    return parser


def option(name: str) -> str:
    """The option of a parameter: `batch_size` => `--batch-size`."""
    return "--" + name.replace("_", "-")


def _add(group: Any, argument: Argument) -> None:
    text = argument.help.replace("%", "%%")
    if argument.positional:
        nargs = "+" if argument.type == list[str] else None
        added = group.add_argument(
            argument.name, metavar=argument.name.upper(), help=text, nargs=nargs
        )
        added.required = False  # a configuration file may have it
        return
    default = argument.default
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    unshown = any(default is value for value in (EMPTY, None, False))
    if shown and not unshown and "by default" not in text:
        text += f" (default: {shown})".replace("%", "%%")
    how: dict[str, Any] = {"metavar": metavar(argument.type, argument.name)}
    if bool in _choices(argument.type):
        how = {"action": argparse.BooleanOptionalAction}
    group.add_argument(option(argument.name), help=text, **how)


def values(
    parser: Parser, function: Callable[..., Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
    """All arguments of a command, the options of every command, and which arguments were stated.

    Args:
        parser: The command's, which refuses what does not fit.
        function: The command.
        given: The values on the command line.
    """
    known = {argument.name: argument for argument in arguments(function)}
    file = given.get("config")
    config = {} if file is None else _config(parser, file, [*known, *SHARED])
    stated = {**config, **given}
    found: dict[str, Any] = {}
    for name, argument in known.items():
        if name in stated:
            try:
                found[name] = convert(argument.type, stated[name])
            except (TypeError, ValueError):
                expected = described(argument.type)
                parser.error(f"{argument.shown} is {stated[name]}, expected {expected}.")
        elif argument.default is not EMPTY:
            found[name] = argument.default
    if missing := [argument.shown for name, argument in known.items() if name not in found]:
        parser.error(f"missing: {', '.join(missing)}.")
    changed = {name for name in config if name in known and found[name] != known[name].default}
    chosen = changed | {name for name in given if name in known}
    return found, {name: stated.get(name, False) for name in SHARED}, chosen


def _config(parser: Parser, file: str, known: Sequence[str]) -> dict[str, Any]:
    """The arguments in a YAML file; names that the command does not know are refused."""
    import yaml

    try:
        content = yaml.safe_load(read_text(file))
    except FileNotFoundError:
        parser.error(f"--config {file} does not exist.")
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        parser.error(f"--config {file} cannot be read: {error}")
    if not isinstance(content, dict):
        parser.error(f"{file} must hold names and values, such as `seed: 1`.")
    for name in map(str, content):
        if name.replace("-", "_") not in known:
            parser.error(f"{file}: there is no argument {name!r}.{meant(name, known)}")
    return {str(name).replace("-", "_"): value for name, value in content.items()}


def convert(kind: Any, value: Any) -> Any:
    """A word of the command line, or a value of a YAML file, as a value of the type.

    Raises:
        ValueError, TypeError: If it is none.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        for one in inner:
            with suppress(TypeError, ValueError):
                return convert(one, value)
    elif origin is Literal:
        return inner[[str(one) for one in inner].index(str(value))]
    elif origin in SEVERAL:
        if isinstance(value, str):
            value = json.loads(value) if value.startswith("[") else value.split(",")
        if isinstance(value, list):
            fixed = origin is tuple and inner[-1] is not ...
            kinds = inner if fixed else inner[:1] * len(value)
            found = [convert(one, part) for one, part in zip(kinds, value, strict=True)]
            return tuple(found) if origin is tuple else found
    elif origin is dict:
        content = json.loads(value) if isinstance(value, str) else value
        return {convert(inner[0], name): convert(inner[1], content[name]) for name in dict(content)}
    elif kind is Any or (isinstance(value, kind) and kind not in (int, float)):
        return value
    elif kind in (int, float) and type(value) in (int, str, kind):  # a bool is no number
        return kind(value)
    raise ValueError


def _choices(kind: Any) -> list[Any]:
    """The types that a union consists of, without None and what only Python can give."""
    union = get_origin(kind) in (Union, types.UnionType)
    parts = get_args(kind) if union else (kind,)
    return [one for one in parts if one is not types.NoneType and get_origin(one) is not Callable]


def metavar(kind: Any, name: str) -> str:
    """Returns the placeholder of a value on a help page: `FLOAT,...` where several may be given."""
    shown = [form for form, _ in _forms(kind, name.rpartition("_")[2].upper())]
    return "|".join(form for form in dict.fromkeys(shown) if f"{form},..." not in shown)


def described(kind: Any) -> str:
    """Returns a description of the values of a type: "a number or several numbers ..."."""
    return " or ".join(text for _, text in _forms(kind))


def _forms(kind: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yields the placeholder and the description of each type of a union."""
    for one in _choices(kind):
        origin, inner = get_origin(one), [*map(str, get_args(one))]
        if origin is Literal:
            yield "{" + ",".join(inner) + "}", " or ".join(inner)
        elif origin in SEVERAL:
            form, text = PLAIN.get(get_args(one)[0], (name, "a name"))
            plural = f"{text.removeprefix('a ')}s"
            yield f"{form},...", f"several {plural} with commas between them"
        else:
            yield PLAIN.get(origin or one, (name, "text"))


def meant(name: str, known: Sequence[str]) -> str:
    """Names a known name that begins so, or the nearest one, if one is near."""
    begun = [one for one in known if one.startswith(name)]
    near = begun or difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""
