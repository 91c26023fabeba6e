"""The interface of synthesizers that fill caches, and what else they may declare."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, get_args, runtime_checkable

from synthaug._plan import Plan, canonical_json
from synthaug._support.precision import Resolved, recorded_precision
from synthaug._types import JSON, Images, ImageShape

logger = logging.getLogger("synthaug")


@runtime_checkable
class Synthesizer(Protocol):
    """All that a synthesizer must have, one of the user's own too."""

    def draw(self, rows: Plan) -> Images:
        """One image per row, float (n, C, H, W) in [-1, 1]."""
        ...

    def recipe(self) -> Mapping[str, Any]:
        """Everything besides the row that determines an image."""
        ...


@dataclass(frozen=True)
class Declared:
    """Declarations of a synthesizer beyond `Synthesizer`; `None` where there is none."""

    classes: tuple[str, ...] | None
    """Names of the classes that it draws."""
    image_shape: ImageShape | None
    """(C, H, W)."""
    trained_on: Mapping[str, JSON] | None
    """The real images that it learned from."""
    in_precision: Callable[..., Any] | None
    """Makes the same synthesizer in another precision."""
    check_rows: Callable[[Plan], None] | None
    """Refuses to draw rows whose images would depend on more than the row."""

    @classmethod
    def by(cls, synthesizer: Any) -> "Declared":
        """Reads the attributes of a synthesizer."""
        # A user's own synthesizer, of whatever class, need not have them.
        return cls(*(getattr(synthesizer, field.name, None) for field in fields(cls)))


def as_recorded(synthesizer: Any, recipe: Mapping[str, Any]) -> Any:
    """The synthesizer in the precision of a recipe, if its own was chosen automatically and is all
    that differs; otherwise as it is."""
    change, settings = Declared.by(synthesizer).in_precision, recipe.get("settings")
    if change is None or not isinstance(settings, Mapping):
        return synthesizer
    begun = recorded_precision(settings)
    current = synthesizer.recipe()
    if begun not in get_args(Resolved) or recorded_precision(current["settings"]) == begun:
        return synthesizer
    changed = change(begun)
    if canonical_json(changed.recipe()) != canonical_json(recipe):
        return synthesizer
    logger.info("precision %s, as it was begun", begun)
    return changed


def texts_of(row: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Returns the texts that the numbers of a row stand for, such as `{"texts": {"prompt": "a
    cat"}}`.

    Args:
        row: A row of a plan.
        recipe: Its `texts` hold the texts of each numbered column, if there is any. It may come
            from a stranger's file.
    """
    tables = recipe.get("texts")
    texts = {}
    for name, table in tables.items() if isinstance(tables, Mapping) else ():
        number = row.get(name)
        if isinstance(table, list) and isinstance(number, int) and 0 <= number < len(table):
            texts[str(name)] = str(table[number])
    return {"texts": texts} if texts else {}
