"""Denoisers that are optimal for known data, so that what a sampler draws is known too."""

import torch
from torch import Tensor

from synthaug.samplers import make_scheduler
from tests.checkpoints import cosine_config

EPSILON = cosine_config(prediction_type="epsilon", clip_sample=False)


class ExactDenoiser:
    """The optimal noise prediction for data that are a finite set of points: no training needed."""

    device = torch.device("cpu")

    def __init__(self, points: Tensor) -> None:
        self.points = points.double()
        self.alphas_cumprod = make_scheduler("ddpm", EPSILON).alphas_cumprod.double()

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        a = self.alphas_cumprod[int(t)]
        x = x.double()
        distance = (x[:, None] - a.sqrt() * self.points[None]).flatten(2).square().sum(-1)
        weight = torch.softmax(-distance / (2 * (1 - a)), dim=1)
        mean = (weight[:, :, None, None, None] * self.points[None]).sum(1)
        return ((x - a.sqrt() * mean) / (1 - a).sqrt()).float()


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}


class GaussianFlow:
    """The optimal flow for independent values of N(0, std^2)."""

    device = torch.device("cpu")

    def __init__(self, std: float) -> None:
        self.std = std

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        s = float(t) / 1000
        variance = (1 - s) ** 2 * self.std**2 + s**2
        # E[noise | x] - E[x_0 | x]
        return (x.double() * (s - (1 - s) * self.std**2) / variance).float()


class GaussianDenoiser(ExactDenoiser):
    """The optimal noise prediction for independent values of N(0, std^2)."""

    def __init__(self, std: float) -> None:
        super().__init__(torch.zeros(1, 1, 1, 1))
        self.std = std

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        a = self.alphas_cumprod[int(t)]
        return (x.double() * (1 - a).sqrt() / (a * self.std**2 + 1 - a)).float()
