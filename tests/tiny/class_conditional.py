"""A class-conditional network, and eight images of four classes."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug.synthesizers import ClassConditional, DiffusionModel
from tests.checkpoints import cosine_config, sampled, tiny_unet

NAMES = ("ant", "bee", "cat", "dog")


class Real:
    """Eight gray images of 8x8 pixels, two of each class."""

    classes = NAMES
    image_shape = (1, 8, 8)
    fingerprint = "real"

    def __init__(self, seed: int = 0, labels: tuple[int, ...] = (0, 1, 2, 3, 0, 1, 2, 3)) -> None:
        self.targets = list(labels)
        generator = torch.Generator().manual_seed(seed)
        shape = (len(labels), *self.image_shape)
        self.pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, indices: Any) -> Tensor:
        return self.pixels[torch.tensor(np.asarray(indices))]


def tiny(network: Any = None, scheduler_config: Any = None, **settings: Any) -> ClassConditional:
    model = DiffusionModel(
        network=tiny_unet() if network is None else network,
        scheduler_config=scheduler_config or cosine_config(),
        classes=NAMES,
        image_shape=(1, 8, 8),
    )
    return ClassConditional(model=model, **sampled(**{"num_inference_steps": 4, **settings}))
