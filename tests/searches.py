"""Searches that take seconds: two classes of noise, told apart by a linear classifier."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from synthaug import ClassifierConfig, Plan, improve
from synthaug.images import LabeledImages
from synthaug.improvement import ImproveConfig, ImproveReport
from synthaug.synthesizers import AbstractSynthesizer, streams
from tests.images import randn, to_images

CLASSES = ("dark", "light")


def real(n: int, seed: int, spread: float = 60) -> LabeledImages:
    """Dark and light images of noise, in turn."""
    labels = np.arange(n) % 2
    noise = torch.randn((n, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    level = torch.from_numpy(110.0 + 36 * labels).view(-1, 1, 1, 1)
    pixels = (level + spread * noise).clamp(0, 255).to(torch.uint8)
    return LabeledImages(pixels, labels, CLASSES, name=f"images {seed}")


VALIDATION, TEST = real(400, 1), real(400, 2)


@dataclass(frozen=True)
class Levels(AbstractSynthesizer):
    """Images of the true distribution, or with the two classes exchanged."""

    exchanged: bool = False
    trained_on: Any = None
    classes = CLASSES
    image_shape = (1, 4, 4)

    drawn = 0

    def draw(self, rows: Plan) -> Any:
        type(self).drawn += len(rows)
        light = (rows["label"] == 1) != self.exchanged
        level = torch.from_numpy(np.where(light, 146.0, 110.0)).view(-1, 1, 1, 1)
        noise = randn(streams(rows["seed"]), self.image_shape)
        return to_images((level + 60 * noise).clamp(0, 255).to(torch.uint8))

    def recipe(self) -> dict[str, Any]:
        return {"synthesizer": "Levels", "settings": {"exchanged": self.exchanged}}


def linear(num_classes: int, image_shape: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))


QUICK = ImproveConfig(
    shares=(0.5,),
    targets=("random",),
    augmentations=(),
    images_per_round=10,
    rounds=2,
    final_seeds=4,
    classifiers=ClassifierConfig(model=linear, steps=100, batch_size=8, device="cpu"),
)


def search(folder: Any, n: int = 8, **changes: Any) -> ImproveReport:
    arguments: dict[str, Any] = {
        "validation": VALIDATION,
        "test": TEST,
        "recipes": {"true": Levels(), "exchanged": Levels(exchanged=True)},
        "config": QUICK,
        "progress": False,
        **changes,
    }
    return improve(real(n, 0), folder, **arguments)
