"""Hardness of noisy images: from a network that was trained on them, or on the denoised estimate.

Both are `guidance.HardnessModel`s. The first is fast, the second needs no training and takes any
differentiable features of clean images, at the price of a gradient through the denoiser.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from synthaug._support.devices import timesteps_of
from synthaug._support.digests import tensor_digest
from synthaug._support.layout import settle_layout, settled
from synthaug._support.torch_state import lasting_tensors
from synthaug._training import checkpoints
from synthaug._training.parts import load_module, read_config
from synthaug._types import Images, ImageShape
from synthaug.denoisers import Denoiser, build_unet, uncompiled
from synthaug.density import ClassGaussians
from synthaug.samplers import clean_estimate
from synthaug.synthesizers._model import DiffusionModel

_PLAIN_BLOCKS = {"DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"}


@final
class NoisyEncoder(nn.Module):
    """The first half of a `UNet2DModel`, averaged over the image: features of noisy images.

    Args:
        config: Configuration of the `UNet2DModel`, without class conditions.
        num_outputs: Classes that it is trained to tell apart.
        embedding_dim: Length of the features.
    """

    def __init__(self, config: Mapping[str, Any], num_outputs: int, embedding_dim: int) -> None:
        from diffusers import UNet2DModel

        super().__init__()
        self.settings = {
            "config": dict(config),
            "num_outputs": num_outputs,
            "embedding_dim": embedding_dim,
        }
        whole: Any = UNet2DModel.from_config(config)
        self.time_proj, self.time_embedding = whole.time_proj, whole.time_embedding
        self.conv_in, self.down_blocks = whole.conv_in, whole.down_blocks
        self.mid_block = whole.mid_block
        widest = whole.config.block_out_channels[-1]
        self.norm = nn.GroupNorm(whole.config.norm_num_groups, widest)
        self.embedding = nn.Linear(widest, embedding_dim)
        self.head = nn.Linear(embedding_dim, num_outputs)

    @staticmethod
    def config_for(denoiser: Denoiser, shape: ImageShape) -> dict[str, Any]:
        """The generator's own network if its first half can be used, else one of our usual size.

        Args:
            denoiser: The generator's.
            shape: (c, h, w) of what it denoises.
        """
        config: Any = denoiser.config
        fits = denoiser.kind == "UNet2DModel" and not config.center_input_sample
        if not fits or not set(config.down_block_types) <= _PLAIN_BLOCKS:
            config = build_unet(shape, num_classes=None).config
        found = {k: v for k, v in config.items() if not k.startswith("_")}
        return {**found, "num_class_embeds": None, "class_embed_type": None}

    def start_from(self, denoiser: Denoiser) -> None:
        """Copies the first half of the generator's network, which knows noisy images already."""
        ours = self.state_dict()
        theirs = {
            k: v.float()
            for k, v in uncompiled(denoiser.network).state_dict().items()
            if k in ours and v.shape == ours[k].shape
        }
        if denoiser.kind == "UNet2DModel":
            self.load_state_dict(theirs, strict=False)

    def embed(self, x: Images, t: Tensor) -> Tensor:
        """Features float (n, embedding_dim) of noisy images (n, c, h, w) at timesteps (n,)."""
        emb = self.time_embedding(self.time_proj(t).to(self.conv_in.weight.dtype))
        h = self.conv_in(settled(x))
        for block in self.down_blocks:
            h, _ = block(h, emb)
        if self.mid_block is not None:
            h = self.mid_block(h, emb)
        features: Tensor = self.embedding(nn.functional.silu(self.norm(h)).mean((2, 3)))
        return features

    def forward(self, x: Images, t: Tensor) -> Tensor:
        """Logits (n, num_outputs)."""
        logits: Tensor = self.head(self.embed(x, t))
        return logits


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class NoiseAware:
    """Hardness from features of noisy images, under class Gaussians of their own noise level.

    At every noise level features mean something else, so timesteps are divided into ranges of equal
    length, each with Gaussians that were fitted to real images of that much noise.
    """

    network: NoisyEncoder
    gaussians: tuple[ClassGaussians, ...]
    """One per range of timesteps, ascending."""
    num_train_timesteps: int
    evaluations: int = 1
    """The first half of a network, forwards and backwards, takes about as long as one evaluation of
    the whole: 0.84 of it for the network of 2.7 million parameters that we trained on CIFAR-10."""

    def __post_init__(self) -> None:
        settle_layout(self.network)

    def __call__(self, x: Images, t: Tensor, condition: Tensor | None) -> Tensor:
        """float32 (n, C); see `guidance.HardnessModel`."""
        features = self.network.embed(x, timesteps_of(t, x))
        part = int(t) * len(self.gaussians) // self.num_train_timesteps
        part = min(part, len(self.gaussians) - 1)  # a flow begins at the end of the last range
        return self.gaussians[part].all_hardness(features)

    @property
    def num_classes(self) -> int:
        """C."""
        return self.gaussians[0].num_classes

    @cached_property
    def weights(self) -> str:
        """Digest of network and Gaussians."""
        return tensor_digest(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        for i, gaussians in enumerate(self.gaussians):
            tensors.update({f"{i:03d}.{k}": v for k, v in gaussians.state().items()})
        return tensors

    def save(self, folder: Path) -> None:
        """Writes settings and weights."""
        with checkpoints.replaced(folder) as new:
            settings = {"num_train_timesteps": self.num_train_timesteps, **self.network.settings}
            checkpoints.write_json(new / "config.json", settings)
            checkpoints.save_tensors(new / "model.safetensors", self._tensors())

    @classmethod
    @lasting_tensors()
    def load(cls, folder: Path, device: torch.device) -> "NoiseAware | None":
        """Reads a network that `save` wrote, frozen; `None` if there is none, a CheckpointError if
        it is damaged."""
        checkpoints.restore(folder)
        if not folder.exists():
            return None
        with checkpoints.reading(folder, "Train again."):
            settings = read_config(folder)
            timesteps = int(settings.pop("num_train_timesteps"))
            parts: dict[str, dict[str, Tensor]] = {}
            for key, value in checkpoints.load_tensors(folder / "model.safetensors").items():
                part, _, name = key.partition(".")
                parts.setdefault(part, {})[name] = value
            network = load_module(lambda: NoisyEncoder(**settings), folder, parts.pop("network"))
            gaussians = [ClassGaussians.from_state(parts[part]) for part in sorted(parts)]
            if not gaussians:
                raise LookupError("there are no Gaussians")
        return cls(
            network=network.eval().requires_grad_(False).to(device),
            gaussians=tuple(g.to(device, torch.float32) for g in gaussians),
            num_train_timesteps=timesteps,
        )


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class OnEstimate:
    """Hardness of the denoised estimate x0_hat(x_t), with the gradient through the denoiser.

    The estimate is that of the conditional branch; of a latent model it is decoded first.
    """

    model: DiffusionModel
    features: nn.Module
    """Clean images float32 (n, C, H, W) in [-1, 1] => features (n, d), differentiable."""
    gaussians: ClassGaussians
    """Fitted to the features of clean images."""
    evaluations: int = 3
    """One forwards, and backwards twice the work."""

    def __post_init__(self) -> None:
        settle_layout(self.features)

    def __call__(self, x: Images, t: Tensor, condition: Tensor | None) -> Tensor:
        """float32 (n, C); see `guidance.HardnessModel`."""
        prediction = self.model.denoiser(x, t, condition)
        x0 = clean_estimate(self.model.training_scheduler(), prediction, x, t)
        return self.gaussians.all_hardness(self.features(self.model.decode(x0)))

    @cached_property
    def weights(self) -> str:
        """Digest of features and Gaussians; those of the denoiser are in the recipe anyway."""
        return tensor_digest(
            {
                **{f"gaussians.{k}": v for k, v in self.gaussians.state().items()},
                **{f"features.{k}": v for k, v in self.features.state_dict().items()},
            }
        )
