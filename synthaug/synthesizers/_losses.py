"""How badly a network restores given images: what training lowers, and membership tests look at."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from synthaug._noise import counter_rng, randn, stream
from synthaug._support.arguments import check_fields, check_whole
from synthaug._support.devices import sent
from synthaug._training.fit_job import check_prediction_type, denoising_target
from synthaug._types import Doubles, Images
from synthaug.denoisers import AnyDenoiser
from synthaug.samplers import add_flow_noise, predicts_flow
from synthaug.synthesizers._model import DiffusionModel


@dataclass(frozen=True, kw_only=True)
class LossGrid:
    """Where on the diffusion losses are taken, and with which noise: the same for every image."""

    levels: int = 10
    """Noise levels, in the middles of as many equal parts of the diffusion."""
    draws: int = 2
    """Draws of noise per level."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_whole(1, levels=self.levels, draws=self.draws)

    @property
    def times(self) -> Doubles:
        """Share of the diffusion of each column of losses, in (0, 1), float64 (levels * draws,)."""
        return np.repeat((np.arange(self.levels) + 0.5) / self.levels, self.draws)

    @property
    def noise_seeds(self) -> list[int]:
        """Seed of the noise of each column of losses, 64 bits."""
        columns = range(self.levels * self.draws)
        return [int(counter_rng(self.seed, 5, column).integers(2**63)) for column in columns]


@torch.inference_mode()
def diffusion_losses(
    model: DiffusionModel,
    x0: Images,
    condition: Any,
    grid: LossGrid,
    *,
    denoiser: AnyDenoiser | None = None,
) -> Doubles:
    """The loss that a diffusion model was trained with, image by image, float64 (n, k).

    Args:
        model: The model.
        x0: Images as its network denoises them, float32 (n, *latent_shape), on its device.
        condition: One condition per image, as `denoiser` takes it.
        grid: k timesteps and noises.
        denoiser: By default the model's network.

    Raises:
        ValueError: For a network whose prediction we do not know.
    """
    scheduler = model.training_scheduler()
    if predicts_flow(model.scheduler_config):
        return _flow_losses(model, x0, condition, grid, denoiser or model.denoiser)
    check_prediction_type(scheduler)
    steps = scheduler.config.num_train_timesteps
    losses = []
    for time, seed in zip(grid.times.tolist(), grid.noise_seeds, strict=True):
        t = torch.full((len(x0),), int(time * steps), dtype=torch.int64, device=x0.device)
        noise = sent(randn([stream(seed)], x0.shape[1:]), x0.device).expand_as(x0)
        prediction = (denoiser or model.denoiser)(scheduler.add_noise(x0, noise, t), t, condition)
        losses.append(_mean_square(prediction - denoising_target(scheduler, x0, noise, t)))
    return torch.stack(losses, 1).numpy()


def _flow_losses(
    model: DiffusionModel, x0: Images, condition: Any, grid: LossGrid, denoiser: AnyDenoiser
) -> Doubles:
    steps = model.make_scheduler(None).config.num_train_timesteps
    losses = []
    for time, seed in zip(grid.times.tolist(), grid.noise_seeds, strict=True):
        t = torch.full((len(x0),), time * steps, dtype=torch.float32, device=x0.device)
        noise = sent(randn([stream(seed)], x0.shape[1:]), x0.device).expand_as(x0)
        flow = denoiser(add_flow_noise(x0, noise, time), t, condition)
        losses.append(_mean_square(flow - (noise - x0)))
    return torch.stack(losses, 1).numpy()


def _mean_square(errors: Tensor) -> Tensor:
    """The mean square of each image's errors, float64 (n,), on the CPU."""
    return errors.cpu().double().square().flatten(1).mean(1)  # not all devices have float64
