"""Networks that are small whatever their training says."""

import functools
from typing import Any

from synthaug._training.network_config import NetworkConfig


def of_8_channels(patch: Any) -> None:
    """All networks that are trained from the start have 8 channels on their first level.

    `patch` is a `pytest.MonkeyPatch`. A search for images that help measures fewer of them.
    """
    patch.setattr("synthaug.improvement._cost._BATCH", 4)
    for kind in _with_children(NetworkConfig):
        made = functools.partialmethod(_made, kind.__init__)
        patch.setattr(kind, "__init__", made)


def _made(self: Any, initialize: Any, **settings: Any) -> None:
    initialize(self, **{**settings, "channels": 8})


def _with_children(kind: Any) -> list[Any]:
    return [kind, *(inner for child in kind.__subclasses__() for inner in _with_children(child))]
