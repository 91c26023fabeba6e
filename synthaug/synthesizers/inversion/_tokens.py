"""Small generators of our own that are conditioned on token sequences, and their image encoder.

Network and encoder are trained together: the encoder turns an image into k tokens, the network
denoises that image while it attends to them. Noise on the tokens keeps each of them from carrying
more than a few bits, so that nearby tokens mean similar images; dropping them at random trains the
unconditional branch.
"""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from synthaug._images.source import ImageSource
from synthaug._pixels import to_images
from synthaug._support.devices import sent
from synthaug._support.torch_state import lasting_tensors
from synthaug._training import checkpoints, fit_job
from synthaug._training.network_config import DenoiserConfig
from synthaug._training.parts import load_module, read_config
from synthaug._types import Images, ImageShape, Indices
from synthaug.denoisers import small_unet_config
from synthaug.samplers import make_scheduler
from synthaug.synthesizers.inversion._config import TokenConfig

_FOLDER = "image_encoder"


@final
class TokenEncoder(nn.Module):
    """Images float (n, C, H, W) in [-1, 1] => tokens float (n, k, d), each of unit RMS.

    Args:
        image_shape: (C, H, W).
        num_tokens: k.
        token_width: d.
        channels: Width of the first level; it doubles at each of the next, up to four times.
    """

    def __init__(
        self, image_shape: ImageShape, num_tokens: int, token_width: int, channels: int
    ) -> None:
        super().__init__()
        self.settings = {
            "image_shape": list(image_shape),
            "num_tokens": num_tokens,
            "token_width": token_width,
            "channels": channels,
        }
        c, height, width = image_shape
        layers: list[nn.Module] = [nn.Conv2d(c, channels, 3, padding=1)]
        levels = max(1, int(math.log2(min(height, width) / 4)))
        before = channels
        for level in range(levels):
            after = channels * min(4, 2 ** (level + 1))
            layers += [_norm(before), nn.SiLU(), nn.Conv2d(before, after, 3, padding=1)]
            layers += [_norm(after), nn.SiLU(), nn.Conv2d(after, after, 3, stride=2, padding=1)]
            before = after
        layers += [_norm(before), nn.SiLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten()]
        self.features = nn.Sequential(*layers)
        self.tokens = nn.Linear(before * 16, num_tokens * token_width)
        self.shape = (num_tokens, token_width)

    def forward(self, images: Images) -> Tensor:
        """Tokens of the images."""
        tokens = self.tokens(self.features(images)).unflatten(1, self.shape)
        return nn.functional.layer_norm(tokens.float(), self.shape[1:])

    def save(self, path: Path) -> None:
        """Writes settings and weights to `path/image_encoder`."""
        with checkpoints.replaced(path / _FOLDER) as new:
            checkpoints.write_json(new / "config.json", self.settings)
            checkpoints.save_tensors(new / "model.safetensors", self.state_dict())

    @classmethod
    @lasting_tensors()
    def load(cls, path: Path) -> "TokenEncoder | None":
        """Reads `path/image_encoder`, frozen; `None` if there is none.

        Raises:
            CheckpointError: If it is damaged.
        """
        folder = path / _FOLDER
        checkpoints.restore(folder)
        if not folder.exists():
            return None
        with checkpoints.reading(folder, "Train again."):
            settings = read_config(folder)
            shape = tuple(settings.pop("image_shape"))
            encoder = load_module(lambda: cls(shape, **settings), folder)
        return encoder.eval().requires_grad_(False)


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def build_token_unet(
    image_shape: ImageShape, *, token_width: int, channels: int, num_layers: int
) -> Any:
    """A pixel-space `UNet2DConditionModel` for small images that attends to tokens.

    Levels and widths are those of `small_unet_config`. All levels but the first attend: there it
    would cost more than everything else together.
    """
    from diffusers import UNet2DConditionModel

    common = small_unet_config(image_shape, channels, num_layers, least_levels=2)
    widths = common["block_out_channels"]
    down = ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (len(widths) - 1)
    return UNet2DConditionModel(
        **common,
        down_block_types=down,
        up_block_types=[name.replace("Down", "Up") for name in reversed(down)],
        cross_attention_dim=token_width,
        attention_head_dim=tuple(max(1, w // 32) for w in widths),  # the number of heads
    )


@final
class TokenModel(nn.Module):
    """The modules that are trained together: network, encoder, and the tokens of the unconditional
    branch.
    """

    def __init__(self, network: nn.Module, encoder: TokenEncoder) -> None:
        super().__init__()
        self.network, self.encoder = network, encoder
        self.null = nn.Parameter(torch.zeros(encoder.shape, dtype=torch.float32, device="cpu"))

    def forward(
        self, x_t: Images, t: Tensor, x0: Images, perturbation: Tensor, dropped: Tensor
    ) -> Images:
        """The network's prediction for `x_t`, given the perturbed tokens of `x0`, float (n, k, d);
        where `dropped`, bool (n,), the null tokens instead."""
        tokens = self.encoder(x0) + perturbation
        tokens = torch.where(dropped.view(-1, 1, 1), self.null, tokens)
        prediction: Tensor = self.network(x_t, t, encoder_hidden_states=tokens, return_dict=False)[
            0
        ]
        return prediction


class TokenFitJob(fit_job.AbstractFitJob[TokenModel]):
    """The training of a token-conditioned generator, checked before any work starts.

    Raises:
        DataError: For images that cannot be trained on.
    """

    def __init__(self, images: Any, tokens: TokenConfig, network: DenoiserConfig) -> None:
        self.images = ImageSource.open(images, "`images`")
        self.num_examples = len(images)
        self.image_shape = self.images.image_shape
        self.tokens, self.network = tokens, network
        self.scheduler_config = fit_job.diffusion_config(network.prediction_type)
        self._scheduler = make_scheduler(None, self.scheduler_config)

    def _build(self) -> TokenModel:
        wide = {"token_width": self.tokens.token_width, "channels": self.network.channels}
        unet = build_token_unet(self.image_shape, num_layers=self.network.num_layers, **wide)
        return TokenModel(unet, TokenEncoder(self.image_shape, self.tokens.num_tokens, **wide))

    def _identity(self, module: TokenModel) -> dict[str, Any]:
        return {
            "synthesizer": "DiffusionInversion",
            "data": self.images.fingerprint or len(self.images),
            **asdict(self.tokens),
            **asdict(self.network),
        }

    def _loss(self, module: nn.Module, indices: Indices) -> Tensor:
        """`denoising_loss`, with noise on the tokens, and without any for some images."""
        device = next(module.parameters()).device
        x0 = to_images(sent(self.images.pixels(indices), device))
        if self.network.horizontal_flip:
            x0 = fit_job.half_mirrored(x0)
        dropped = sent(fit_job.chosen_rows(len(x0), self.tokens.token_dropout), device)
        shape = (len(x0), self.tokens.num_tokens, self.tokens.token_width)
        perturbation = self.tokens.token_noise * sent(fit_job.batch_noise(shape), device)
        return fit_job.denoising_loss(
            self._scheduler, x0, lambda x_t, t: module(x_t, t, x0, perturbation, dropped)
        )
