"""From the signature of a function to a parser of its arguments.

Arguments by position stay so; arguments by keyword become options, with the help of the docstring.
A parameter whose type is a dataclass stands for all its fields, in groups of their own: one for the
class, and one for each class that it is composed of. `Call` is filled in by `main`.
"""

import argparse
import dataclasses
import difflib
import inspect
import re
import sys
import types
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NoReturn, Union, get_args, get_origin

from docstring_parser import parse as parse_docstring
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from synthaug._cli.call import Call

SHARED = {
    "config": "A YAML file with any of these arguments. Those of the command line count more.",
    "print_config": "Print such a file, which repeats this call, and stop.",
    "json": "Print the result as one JSON object, and nothing else on standard output.",
    "verbose": "Log what is decided, and all settings.",
    "quiet": "No progress on standard error; warnings and errors alone.",
}
"""Options of every command."""


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


def arguments(function: Callable[..., Any]) -> Iterator[Argument]:
    """The arguments of a command, in the order of its parameters."""
    texts = _texts(function)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, default = parameter.annotation, parameter.default
        if kind is Call:
            continue
        if dataclasses.is_dataclass(kind):
            yield from _fields(kind)
        else:
            positional = parameter.kind is not parameter.KEYWORD_ONLY and default is parameter.empty
            yield Argument(name, kind, default, texts[name], positional=positional)


def _fields(kind: Any) -> Iterator[Argument]:
    """The fields of a dataclass, part by part."""
    found = {field.name: field for field in dataclasses.fields(kind)}
    for part in (*(base for base in kind.__bases__ if base is not object), kind):
        texts, title = _texts(part), (part.__doc__ or "").partition("\n")[0].removesuffix(".")
        for name in inspect.get_annotations(part):
            field = found[name]
            default = (
                inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
            )
            yield Argument(name, field.type, default, texts[name], title)


def _texts(documented: Any) -> dict[str, str]:
    parts = parse_docstring(documented.__doc__ or "").params
    return {part.arg_name: " ".join((part.description or "").split()) for part in parts}


def bound(function: Callable[..., Any], values: Mapping[str, Any], call: Call) -> dict[str, Any]:
    """The flat arguments of a call as the function takes them."""
    taken: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        kind = parameter.annotation
        if kind is Call:
            taken[name] = call
        elif dataclasses.is_dataclass(kind) and isinstance(kind, type):
            taken[name] = kind(**{f.name: values[f.name] for f in dataclasses.fields(kind)})
        else:
            taken[name] = values[name]
    return taken


def command_parser(function: Callable[..., Any]) -> "Parser":
    """The parser of one command."""
    parser = Parser(
        description=(function.__doc__ or "").split("Args:")[0].replace("\n    ", "\n").strip(),
        formatter_class=Formatter,
        print_config=None,
        allow_abbrev=False,
    )
    groups: dict[str, Any] = {"": parser}
    for argument in arguments(function):
        if argument.group not in groups:
            groups[argument.group] = parser.add_argument_group(argument.group)
        _add(groups[argument.group], argument)
    shared = parser.add_argument_group("Configuration and output")
    shared.add_argument("--config", action="config", help=SHARED["config"])
    for name in ("print_config", "json"):
        shared.add_argument(_option(name), action="store_true", help=SHARED[name])
    for name in ("verbose", "quiet"):
        shared.add_argument(_option(name), f"-{name[0]}", action="store_true", help=SHARED[name])
    return parser


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _add(group: Any, argument: Argument) -> None:
    name, kind, text = argument.name, argument.type, argument.help
    if argument.positional:
        more = {"nargs": "+"} if kind == list[str] else {"type": kind}
        group.add_argument(name, metavar=name.upper(), help=text, **more)
    elif bool in _choices(kind):
        action: Any = argparse.BooleanOptionalAction
        added = group.add_argument(_option(name), action=action, default=argument.default)
        added.help = text  # Python 3.12 and older would add the default
    else:
        given: dict[str, Any] = {"default": argument.default}
        if argument.default is inspect.Parameter.empty:
            given = {"required": True}
        shown = metavar(kind, name)
        group.add_argument(_option(name), type=kind, help=text, metavar=shown, **given)


def _choices(kind: Any) -> list[Any]:
    """The types that a union consists of, without None."""
    union = get_origin(kind) in (Union, types.UnionType)
    return [one for one in (get_args(kind) if union else (kind,)) if one is not type(None)]


def takes_numbers(kind: Any) -> bool:
    """Whether several numbers may be given: `1.0,1.5` then means `[1.0, 1.5]`."""
    listed = [get_args(one) for one in _choices(kind) if get_origin(one) in (list, tuple)]
    return any(inner in (int, float) for parts in listed for inner in parts)


def takes_lists_alone(kind: Any) -> bool:
    """Whether a single number must be a list as well: `5` then means `[5]`."""
    return all(get_origin(one) in (list, tuple) for one in _choices(kind))


def metavar(kind: Any, name: str) -> str:
    """What stands for a value on a help page: `FLOAT,...` where several may be given."""
    text = name.rpartition("_")[2].upper()
    plain = {int: "INT", float: "FLOAT", dict: "JSON"}
    found: dict[str, None] = {}
    for one in _choices(kind):
        origin, inner = get_origin(one), get_args(one)
        if origin is Literal:
            found["{" + ",".join(map(str, inner)) + "}"] = None
        elif origin in (list, tuple):
            found.pop(plain.get(inner[0], text), None)
            found[plain.get(inner[0], text) + ",..."] = None
        else:
            found[plain.get(origin or one, text)] = None
    return "|".join(found)


def described(kind: Any) -> str:
    """What a value must be, for a message: "a number or several numbers ..."."""
    plain = {int: "a whole number", float: "a number", dict: "a JSON object"}
    several = {int: "whole numbers", float: "numbers"}
    found = []
    for one in _choices(kind):
        origin, inner = get_origin(one), get_args(one)
        if origin is Literal:
            found.append(" or ".join(map(str, inner)))
        elif origin in (list, tuple):
            found.append(f"several {several.get(inner[0], 'names')} with commas between them")
        else:
            found.append(plain.get(origin or one, "text"))
    return " or ".join(found)


class Formatter(DefaultHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the example lines of a docstring, and shows what is left to show of types."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        default = action.default
        plain = any(default is one for one in (None, False, argparse.SUPPRESS))
        if not action.option_strings or plain or "by default" in text:
            return text
        return f"{text} (default: %(default)s)"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return str(super()._format_action_invocation(action))
        names = ", ".join(name for name in action.option_strings if not name.endswith("+"))
        return names if action.nargs == 0 else f"{names} {action.metavar or action.dest.upper()}"


class Parser(ArgumentParser):
    """Says in two lines what is wrong, and which name was meant."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message and ends the process with exit code 2."""
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        found = re.match(r'(?:the following arguments are required: |expected ")([\w.-]+)', message)
        for name in found[1].split(".")[:-1] if found else ():  # what the parser above complains of
            parser = parser._subcommands_action.choices[name]
        refuse(explained(message, parser), parser.prog)


def refuse(message: str, program: str) -> NoReturn:
    """Ends the process for arguments that do not fit."""
    print(f"synthaug: error: {message}", file=sys.stderr)
    print(f"(See `{program} --help`.)", file=sys.stderr)
    sys.exit(2)


def check_config(file: str, known: Sequence[str], program: str) -> None:
    """Refuses names that a command does not know; what cannot be read is left to the parser."""
    import yaml

    try:
        with open(file, encoding="utf-8") as stream:
            content = yaml.safe_load(stream)
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return
    if not isinstance(content, dict):
        refuse(f"{file} must hold names and values, such as `seed: 1`.", program)
    for name in map(str, content):
        if name.replace("-", "_") not in known:
            refuse(f"{file}: there is no argument {name!r}.{_meant(name, known)}", program)


def explained(message: str, parser: Any) -> str:
    """An error of the parser in the words of this command line."""
    actions = [action for action in parser._actions if action.dest != argparse.SUPPRESS]
    named = {action.dest: action for action in actions}
    options = [name for action in actions for name in action.option_strings]
    if found := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        unknown = [word for word in found[1].split() if word.startswith("-")]
        if not unknown:
            return f"there is no use for {found[1]}; arguments by position are complete."
        return f"there is no option {unknown[0]}.{_meant(unknown[0].partition('=')[0], options)}"
    below = next((list(action.choices) for action in actions if action.nargs == "A..."), [])
    commands = [name.replace("evaluate-", "evaluate ") for name in below]
    if found := re.match(r"argument COMMAND: invalid choice: '([^']*)'", message):
        near = _meant(found[1], commands)
        return f"there is no command {found[1]!r}.{near} Commands: {', '.join(commands)}."
    if re.match(r'expected "[\w.]+" to be one of .* not provided', message):
        return f"missing: a command. Commands: {', '.join(commands)}."
    if found := re.match(r"the following arguments are required: (.*)", message):
        missing = [name.rpartition(".")[2] for name in found[1].split(", ")]
        return f"missing: {', '.join(missing)}."
    found = re.match(r'Parser key "(?:[\w-]+\.)*(\w+)":', message)
    if not found or found[1] not in named:
        return message
    argument = named[found[1]]
    name = argument.option_strings[0] if argument.option_strings else argument.metavar
    kind = getattr(argument, "_typehint", None)
    if kind and (value := re.search(r"(?:Given|Got) value: (.*)", message, re.DOTALL)):
        return f"{name} is {value[1].strip()}, expected {described(kind)}."
    return f"{name}: {message[found.end() :].strip()}"


def _meant(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""
