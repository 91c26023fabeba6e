"""Class-conditional diffusion: DDPM, DDIM or DPM-Solver++ with classifier-free guidance.

Ho, Jain and Abbeel 2020 (denoising diffusion), Ho and Salimans 2022 (classifier-free guidance),
Meng et al. 2022 (starting from a noised real image), Azizi et al. 2023 (one- or two-word class
names as prompts, low guidance).

Notation (code -> papers): `x` -> x_t; `guidance_scale` -> g = 1 + w; `strength` -> t_0 / T.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from synthaug._checkpoints import (
    default_shape,
    diffusers_version,
    embed_prompts,
    load_part,
    read_json,
    replaced,
    resolve,
    state_digest,
    tensor_digest,
    write_json,
    writing,
)
from synthaug._devices import choose_device
from synthaug._errors import CheckpointError, DataError
from synthaug._noise import streams
from synthaug._pixels import digest, to_images
from synthaug._plan import Plan
from synthaug._training import TrainingConfig, TrainingResult
from synthaug._types import JSON, Images, Indices, Pixels
from synthaug.denoisers import ClassifierFreeGuidance, Denoiser
from synthaug.samplers import make_scheduler, sample, step_arguments
from synthaug.synthesizers._base import AbstractSynthesizer
from synthaug.synthesizers._fit import FitJob

_FILE = "synthaug.json"
"""What a diffusers directory does not say: class names, image shape, how classes are conditions."""


class ImageSource(Protocol):
    """Real images by index: what `synthaug` data sets and caches offer."""

    def read(self, indices: Indices) -> Pixels:
        """uint8 (n, C, H, W)."""
        ...


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ClassConditional(AbstractSynthesizer):
    """Images of a class, from noise or from a real image of it.

        synthesizer = ClassConditional.from_pretrained("runs/cifar", num_inference_steps=25)
        plan = synthesizer.plan(per_class=500, guidance_scale=1.5, seed=0)
        variants = synthesizer.with_sources(real).plan(per_class=500, strength=0.5, seed=0)

    Row parameters: `guidance_scale` (1 is no guidance), and with sources `strength` in (0, 1], the
    share of the diffusion that is undone and redone.
    """

    network: nn.Module
    """`UNet2DModel`, `UNet2DConditionModel` or `DiTTransformer2DModel`."""
    scheduler_config: Mapping[str, Any]
    """The checkpoint's scheduler config, with `_class_name`."""
    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]
    """(C, H, W) of the images, in pixels."""
    vae: Any = None
    """`AutoencoderKL` of a latent model."""
    class_embeddings: Tensor | None = None
    """Token sequences of the classes, float32 (num_classes + 1, k, d), the last one for the
    unconditional branch; for networks that attend to tokens."""
    prompts: tuple[str, ...] | None = None
    """The prompts that `class_embeddings` were computed from, the last one the negative prompt."""
    unconditional_branch: bool = True
    """Whether the last condition of the network is the null condition, and was trained: guidance
    needs it."""
    scheduler: str | None = "ddim"
    """"ddim", "ddpm", "dpmsolver++", a diffusers class name, or `None` for the checkpoint's own."""
    num_inference_steps: int = 50
    eta: float = 0.0
    """0 for deterministic DDIM steps, 1 for ancestral ones."""
    real: ImageSource | None = None
    """Where `source` indices point to; see `with_sources`."""
    real_labels: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        # Only what the file says: diffusers' private notes would not survive being saved.
        config = {
            k: v for k, v in self.scheduler_config.items() if k == "_class_name" or k[0] != "_"
        }
        object.__setattr__(self, "scheduler_config", config)
        if self.num_inference_steps < 1:
            raise ValueError(
                f"`num_inference_steps` must be at least 1, got {self.num_inference_steps}."
            )
        trained = int(self.scheduler_config.get("num_train_timesteps", 1000))
        if self.num_inference_steps > trained:
            raise ValueError(
                f"`num_inference_steps` is {self.num_inference_steps}, but the checkpoint has only "
                f"{trained} timesteps."
            )
        step_arguments(self.make_scheduler(), [], self.eta)  # refuses an `eta` without effect
        known = self._num_conditions
        if known is not None and known - self.unconditional_branch < len(self.classes):
            raise CheckpointError(
                f"The network knows {known - self.unconditional_branch} classes, but "
                f"{len(self.classes)} are named."
            )

    # -- conditions ------------------------------------------------------------------------------

    @cached_property
    def denoiser(self) -> Denoiser:
        """The network behind the one call that samplers use."""
        return Denoiser(self.network)

    @property
    def _num_conditions(self) -> int | None:
        """Number of conditions the network has, the null condition among them; `None` if it takes
        none."""
        if self.class_embeddings is not None:
            return len(self.class_embeddings)
        if not self.denoiser.takes_labels:
            return None
        if self.denoiser.kind == "DiTTransformer2DModel":
            return int(self.denoiser.config.num_embeds_ada_norm) + 1
        return int(self.denoiser.config.num_class_embeds)

    @property
    def can_be_guided(self) -> bool:
        """Whether `guidance_scale` may differ from 1."""
        return self._num_conditions is not None and self.unconditional_branch

    def _conditions(self, labels: Tensor) -> Tensor | None:
        if self.class_embeddings is not None:
            return self.class_embeddings.to(self.denoiser.device)[labels]
        return labels.to(self.denoiser.device) if self.denoiser.takes_labels else None

    # -- sampling --------------------------------------------------------------------------------

    def make_scheduler(self) -> Any:
        """A fresh scheduler with this synthesizer's settings."""
        return make_scheduler(self.scheduler, self.scheduler_config)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network denoises."""
        if self.vae is None:
            return self.image_shape
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        _, height, width = self.image_shape
        if height % factor or width % factor:
            raise ValueError(
                f"Image size {height} x {width} must be a multiple of {factor}, the autoencoder's "
                "downsampling factor."
            )
        return self.vae.config.latent_channels, height // factor, width // factor

    @torch.inference_mode()
    def draw(self, rows: Plan) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1].

        Raises:
            ValueError: If the rows have sources but the synthesizer has not.
            DataError: If a source image is not the one that the plan was made with.
        """
        if rows.classes != self.classes:
            raise ValueError(
                f"The plan is about the classes {', '.join(rows.classes)}; this synthesizer knows "
                f"{', '.join(self.classes)}."
            )
        latents = torch.empty(len(rows), *self.latent_shape)
        strengths = np.where(rows["source"] < 0, -1.0, _column(rows, "strength", 1.0))
        for strength in np.unique(strengths):  # rows that share a start share a batch
            chosen = np.flatnonzero(strengths == strength)
            latents[torch.from_numpy(chosen)] = self._sample(rows[chosen], float(strength)).cpu()
        return self._decode(latents.to(self.denoiser.device)).cpu()

    def _sample(self, rows: Plan, strength: float) -> Tensor:
        generators = streams(rows["seed"])
        labels = torch.tensor(rows["label"])
        condition = self._conditions(labels)
        terms = []
        scale = torch.tensor(_column(rows, "guidance_scale", 1.0), dtype=torch.float32)
        if (scale != 1).any():
            self._check_guidance(scale.tolist())
            null = (self._num_conditions or 0) - 1
            unconditional = self._conditions(torch.full_like(labels, null))
            assert unconditional is not None
            terms.append(ClassifierFreeGuidance(self.denoiser, scale, unconditional))
        return sample(
            self.denoiser,
            self.make_scheduler(),
            condition,
            shape=self.latent_shape,
            generators=generators,
            num_inference_steps=self.num_inference_steps,
            sources=None if strength < 0 else self._encode(self._source_pixels(rows)),
            strength=abs(strength),
            eta=self.eta,
            terms=terms,
        )

    def _check_guidance(self, scales: Sequence[float]) -> None:
        if not self.can_be_guided and any(scale != 1 for scale in scales):
            lack = (
                "knows no classes"
                if self._num_conditions is None
                else "was not trained without labels (`label_dropout` 0, or not a model of ours)"
            )
            raise ValueError(
                f"`guidance_scale` must be 1, got {', '.join(f'{scale:g}' for scale in scales)}: "
                f"guidance compares with and without a class, and this network {lack}."
            )

    def _source_pixels(self, rows: Plan) -> Pixels:
        if self.real is None:
            raise ValueError(
                "The plan starts from real images, but this synthesizer has none. Call "
                "`with_sources(real)` first."
            )
        pixels = self.real.read(rows["source"])
        for i, image in enumerate(pixels):
            if digest(image) != int(rows["source_key"][i]):
                raise DataError(
                    f"Real image {rows['source'][i]} is not the one that the plan was made with. "
                    "Give the same data set in the same order, or make a new plan."
                )
        return pixels

    def _encode(self, pixels: Pixels) -> Tensor:
        """Source images as the network's inputs. The autoencoder's mode, not a sample: a draw here
        would add nothing to the noise that follows."""
        images = to_images(pixels).to(self.denoiser.device)
        if self.vae is None:
            return images
        latents = self.vae.encode(images.to(self.vae.dtype)).latent_dist.mode().float()
        return (latents - _shift(self.vae)) * self.vae.config.scaling_factor

    def _decode(self, latents: Tensor) -> Images:
        if self.vae is None:
            return latents.clamp(-1, 1)
        latents = latents / self.vae.config.scaling_factor + _shift(self.vae)
        # One image at a time: the decoder's activations are the largest in the whole pipeline.
        images = [self.vae.decode(z[None].to(self.vae.dtype)).sample.float() for z in latents]
        return torch.cat(images).clamp(-1, 1)

    def evaluations(self, rows: Plan) -> NDArray[np.int64]:
        """Network evaluations per row: steps taken, twice with guidance."""
        strengths = np.where(rows["source"] < 0, 1.0, _column(rows, "strength", 1.0))
        guided = _column(rows, "guidance_scale", 1.0) != 1
        scheduler = self.make_scheduler()
        scheduler.set_timesteps(self.num_inference_steps)
        extra = len(scheduler.timesteps) - self.num_inference_steps  # PNDM repeats one timestep
        steps = np.maximum(1, np.rint(self.num_inference_steps * strengths)).astype(np.int64)
        return (steps + extra) * (1 + guided)

    # -- plans -----------------------------------------------------------------------------------

    def with_sources(self, real: Any, labels: ArrayLike | None = None) -> "ClassConditional":
        """The same synthesizer, starting from real images.

        Args:
            real: Has `read(indices)`, and `targets` unless `labels` are given: any synthaug data
                set or cache.
            labels: Class indices of the real images, int (n,), in the order of our `classes`.

        Raises:
            DataError: For images of another shape, or other or differently ordered classes.
            ValueError: For labels beyond the classes, or not one for every image.
        """
        shape = tuple(getattr(real, "image_shape", self.image_shape))
        if shape != self.image_shape:
            raise DataError(
                f"The real images have shape {shape}, the model draws {self.image_shape}. Load "
                f"them with image_size={self.image_shape[1]} and channels={self.image_shape[0]}."
            )
        names = tuple(map(str, getattr(real, "classes", self.classes)))
        if labels is None and names != self.classes:
            raise DataError(
                f"The real images have the classes {', '.join(names)}, the model "
                f"{', '.join(self.classes)}. Load them with the model's `classes`, in its order."
            )
        found = np.asarray(real.targets if labels is None else labels, np.int64)
        if hasattr(real, "__len__") and len(found) != len(real):
            raise ValueError(f"Got {len(found)} `labels` for {len(real)} real images.")
        if len(found) and not (found.min() >= 0 and found.max() < len(self.classes)):
            raise ValueError(
                f"`labels` must be in [0, {len(self.classes) - 1}], the model's classes; got "
                f"{found.min()} to {found.max()}."
            )
        return replace(self, real=real, real_labels=found)

    def plan(
        self,
        labels: ArrayLike | None = None,
        *,
        per_class: int | None = None,
        ratio: float | None = None,
        counts: Mapping[str, int] | None = None,
        seed: int = 0,
        **parameters: float | Sequence[float],
    ) -> Plan:
        """Lays out the rows; see `AbstractSynthesizer.plan`.

        With sources, each class's rows start from its real images in turn.

        Args:
            labels: Labels of the real images, int (n,); by default those of the sources.
            per_class: Images of every class.
            ratio: Images per real image.
            counts: Images of each class by name.
            seed: Base seed.
            parameters: `guidance_scale` (default 1) and, with sources, `strength` (default 0.5).

        Raises:
            ValueError: For an unknown parameter, or a value out of range.
        """
        row = {"guidance_scale": 1.0, **({"strength": 0.5} if self.real is not None else {})}
        unknown = sorted(set(parameters) - set(row))
        if unknown:
            hint = " (`strength` needs `with_sources`)" if unknown[0] == "strength" else ""
            raise ValueError(
                f"Unknown row parameter {unknown[0]!r}{hint}; known: {', '.join(row)}."
            )
        merged: dict[str, float | Sequence[float]] = {**row, **parameters}
        if "strength" in merged:
            values = np.atleast_1d(np.asarray(merged["strength"], float))
            if not ((values > 0) & (values <= 1)).all():
                raise ValueError(f"`strength` must be in (0, 1], got {merged['strength']}.")
        scales = np.atleast_1d(np.asarray(merged["guidance_scale"], float))
        if not (scales >= 0).all():
            raise ValueError(
                f"`guidance_scale` must not be negative, got {merged['guidance_scale']}."
            )
        self._check_guidance(scales.tolist())
        if self._num_conditions is None and self.real is None and len(self.classes) > 1:
            raise ValueError(
                "This network knows no classes, so its images would bear random labels. Start from "
                "real images (`with_sources`), or name a single class."
            )
        sources = keys = None
        if self.real is not None and self.real_labels is not None:
            sources = [np.flatnonzero(self.real_labels == c) for c in range(len(self.classes))]
            keys = np.zeros(len(self.real_labels), np.uint64)
            for start in range(0, len(keys), 1024):
                block = np.arange(start, min(start + 1024, len(keys)))
                keys[block] = [digest(image) for image in self.real.read(block)]
            labels = self.real_labels if labels is None else labels
        return self._build_plan(
            labels,
            per_class=per_class,
            ratio=ratio,
            counts=counts,
            seed=seed,
            parameters=merged,
            sources=sources,
            source_keys=keys,
        )

    # -- identity --------------------------------------------------------------------------------

    @cached_property
    def _weights(self) -> dict[str, JSON]:
        weights: dict[str, JSON] = {"network": state_digest(self.network)}
        if self.vae is not None:
            weights["vae"] = state_digest(self.vae)
        if self.class_embeddings is not None:
            weights["class_embeddings"] = tensor_digest({"": self.class_embeddings})
        return weights

    def recipe(self) -> dict[str, JSON]:
        """Settings and weight digests; see `AbstractSynthesizer.recipe`."""
        config = self.make_scheduler().config.items()
        # Through text and back: tuples become lists, and -inf (a limit that is off) a string.
        scheduler = {
            k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
            for k, v in config
            if not k.startswith("_")
        }
        settings: dict[str, JSON] = {
            "scheduler": type(self.make_scheduler()).__name__,
            "scheduler_config": json.loads(json.dumps(scheduler, default=list)),
            "num_inference_steps": self.num_inference_steps,
            "eta": self.eta,
            "dtype": str(self.denoiser.dtype).removeprefix("torch."),
            "image_shape": list(self.image_shape),
        }
        if self.prompts is not None:
            settings["prompts"] = list(self.prompts)
        return {"synthesizer": "ClassConditional", "settings": settings, "weights": self._weights}

    # -- files -----------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a diffusers directory with safetensors weights, and `synthaug.json` beside them.

        Prompts are saved as the embeddings they became: the text encoder is not copied.

        Raises:
            CheckpointError: If the disk is full or not writable. What was there before stays.
        """
        path = Path(path)
        with writing(path, "Free some space and save again."):
            self._save(path)

    def _save(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        folder = "transformer" if self.denoiser.kind == "DiTTransformer2DModel" else "unet"
        inner: Any = getattr(self.network, "_orig_mod", self.network)
        with replaced(path / folder) as new:
            inner.save_pretrained(new, safe_serialization=True)
        (path / "scheduler").mkdir(exist_ok=True)
        write_json(path / "scheduler" / "scheduler_config.json", dict(self.scheduler_config))
        index = {
            "_class_name": "DDPMPipeline"
            if folder == "unet" and self.vae is None
            else "DiffusionPipeline",
            "diffusers_version": diffusers_version(),
            folder: ["diffusers", self.denoiser.kind],
            "scheduler": ["diffusers", self.scheduler_config["_class_name"]],
        }
        if self.vae is not None:
            with replaced(path / "vae") as new:
                self.vae.save_pretrained(new, safe_serialization=True)
            index["vae"] = ["diffusers", type(self.vae).__name__]
        if self.class_embeddings is not None:
            from safetensors.torch import save_file

            table = {"class_embeddings": self.class_embeddings.cpu().contiguous()}
            save_file(table, str(path / "class_embeddings.safetensors"))
        own = {
            "synthesizer": "ClassConditional",
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "prompts": None if self.prompts is None else list(self.prompts),
            "unconditional_branch": self.unconditional_branch,
            "scheduler": self.scheduler,
            "num_inference_steps": self.num_inference_steps,
            "eta": self.eta,
        }
        write_json(path / _FILE, own)
        write_json(path / "model_index.json", index)  # last: it makes the directory a checkpoint

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        classes: Sequence[str] | None = None,
        image_size: int | None = None,
        prompt_template: str = "{}",
        negative_prompt: str = "",
        dtype: torch.dtype = torch.float32,
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> "ClassConditional":
        """Loads a diffusers directory, or a model of the hub.

        A class-conditional `UNet2DModel` that was not trained by us has a null class, and can be
        guided, only if it has exactly one class more than are named.

        Args:
            path: A directory with `model_index.json`, or "hub:OWNER/NAME".
            classes: Class names. Needed unless the checkpoint was trained by us. For a checkpoint
                with a text encoder they are the prompts: one or two words each work best at low
                guidance (Azizi et al. 2023).
            image_size: Height and width in pixels; by default the checkpoint's own.
            prompt_template: `{}` in it stands for the class name; underscores become spaces.
            negative_prompt: Prompt of the unconditional branch.
            dtype: Dtype of the network. bfloat16 is faster; rounding then differs between batch
                sizes by more than it does in float32.
            device: Where to run; a GPU if there is one by default.
            settings: `scheduler`, `num_inference_steps`, `eta`.

        Raises:
            CheckpointError: If there is no such directory, it is not a diffusers directory, a part
                is missing, or a weight is not finite.
        """
        unknown = sorted(set(settings) - {"scheduler", "num_inference_steps", "eta"})
        if unknown:
            raise ValueError(
                f"Unknown setting {unknown[0]!r}; known: scheduler, num_inference_steps, eta. (Row "
                "parameters such as `guidance_scale` belong to `plan`.)"
            )
        if isinstance(classes, str):
            raise ValueError(f"`classes` must be a list of names, got the string {classes!r}.")
        target = choose_device(device)
        path = resolve(path)
        index = read_json(path / "model_index.json")
        own = read_json(path / _FILE) if (path / _FILE).exists() else {}
        folder = "transformer" if "transformer" in index else "unet"
        network = load_part(path, index, folder, dtype)
        vae = load_part(path, index, "vae", torch.float32) if index.get("vae") else None
        scheduler_config = read_json(path / "scheduler" / "scheduler_config.json")
        names = classes if classes is not None else own.get("classes")
        if not names:
            raise ValueError(
                f"{path} does not name its classes. Pass `classes`, in the order of its labels (or "
                "as prompts)."
            )
        if len(set(names)) != len(names):
            raise ValueError(f"`classes` holds a name twice: {', '.join(map(str, names))}.")
        embeddings, prompts = None, None
        if (path / "class_embeddings.safetensors").exists():
            if list(map(str, names)) != own.get("classes"):
                raise ValueError(
                    f"{path} holds embeddings of the classes {', '.join(own['classes'])}, and no "
                    "text encoder for others. Leave `classes` out, or load the checkpoint that "
                    "they were computed from."
                )
            from safetensors.torch import load_file

            table = load_file(str(path / "class_embeddings.safetensors"))
            embeddings = table["class_embeddings"]
            prompts = tuple(own["prompts"]) if own.get("prompts") else None
        elif index.get("text_encoder"):
            prompts = (
                *(prompt_template.format(str(name).replace("_", " ")) for name in names),
                negative_prompt,
            )
            embeddings = embed_prompts(path, prompts)
        elif Denoiser(network).kind == "UNet2DConditionModel":
            raise CheckpointError(
                f"The network in {path} attends to token sequences, but there is neither a text "
                "encoder nor a class_embeddings.safetensors beside it."
            )
        shape = tuple(own.get("image_shape") or default_shape(network, vae))
        if image_size is not None:
            shape = (shape[0], image_size, image_size)
        saved: dict[str, Any] = {
            k: own[k] for k in ("scheduler", "num_inference_steps", "eta") if k in own
        }
        num_class_embeds = getattr(network.config, "num_class_embeds", None)
        if embeddings is None and isinstance(num_class_embeds, int):
            saved["unconditional_branch"] = own.get(
                "unconditional_branch", num_class_embeds == len(names) + 1
            )
        return cls(
            network=network.eval().requires_grad_(False).to(target),
            scheduler_config=scheduler_config,
            classes=tuple(map(str, names)),
            image_shape=shape,
            vae=None if vae is None else vae.eval().requires_grad_(False).to(target),
            class_embeddings=embeddings,
            prompts=prompts,
            **(saved | settings),
        )

    # -- training --------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        real: Any,
        output_dir: str | Path,
        *,
        unlabelled: Any = None,
        config: TrainingConfig | None = None,
        channels: int = 32,
        num_layers: int = 1,
        prediction_type: str = "v_prediction",
        label_dropout: float = 0.1,
        horizontal_flip: bool = False,
        progress: bool = True,
    ) -> tuple["ClassConditional", TrainingResult]:
        """Trains a pixel-space `UNet2DModel` on labelled images, and saves it in `output_dir`.

        Minimises the mean squared error of the prediction at uniformly drawn timesteps (stratified
        over the batch), on a cosine noise schedule of 1,000 steps. With probability `label_dropout`
        the label is replaced by the null label, which trains the unconditional branch. Run again
        with the same arguments it resumes.

        Args:
            real: Has `read(indices)`, `targets`, `classes` and `image_shape`.
            output_dir: Becomes a diffusers directory; updated at every checkpoint.
            unlabelled: Further images of the same shape; they train the unconditional branch only.
            config: How to optimise.
            channels: Width of the first level; the next ones have 2 and 4 times as many.
            num_layers: Residual blocks per level.
            prediction_type: "v_prediction", "epsilon" or "sample".
            label_dropout: Probability of the null label, in [0, 1). At 0, and without `unlabelled`,
                the model has no unconditional branch, so it cannot be guided.
            horizontal_flip: Mirror half of the training images.
            progress: Show a bar.

        Raises:
            DataError: If a class has no image, a label has no class, or the shapes of the two sets
                differ or cannot be halved often enough.
            ValueError: For a setting out of range.
            DivergedError: If loss or weights stop being finite.
            CheckpointError: If a checkpoint cannot be read or written.
        """

        def wrap(network: nn.Module) -> "ClassConditional":
            return cls(
                network=network,
                scheduler_config=job.scheduler_config,
                classes=job.classes,
                image_shape=job.image_shape,
                unconditional_branch=job.unconditional_branch,
            )

        job = FitJob(
            real,
            unlabelled,
            channels=channels,
            num_layers=num_layers,
            prediction_type=prediction_type,
            label_dropout=label_dropout,
            horizontal_flip=horizontal_flip,
        )
        network, result = job.run(
            output_dir,
            config or TrainingConfig(),
            on_checkpoint=lambda module: wrap(module).save_pretrained(output_dir),
            progress=progress,
        )
        return wrap(network), result


def _column(rows: Plan, name: str, default: float) -> NDArray[np.float64]:
    return rows.columns.get(name, np.full(len(rows), default))


def _shift(vae: Any) -> float:
    return getattr(vae.config, "shift_factor", None) or 0.0
