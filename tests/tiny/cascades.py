"""A cascade of 4x4 and 8x8 pixels, and its stages alone."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import torch

from synthaug._training.network_config import LabeledConfig
from synthaug.images import LabeledImages
from synthaug.synthesizers import (
    Cascade,
    CascadeStage,
    ClassConditional,
    DiffusionModel,
    SamplerConfig,
    StageConfig,
)
from synthaug.synthesizers.cascade._fit import StageFitJob
from tests.checkpoints import cosine_config, sampled, tiny_unet

NAMES = ("ant", "bee", "cat", "dog")


def real(size: int = 8, n: int = 16, channels: int = 1) -> LabeledImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator
    )
    return LabeledImages(pixels, np.arange(n) % len(NAMES), NAMES)


def job(augmentation: str = "gaussian", data: Any = None, **changes: Any) -> StageFitJob:
    settings: dict[str, Any] = {
        "low_size": 4,
        "conditioning_augmentation": augmentation,
        "channels": 8,
        "num_layers": 1,
        "prediction_type": "v_prediction",
        "label_dropout": 0.1,
        "horizontal_flip": False,
        **changes,
    }
    names = {field.name for field in fields(StageConfig)} & settings.keys()
    config = StageConfig(**{name: settings.pop(name) for name in names})
    return StageFitJob(real() if data is None else data, None, config, LabeledConfig(**settings))


def tiny_stage(augmentation: str = "gaussian", size: int = 8, low: int = 4) -> CascadeStage:
    """A stage with random weights, those that a network would be trained from."""
    torch.manual_seed(size)
    made = job(augmentation, real(size), low_size=low)
    network = made._build().eval().requires_grad_(False)
    for weight in network.parameters():  # biases start at 0, and would hide what they should add
        weight.add_(0.05 * torch.randn(weight.shape))
    return replace(made.stage(network), sampler=SamplerConfig(num_inference_steps=3))


def tiny_base(**settings: Any) -> ClassConditional:
    model = DiffusionModel(
        network=tiny_unet(size=4),
        scheduler_config=cosine_config(),
        classes=NAMES,
        image_shape=(1, 4, 4),
    )
    return ClassConditional(model=model, **sampled(**{"num_inference_steps": 5, **settings}))


def tiny_cascade(augmentation: str = "gaussian", **settings: Any) -> Cascade:
    return Cascade(base=tiny_base(), stages=[tiny_stage(augmentation)], **settings)
