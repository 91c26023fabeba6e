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
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.checkpoints import read_json, replaced, restore, write_json
from synthaug._training.fit_job import (
    AbstractFitJob,
    batch_noise,
    check_positive,
    chosen_rows,
    denoising_loss,
    diffusion_config,
    half_mirrored,
)
from synthaug._types import Images, Indices
from synthaug.errors import CheckpointError, MismatchError
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
        self, image_shape: tuple[int, int, int], num_tokens: int, token_width: int, channels: int
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
        from safetensors.torch import save_file

        with replaced(path / _FOLDER) as new:
            write_json(new / "config.json", self.settings)
            weights = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
            save_file(weights, str(new / "model.safetensors"))

    @classmethod
    @lasting_tensors()
    def load(cls, path: Path) -> "TokenEncoder | None":
        """Reads `path/image_encoder`, frozen; `None` if there is none.

        Raises:
            CheckpointError: If it is damaged.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = path / _FOLDER
        restore(folder)
        if not folder.exists():
            return None
        try:
            settings = read_json(folder / "config.json")
            encoder = cls(tuple(settings.pop("image_shape")), **settings)
            encoder.load_state_dict(load_file(str(folder / "model.safetensors")))
        except (OSError, LookupError, TypeError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{folder} cannot be read ({error}). Train again.") from error
        return encoder.eval().requires_grad_(False)


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(channels, 8), channels)


def build_token_unet(
    image_shape: tuple[int, int, int], *, token_width: int, channels: int, num_layers: int
) -> Any:
    """A pixel-space `UNet2DConditionModel` for small images that attends to tokens.

    Levels down to 4 pixels (8 for images above 16), of 1, 2 and then 4 times `channels`. All but
    the first attend: there it would cost more than everything else together.
    """
    from diffusers import UNet2DConditionModel

    c, height, width = image_shape
    lowest = 4 if min(height, width) <= 16 else 8
    levels = 1 + max(1, int(math.log2(min(height, width) / lowest)))
    if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
        raise MismatchError(
            f"Images of {height} x {width} pixels cannot be halved {levels - 1} times. Load them "
            "with an image size that is a multiple of 8."
        )
    widths = [channels * min(4, 2**i) for i in range(levels)]
    down = ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * (levels - 1)
    return UNet2DConditionModel(
        sample_size=height if height == width else (height, width),
        in_channels=c,
        out_channels=c,
        block_out_channels=widths,
        layers_per_block=num_layers,
        down_block_types=down,
        up_block_types=[name.replace("Down", "Up") for name in reversed(down)],
        cross_attention_dim=token_width,
        attention_head_dim=tuple(max(1, w // 32) for w in widths),  # the number of heads
        norm_num_groups=math.gcd(channels, 32),
    )


@final
class TokenModel(nn.Module):
    """What is trained together: network, encoder, and the tokens of the unconditional branch."""

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


class TokenFitJob(AbstractFitJob[TokenModel]):
    """The training of a token-conditioned generator, checked before any work starts.

    Raises:
        DataError: For images that cannot be trained on.
        ValueError: For a setting out of range.
    """

    def __init__(
        self,
        images: Any,
        tokens: TokenConfig,
        *,
        channels: int,
        num_layers: int,
        prediction_type: str,
        horizontal_flip: bool,
    ) -> None:
        check_positive(channels=channels, num_layers=num_layers)
        self.images = ImageSource.open(images, "`images`")
        self.num_examples = len(images)
        self.image_shape = self.images.image_shape
        self.settings: dict[str, Any] = {
            **asdict(tokens),
            "channels": channels,
            "num_layers": num_layers,
            "prediction_type": prediction_type,
            "horizontal_flip": horizontal_flip,
        }
        self.tokens = tokens
        self.horizontal_flip = horizontal_flip
        self.scheduler_config = diffusion_config(prediction_type)
        self._scheduler = make_scheduler(None, self.scheduler_config)

    def _build(self) -> TokenModel:
        wide = {k: self.settings[k] for k in ("token_width", "channels")}
        layers = self.settings["num_layers"]
        network = build_token_unet(self.image_shape, num_layers=layers, **wide)
        return TokenModel(
            network, TokenEncoder(self.image_shape, self.settings["num_tokens"], **wide)
        )

    def _identity(self, module: TokenModel) -> dict[str, Any]:
        return {
            "synthesizer": "DiffusionInversion",
            "data": self.images.fingerprint or len(self.images),
            **self.settings,
        }

    def _loss(self, module: nn.Module, indices: Indices) -> Tensor:
        """`denoising_loss`, with noise on the tokens, and without any for some images."""
        device = next(module.parameters()).device
        x0 = to_images(self.images.pixels(indices)).to(device)
        if self.horizontal_flip:
            x0 = half_mirrored(x0)
        dropped = chosen_rows(len(x0), self.tokens.token_dropout).to(device)
        shape = (len(x0), self.tokens.num_tokens, self.tokens.token_width)
        perturbation = self.tokens.token_noise * batch_noise(shape).to(device)
        return denoising_loss(
            self._scheduler, x0, lambda x_t, t: module(x_t, t, x0, perturbation, dropped)
        )
