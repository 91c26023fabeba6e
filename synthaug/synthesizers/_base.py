"""The base of all synthesizers: rows in, images out."""

import abc
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias, TypeVar, final

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from synthaug._images.source import ImageSource
from synthaug._noise import streams as streams
from synthaug._plan import (
    Plan,
    balanced_quota,
    filling_quota,
    given_quota,
    largest_remainders,
    matching_quota,
)
from synthaug._support.precision import Resolved
from synthaug._types import JSON, Doubles, Images, Indices, Integers, Labels, Pixels, Unsigned
from synthaug.samplers import Push
from synthaug.synthesizers._losses import LossGrid
from synthaug.synthesizers._parameters import RowParameter, known_names, raise_problems
from synthaug.synthesizers._real import fitting_images, read_sources
from synthaug.synthesizers._sampler import is_rescale_idle, split_sampler

Guide: TypeAlias = Callable[[Plan, Tensor | None], Sequence[Push]]
"""`guide(rows, conditions)`: what pushes the sampler while it draws these rows. Conditions are
those of the denoiser, one per row."""


class RowSources(NamedTuple):
    """Real images that rows start from."""

    labels: Labels
    by_class: Sequence[Indices]
    """The images of each class."""
    keys: Unsigned
    """Content digest of every image."""


Kind = TypeVar("Kind", bound="AbstractSynthesizer")


class AbstractSynthesizer(abc.ABC):
    """Turns the rows of a plan into images.

    Subclasses are final: to vary one, wrap it. One of your own needs only `draw` and `recipe`; set
    `classes` as well if you want `plan`, and `row_parameters` if it has any.
    """

    classes: tuple[str, ...] = ()
    """Names of the classes that `draw` knows, in the order of the label column."""

    row_parameters: ClassVar[tuple[RowParameter, ...] | None] = None
    """The parameters that `plan` takes, in the order of help pages; `None` to take any."""

    @abc.abstractmethod
    def draw(self, rows: Plan) -> Images:
        """Draws one image per row, in order: float (n, C, H, W) in [-1, 1].

        An image must be a pure function of the weights, the recipe's settings and its row, whatever
        other rows are drawn with it. Take all randomness from `synthesizers.streams(rows["seed"])`.
        """

    @abc.abstractmethod
    def recipe(self) -> dict[str, JSON]:
        """Everything besides the row that determines an image, as JSON.

        Keys: `synthesizer` (a name), `settings` (hashed into the row seeds), and `weights` (name ->
        digest) if there are any. It is stored with the images, and a cache only continues with an
        equal recipe.
        """

    def in_precision(self, precision: Resolved) -> "AbstractSynthesizer":
        """The same synthesizer in a precision, if `from_pretrained` chose its own (`dtype="auto"`).

        A network that was made or loaded in a dtype of its own stays as it is.
        """
        del precision
        return self

    @property
    def trained_on(self) -> Mapping[str, JSON] | None:
        """The real images that it learned from, for the cache; `None` if that is not known."""
        return None

    @property
    def can_be_guided(self) -> bool:
        """Whether the row parameter `guidance_scale` may differ from 1."""
        return False

    def evaluations(self, rows: Plan) -> Integers:
        """Network evaluations that each row costs, int64 (n,). Zero unless overridden."""
        return np.zeros(len(rows), np.int64)

    def restoration_losses(self, pixels: Pixels, labels: Labels, grid: LossGrid) -> Doubles:
        """How badly the network restores real images that are made noisy, float64 (n, k).

        Training lowers it, most of all for the images that it sees: see `synthaug.membership`. A
        function of weights, image, label and grid alone.

        Args:
            pixels: Real images, uint8 (n, C, H, W).
            labels: Their classes, int64 (n,), in the order of `classes`; -1 if unknown.
            grid: The noise; a column each, and again for every further network.

        Raises:
            TypeError: If the synthesizer has no network of which we know what it was trained for.
            ValueError: For images of unknown class, if the network needs to know it.
        """
        raise TypeError(
            f"{type(self).__name__} has no denoising network, which this measurement "
            "needs. Use a diffusion model."
        )

    def check_rows(self, plan: Plan) -> None:
        """Tries, before a job starts, whether an image depends on its row alone.

        Nothing unless overridden: where foreign code draws, it draws a few of these rows.

        Raises:
            ValueError: If an image differs when it is drawn again, or beside another row.
        """
        del plan

    def check_classes(self, rows: Plan) -> None:
        """Refuses rows about other classes than this synthesizer knows with a ValueError that names
        both."""
        if rows.classes != self.classes:
            raise ValueError(
                f"The plan is about the classes {', '.join(rows.classes)}; this synthesizer knows "
                f"{', '.join(self.classes)}."
            )

    def save_pretrained(self, path: str | Path) -> None:
        """Writes weights and settings to the directory `path`, in diffusers layout."""
        raise TypeError(
            f"{type(self).__name__} has no weights to save. Define `save_pretrained` for it."
        )

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *arguments: Any, **settings: Any
    ) -> "AbstractSynthesizer":
        """Loads a directory that `save_pretrained` wrote; `settings` override the saved ones."""
        raise TypeError(f"{cls.__name__} has no weights to load. Define `from_pretrained` for it.")

    def with_settings(self: Kind, **settings: Any) -> Kind:
        """The same synthesizer with other settings, such as `num_inference_steps` of its sampler.

        What a new scheduler would ignore does not carry over to it; see `SamplerConfig.changed`.

        Raises:
            ValueError: For a setting that it does not have, or cannot follow.
        """
        own: Any = self
        names: list[str] = [field.name for field in fields(own)] if is_dataclass(self) else []
        if "sampler" in names:
            changes, settings = split_sampler(settings)
            settings = {**settings, "sampler": own.sampler.changed(**changes)}
        raise_problems(
            f"Unknown setting {name!r}{known_names(name, names)}"
            for name in settings
            if name not in names
        )
        changed: Kind = replace(own, **settings) if settings else self
        return changed

    # -- plans -----------------------------------------------------------------------------------

    def available_parameters(self) -> tuple[RowParameter, ...]:
        """The declared row parameters that this object takes, with its own defaults and ranges.

        Without sources, those that need some are left out.
        """
        declared = self.row_parameters or ()
        return tuple(p for p in declared if self.has_sources or not p.needs_sources)

    @property
    def has_sources(self) -> bool:
        """Whether rows start from real images."""
        return False

    @final
    def plan(
        self,
        labels: ArrayLike | None = None,
        *,
        per_class: int | None = None,
        ratio: float | None = None,
        counts: Mapping[str, int] | None = None,
        fill_to: int | Literal["largest"] | None = None,
        seed: int = 0,
        source_weights: ArrayLike | None = None,
        **parameters: float | Sequence[float],
    ) -> Plan:
        """Lays out the rows to draw.

        Give exactly one quota: `per_class` (balanced), `ratio` (as many per real image, with the
        class proportions of `labels`), `counts` (class name -> number), or `fill_to` (what each
        class lacks of a number). With sources, the rows of each class start from its real images in
        turn.

        Args:
            labels: Labels of the real images, int (n,); needed for `ratio` and `fill_to`, and by
                default those of the sources.
            per_class: Images of every class.
            ratio: Images per real image.
            counts: Images of each class by name.
            fill_to: Real and new images of every class together, or "largest": as many as the
                largest class of the real images has. Classes with more get none.
            seed: Base seed; each row's own seed is hashed from it.
            source_weights: A weight for every real image that rows start from, float (N,) and at
                least 0: images of a class are used in proportion, and those of weight 0 not at all.
                Difficulty has some: `selection.difficulty(real).weights("medium")`.
            parameters: Row parameters, see `available_parameters`. A sequence is used in turn.

        Raises:
            ValueError: For no quota, two quotas, or an unknown class; for all unknown parameters
                and all values out of range at once.
        """
        quota = {
            "labels": labels,
            "per_class": per_class,
            "ratio": ratio,
            "counts": counts,
            "fill_to": fill_to,
        }
        if source_weights is not None:
            quota["source_weights"] = source_weights
        columns = self._checked_parameters(parameters)
        rows = self._lay_out(columns, quota, seed)
        if is_rescale_idle(self.recipe()["settings"], columns):
            warnings.warn(
                "`guidance_rescale` has no effect: every image has a `guidance_scale` of 1, "
                "which is no guidance. Raise `guidance_scale`, or leave `guidance_rescale` "
                "out.",
                stacklevel=2,
            )
        return rows

    def _checked_parameters(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The row parameters with their defaults, as columns; all problems in one error."""
        if self.row_parameters is None:
            return dict(given)
        given = self._spelled_out(given)
        available = {p.name: p for p in self.available_parameters()}
        problems = [
            f"Unknown row parameter {name!r}" + self._why_unknown(name, available)
            for name in given
            if name not in available
        ]
        columns: dict[str, Any] = {}
        for name, parameter in available.items():
            value = given.get(name, parameter.default)
            problem = parameter.problem(value)
            problems += [problem] if problem else []
            if not problem and not (parameter.type is bool and not value):
                columns[name] = parameter.column(value)
        raise_problems([*problems, *self._plan_problems(columns)])
        return columns

    def _why_unknown(self, name: str, available: Iterable[str]) -> str:
        if any(p.name == name and p.needs_sources for p in self.row_parameters or ()):
            return f" (`{name}` needs `with_sources`); known: {', '.join(available) or 'none'}."
        return known_names(name, available)

    def _spelled_out(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """The parameters of a plan by the names of their columns."""
        return given

    def _plan_problems(self, columns: Mapping[str, Any]) -> Iterable[str]:
        """Returns further problems of a plan with these columns, one message each."""
        del columns
        return ()

    def _sources(self) -> RowSources | None:
        """The real images that rows start from; `None` if they start from nothing."""
        return None

    def _lay_out(self, columns: Mapping[str, Any], quota: Mapping[str, Any], seed: int) -> Plan:
        """The rows with these columns; `quota` holds the arguments of the method `quota`."""
        sources, quota = self._sources(), dict(quota)
        weights = quota.pop("source_weights", None)
        if sources is not None and quota["labels"] is None:
            quota = {**quota, "labels": sources.labels}
        settings = self.recipe()["settings"]
        if not isinstance(settings, dict):
            raise TypeError(f"recipe()['settings'] must be a dict, got {type(settings).__name__}.")
        counts = self.quota(**quota)
        if weights is not None:
            sources = _weighted(sources, weights, counts, self.classes)
        return Plan.build(
            counts,
            classes=self.classes,
            settings=settings,
            seed=seed,
            sources=None if sources is None else sources.by_class,
            source_keys=None if sources is None else sources.keys,
            parameters=columns,
        )

    def quota(
        self,
        labels: ArrayLike | None = None,
        *,
        per_class: int | None = None,
        ratio: float | None = None,
        counts: Mapping[str, int] | None = None,
        fill_to: int | Literal["largest"] | None = None,
    ) -> Integers:
        """Images per class, int64 (num_classes,), from exactly one of the four ways to say it."""
        if not self.classes:
            raise ValueError(
                f"{type(self).__name__} does not name its classes; set `classes`, or use "
                "`Plan.build`."
            )
        quotas = {"per_class": per_class, "ratio": ratio, "counts": counts, "fill_to": fill_to}
        given = [name for name, value in quotas.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                "Give exactly one of `per_class`, `ratio`, `counts` and `fill_to`; got "
                f"{' and '.join(given) or 'none'}."
            )
        if per_class is not None:
            return balanced_quota(len(self.classes), per_class=per_class)
        if counts is not None:
            return given_quota(counts, self.classes)
        if labels is None:
            raise ValueError(
                f"`{given[0]}` needs `labels`, those of the real images (`--source` on the command "
                "line)."
            )
        if fill_to is not None:
            return filling_quota(labels, len(self.classes), fill_to=fill_to)
        assert ratio is not None  # one of the four is given
        return matching_quota(labels, len(self.classes), ratio=ratio)


def _weighted(
    sources: RowSources | None, weights: ArrayLike, counts: Labels, classes: Sequence[str]
) -> RowSources:
    """The real images of every class as often as their weights say, in turn; a ValueError without
    real images, for weights that do not fit them, or a class of which all have weight 0."""
    if sources is None:
        raise ValueError(
            "`source_weights` are weights of real images to start from, and these rows start from "
            "noise. Call `with_sources(real)` first, or leave them out."
        )
    values = np.asarray(weights, np.float64)
    if values.shape != sources.labels.shape or not ((values >= 0) & (values < np.inf)).all():
        raise ValueError(
            f"`source_weights` has shape {values.shape}, expected a weight of at least 0 for each "
            f"of {len(sources.labels)} real images."
        )
    by_class = []
    for name, rows, count in zip(classes, sources.by_class, counts.tolist(), strict=True):
        of_class = values[rows]
        if count and not of_class.any():
            raise ValueError(
                f"All `source_weights` of class {name!r} are 0. Give one of them a weight, or draw "
                "none of the class: `counts=`."
            )
        if count and np.ptp(of_class) > 0:  # else all in turn, as without weights
            times = largest_remainders(of_class / of_class.sum() * count, count)
            lap = np.concatenate([np.arange(n) for n in times.tolist()])
            rows = np.repeat(rows, times)[np.argsort(lap, kind="stable")]
        by_class.append(rows)
    return sources._replace(by_class=by_class)


Sourced = TypeVar("Sourced", bound="AbstractSourcedSynthesizer")


class AbstractSourcedSynthesizer(AbstractSynthesizer):
    """A synthesizer whose rows may start from real images: a dataclass with the field `real`."""

    real: ImageSource | None
    """Where `source` indices point to; see `with_sources`."""

    @property
    def has_sources(self) -> bool:
        """Whether rows start from real images."""
        return self.real is not None

    def with_sources(self: Sourced, real: Any, labels: ArrayLike | None = None) -> Sourced:
        """The same synthesizer, starting from real images.

        Args:
            real: Any map-style data set of images, or a cache.
            labels: Class indices of the real images, int (n,), in the order of our `classes`.

        Raises:
            MismatchError: For images of another shape, or other or differently ordered classes.
            ValueError: For labels beyond the classes, or not one for every image.
        """
        own: Any = self
        images = fitting_images(real, labels, classes=self.classes, image_shape=own.image_shape)
        sourced: Sourced = replace(own, real=images)
        return sourced

    def _sources(self) -> RowSources | None:
        if self.real is None:
            return None
        rows = self.real.rows_of_classes(len(self.classes))
        return RowSources(self.real.labels, rows, self.real.keys())

    def _source_pixels(self, rows: Plan) -> Pixels:
        """The real images that rows start from, uint8 (n, C, H, W)."""
        return read_sources(self.real, rows)
