"""Options made from what Python declares: one name, one default, one explanation.

Nothing that is declared here is imported if that takes time: help pages, completion and refusals
come before torch.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, make_dataclass
from functools import cache
from pathlib import Path
from types import GenericAlias, SimpleNamespace
from typing import Any, Literal, TypeAlias

from synthaug.synthesizers._parameters import Method, RowParameter, Setting
from synthaug.synthesizers._registry import METHODS
from synthaug.synthesizers._sampler import SAMPLER_SETTINGS

Declared: TypeAlias = RowParameter | Setting
Entry: TypeAlias = tuple[str, Any, Any, str]
"""Name, type, default and explanation of an option."""
PACKAGE = Path(__file__).parents[1]


@cache
def defaults(place: str) -> SimpleNamespace:
    """The defaults of a function's keyword arguments, or of a class's fields, as attributes.

    `defaults("_audit.run:audit").fdr` is the 0.05 of its signature. They are read from the source,
    because a module that computes takes seconds to import.
    """
    module, _, path = place.partition(":")
    source = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    node: Any = ast.parse(source.read_text(encoding="utf-8"))
    for name in path.split("."):
        named = (ast.FunctionDef, ast.ClassDef)
        (node,) = (one for one in node.body if isinstance(one, named) and one.name == name)
    if isinstance(node, ast.ClassDef):
        values = {
            ast.unparse(one.target): one.value
            for one in node.body
            if isinstance(one, ast.AnnAssign)
        }
    else:
        names = [argument.arg for argument in node.args.kwonlyargs]
        values = dict(zip(names, node.args.kw_defaults, strict=True))
    return SimpleNamespace(
        **{name: ast.literal_eval(value) for name, value in values.items() if value is not None}
    )


def config_options(
    title: str, config: Any, *, without: Sequence[str] = (), **changed: tuple[Any, Any, str]
) -> Any:
    """A dataclass with an option for each field of a configuration.

    Args:
        title: Title of the group on help pages.
        config: The configuration, a dataclass.
        without: Fields that are no options.
        changed: Type, default and explanation of options that are not as in Python.
    """
    entries = (
        (f.name, *changed.get(f.name, (f.type, f.default, "")))
        for f in fields(config)
        if f.name not in without
    )
    return _options(title, entries, described_by=config)


def configured(config: Any, options: Any, **decided: Any) -> Any:
    """A configuration, from the options of the same names and what was decided besides."""
    values = {**vars(options), **decided}
    return config(**{field.name: values[field.name] for field in fields(config)})


def row_parameters() -> list[RowParameter]:
    """The row parameters of all synthesizers, each name once."""
    named: dict[str, RowParameter] = {}
    for method in METHODS.values():
        for parameter in method.row_parameters:
            named.setdefault(parameter.name, parameter)
    return list(named.values())


def settings() -> Iterator[Setting]:
    """The settings of the sampler and of all synthesizers."""
    yield from SAMPLER_SETTINGS
    for method in METHODS.values():
        yield from method.settings


def trainings() -> dict[str, Method]:
    """The values of `train --method`, and the first synthesizer that each of them makes."""
    named: dict[str, Method] = {}
    for method in METHODS.values():
        for name in method.trainings:
            named.setdefault(name, method)
    return named


def drawing_options() -> list[type]:
    """The options of the sampler, then those of every synthesizer that are not among them."""
    parts = [options("The sampler", SAMPLER_SETTINGS)]
    shown = {one.name for one in SAMPLER_SETTINGS}
    for method in METHODS.values():
        declared: list[Declared] = [*method.row_parameters, *method.settings]
        fresh = [one for one in declared if one.name not in shown]
        shown |= {one.name for one in fresh}
        parts.append(options(method.title, fresh))
    return parts


def options(title: str, declared: Iterable[Declared], *, swept: bool = False) -> type:
    """A dataclass with an option for each declaration; `None` means that it was not given.

    Args:
        title: Title of the group on help pages.
        declared: Row parameters take several values, settings one.
        swept: Whether settings take several values too.
    """

    def entry(one: Declared) -> Entry:
        several = one.type is not bool and (swept or isinstance(one, RowParameter))
        takes_none = isinstance(one, Setting) and one.optional and one.type is not str
        kind: Any = one.type | Literal["none"] if takes_none else one.type
        if several:
            kind |= GenericAlias(list, (one.type,))
        tried = f" By default {', '.join(map(str, one.sweep))}." if swept and one.sweep else ""
        return one.name, kind | None, None, one.help + tried

    return _options(title, map(entry, declared))


def _options(title: str, entries: Iterable[Entry], *, described_by: Any = None) -> type:
    """The dataclass; what is not explained is as in `described_by`, which is read when shown."""
    listed = list(entries)
    lines = [f"    {name}: {text}" for name, _, _, text in listed if text]
    made: type = make_dataclass(
        "".join(filter(str.isalpha, title.title())) + "Options",
        [entry[:3] for entry in listed],
        kw_only=True,
        frozen=True,
        namespace={
            "__doc__": "\n".join([f"{title}.", "", "Args:", *lines]),
            "described_by": described_by,
        },
    )
    return made
