"""Diffusion models one after the other: what the base and the stages of a cascade have in common.

Ho et al. 2021, "Cascaded Diffusion Models for High Fidelity Image Generation".
https://arxiv.org/abs/2106.15282
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthaug._noise import Streams
from synthaug._types import Images
from synthaug.denoisers import AnyDenoiser, Denoiser
from synthaug.samplers import Push
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers._sampler import SamplerConfig


class DiffusionChain(Protocol):
    """A diffusion model and how it is sampled: a stage, or any `ClassConditional`."""

    @property
    def model(self) -> DiffusionModel: ...
    @property
    def sampler(self) -> SamplerConfig: ...


ChainGuide: TypeAlias = Callable[[Tensor, Any, AnyDenoiser], Sequence[Push]]
"""`guide(labels, conditions, denoiser)`: what pushes the sampler of these rows."""


def run_chain(
    chain: DiffusionChain,
    labels: Tensor,
    guidance_scale: Tensor,
    generators: Streams,
    *,
    until: float = 1.0,
    conditioned: "Callable[[Tensor | None], StageCondition] | None" = None,
    guide: ChainGuide | None = None,
) -> Images:
    """One image (or, stopped early, a noisy x_s) per row, float32 (n, C, H, W).

    Args:
        chain: The model.
        labels: Class indices int64 (n,).
        guidance_scale: float32 (n,).
        generators: One stream per row.
        until: Signal level to stop at; below 1 for models in pixel space only.
        conditioned: Adds what a stage sees besides the class.
        guide: Pushes of the sampler.
    """
    model = chain.model
    add: Callable[[Tensor | None], Any] = conditioned or (lambda classes: classes)
    model.check_guidance(guidance_scale.numpy())
    condition = add(model.conditions(labels))
    denoiser = model.denoiser if conditioned is None else StageDenoiser(chain)
    latents = model.sample(
        chain.sampler,
        condition,
        generators,
        guidance_scale=guidance_scale,
        null=lambda: add(model.null_conditions(len(labels))),
        denoiser=denoiser,
        pushes=() if guide is None else guide(labels, condition, denoiser),
        until=until,
    )
    return latents if until < 1 else model.decode(latents)


def downsample(x: Images, size: tuple[int, int]) -> Images:
    """Returns smaller images as a data set would hold them, up to rounding: bicubic, antialiased,
    in the 256 levels of a pixel; float32 (n, C, *size) in [-1, 1].
    """
    small = F.interpolate(x, size, mode="bicubic", antialias=True).clamp(-1, 1)
    return ((small + 1) * 127.5).round() / 127.5 - 1


def upsample(low: Images, size: tuple[int, int], mode: str = "bilinear") -> Images:
    """The enlargement that is laid beside x_t, (n, C, *size); a bicubic one may leave [-1, 1]."""
    if tuple(low.shape[2:]) == tuple(size):
        return low
    if mode == "nearest":
        return F.interpolate(low, size, mode="nearest-exact")
    return F.interpolate(low, size, mode=mode, align_corners=False)


@final
@dataclass(frozen=True, eq=False)
class StageCondition:
    """Inputs of a stage's network besides x_t and t; row i belongs to image i."""

    low: Tensor
    """Low-resolution images, enlarged: (n, C, H, W)."""
    levels: Tensor | None
    """Their noise levels s, int64 (n,)."""
    classes: Tensor | None
    """`DiffusionModel.conditions`."""

    def __getitem__(self, rows: Tensor) -> "StageCondition":
        low, levels, classes = (
            None if part is None else part[rows] for part in (self.low, self.levels, self.classes)
        )
        assert low is not None
        return StageCondition(low, levels, classes)

    def joined(self, other: "StageCondition") -> "StageCondition":
        """These conditions, and behind them others."""

        def behind(one: Tensor | None, more: Tensor | None) -> Tensor | None:
            return None if one is None or more is None else torch.cat([one, more])

        low = torch.cat([self.low, other.low])
        levels, classes = behind(self.levels, other.levels), behind(self.classes, other.classes)
        return StageCondition(low, levels, classes)


class LevelEmbedding(nn.Module):
    """The noise level s as a vector to add to that of the timestep: sinusoids, then two layers."""

    def __init__(self, channels: int, width: int) -> None:
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        super().__init__()
        self.sinusoids = Timesteps(channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.layers = TimestepEmbedding(channels, width)

    @classmethod
    def beside(cls, network: Any) -> "LevelEmbedding":
        """One that fits a `UNet2DModel`."""
        channels = network.config.block_out_channels[0]
        return cls(channels, network.config.time_embedding_dim or 4 * channels)

    def forward(self, levels: Tensor) -> Tensor:
        """Vectors (n, width) of the levels int64 (n,)."""
        found: Tensor = self.layers(self.sinusoids(levels).to(self.layers.linear_1.weight.dtype))
        return found


@final
class StageDenoiser:
    """The network of a stage behind the call that samplers use, with `StageCondition`s."""

    def __init__(self, stage: Any) -> None:
        self._inner: Denoiser = stage.model.denoiser
        self._level_embedding = stage.level_embedding

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._inner.device

    def __call__(self, x: Images, t: Tensor, condition: StageCondition) -> Images:
        """The prediction, float32 (n, C, H, W)."""
        inner, dtype = self._inner, self._inner.dtype
        inputs: dict[str, Any] = {"class_labels": condition.classes} if inner.takes_labels else {}
        if inner.kind == "UNet2DConditionModel":
            assert condition.classes is not None
            tokens = condition.classes.to(dtype)
            inputs = {"encoder_hidden_states": tokens, "class_labels": condition.levels}
        elif self._level_embedding is not None:
            assert condition.classes is not None
            vectors = condition.classes.to(dtype) + self._level_embedding(condition.levels)
            inputs = {"class_labels": vectors}
        out = inner.evaluate(torch.cat([x, condition.low.to(x)], 1), t, **inputs)
        # A network that also predicts its variance has twice the channels; the mean comes first.
        return out[:, : x.shape[1]]
