"""A stage of a cascade: a diffusion model that sees a smaller image while it draws a larger one.

Ho et al. 2021, "Cascaded Diffusion Models for High Fidelity Image Generation".
https://arxiv.org/abs/2106.15282

Notation (code -> paper): `low` -> z_0 or z_s; `level` -> s; `signals[s]` -> the alpha-bar of level
s, 1 for a clean image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final, get_args

import torch
from torch import Tensor

from synthaug._noise import Streams, randn
from synthaug._support import arguments, devices, layout, torch_state
from synthaug._support.precision import Precision, Resolved, beside, in_precision
from synthaug._training import checkpoints
from synthaug._training.parts import IDLE_PARTS, PARTS, read_index
from synthaug._types import JSON, Doubles, Images, ImageShape, Labels, Pixels
from synthaug.errors import CheckpointError, MismatchError
from synthaug.samplers import make_scheduler
from synthaug.synthesizers._losses import LossGrid, diffusion_losses
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers._sampler import SamplerConfig
from synthaug.synthesizers.cascade._chain import (
    ChainGuide,
    LevelEmbedding,
    StageCondition,
    StageDenoiser,
    downsample,
    run_chain,
    upsample,
)
from synthaug.synthesizers.cascade._config import Upsampling

_LEVELS = "level_embedding"
_LOW_RES = "low_res_scheduler"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class CascadeStage:
    """A super-resolution model: draws images that are, made smaller, like the ones it is given.

        stage = CascadeStage.from_pretrained("runs/8to32", sampler={"num_inference_steps": 25})

    Trained by `Cascade.fit_stage`. Of others' checkpoints it takes those whose network is given
    the low-resolution image as further channels: a `UNet2DModel` in pixel space (enlarged
    bilinearly), latent super-resolution (`LDMSuperResolutionPipeline`), and Stable Diffusion's
    upscaler (`StableDiffusionUpscalePipeline`), whose noise level is the noise-conditioning level.

    Raises:
        CheckpointError: If the network is of another kind.
        ValueError: For sampler settings or a noise level that do not fit.
    """

    model: DiffusionModel
    """The network, whose input is x_t and the low-resolution image, and what belongs to it."""
    low_size: tuple[int, int]
    """(height, width) of the images that it is given."""
    conditioning_augmentation: str
    """"none", "blur" or "gaussian": what the smaller images went through in training."""
    max_noise_level: int | None = None
    """Largest noise level that it was trained with; `None` if it takes none."""
    low_res_scheduler_config: Mapping[str, Any] | None = field(default=None, repr=False)
    """The noise schedule of the levels."""
    level_embedding: LevelEmbedding | None = field(default=None, repr=False)
    """Of stages of ours that take a level; others have it in their network."""
    noise_conditioning_level: int = 0
    """The level to use where a plan does not name one."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Scheduler, steps and noise."""
    upsampling: str = "bilinear"
    """How it enlarges the smaller images for its network: as in its training."""

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_choice(get_args(Upsampling), upsampling=self.upsampling)
        object.__setattr__(self, "low_size", tuple(self.low_size))
        if self.level_embedding is not None:
            layout.settle_layout(self.level_embedding)
        self.model.check_sampler(self.sampler)
        inner, colors = self.model.denoiser, self.model.image_shape[0]
        known = inner.kind in ("UNet2DModel", "UNet2DConditionModel")
        extra = inner.in_channels - self.model.latent_shape[0]
        if not known or extra != colors:
            raise CheckpointError(
                f"The network is a {inner.kind} with {inner.in_channels} input channels. A stage "
                f"needs a UNet2DModel or UNet2DConditionModel with {self.model.latent_shape[0]} + "
                f"{colors}: those of x_t and of the low-resolution image."
            )
        if not all(1 <= low < high for low, high in zip(self.low_size, self.size, strict=True)):
            raise ValueError(
                f"`low_size` must be at least 1 and smaller than the image, got "
                f"{_by(self.low_size)} for {_by(self.size)}."
            )
        if self.level_embedding is not None and self.model.class_embeddings is None:
            raise CheckpointError(
                "The embeddings of the stage's classes are missing. Train the stage again, "
                "or copy its directory again."
            )
        if self.signals is not None and len(self.signals) != 1 + (self.max_noise_level or 0):
            raise CheckpointError(
                f"The stage was trained with noise levels to {self.max_noise_level}, and the "
                f"schedule of its small images ends at {len(self.signals) - 1}."
            )
        self.check_levels([self.noise_conditioning_level])

    # -- what it draws -------------------------------------------------------------------------

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W) of the images that it draws."""
        return self.model.image_shape

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images that it draws."""
        return self.model.image_shape[1:]

    @property
    def low_shape(self) -> ImageShape:
        """(C, H, W) of the images that it is given."""
        return self.model.image_shape[0], *self.low_size

    @cached_property
    def signals(self) -> Tensor | None:
        """alpha-bar of every noise level, float32 (max_noise_level + 1,); `None` if it takes none.

        In stages of ours level 0 is a clean image, and level s > 0 is timestep s - 1 of the
        schedule; Stable Diffusion's upscaler has been trained with level s for timestep s.
        """
        if self.max_noise_level is None:
            return None
        known: Tensor = make_scheduler(None, self.low_res_scheduler_config).alphas_cumprod
        if self.level_embedding is not None:
            known = torch.cat([torch.ones(1, dtype=torch.float32, device="cpu"), known])
        return known[: self.max_noise_level + 1]

    def check_levels(self, levels: Sequence[float]) -> None:
        """Refuses noise levels outside the trained range, and any but 0 if the network takes none,
        with a ValueError."""
        highest = self.max_noise_level or 0
        for level in levels:
            if not (0 <= level <= highest and float(level).is_integer()):
                how = (
                    f"trained with whole levels from 0 to {highest}"
                    if self.max_noise_level is not None
                    else "not trained with noise (`conditioning_augmentation` 'gaussian')"
                )
                raise ValueError(
                    f"`noise_conditioning_level` is {level:g}, but the stage to {_by(self.size)} "
                    f"was {how}."
                )

    def shrink(self, images: Images) -> Images:
        """Smaller copies of large images, (n, C, h, w), as the stage was trained with."""
        return downsample(images, self.low_size)

    def add_noise(self, low: Images, levels: Tensor, generators: Streams) -> Images:
        """z_s ~ q(z_s | z_0), float32 (n, C, h, w); level 0 of a stage of ours changes no bit."""
        if self.signals is None:
            return low
        signal = self.signals[levels].view(-1, 1, 1, 1).to(low.device)
        noise = devices.sent(randn(generators, low.shape[1:]), low.device)
        return signal.sqrt() * low + (1 - signal).sqrt() * noise

    def draw(
        self,
        low: Images,
        levels: Tensor,
        labels: Tensor,
        guidance_scale: Tensor,
        generators: Streams,
        *,
        until: float = 1.0,
        guide: ChainGuide | None = None,
    ) -> Images:
        """Larger images of the smaller ones, float32 (n, C, H, W) in [-1, 1].

        Args:
            low: z_s, float32 (n, C, h, w); they have the noise of their levels already.
            levels: Noise levels s, int64 (n,).
            labels: Class indices int64 (n,).
            guidance_scale: float32 (n,).
            generators: One stream per row.
            until: Signal level to stop at, for the next stage of a truncated cascade.
            guide: Pushes of the sampler.
        """
        device = self.model.device
        enlarged = upsample(devices.sent(low, device), self.model.latent_shape[1:], self.upsampling)
        s = None if self.signals is None else devices.sent(levels, device)
        return run_chain(
            self,
            labels,
            guidance_scale,
            generators,
            until=until,
            conditioned=lambda classes: StageCondition(enlarged, s, classes),
            guide=guide,
        )

    def restoration_losses(
        self, pixels: Pixels, low: Images, labels: Labels, grid: LossGrid
    ) -> Doubles:
        """See `AbstractSynthesizer.restoration_losses`.

        Args:
            pixels: Real images, uint8 (n, C, H, W).
            low: Their smaller copies, float32 (n, C, h, w).
            labels: Their classes.
            grid: The noise.
        """
        x0 = self.model.encode(pixels)
        enlarged = upsample(low.to(x0.device), self.model.latent_shape[1:], self.upsampling)
        levels = None
        if self.signals is not None:
            levels = torch.zeros(len(x0), dtype=torch.int64, device=x0.device)
        condition = StageCondition(enlarged, levels, self.model.known_conditions(labels))
        return diffusion_losses(self.model, x0, condition, grid, denoiser=StageDenoiser(self))

    # -- identity and files ----------------------------------------------------------------------

    def settings(self) -> dict[str, JSON]:
        """Returns the settings that determine its images besides weights and row, for a recipe."""
        found = self.model.settings(self.sampler) | {"low_size": list(self.low_size)}
        if self.signals is not None:
            assert self.low_res_scheduler_config is not None
            schedule = make_scheduler(None, self.low_res_scheduler_config).config
            names = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps")
            found["noise_levels"] = {name: schedule[name] for name in names}
        return found | self._enlarging

    @property
    def _enlarging(self) -> dict[str, JSON]:
        """How it enlarges, where that is not the usual way."""
        return {} if self.upsampling == "bilinear" else {"upsampling": self.upsampling}

    @property
    def weights(self) -> dict[str, JSON]:
        """Digests of all weights, for a recipe."""
        if self.level_embedding is None:
            return self.model.weights
        return {**self.model.weights, _LEVELS: checkpoints.state_digest(self.level_embedding)}

    def in_precision(self, precision: Resolved) -> "CascadeStage":
        """The same stage in a precision, if `from_pretrained` chose its own (`dtype="auto"`)."""
        changes: dict[str, Any] = {"model": self.model.in_precision(precision)}
        if self.level_embedding is not None:
            changes["level_embedding"] = in_precision(self.level_embedding, precision)
        return replace(self, **changes)

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a diffusers directory; what diffusers does not know lies beside the parts, in
        `level_embedding` and `synthaug.json`.

        Raises:
            CheckpointError: If the disk is full or not writable. What was there before stays.
        """
        path = Path(path)
        settings: dict[str, JSON] = {
            "synthesizer": "CascadeStage",
            "low_size": list(self.low_size),
            "conditioning_augmentation": self.conditioning_augmentation,
            "max_noise_level": self.max_noise_level,
            "noise_conditioning_level": self.noise_conditioning_level,
            **self.sampler.record(),
            **self._enlarging,
        }
        with checkpoints.writing(path, "Free some space and save again."):
            path.mkdir(parents=True, exist_ok=True)
            if self.low_res_scheduler_config is not None:
                (path / _LOW_RES).mkdir(exist_ok=True)
                config = dict(self.low_res_scheduler_config)
                checkpoints.write_json(path / _LOW_RES / "scheduler_config.json", config)
            if self.level_embedding is not None:
                embedding = in_precision(self.level_embedding, "float32")
                with checkpoints.replaced(path / _LEVELS) as new:
                    checkpoints.save_tensors(new / "model.safetensors", embedding.state_dict())
        self.model.save_pretrained(path, settings)

    @classmethod
    @checkpoints.loading
    @torch_state.lasting_tensors()
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        classes: Sequence[str] | None = None,
        low_size: tuple[int, int] | None = None,
        prompt_template: str = "{}",
        negative_prompt: str = "",
        dtype: torch.dtype | Precision = "auto",
        device: str | torch.device | None = None,
        sampler: SamplerConfig | Mapping[str, Any] | None = None,
        noise_conditioning_level: int | None = None,
    ) -> "CascadeStage":
        """Loads a stage of ours, or a super-resolution checkpoint of diffusers.

        Args:
            path: A directory with `model_index.json`, or "hub:OWNER/NAME".
            classes: Class names, or prompts; needed unless the stage was trained by us.
            low_size: (height, width) of the smaller images; needed unless it was trained by us.
            prompt_template: `{}` in it stands for the class name.
            negative_prompt: Prompt of the unconditional branch.
            dtype: Dtype of the network: "auto" is bfloat16 where the hardware makes it faster, and
                else float32.
            device: Where to run; a GPU if there is one by default.
            sampler: Same as for `ClassConditional.from_pretrained`.
            noise_conditioning_level: In place of the one that was saved.

        Raises:
            CheckpointError: If it is not a super-resolution checkpoint that we can use.
            ValueError: For an unknown setting, or one that is missing.
        """
        path = checkpoints.resolve(path)
        index = read_index(path)
        own = checkpoints.read_record(path)
        _check_record(path, index, own, classes)
        with checkpoints.reading(path / "synthaug.json", "Train the stage again."):
            size: Any = tuple(map(int, own.get("low_size") or ())) or tuple(low_size or ())
            saved_level = int(own.get("noise_conditioning_level", 0))
        if not size:
            raise ValueError(
                f"{path} does not say how large the images are that it enlarges. Pass `low_size`, "
                "(height, width)."
            )
        takes_levels = (path / _LOW_RES).exists()
        model, _ = DiffusionModel.from_pretrained(
            path,
            classes=classes,
            prompt_template=prompt_template,
            negative_prompt=negative_prompt,
            dtype=dtype,
            device=device,
        )
        if index.get("vqvae"):
            model = _with_autoencoder(model, size)
        if not own:
            model = _fitted(model, size, takes_levels)
        levels, embedding, schedule = None, None, None
        if takes_levels:
            levels = own.get("max_noise_level", index.get("max_noise_level", 350))
            schedule = checkpoints.read_json(path / _LOW_RES / "scheduler_config.json")
        if noise_conditioning_level is None:
            noise_conditioning_level = saved_level
        if model.denoiser.config.get("class_embed_type") == "identity":  # one of ours
            checkpoints.restore(path / _LEVELS)
            embedding = _load_levels(path / _LEVELS, model)
        return cls(
            model=model,
            low_size=size,
            conditioning_augmentation=own.get(
                "conditioning_augmentation", "none" if levels is None else "gaussian"
            ),
            max_noise_level=levels,
            low_res_scheduler_config=schedule,
            level_embedding=embedding,
            noise_conditioning_level=noise_conditioning_level,
            sampler=SamplerConfig.chosen(own, sampler),
            upsampling=own.get("upsampling", "bilinear"),
        )


def _by(size: Sequence[int]) -> str:
    return " x ".join(map(str, size))


def _check_record(
    path: Path, index: Mapping[str, Any], own: Mapping[str, Any], classes: Sequence[str] | None
) -> None:
    """Refuses checkpoints that are no stage, or one of other classes than are asked for."""
    if own and own.get("synthesizer") != "CascadeStage":
        raise CheckpointError(
            f"{path} holds a {own.get('synthesizer')}, not a stage of a cascade. Train one "
            "with `synthaug train --method upsample`."
        )
    if not own:
        _check_foreign(path, index)
    elif classes is not None and list(classes) != own.get("classes"):
        raise MismatchError(
            f"{path} was trained on the classes {', '.join(own.get('classes', ()))}, in this "
            f"order, and not on {', '.join(classes)}. Train it on the base's data set."
        )


def _check_foreign(path: Path, index: Mapping[str, Any]) -> None:
    """Refuses super-resolution pipelines of diffusers that condition in other ways."""
    parts = [name for name, value in index.items() if isinstance(value, list) and value[0]]
    foreign = sorted(set(parts) - {*PARTS, *IDLE_PARTS})
    if foreign:
        raise CheckpointError(
            f"{path} is a {index.get('_class_name')}, whose {foreign[0]} we cannot use. "
            "Known are a UNet2DModel with the low-resolution image as further channels, "
            "LDMSuperResolutionPipeline and StableDiffusionUpscalePipeline."
        )


def _with_autoencoder(model: DiffusionModel, size: tuple[int, int]) -> DiffusionModel:
    model.vae.register_to_config(scaling_factor=1.0)  # its pipeline does not scale latents
    return replace(model, image_shape=(1, *_multiple(model.vae, size)))


def _fitted(model: DiffusionModel, low_size: tuple[int, int], takes_levels: bool) -> DiffusionModel:
    """A foreign model with the shape of the images that it draws from such small ones."""
    config = model.denoiser.config
    embeds = config.get("class_embed_type")
    if model.denoiser.kind == "UNet2DConditionModel" and config.num_class_embeds is not None:
        embeds = None if takes_levels else "num_class_embeds"
    if embeds is not None:
        raise CheckpointError(
            f"The network is told more than timestep, class and low-resolution image ({embeds}), "
            "and the checkpoint does not say what."
        )
    if model.vae is None:
        shape = (config.in_channels // 2, *model.image_shape[1:])
    else:  # the low-resolution image lies beside the latents
        shape = (model.vae.config.out_channels, *_multiple(model.vae, low_size))
    return replace(model, image_shape=shape)


def _multiple(vae: Any, low_size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of the images whose latents are as large as the low-resolution image."""
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    return low_size[0] * factor, low_size[1] * factor


def _load_levels(path: Path, model: DiffusionModel) -> LevelEmbedding:
    def load(dtype: torch.dtype) -> LevelEmbedding:
        embedding = LevelEmbedding.beside(model.network)
        with checkpoints.reading(path, "Train the stage again."):
            embedding.load_state_dict(checkpoints.load_tensors(path / "model.safetensors"))
        return embedding.eval().requires_grad_(False).to(model.device, dtype)

    return beside(load(model.denoiser.dtype), model.network, load)
