"""What a training can be asked for, in parts: each is for one method, or shared by several."""

from dataclasses import dataclass
from typing import Any, Literal

from synthaug._support.precision import Precision


@dataclass(frozen=True, kw_only=True)
class OptimiserOptions:
    """Training, with every method.

    Args:
        image_size: Resize the shorter side to it and cut out the centre.
        channels: 1 converts to grey, 3 to RGB.
        steps: Optimiser steps in all.
        batch_size: Images per step.
        learning_rate: Peak learning rate of AdamW; 4e-4 by default, for finetune 1e-5, or 1e-4 with
            --lora-rank.
        warmup_steps: Steps over which the learning rate rises.
        decay_steps: Steps at the end over which the learning rate falls to 0.
        ema_decay: Decay of the moving average of the weights.
        precision: bfloat16 runs the network under autocast; auto does on a device that has it in
            hardware, and a run that is resumed keeps its own.
        compile: Compile the network: a slow start, then faster steps.
        horizontal_flip: Mirror half of the training images.
        checkpoint_seconds: Seconds between checkpoints.
        device: cpu, cuda ...; by default a GPU if there is one.
        seed: Seed of weights, order and noise.
    """

    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    steps: int = 10_000
    batch_size: int = 64
    learning_rate: float | None = None
    warmup_steps: int = 200
    decay_steps: int = 0
    ema_decay: float = 0.9995
    precision: Precision = "auto"
    compile: bool = False
    horizontal_flip: bool = False
    checkpoint_seconds: float = 120.0
    device: str | None = None
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class NewNetworkOptions:
    """A new network (--method diffusion, cold, upsample).

    Args:
        width: Channels of its first level.
        num_layers: Residual blocks per level.
    """

    width: int = 32
    num_layers: int = 1


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """A new denoiser (--method diffusion, upsample).

    Args:
        prediction_type: What it predicts.
    """

    prediction_type: Literal["v_prediction", "epsilon", "sample"] = "v_prediction"


@dataclass(frozen=True, kw_only=True)
class DropoutOptions:
    """The unconditional branch (--condition labels, --method upsample, finetune).

    Args:
        label_dropout: Share of the labels hidden, to train it.
    """

    label_dropout: float = 0.1


@dataclass(frozen=True, kw_only=True)
class UnlabelledOptions:
    """Images without labels (--condition labels, --method upsample).

    Args:
        unlabelled: Further images, which train the unconditional branch.
    """

    unlabelled: str | None = None


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """A generator to begin with (--method hardness, finetune).

    Args:
        base: The checkpoint that --method finetune goes on from, to whose size --image-size and
            --channels bring the images. Or the generator that --method hardness steers: its network
            sets the size of those that are trained, and images are brought to its size.
    """

    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class TokenOptions:
    """Generators that can be inverted (--condition tokens).

    Args:
        num_tokens: Tokens per image.
        token_width: Size of each token.
        token_noise: Noise on the tokens in training. More of it makes tokens say less about an
            image, so that variants move farther from it.
    """

    num_tokens: int = 4
    token_width: int = 64
    token_noise: float = 0.2


@dataclass(frozen=True, kw_only=True)
class ColdOptions:
    """Cold diffusion (--method cold).

    Args:
        degradation: What it undoes: blur, inpainting, super-resolution, snow, decolorization,
            animorphosis or noise.
        degradation_settings: Those that differ from its defaults, for example '{"num_levels": 20}'.
        colour_components: Gaussians in the mixture of colours that cold generation starts from.
        others: The images of another set that animorphosis turns images into.
    """

    degradation: str = "blur"
    degradation_settings: dict[str, Any] | None = None
    colour_components: int = 1
    others: str | None = None


@dataclass(frozen=True, kw_only=True)
class UpsamplerOptions:
    """Stages of a cascade (--method upsample).

    Args:
        low_size: Shorter side of the small images that it starts from.
        conditioning_augmentation: What they go through, to be like drawn ones; gaussian noise by
            default.
        max_noise_level: Highest level of the noise, in steps of 1,000; 500 by default.
        blur_probability: Share of them that is blurred; 0.5 by default.
        blur_std_range: Standard deviations of the blur, in pixels; 0.4,0.6 by default.
    """

    low_size: int | None = None
    conditioning_augmentation: Literal["gaussian", "blur", "none"] | None = None
    max_noise_level: int | None = None
    blur_probability: float | None = None
    blur_std_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class SteeringOptions:
    """Steering to rare images (--method hardness).

    Args:
        synthetic: Cache of images that --base drew; by default they are drawn now.
        num_synthetic: How many are drawn; at most 5,000 by default.
    """

    synthetic: str | None = None
    num_synthetic: int | None = None


@dataclass(frozen=True, kw_only=True)
class FineTuningOptions:
    """Fine-tuning (--method finetune).

    Args:
        lora_rank: Rank of the low-rank adapters that are trained instead of all weights.
        prompt_template: Prompt of a class, where {} stands for its name.
        snapshots: Steps after which the model is also kept in snapshots, for example 500,1000.
        validation: Images, neither training nor test images, on which the best snapshot is chosen,
            by the Fréchet distance.
        features: What that is measured in: torchscript:FILE, torchvision:NAME, timm:NAME, pixels or
            spectrum.
    """

    lora_rank: int | None = None
    prompt_template: str = "{}"
    snapshots: list[int] | None = None
    validation: str | None = None
    features: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainOptions(
    OptimiserOptions,
    NewNetworkOptions,
    PredictionOptions,
    DropoutOptions,
    UnlabelledOptions,
    BaseOptions,
    TokenOptions,
    ColdOptions,
    UpsamplerOptions,
    SteeringOptions,
    FineTuningOptions,
):
    """All that a training can be asked for."""
