"""Tiny random checkpoints in real diffusers layout, and counting networks."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synthaug.synthesizers._sampler import SamplerConfig, split_sampler


def tiny_unet(num_classes: int | None = 4, size: int = 8, channels: int = 1) -> Any:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
        num_class_embeds=None if num_classes is None else num_classes + 1,
    ).eval()


def tiny_dit(**changes: Any) -> Any:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    arguments = {
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "in_channels": 1,
        "out_channels": 1,
        "num_layers": 1,
        "sample_size": 8,
        "num_embeds_ada_norm": 4,
        **changes,
    }
    return DiTTransformer2DModel(**arguments).eval()


def sampled(**settings: Any) -> dict[str, Any]:
    """Arguments of a synthesizer, those of its sampler put together."""
    sampler, others = split_sampler(settings)
    return {**others, "sampler": SamplerConfig(**sampler)}


def cosine_config(**changes: Any) -> dict[str, Any]:
    from diffusers import DDPMScheduler

    arguments = {
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
        **changes,
    }
    scheduler = DDPMScheduler(**arguments)
    return {**scheduler.config, "_class_name": "DDPMScheduler"}


def write_tokenizer(path: Path, longest: int = 8) -> None:
    """A CLIP tokenizer that knows single letters, and reads `longest` of them."""
    path.mkdir(parents=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": longest,
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    (path / "tokenizer_config.json").write_text(json.dumps(config))


def tiny_clip(**changes: Any) -> Any:
    """A CLIP text encoder for the tokens of `write_tokenizer`; `projection_dim` adds a head."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    arguments = {
        "vocab_size": 54,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "bos_token_id": 52,
        "eos_token_id": 53,
        **changes,
    }
    kind = CLIPTextModelWithProjection if "projection_dim" in changes else CLIPTextModel
    return kind(CLIPTextConfig(**arguments)).eval()


def tiny_text_unet(**changes: Any) -> Any:
    """A network that attends to the tokens of `tiny_clip`."""
    from diffusers import UNet2DConditionModel

    arguments = {
        "sample_size": 4,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        **changes,
    }
    return UNet2DConditionModel(**arguments).eval()


def tiny_autoencoder(**changes: Any) -> Any:
    """An autoencoder that halves height and width once."""
    from diffusers import AutoencoderKL

    arguments = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "sample_size": 8,
        "scaling_factor": 0.18215,
        **changes,
    }
    return AutoencoderKL(**arguments).eval()


def stable_diffusion_scheduler(**changes: Any) -> Any:
    """The scheduler of Stable Diffusion's checkpoints."""
    from diffusers import DDIMScheduler

    arguments = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        **changes,
    }
    return DDIMScheduler(**arguments)


def write_stable_diffusion(
    path: Path,
    prediction_type: str = "epsilon",
    scaling_factor: float = 0.18215,
    longest_prompt: int = 8,
) -> Any:
    """A Stable Diffusion directory with random weights: returns the diffusers pipeline."""
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPTokenizer

    torch.manual_seed(0)
    write_tokenizer(path / "tokenizer", longest_prompt)
    pipeline = StableDiffusionPipeline(
        text_encoder=tiny_clip(max_position_embeddings=longest_prompt),
        tokenizer=CLIPTokenizer.from_pretrained(path / "tokenizer"),
        unet=tiny_text_unet(),
        vae=tiny_autoencoder(scaling_factor=scaling_factor),
        scheduler=stable_diffusion_scheduler(prediction_type=prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    return saved(pipeline, path)


def saved(pipeline: Any, path: Path) -> Any:
    """Writes a pipeline, and returns it without its progress bar."""
    pipeline.save_pretrained(path)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_stable_diffusion_upscaler(path: Path) -> Any:
    """Stable Diffusion's upscaler, by a factor of 2, with random weights: returns its pipeline."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        DDPMScheduler,
        StableDiffusionUpscalePipeline,
        UNet2DConditionModel,
    )

    plain = write_stable_diffusion(path / "plain")
    torch.manual_seed(1)
    # Without diffusers' note of which values were defaults: it would undo the changes to those.
    own = {k: v for k, v in plain.unet.config.items() if not k.startswith("_")}
    unet = {**own, "in_channels": 7, "num_class_embeds": 1000, "sample_size": 8}
    pipeline = StableDiffusionUpscalePipeline(
        vae=AutoencoderKL.from_config(plain.vae.config).eval(),
        text_encoder=plain.text_encoder,
        tokenizer=plain.tokenizer,
        unet=UNet2DConditionModel.from_config(unet).eval(),
        low_res_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        scheduler=DDIMScheduler.from_config(plain.scheduler.config),
    )
    return saved(pipeline, path)


class Counting(nn.Module):
    """Wraps a network as `torch.compile` would, and counts the images that pass through it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network
        self.images = 0
        self.timesteps: list[int] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, **arguments: Any) -> Any:
        self.images += len(x)
        self.timesteps.append(int(t.flatten()[0]))
        return self._orig_mod(x, t, **arguments)
