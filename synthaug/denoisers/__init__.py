"""diffusers networks behind one call, and guidance terms that compose.

Inside synthaug there is one convention: `denoiser(x_t, t, condition)` returns the prediction that
the checkpoint was trained for (noise, velocity or clean image), in float32. What a condition is
(class index, token sequence, nothing) is decided here and nowhere else.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from synthaug._support.devices import Placed, timesteps_of
from synthaug._support.layout import settled
from synthaug._support.memory import is_device_lost, is_out_of_memory
from synthaug._support.torch_state import lasting_tensors
from synthaug._types import Images
from synthaug.denoisers._networks import CALLS, TRANSFORMERS, Prompted, cast
from synthaug.errors import CheckpointError, MismatchError

OWN_PIPELINE = (
    "Draw with the checkpoint's own pipeline, as `synthaug generate` does: load it by "
    "`synthesizers.FromPipeline`."
)
"""The way out for checkpoints that we have no loop for."""

_NEVER_GIVEN = ("addition_embed_type", "encoder_hid_dim_type", "time_cond_proj_dim")
"""Settings of a `UNet2DConditionModel` that takes more than image, timestep, tokens and class."""

KINDS = ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", *TRANSFORMERS)
"""Class names of the networks that a `Denoiser` calls."""


def uncompiled(network: nn.Module) -> Any:
    """The network itself, where `torch.compile` has wrapped it."""
    return dict(network.named_children()).get("_orig_mod", network)


@final
class Denoiser:
    """Calls a diffusers network in its own dtype and memory format.

    Args:
        network: One of `KINDS`. `UNet2DModel` and `DiTTransformer2DModel` take class indices int64
            (n,) as condition, `UNet2DConditionModel` takes token sequences (n, k, d), that of
            Stable Diffusion XL and other transformers take `Prompted`. A network may have been
            wrapped by `torch.compile`.

    Raises:
        CheckpointError: For any other network, or one that needs inputs that samplers never give.
    """

    def __init__(self, network: nn.Module) -> None:
        inner = uncompiled(network)
        self.kind = type(inner).__name__
        if self.kind not in KINDS:
            raise CheckpointError(
                f"Cannot denoise with a {self.kind}. Known networks: {', '.join(KINDS)}."
            )
        self.network = network
        self.config: Any = inner.config
        sdxl = self.config.get("addition_embed_type") == "text_time"
        for name in _NEVER_GIVEN if self.kind == "UNet2DConditionModel" else ():
            if self.config.get(name) not in (None, "text_proj", "text_time"):
                raise CheckpointError(
                    f"The network's config sets `{name}` to {self.config[name]!r}: it needs more "
                    f"than an image, a timestep and a prompt, as those of latent consistency "
                    f"models do. {OWN_PIPELINE}"
                )
        self.takes_prompts = sdxl or self.kind in TRANSFORMERS
        """Whether conditions are `Prompted`."""
        self.attends = self.takes_prompts or self.kind == "UNet2DConditionModel"
        """Whether the network attends to token sequences."""
        packed = 4 if self.kind == "FluxTransformer2DModel" else 1  # its channels are of patches
        self.in_channels = int(self.config.in_channels) // packed
        out_channels = self.config.out_channels
        self.out_channels = int(out_channels or self.config.in_channels) // packed
        self.patch = 2 if packed > 1 else int(self.config.get("patch_size") or 1)
        """Height and width of the patches that images are divided into, in latent pixels."""
        self.takes_labels = self.kind == "DiTTransformer2DModel" or (
            self.kind == "UNet2DModel" and self.config.num_class_embeds is not None
        )

    @property
    def part(self) -> str:
        """The name that pipelines have for the network: unet or transformer."""
        return "unet" if self.kind.startswith("UNet") else "transformer"

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.network.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.network.parameters()).device

    def __call__(self, x: Images, t: Tensor, condition: Any) -> Images:
        """The network's prediction, float32 (n, C, H, W), for noisy images `x` at timestep `t`.

        Args:
            x: Noisy images or latents (n, C, H, W).
            t: Timestep on the training grid, a scalar or (n,).
            condition: Class indices (n,), token sequences (n, k, d), n `Prompted`, or `None` for a
                network that takes no condition.
        """
        if self.takes_prompts:
            if not isinstance(condition, Prompted):
                raise ValueError("`condition` must be `Prompted`: the network takes more of them.")
            said = CALLS[self.kind](self.config, self.evaluate, x, t, condition)
            return said[:, : self.in_channels]
        inputs: dict[str, Any] = {"class_labels": condition} if self.takes_labels else {}
        if self.kind == "UNet2DConditionModel":
            if condition is None:
                raise ValueError("`condition` is missing: this network attends to token sequences.")
            inputs = {"encoder_hidden_states": condition.to(self.dtype)}
        # A network that also predicts its variance has twice the channels; the mean comes first.
        return self.evaluate(x, t, **inputs)[:, : self.in_channels]

    def evaluate(self, x: Images, t: Tensor, **inputs: Any) -> Images:
        """All that the network says, float32 (n, c, H, W), for inputs as diffusers names them."""
        x = settled(x.to(self.dtype))
        inputs = dict(cast(inputs, self.dtype))
        try:
            if self.takes_prompts:  # transformers differ in the place of their timestep
                output: Tensor = self.network(x, timestep=timesteps_of(t, x), **inputs).sample
            else:
                output = self.network(x, timesteps_of(t, x), **inputs).sample
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            if is_out_of_memory(error) or is_device_lost(error):  # no fault of the checkpoint
                raise
            raise CheckpointError(
                f"The {self.kind} cannot compute images of shape {tuple(x.shape[1:])} "
                f"({type(error).__name__}: {error}). Its config does not fit its weights: copy the "
                "checkpoint again."
            ) from error
        return output.float()


@runtime_checkable
class AnyDenoiser(Protocol):
    """Interface that samplers and guidance terms call: a `Denoiser`, or one with its own
    conditions.
    """

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def __call__(self, x: Images, t: Tensor, condition: Any) -> Images:
        """The prediction, float32 (n, C, H, W). `condition` is indexed by rows, or `None`."""
        ...


@runtime_checkable
class GuidanceTerm(Protocol):
    """Something that adds to a denoiser's prediction. Terms compose by addition."""

    def __call__(self, x: Images, t: Tensor, prediction: Images) -> Images | float:
        """Returns the term to add to `prediction` for noisy images `x` at timestep `t`; row i
        depends on row i alone.
        """
        ...

    def evaluations(self) -> Tensor:
        """Network evaluations this term costs each row per step, int64 (n,)."""
        ...


@final
@dataclass(frozen=True, eq=False)
class ClassifierFreeGuidance:
    """Classifier-free guidance as a term (Ho and Salimans 2022).

    The guided prediction is `u + g (c - u)` for the conditional prediction c, the unconditional u
    and `guidance_scale` g: 1 means no guidance, 0 the unconditional branch. (Papers that write
    `(1 + w) c - w u` mean g = 1 + w.) As a term added to c it reads `(g - 1) (c - u)`, which is
    exactly zero at g = 1: those rows skip the second network evaluation.
    """

    denoiser: AnyDenoiser
    guidance_scale: Tensor
    """float32 (n,): every row has its own."""
    unconditional: Any
    """Conditions of the unconditional branch: class indices (n,) or tokens (n, k, d)."""
    rescale: float = 0.0
    """phi in [0, 1], how far the guided prediction is brought to the standard deviation of the
    conditional one: guidance makes it larger, and images too bright and too dark (Lin et al. 2023,
    section 3.4, https://arxiv.org/abs/2305.08891)."""

    def __call__(self, x: Images, t: Tensor, prediction: Images) -> Images:
        """The term for the rows with a guidance scale other than 1, zero for the others."""
        rows, _ = self._guided.on(x.device)
        if not len(rows):
            return torch.zeros_like(prediction)
        return self._weighed(prediction, self.denoiser(x[rows], t, self.unconditional[rows]))

    def _weighed(self, prediction: Images, unconditional: Images) -> Images:
        """The term for all rows, from the unconditional predictions of those that are guided."""
        rows, weight = self._guided.on(prediction.device)
        term = torch.zeros_like(prediction)
        added = weight * (prediction[rows] - unconditional)
        if self.rescale:
            guided = prediction[rows] + added
            ratio = _deviation(prediction[rows]) / _deviation(guided)
            added = added + self.rescale * (ratio - 1) * guided
        term[rows] = added
        return term

    @cached_property
    def _guided(self) -> Placed:
        """The rows that are guided, int64 (m,), and their scale minus 1, float32 (m, 1, 1, 1)."""
        scale = self.guidance_scale.cpu()
        rows = (scale != 1).nonzero()[:, 0]
        return Placed(rows, (scale[rows] - 1).view(-1, 1, 1, 1))

    def evaluations(self) -> Tensor:
        """One per row and step, none where the guidance scale is 1."""
        return (self.guidance_scale != 1).long()


@runtime_checkable
class Joinable(Protocol):
    """Conditions that are no single tensor, but can be put into one batch."""

    def joined(self, other: Any) -> Any:
        """These conditions, and behind them others of the same kind."""
        ...


@final
@dataclass(frozen=True, eq=False)
class GuidedDenoiser:
    """Classifier-free guidance whose two branches are one pass of the network.

    Half as many launches: on an accelerator a small batch waits for those, not for arithmetic. On a
    processor one pass of twice as many rows takes as long as two, and needs more memory.
    """

    guidance: ClassifierFreeGuidance

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.guidance.denoiser.device

    def __call__(self, x: Images, t: Tensor, condition: Any) -> Images:
        """The guided prediction, float32 (n, C, H, W), for one condition per row."""
        guidance, n = self.guidance, len(x)
        rows, _ = guidance._guided.on(x.device)
        without = guidance.unconditional[rows]
        if isinstance(condition, Tensor):
            together = torch.cat([condition, without])
        elif isinstance(condition, Prompted):
            together = without.behind(condition)
        else:
            together = condition.joined(without)
        predictions = guidance.denoiser(torch.cat([x, x[rows]]), t, together)
        return predictions[:n] + guidance._weighed(predictions[:n], predictions[n:])


def guided(
    denoiser: AnyDenoiser,
    guidance_scale: Tensor,
    condition: Any,
    unconditional: Any,
    *,
    rescale: float = 0.0,
) -> tuple[AnyDenoiser, list[GuidanceTerm]]:
    """A denoiser and the terms that guide it: in one pass on an accelerator, where conditions fit.

    Args:
        denoiser: The network.
        guidance_scale: float32 (n,).
        condition: One condition per row.
        unconditional: Conditions of the unconditional branch. Token sequences may have another
            length, and then each branch has a pass of its own.
        rescale: Share of the way back to the contrast without guidance, in [0, 1].
    """
    guidance = ClassifierFreeGuidance(denoiser, guidance_scale, unconditional, rescale)
    alike = isinstance(condition, Joinable) or (
        isinstance(condition, Tensor | Prompted) and condition.shape[1:] == unconditional.shape[1:]
    )
    if denoiser.device.type != "cpu" and alike:
        return GuidedDenoiser(guidance), []
    return denoiser, [guidance]


def _deviation(images: Images) -> Tensor:
    """Returns the standard deviation of all values of each image, (n, 1, 1, 1)."""
    return images.std((1, 2, 3), keepdim=True)


def small_unet_config(
    image_shape: tuple[int, ...], channels: int, num_layers: int, *, least_levels: int = 1
) -> dict[str, Any]:
    """Returns the common part of the configs of our networks for small images.

    Levels down to 4 pixels (8 for images above 16), but no fewer than `least_levels`. The width is
    `channels` on the first level, twice that on the second, four times that from the third on.

    Raises:
        MismatchError: If the images cannot be halved often enough.
    """
    c, height, width = image_shape

    def halvings(side: int) -> int:
        lowest = 4 if side <= 16 else 8
        return max(least_levels - 1, int(math.log2(max(1, side / lowest))))

    smaller = min(height, width)
    levels = 1 + halvings(smaller)
    if height % 2 ** (levels - 1) or width % 2 ** (levels - 1):
        below, above = range(smaller, 3, -1), range(smaller + 1, 2 * smaller + 2**levels)
        nearest = [
            next((side for side in sides if side % 2 ** halvings(side) == 0), None)
            for sides in (below, above)
        ]
        sizes = " or ".join(f"`image_size={side}`" for side in nearest if side is not None)
        raise MismatchError(
            f"Images of {height} x {width} pixels cannot be halved {levels - 1} times. Load them "
            f"with {sizes}."
        )
    return {
        "sample_size": height if height == width else (height, width),
        "in_channels": c,
        "out_channels": c,
        "block_out_channels": [channels * min(4, 2**i) for i in range(levels)],
        "layers_per_block": num_layers,
        "norm_num_groups": math.gcd(channels, 32),
    }


@lasting_tensors()
def build_unet(
    image_shape: tuple[int, ...],
    *,
    num_classes: int | None,
    channels: int = 32,
    num_layers: int = 1,
    **config: Any,
) -> Any:
    """A `UNet2DModel` for small images with `num_classes` classes and a null class, or with `None`
    for one that takes no classes.

    Levels and widths are those of `small_unet_config`, with self-attention on the last level.
    `config` are further entries of the network's config, or others in place of these.
    """
    from diffusers import UNet2DModel

    common = small_unet_config(image_shape, channels, num_layers)
    widths = common["block_out_channels"]
    down = ["DownBlock2D"] * (len(widths) - 1) + ["AttnDownBlock2D"]
    usual = {
        **common,
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "attention_head_dim": math.gcd(widths[-1], 32),
        "num_class_embeds": None if num_classes is None else num_classes + 1,
    }
    return UNet2DModel(**{**usual, **config})


__all__ = [
    "KINDS",
    "OWN_PIPELINE",
    "AnyDenoiser",
    "ClassifierFreeGuidance",
    "Denoiser",
    "GuidanceTerm",
    "GuidedDenoiser",
    "build_unet",
    "guided",
]
