"""Declarations of synthesizers: row parameters, settings and papers.

`plan()`, `from_pretrained()`, the command line, sweeps, citations and the documentation read the
declarations, so each name, default, range and explanation exists once. Nothing heavy is imported.
"""

import inspect
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal, final, get_args, get_origin, get_type_hints

from synthaug._support.arguments import check_choice
from synthaug.synthesizers._papers import Paper


@final
@dataclass(frozen=True, kw_only=True)
class RowParameter:
    """A number that may differ from image to image: a column of the plan.

    RowParameter(name="strength", help="Share of the diffusion that is redone.", default=0.5,
                 low_included=False, high=1, needs_sources=True)
    """

    name: str
    help: str
    """One sentence, for help pages and documentation."""
    type: type = float
    """`float`, `int`, or `bool` for a switch that holds for all rows of a plan."""
    default: float | None = None
    """Value where a plan does not say; `None` if it depends on the model."""
    low: float = 0
    """Smallest value."""
    low_included: bool = True
    """Whether `low` itself is allowed."""
    high: float = math.inf
    """Largest value."""
    choices: tuple[int, ...] = ()
    """The only values, if they are few."""
    needs_sources: bool = False
    """Whether it has a meaning only for rows that start from real images."""
    sweep: tuple[float, ...] = ()
    """Values that a sweep tries if it is not told others."""
    paper: Paper | None = None
    """To cite if any row has another value than `neutral`."""
    neutral: float = 1

    @property
    def requirement(self) -> str:
        """The requirement on a value, to follow its name: "must be in (0, 1]"."""
        if self.type is bool:
            return "must be True or False"
        if self.choices:
            return f"must be one of {', '.join(map(str, self.choices))}"
        whole = "a whole number " if self.type is int else ""
        if math.isfinite(self.high):
            opening = "[" if self.low_included else "("
            return f"must be {whole}in {opening}{self.low:g}, {self.high:g}]"
        if self.low == 0 and self.low_included and not whole:
            return "must not be negative"
        return f"must be {whole}{'at least' if self.low_included else 'above'} {self.low:g}"

    def problem(self, value: Any) -> str | None:
        """Returns the problem of a value or of one of several; `None` if there is none."""
        import numpy as np

        unfit = "SU" if self.type is bool else "SUb"  # numpy reads "2" as 2, and True as 1
        try:
            values = np.atleast_1d(np.asarray(value, float))
            if value is None or np.asarray(value).dtype.kind in unfit:
                values = np.empty(0)
        except (TypeError, ValueError):
            values = np.empty(0)
        if values.ndim != 1 or not len(values):
            return f"`{self.name}` must be a number or a list of numbers, got {value!r}."
        above = values >= self.low if self.low_included else values > self.low
        allowed = above & (values <= self.high)
        if self.type is int:
            allowed &= values == np.floor(values)
        if self.choices:
            allowed &= np.isin(values, self.choices)
        if self.type is bool:
            allowed &= np.isin(values, (0, 1)) & (np.ndim(value) == 0)
        return None if allowed.all() else f"`{self.name}` {self.requirement}, got {value}."

    def column(self, value: Any) -> Any:
        """The value as `Plan.build` takes it: one dtype for 2 and 2.0, however they came."""
        import numpy as np

        dtype = np.float64 if self.type is float else np.int64
        return np.atleast_1d(np.asarray(value)).astype(dtype)


@final
@dataclass(frozen=True, kw_only=True)
class Setting:
    """A setting that all rows of a plan share: a part of the recipe."""

    name: str
    type: Any
    """`int`, `float`, `bool`, `str` or a `Literal`."""
    help: str
    """One sentence, for help pages and documentation."""
    optional: bool = False
    """Whether `None` is a value too; the command line calls it `none`."""
    sweep: tuple[Any, ...] = ()
    """Values that a sweep tries if it is not told others."""
    scheduler: str | None = None
    """The only scheduler that it has an effect with."""


@final
@dataclass(frozen=True, kw_only=True)
class Method:
    """A synthesizer as it is registered: what others ask before its code is imported."""

    name: str
    """Name of its class, and of the synthesizer in recipes and checkpoints."""
    module: str
    """Module that defines the class."""
    title: str
    """Title of its options on help pages."""
    row_parameters: tuple[RowParameter, ...] = ()
    settings: tuple[Setting, ...] = ()
    """Its own, without those of `SamplerConfig`."""
    has_sampler: bool = True
    """Whether it is sampled as `SamplerConfig` says: whether it is a diffusion model."""
    trainings: tuple[str, ...] = ()
    """Its values of `train --method`. One that the command does not know better is trained by
    `fit(real, output_dir, config=TrainingConfig(...))`, which returns the synthesizer and a
    `TrainingResult`."""
    wraps: bool = False
    """Whether it takes the settings of another synthesizer that it wraps as well."""
    papers: tuple[Paper, ...] = ()

    def load(self) -> Any:
        """The class."""
        return vars(import_module(self.module))[self.name]

    def check_choices(self, synthesizer: Any) -> None:
        """Refuses values of its settings that are not among those declared with a ValueError that
        lists these."""
        for name, value in self.settings_of(synthesizer).items():
            declared = next(setting.type for setting in self.settings if setting.name == name)
            if get_origin(declared) is Literal:
                check_choice(get_args(declared), **{name: value})

    def settings_of(self, synthesizer: Any) -> dict[str, Any]:
        """The values of its own settings in a synthesizer of this kind."""
        return {setting.name: vars(synthesizer)[setting.name] for setting in self.settings}

    def chosen_settings(self, saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Its own settings as they were saved, or as given in their place; others are a
        ValueError."""
        check_settings(given, self.settings, self.row_parameters)
        return {s.name: saved[s.name] for s in self.settings if s.name in saved} | dict(given)


def declared_settings(config: type) -> tuple[Setting, ...]:
    """The fields of a dataclass as settings, with the help of its docstring.

    Metadata of a field are further attributes of its `Setting`, or others in place of these.
    """
    text = (inspect.getdoc(config) or "").partition("Args:")[2]
    helps = dict(re.findall(r"^    (\w+): ((?:.|\n {8})+)", text, re.MULTILINE))
    hints, settings = get_type_hints(config), []
    for one in fields(config):
        kinds = get_args(hints[one.name])
        optional = type(None) in kinds
        declared: dict[str, Any] = {
            "name": one.name,
            "type": kinds[0] if optional else hints[one.name],
            "help": " ".join(helps[one.name].split()),
            "optional": optional,
        }
        settings.append(Setting(**{**declared, **one.metadata}))
    return tuple(settings)


def known_names(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest one, and all."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{meant}; known: {', '.join(names) or 'none'}."


def check_settings(
    given: Iterable[str], settings: Sequence[Setting], row_parameters: Sequence[RowParameter]
) -> None:
    """Refuses settings that were not declared with a ValueError that names all of them."""
    rows = [parameter.name for parameter in row_parameters]
    known = [setting.name for setting in settings]
    raise_problems(
        f"Unknown setting {name!r}, which is a row parameter: give it to `plan`."
        if name in rows
        else f"Unknown setting {name!r}{known_names(name, known)}"
        for name in given
        if name not in known
    )


def raise_problems(problems: Iterable[str]) -> None:
    """Raises a ValueError that lists all problems, one a line, if there are any."""
    if listed := list(problems):
        raise ValueError("\n".join(listed))
