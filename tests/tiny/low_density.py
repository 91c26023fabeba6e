"""Synthesizers steered towards images of low density."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug import TrainingConfig
from synthaug.density import ClassGaussians
from synthaug.synthesizers import LowDensity
from synthaug.synthesizers.low_density import _fit
from synthaug.synthesizers.low_density._hardness import NoiseAware, NoisyEncoder
from tests.checkpoints import tiny_unet
from tests.tiny.class_conditional import NAMES, tiny

SHAPE = (1, 8, 8)


class Bright:
    """Noisy images in four levels of gray, which are their classes."""

    classes = NAMES
    image_shape = SHAPE

    def __init__(self, per_class: int = 8, shape: tuple[int, int, int] = SHAPE) -> None:
        self.image_shape = shape
        self.targets = [c for c in range(4) for _ in range(per_class)]
        noise = torch.randint(-20, 21, (len(self.targets), *shape), generator=seeded())
        levels = 30 + 65 * torch.tensor(self.targets).view(-1, 1, 1, 1)
        self.pixels = (levels + noise).to(torch.uint8)
        self.fingerprint = f"bright {per_class}"

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, indices: Any) -> Tensor:
        return self.pixels[torch.as_tensor(np.asarray(indices))]


def few_noisy_images(
    monkeypatch: pytest.MonkeyPatch, per_level: int = 160, per_class: int = 20
) -> None:
    """Gaussians of a few features do not need thousands of images."""
    monkeypatch.setattr(_fit, "_PER_LEVEL", per_level)
    monkeypatch.setattr(_fit, "_PER_CLASS", per_class)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_aware(num_classes: int, shape: tuple[int, int, int] = SHAPE, levels: int = 2) -> Any:
    """One that nobody trained: random features, random Gaussians."""
    torch.manual_seed(num_classes)
    config = tiny_unet(num_classes=None, size=shape[1], channels=shape[0]).config
    labels = np.arange(20 * num_classes) % num_classes
    features = np.random.default_rng(0).normal(size=(len(labels), 3)) + labels[:, None] % 3
    gaussians = (ClassGaussians.fit(features, labels) for _ in range(levels))
    return NoiseAware(
        network=NoisyEncoder(config, num_classes, 3).eval().requires_grad_(False),
        gaussians=tuple(level.to("cpu", torch.float32) for level in gaussians),
        num_train_timesteps=1000,
    )


def steered(base: Any = None, **changes: Any) -> LowDensity:
    base = tiny() if base is None else base
    shape = base.model.latent_shape
    guides = {
        "hardness": noise_aware(len(base.classes), shape),
        "realism": noise_aware(2, shape),
    }
    return LowDensity(base=base, **{**guides, **changes})


def fitted(path: Path, base: Any = None, real: Any = None, **changes: Any) -> LowDensity:
    training = {"steps": 2, "batch_size": 4, "device": "cpu", **changes.pop("config", {})}
    settings = {"num_synthetic": 4, "embedding_dim": 4, "noise_levels": 2, **changes}
    found, _ = LowDensity.fit(
        Bright() if real is None else real,
        tiny() if base is None else base,
        path,
        config=TrainingConfig(**training),
        progress=False,
        **settings,
    )
    return found
