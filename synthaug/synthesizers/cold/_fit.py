"""The training of a restorer."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthaug._images.source import ImageSource
from synthaug._noise import streams
from synthaug._pixels import to_images
from synthaug._support.devices import sent
from synthaug._support.layout import settled
from synthaug._training.fit_job import AbstractFitJob, half_mirrored, stratified
from synthaug._training.loop import own_rows
from synthaug._types import Indices
from synthaug.degradations import AbstractDegradation
from synthaug.denoisers import build_unet
from synthaug.errors import DataError
from synthaug.synthesizers.cold._colors import ColorMixture
from synthaug.synthesizers.cold._config import RestorerConfig


class ColdFitJob(AbstractFitJob[nn.Module]):
    """Everything that `ColdDiffusion.fit` was asked for, checked before any work starts.

    Args:
        real: Images.
        degradation: The degradation to undo.
        network: The network to train.
        seed: Seed of the fit of the colors.

    Raises:
        DataError: If there are no images.
        ValueError: For images that cannot be degraded so, or too few for the colors.
    """

    def __init__(
        self, real: Any, degradation: AbstractDegradation, network: RestorerConfig, seed: int
    ) -> None:
        if not len(real):
            raise DataError("There are no images to train on. Give at least one.")
        self.real, self.degradation = ImageSource.open(real, "`real`"), degradation
        self.num_examples = len(real)
        self.image_shape = self.real.image_shape
        self.classes = self.real.classes or ("image",)
        self.network = network
        self.last_levels(np.arange(1))  # refuses images that it cannot degrade
        self.colors: ColorMixture | None = None
        if degradation.leaves(self.image_shape) == "color":
            blocks = (np.arange(i, min(i + 1024, len(real))) for i in range(0, len(real), 1024))
            colors = np.concatenate([self.last_levels(b).mean((2, 3)).numpy() for b in blocks])
            self.colors = ColorMixture.fit(colors, network.color_components, seed=seed)

    def last_levels(self, indices: Indices) -> Tensor:
        """D(x, T) of some images, float64 (n, C, H, W)."""
        x = to_images(self.real.pixels(indices), torch.float64)
        realization = self.degradation.realize(streams(indices.tolist()), self.image_shape)
        return self.degradation(x, self.degradation.num_levels, realization)

    def _build(self) -> nn.Module:
        network: nn.Module = build_unet(
            self.image_shape,
            num_classes=None,
            channels=self.network.channels,
            num_layers=self.network.num_layers,
        )
        return network

    def _identity(self, module: Any) -> dict[str, Any]:
        return {
            "synthesizer": "ColdDiffusion",
            "degradation": self.degradation.config(),
            "network": {k: v for k, v in module.config.items() if not k.startswith("_")},
            "data": self.real.fingerprint or len(self.real),
            "horizontal_flip": self.network.horizontal_flip,
        }

    def _loss(self, module: nn.Module, indices: Indices) -> Tensor:
        """Mean of |R(D(x, s), s) - x|, at levels stratified over 1 ... T in the batch."""
        device = next(module.parameters()).device
        T = self.degradation.num_levels
        x = to_images(sent(self.real.pixels(indices), device))
        if self.network.horizontal_flip:
            x = half_mirrored(x)
        s = 1 + stratified(len(x), T)
        size, own = own_rows(len(x))
        drawn = self.degradation.realize([torch.default_generator] * size, self.image_shape)
        realization = {name: sent(value[own], device) for name, value in drawn.items()}
        x_s = settled(self.degradation(x, s, realization))
        x_hat = module(x_s, sent(s - 1, device), return_dict=False)[0]
        return F.l1_loss(x_hat.float(), x)
