"""Synthesizers that draw noise, and jobs of nine images."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthaug import Plan, SynthCache, generate
from synthaug.synthesizers import streams
from tests.images import randn

SHAPE = (3, 4, 5)
CLASSES = ("cat", "dog", "emu")


class Killed(BaseException):
    """What a kill would do to Python: nothing catches it."""


class Noise:
    """All that a synthesizer of one's own must have: each image is a function of its row."""

    def __init__(self, *, killed_at: int | None = None, **settings: Any) -> None:
        self.settings = settings
        self.killed_at = killed_at
        self.drawn: list[int] = []

    def draw(self, rows: Plan) -> Tensor:
        images = []
        for row in range(len(rows)):
            if len(self.drawn) == self.killed_at:
                raise Killed
            self.drawn.append(int(rows["seed"][row]))
            noise = randn(streams(rows["seed"][row : row + 1]), SHAPE)
            images.append((rows["strength"][row] * noise).float().clamp(-1, 1))
        return torch.cat(images)

    def recipe(self) -> dict[str, Any]:
        return {"synthesizer": "Noise", "settings": self.settings, "weights": {"net": "ab12"}}


class Shaped(Noise):
    """The same, and says what size its images are."""

    image_shape = SHAPE


def plan_of(quota: Any = (4, 0, 5), **changes: Any) -> Plan:
    arguments = {
        "classes": CLASSES,
        "settings": {},
        "seed": 0,
        "parameters": {"strength": [0.3, 1]},
    }
    return Plan.build(quota, **{**arguments, **changes})


def fill(
    synthesizer: Any, path: Path | str, plan: Plan | None = None, **changes: Any
) -> SynthCache:
    rows = plan_of() if plan is None else plan
    return generate(synthesizer, rows, path, **{"progress": False, **changes})
