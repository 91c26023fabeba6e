"""What the synthesizers that sample one diffusion model have in common."""

import abc
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthaug._plan import Plan
from synthaug._support.precision import Resolved
from synthaug._types import Images, ImageShape, Labels, Pixels
from synthaug.synthesizers._base import AbstractSynthesizer, Guide
from synthaug.synthesizers._losses import LossGrid, diffusion_losses
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers._sampler import SamplerConfig

Diffusion = TypeVar("Diffusion", bound="AbstractDiffusionSynthesizer")


class AbstractDiffusionSynthesizer(AbstractSynthesizer):
    """A synthesizer that samples one diffusion model: a dataclass with the fields below."""

    model: DiffusionModel
    """The trained network, and what belongs to it."""
    sampler: SamplerConfig
    """Scheduler, steps and noise."""

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the classes, in the order of the label column."""
        return self.model.classes

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W) of the images, in pixels."""
        return self.model.image_shape

    @abc.abstractmethod
    def draw(self, rows: Plan, *, guide: Guide | None = None) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1]; `guide` pushes the sampler."""

    def in_precision(self: Diffusion, precision: Resolved) -> Diffusion:
        """See `AbstractSynthesizer.in_precision`."""
        own: Any = self
        changed: Diffusion = replace(own, model=self.model.in_precision(precision))
        return changed

    @torch.inference_mode()
    def restoration_losses(
        self, pixels: Pixels, labels: Labels, grid: LossGrid
    ) -> NDArray[np.float64]:
        """See `AbstractSynthesizer.restoration_losses`: the mean squared error of the prediction.

        In the latents of an autoencoder, if the model has one.
        """
        condition = self._described(pixels, labels)
        return diffusion_losses(self.model, self.model.encode(pixels), condition, grid)

    def _described(self, pixels: Pixels, labels: Labels) -> Tensor | None:
        """What training told the network about such real images: conditions, one per image."""
        del pixels
        return self.model.known_conditions(labels)
