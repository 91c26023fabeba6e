"""What a synthesizer declares: row parameters, settings and papers.

`plan()`, `from_pretrained()`, the command line, sweeps, citations and the documentation read the
declarations, so each name, default, range and explanation exists once. Nothing heavy is imported.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from typing import Any, final

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
        """What a value must be, to follow its name: "must be in (0, 1]"."""
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
        """What is wrong with a value or with one of several; `None` if nothing is."""
        import numpy as np

        try:
            values = np.atleast_1d(np.asarray(value, float))
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
        """The value as `Plan.build` takes it; whole numbers become int64, however they came."""
        import numpy as np

        return value if self.type is float else np.atleast_1d(np.asarray(value)).astype(np.int64)


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
        return getattr(import_module(self.module), self.name)


def known_names(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the closest one, and all."""
    names = list(known)
    close = get_close_matches(name, names, n=1)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    return f"{meant}; known: {', '.join(names) or 'none'}."


def check_settings(
    given: Iterable[str], settings: Sequence[Setting], row_parameters: Sequence[RowParameter]
) -> None:
    """Refuses settings that were not declared.

    Raises:
        ValueError: Naming all of them.
    """
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
