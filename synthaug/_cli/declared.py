"""Options made from what synthesizers declare: one name, one explanation, in every command."""

from collections.abc import Iterable, Iterator
from dataclasses import make_dataclass
from types import GenericAlias
from typing import Any, Literal, TypeAlias

from synthaug.synthesizers._parameters import Method, RowParameter, Setting
from synthaug.synthesizers._registry import METHODS
from synthaug.synthesizers._sampler import SAMPLER_SETTINGS

Declared: TypeAlias = RowParameter | Setting


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
    fields, lines = [], []
    for one in declared:
        several = one.type is not bool and (swept or isinstance(one, RowParameter))
        kind: Any = one.type | Literal["none"] if _takes_none(one) else one.type
        if several:
            kind |= GenericAlias(list, (one.type,))
        fields.append((one.name, kind | None, None))
        tried = f" By default {', '.join(map(str, one.sweep))}." if swept and one.sweep else ""
        lines.append(f"    {one.name}: {one.help}{tried}")
    text = "\n".join([f"{title}.", "", "Args:", *lines])
    made: type = make_dataclass(
        "".join(filter(str.isalpha, title.title())) + "Options",
        fields,
        kw_only=True,
        frozen=True,
        namespace={"__doc__": text},
    )
    return made


def _takes_none(one: Declared) -> bool:
    return isinstance(one, Setting) and one.optional and one.type is not str
