"""The training of a cascade's stage: real images, and what is left of them when they are smaller.

Ho et al. 2021, section 4: the smaller images are blurred (4.1) or noised (4.2, 4.3) in training, so
that the stage bears the faults of the images that the model before it draws.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthaug._support.devices import sent
from synthaug._support.layout import settled
from synthaug._training.fit_job import batch_noise, chosen_rows
from synthaug._training.loop import own_rows
from synthaug._training.network_config import LabeledConfig
from synthaug._types import Images
from synthaug.samplers import make_scheduler
from synthaug.synthesizers._fit import FitJob
from synthaug.synthesizers.cascade._chain import LevelEmbedding, downsample, upsample
from synthaug.synthesizers.cascade._config import StageConfig
from synthaug.synthesizers.cascade._stage import CascadeStage

LOW_RES_SCHEDULE = {"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2"}
"""The schedule of the noise on the smaller images, that of `ClassConditional.fit`."""


class StageNetwork(nn.Module):
    """A stage as it is trained: the network, and with noise levels the embeddings beside it.

    Without levels the network embeds the class itself. With them it is given the sum of two
    vectors, one of the class and one of the level, and adds it to that of the timestep.
    """

    def __init__(self, unet: Any, num_conditions: int, *, takes_levels: bool) -> None:
        super().__init__()
        self.unet = unet
        self.level_embedding = LevelEmbedding.beside(unet) if takes_levels else None
        self.classes = None
        if self.level_embedding is not None:
            width = self.level_embedding.layers.linear_2.out_features
            self.classes = nn.Embedding(num_conditions, width)

    def forward(self, x_t: Images, t: Tensor, low: Images, s: Tensor | None, y: Tensor) -> Images:
        """The prediction for x_t beside the enlarged `low`, at levels `s`, of classes `y`."""
        condition = y
        if self.level_embedding is not None and self.classes is not None:
            condition = self.classes(y) + self.level_embedding(s)
        x_in = settled(torch.cat([x_t, low.to(x_t)], 1))
        prediction: Tensor = self.unet(x_in, t, class_labels=condition, return_dict=False)[0]
        return prediction


def gaussian_blur(x: Images, std: Tensor, padding: str = "replicate") -> Images:
    """3 x 3 Gaussian filter with a standard deviation for each image, in pixels: (n, C, h, w)."""
    side = torch.exp(-0.5 / std**2).view(-1, 1, 1, 1)
    for pad, dim in (((1, 1, 0, 0), 3), ((0, 0, 1, 1), 2)):
        n, wide = x.shape[dim], F.pad(x, pad, mode=padding)
        sides = wide.narrow(dim, 0, n) + wide.narrow(dim, 2, n)
        x = (x + side * sides) / (1 + 2 * side)
    return x


def blur_some(
    z: Images, p: float, std_range: tuple[float, float], padding: str = "replicate"
) -> Images:
    """Each image blurred with probability `p`, by an amount drawn uniformly; on the CPU's
    generator."""
    chosen = chosen_rows(len(z), p)
    low, high = std_range
    size, own = own_rows(len(z))
    std = low + (high - low) * torch.rand(size, dtype=torch.float32, device="cpu")[own]
    return torch.where(
        sent(chosen.view(-1, 1, 1, 1), z.device), gaussian_blur(z, sent(std, z.device), padding), z
    )


class StageFitJob(FitJob):
    """Everything that `Cascade.fit_stage` was asked for, checked before any work starts.

    Arguments and errors as there, and as in `FitJob`.
    """

    def __init__(
        self, real: Any, unlabeled: Any, config: StageConfig, network: LabeledConfig
    ) -> None:
        super().__init__(real, unlabeled, network)
        self.config = config
        (_, *high), low = self.image_shape, config.low_size
        if isinstance(low, int):  # of the shorter side
            low = round(high[0] * low / min(high)), round(high[1] * low / min(high))
        self.low_size = low
        if not all(1 <= low < side for low, side in zip(self.low_size, high, strict=True)):
            raise ValueError(
                f"`low_size` must be at least 1 and smaller than the images, got "
                f"{self.low_size[0]} x {self.low_size[1]} for {high[0]} x {high[1]}."
            )
        schedule = make_scheduler(None, LOW_RES_SCHEDULE).alphas_cumprod
        clean = torch.ones(1, dtype=torch.float32, device="cpu")
        self._signals = torch.cat([clean, schedule])[: config.max_noise_level + 1]

    def stage(self, network: nn.Module) -> CascadeStage:
        """The stage that a trained `StageNetwork` makes."""
        assert isinstance(network, StageNetwork)
        classes = network.classes
        return CascadeStage(
            model=self.model(network.unet, None if classes is None else classes.weight.detach()),
            low_size=self.low_size,
            conditioning_augmentation=self.config.conditioning_augmentation,
            max_noise_level=self.config.max_noise_level if self.config.takes_levels else None,
            low_res_scheduler_config=LOW_RES_SCHEDULE if self.config.takes_levels else None,
            level_embedding=network.level_embedding,
            upsampling=self.config.upsampling,
        )

    def _build(self) -> nn.Module:
        wanted: dict[str, Any] = {"in_channels": 2 * self.image_shape[0]}
        if self.config.takes_levels:
            wanted |= {"num_class_embeds": None, "class_embed_type": "identity"}
        takes_levels = self.config.takes_levels
        return StageNetwork(self._unet(**wanted), len(self.classes) + 1, takes_levels=takes_levels)

    def _identity(self, network: Any) -> dict[str, Any]:
        config = self.config
        blur: list[Any] = [config.blur_probability, *map(float, config.blur_std_range)]
        if config.blur_padding != "replicate":
            blur.append(config.blur_padding)
        unusual = {} if config.upsampling == "bilinear" else {"upsampling": config.upsampling}
        return {
            **unusual,
            **super()._identity(network.unet),
            "synthesizer": "CascadeStage",
            "low_size": list(self.low_size),
            "conditioning_augmentation": config.conditioning_augmentation,
            "blur": blur if config.conditioning_augmentation == "blur" else None,
            "max_noise_level": self.config.max_noise_level if self.config.takes_levels else None,
        }

    def condition(self, x0: Images) -> tuple[Images, Tensor | None]:
        """Returns the stage's conditions for real images: z_s float32 (n, C, h, w), and s int64
        (n,).

        The noise and the levels are draws of their own: not those of x_t.
        """
        z = downsample(x0, self.low_size)
        if self.config.conditioning_augmentation == "blur":
            config = self.config
            blurred = blur_some(
                z, config.blur_probability, config.blur_std_range, config.blur_padding
            )
            return blurred, None
        if not self.config.takes_levels:
            return z, None
        size, own = own_rows(len(z))
        highest = self.config.max_noise_level
        s = torch.randint(0, highest + 1, (size,), dtype=torch.int64, device="cpu")[own]
        signal = sent(self._signals[s].view(-1, 1, 1, 1), z.device)
        noise = sent(batch_noise(z.shape), z.device)
        return signal.sqrt() * z + (1 - signal).sqrt() * noise, sent(s, z.device)

    def _predict(self, network: nn.Module, x_t: Images, t: Tensor, y: Tensor, x0: Images) -> Tensor:
        z_s, s = self.condition(x0)
        low = upsample(z_s, self.image_shape[1:], self.config.upsampling)
        prediction: Tensor = network(x_t, t, low, s, y)
        return prediction
