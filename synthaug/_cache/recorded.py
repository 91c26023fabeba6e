"""A synthesizer in the precision that a cache was begun in."""

import logging
from collections.abc import Mapping
from typing import Any, get_args

from synthaug._plan import canonical_json
from synthaug._support.precision import Resolved, recorded_precision

logger = logging.getLogger("synthaug")


def as_recorded(synthesizer: Any, recipe: Mapping[str, Any]) -> Any:
    """The synthesizer in the precision of a recipe, if its own was chosen automatically and is all
    that differs; otherwise as it is."""
    change, settings = getattr(synthesizer, "in_precision", None), recipe.get("settings")
    if change is None or not isinstance(settings, Mapping):
        return synthesizer
    begun = recorded_precision(settings)
    own = synthesizer.recipe()
    if begun not in get_args(Resolved) or recorded_precision(own["settings"]) == begun:
        return synthesizer
    changed = change(begun)
    if canonical_json(changed.recipe()) != canonical_json(recipe):
        return synthesizer
    logger.info("precision %s, as it was begun", begun)
    return changed
