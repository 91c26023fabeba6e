"""Images to the latents that a network sees of them, and back, by an autoencoder of diffusers."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from synthaug._support.devices import sent
from synthaug._training.parts import downsampling
from synthaug._types import Images, ImageShape


def latent_shape(vae: Any, image_shape: ImageShape, patch: int = 1) -> ImageShape:
    """(C, H, W) of the latents of an image, which a transformer divides into patches of that side;
    a ValueError if the size does not divide."""
    factor = downsampling(vae)
    _, height, width = image_shape
    if height % (factor * patch) or width % (factor * patch):
        of_patches = f", times {patch}, the side of the network's patches" if patch > 1 else ""
        raise ValueError(
            f"`image_size` {height} x {width} must be a multiple of {factor * patch}, the "
            f"autoencoder's downsampling factor{of_patches}."
        )
    return vae.config.latent_channels, height // factor, width // factor


def posterior(vae: Any, images: Images) -> tuple[Images, Images]:
    """Mean and standard deviation of the latents of images in [-1, 1], float32 both."""
    encoded = vae.encode(images.to(vae.dtype))
    shift, factor = _shift_and_factor(vae, images.device)
    for name in ("latents", "latent"):  # of a VQModel or an AutoencoderDC: no distribution
        if name in encoded:
            latents = (encoded[name].float() - shift) * factor
            return latents, torch.zeros_like(latents)
    found = encoded.latent_dist
    return (found.mean.float() - shift) * factor, found.std.float() * factor


def decode(vae: Any, latents: Tensor) -> Images:
    """Images float32 (n, C, H, W) of latents."""
    shift, factor = _shift_and_factor(vae, latents.device)
    latents = latents / factor + shift
    # One image at a time: the decoder's activations are the largest in the whole pipeline.
    return torch.cat([vae.decode(z[None].to(vae.dtype)).sample.float() for z in latents])


def _shift_and_factor(vae: Any, device: torch.device) -> tuple[float | Tensor, float | Tensor]:
    """Returns the shift and the factor of latents: numbers, or one for each channel."""
    shift, factor = vae.config.get("shift_factor") or 0.0, vae.config.scaling_factor
    if vae.config.get("latents_mean") is not None:
        shift = _per_channel(vae.config.latents_mean, device)
    if vae.config.get("latents_std") is not None:
        factor = factor / _per_channel(vae.config.latents_std, device)
    return shift, factor


def _per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    channels = torch.tensor(values, dtype=torch.float32, device="cpu")
    return sent(channels.view(-1, 1, 1), device)
