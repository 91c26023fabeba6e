"""What every synthesizer is: rows in, images out."""

import abc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from synthaug._noise import streams as streams
from synthaug._plan import Plan, balanced_quota, given_quota, matching_quota
from synthaug._support.precision import Resolved
from synthaug._types import JSON, Images
from synthaug.samplers import Push

Guide: TypeAlias = Callable[[Plan, Tensor | None], Sequence[Push]]
"""`guide(rows, conditions)`: what pushes the sampler while it draws these rows. Conditions are
those of the denoiser, one per row."""


class AbstractSynthesizer(abc.ABC):
    """Turns the rows of a plan into images.

    Subclasses are final: to vary one, wrap it. One of your own needs only `draw` and `recipe`; set
    `classes` as well if you want `plan`.
    """

    classes: tuple[str, ...] = ()
    """Names of the classes that `draw` knows, in the order of the label column."""

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

    def evaluations(self, rows: Plan) -> NDArray[np.int64]:
        """Network evaluations that each row costs, int64 (n,). Zero unless overridden."""
        return np.zeros(len(rows), np.int64)

    def save_pretrained(self, path: str | Path) -> None:
        """Writes weights and settings to the directory `path`, in diffusers layout."""
        raise TypeError(f"{type(self).__name__} has no weights to save.")

    @classmethod
    def from_pretrained(cls, path: str | Path, **settings: Any) -> "AbstractSynthesizer":
        """Loads what `save_pretrained` wrote; `settings` override the saved ones."""
        raise TypeError(f"{cls.__name__} has no weights to load.")

    def plan(
        self,
        labels: ArrayLike | None = None,
        *,
        per_class: int | None = None,
        ratio: float | None = None,
        counts: Mapping[str, int] | None = None,
        seed: int = 0,
        **parameters: float | Sequence[float],
    ) -> Plan:
        """Lays out the rows to draw.

        Give exactly one quota: `per_class` (balanced), `ratio` (as many per real image, with the
        class proportions of `labels`), or `counts` (class name -> number).

        Args:
            labels: Labels of the real images, int (n,); needed for `ratio`.
            per_class: Images of every class.
            ratio: Images per real image.
            counts: Images of each class by name.
            seed: Base seed; each row's own seed is hashed from it.
            parameters: Per-row parameters of the synthesizer. A sequence is used in turn.

        Raises:
            ValueError: For no quota, two quotas, or an unknown class or parameter.
        """
        return self._build_plan(
            labels,
            per_class=per_class,
            ratio=ratio,
            counts=counts,
            seed=seed,
            parameters=parameters,
        )

    def _build_plan(
        self,
        labels: ArrayLike | None,
        *,
        per_class: int | None,
        ratio: float | None,
        counts: Mapping[str, int] | None,
        seed: int,
        parameters: Mapping[str, float | Sequence[float]],
        sources: Sequence[ArrayLike] | None = None,
        source_keys: ArrayLike | None = None,
    ) -> Plan:
        quota = self.quota(labels, per_class=per_class, ratio=ratio, counts=counts)
        settings = self.recipe()["settings"]
        if not isinstance(settings, dict):
            raise TypeError(f"recipe()['settings'] must be a dict, got {type(settings).__name__}.")
        return Plan.build(
            quota,
            classes=self.classes,
            settings=settings,
            seed=seed,
            sources=sources,
            source_keys=source_keys,
            parameters=parameters,
        )

    def quota(
        self,
        labels: ArrayLike | None = None,
        *,
        per_class: int | None = None,
        ratio: float | None = None,
        counts: Mapping[str, int] | None = None,
    ) -> NDArray[np.int64]:
        """Images per class, int64 (num_classes,), from exactly one of the three ways to say it."""
        if not self.classes:
            raise ValueError(
                f"{type(self).__name__} does not name its classes; set `classes`, or use "
                "`Plan.build`."
            )
        given = [
            name
            for name, value in (("per_class", per_class), ("ratio", ratio), ("counts", counts))
            if value is not None
        ]
        if len(given) != 1:
            raise ValueError(
                "Give exactly one of `per_class`, `ratio` and `counts`; got "
                f"{' and '.join(given) or 'none'}."
            )
        if per_class is not None:
            return balanced_quota(len(self.classes), per_class=per_class)
        if counts is not None:
            return given_quota(counts, self.classes)
        if labels is None or ratio is None:
            raise ValueError(
                "`ratio` needs `labels`, those of the real images (`--source` on the command line)."
            )
        return matching_quota(labels, len(self.classes), ratio=ratio)
