"""Class-conditional diffusion: DDPM, DDIM or DPM-Solver++ with classifier-free guidance.

Ho, Jain and Abbeel 2020 (denoising diffusion), Ho and Salimans 2022 (classifier-free guidance),
Meng et al. 2022 (starting from a noised real image), Azizi et al. 2023 (one- or two-word class
names as prompts, low guidance).

Notation (code -> papers): `x` -> x_t; `guidance_scale` -> g = 1 + w; `strength` -> t_0 / T;
`log_variance_mix` -> v.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from synthaug._noise import streams
from synthaug._plan import Plan
from synthaug._support.precision import Precision, Resolved
from synthaug._training.loop import TrainingConfig, TrainingResult
from synthaug._types import JSON, Images, Pixels
from synthaug.denoisers import ClassifierFreeGuidance
from synthaug.errors import CheckpointError
from synthaug.samplers import chosen_settings, sample
from synthaug.synthesizers._base import AbstractSynthesizer, Guide
from synthaug.synthesizers._fit import FitJob
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers._real import RealImages
from synthaug.synthesizers._selection import snapshot_name
from synthaug.synthesizers.class_conditional._fine_tuning import FineTuneJob

_SETTINGS = ("scheduler", "num_inference_steps", "eta", "log_variance_mix")


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

    model: DiffusionModel
    """The trained network, and what belongs to it."""
    scheduler: str | None = "ddim"
    """"ddim", "ddpm", "dpmsolver++", a diffusers class name, or `None` for the checkpoint's own."""
    num_inference_steps: int = 50
    eta: float = 0.0
    """0 for deterministic DDIM steps, 1 for ancestral ones."""
    log_variance_mix: float | None = None
    """v in [0, 1], for "ddpm": 0 gives its steps the smaller of their two variances (diffusers'
    `fixed_small`), 1 the larger (`fixed_large`), and the last one none. `None` leaves it to the
    checkpoint."""
    real: RealImages | None = field(default=None, repr=False)
    """Where `source` indices point to; see `with_sources`."""

    def __post_init__(self) -> None:
        self.model.check_sampler(
            self.scheduler, self.num_inference_steps, self.eta, self.log_variance_mix
        )
        vae, given = self.model.vae, self.model.denoiser.in_channels
        wanted = self.image_shape[0] if vae is None else int(vae.config.latent_channels)
        if given != wanted:
            raise CheckpointError(
                f"The network takes {given} channels, of which {wanted} are noise: the others are "
                "another image. A stage of a cascade belongs in a `Cascade`."
            )

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the classes, in the order of the label column."""
        return self.model.classes

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images, in pixels."""
        return self.model.image_shape

    @property
    def can_be_guided(self) -> bool:
        """Whether `guidance_scale` may differ from 1."""
        return self.model.can_be_guided

    @property
    def trained_on(self) -> Mapping[str, JSON] | None:
        """Fingerprint and number of the real images that the model learned from, for the cache."""
        return self.model.trained_on

    # -- sampling --------------------------------------------------------------------------------

    def make_scheduler(self) -> Any:
        """A fresh scheduler with this synthesizer's settings."""
        return self.model.make_scheduler(self.scheduler, self.log_variance_mix)

    @torch.inference_mode()
    def draw(self, rows: Plan, *, guide: Guide | None = None) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1].

        Args:
            rows: Rows of a plan about our classes.
            guide: What pushes the sampler; see `LowDensity`.

        Raises:
            ValueError: If the rows have sources but the synthesizer has not.
            DataError: If a source image is not the one that the plan was made with.
        """
        if rows.classes != self.classes:
            raise ValueError(
                f"The plan is about the classes {', '.join(rows.classes)}; this synthesizer knows "
                f"{', '.join(self.classes)}."
            )
        latents = torch.empty(
            len(rows), *self.model.latent_shape, dtype=torch.float32, device="cpu"
        )
        strengths = np.where(rows["source"] < 0, -1.0, _column(rows, "strength", 1.0))
        for strength in np.unique(strengths):  # rows that share a start share a batch
            chosen = np.flatnonzero(strengths == strength)
            latents[torch.from_numpy(chosen)] = self._sample(
                rows[chosen], float(strength), guide
            ).cpu()
        return self.model.decode(latents.to(self.model.denoiser.device)).cpu()

    def _sample(self, rows: Plan, strength: float, guide: Guide | None) -> Tensor:
        generators = streams(rows["seed"])
        labels = torch.tensor(rows["label"], dtype=torch.int64, device="cpu")
        condition = self.model.conditions(labels)
        terms = []
        scale = torch.tensor(
            _column(rows, "guidance_scale", 1.0), dtype=torch.float32, device="cpu"
        )
        if (scale != 1).any():
            self.model.check_guidance(scale.tolist())
            unconditional = self.model.null_conditions(len(labels))
            assert unconditional is not None
            terms.append(ClassifierFreeGuidance(self.model.denoiser, scale, unconditional))
        return sample(
            self.model.denoiser,
            self.make_scheduler(),
            condition,
            shape=self.model.latent_shape,
            generators=generators,
            num_inference_steps=self.num_inference_steps,
            sources=None if strength < 0 else self.model.encode(self._source_pixels(rows)),
            strength=abs(strength),
            eta=self.eta,
            terms=terms,
            pushes=() if guide is None else guide(rows, condition),
        )

    def _source_pixels(self, rows: Plan) -> Pixels:
        if self.real is None:
            raise ValueError(
                "The plan starts from real images, but this synthesizer has none. Call "
                "`with_sources(real)` first."
            )
        return self.real.read(rows)

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
        shape = self.image_shape
        found = RealImages.checked(real, labels, classes=self.classes, image_shape=shape)
        return replace(self, real=found)

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
        self.model.check_guidance(scales.tolist())
        if self.model.num_conditions is None and self.real is None and len(self.classes) > 1:
            raise ValueError(
                "This network knows no classes, so its images would bear random labels. Start from "
                "real images (`with_sources`), or name a single class."
            )
        if self.real is not None and labels is None:
            labels = self.real.labels
        return self._build_plan(
            labels,
            per_class=per_class,
            ratio=ratio,
            counts=counts,
            seed=seed,
            parameters=merged,
            sources=None if self.real is None else self.real.by_class(),
            source_keys=None if self.real is None else self.real.keys(),
        )

    # -- identity --------------------------------------------------------------------------------

    def recipe(self) -> dict[str, JSON]:
        """Settings and weight digests; see `AbstractSynthesizer.recipe`."""
        settings: dict[str, JSON] = {
            **self.model.sampler_settings(self.scheduler, self.log_variance_mix),
            "num_inference_steps": self.num_inference_steps,
            "eta": self.eta,
            "dtype": str(self.model.denoiser.dtype).removeprefix("torch."),
            "image_shape": list(self.image_shape),
        }
        if self.model.prompts is not None:
            settings["prompts"] = list(self.model.prompts)
        return {
            "synthesizer": "ClassConditional",
            "settings": settings,
            "weights": self.model.weights,
        }

    def in_precision(self, precision: Resolved) -> "ClassConditional":
        """See `AbstractSynthesizer.in_precision`."""
        return replace(self, model=self.model.in_precision(precision))

    # -- files -----------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a diffusers directory with safetensors weights, and `synthaug.json` beside them.

        Prompts are saved as the embeddings they became: the text encoder is not copied.

        Raises:
            CheckpointError: If the disk is full or not writable. What was there before stays.
        """
        settings: dict[str, JSON] = {
            "synthesizer": "ClassConditional",
            **{name: getattr(self, name) for name in _SETTINGS},
        }
        self.model.save_pretrained(path, settings)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        classes: Sequence[str] | None = None,
        image_size: int | None = None,
        prompt_template: str = "{}",
        negative_prompt: str = "",
        dtype: torch.dtype | Precision = "auto",
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
            dtype: Dtype of the network: "auto" is bfloat16 on a device that has it in hardware, and
                else float32. In bfloat16 rounding differs between batch sizes by more.
            device: Where to run; a GPU if there is one by default.
            settings: `scheduler`, `num_inference_steps`, `eta`, `log_variance_mix`.

        Raises:
            CheckpointError: If there is no such directory, it is not a diffusers directory, a part
                is missing, or a weight is not finite.
        """
        unknown = sorted(set(settings) - set(_SETTINGS))
        if unknown:
            raise ValueError(
                f"Unknown setting {unknown[0]!r}; known: {', '.join(_SETTINGS)}. (Row "
                "parameters such as `guidance_scale` belong to `plan`.)"
            )
        model, saved = DiffusionModel.from_pretrained(
            path,
            classes=classes,
            image_size=image_size,
            prompt_template=prompt_template,
            negative_prompt=negative_prompt,
            dtype=dtype,
            device=device,
        )
        known = {k: saved[k] for k in _SETTINGS if k in saved}
        return cls(model=model, **chosen_settings(known, settings))

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
            model = DiffusionModel(
                network=network,
                scheduler_config=job.scheduler_config,
                classes=job.classes,
                image_shape=job.image_shape,
                unconditional_branch=job.unconditional_branch,
                trained_on=job.trained_on,
            )
            return cls(model=model)

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

    @classmethod
    def fine_tune(
        cls,
        checkpoint: str | Path,
        real: Any,
        output_dir: str | Path,
        *,
        lora_rank: int | None = None,
        config: TrainingConfig | None = None,
        class_learning_rate: float = 1e-3,
        label_dropout: float = 0.1,
        prompt_template: str = "{}",
        negative_prompt: str = "",
        image_size: int | None = None,
        horizontal_flip: bool = False,
        snapshots: Sequence[int] = (),
        progress: bool = True,
    ) -> tuple["ClassConditional", TrainingResult]:
        """Goes on with the training of a pretrained model, on the classes of `real`.

        The loss is that of `fit`, with the checkpoint's own noise schedule and prediction. With a
        text encoder, class names become prompts, whose embeddings are computed once; text encoder
        and autoencoder stay as they are. Other networks get a row for each class in their table of
        labels; one that took no labels gets a table. Latents are encoded once if they fit into
        2 GiB, and sampled from the autoencoder's posterior at every step.

        Args:
            checkpoint: A directory in diffusers layout, or "hub:OWNER/NAME".
            real: Has `read(indices)`, `targets`, `classes` and `image_shape`. Names of one or two
                words make the best prompts (Azizi et al. 2023).
            output_dir: Becomes a diffusers directory, as of `fit`; not that of the checkpoint.
            lora_rank: Train low-rank adapters of the attention layers instead of all weights; they
                are merged into the weights that are saved. Those of a model with prompts are also
                in `lora`, as diffusers' pipelines load them.
            config: How to optimise; by default at a learning rate of 1e-5, or 1e-4 with adapters.
            class_learning_rate: Peak learning rate of the table of labels, if it has rows of new
                classes: at that of the other weights they would stay alike, and so would the images
                of all classes. Ignored if it is the smaller one.
            label_dropout: Probability of the null label or negative prompt, in [0, 1).
            prompt_template: `{}` in it stands for the class name.
            negative_prompt: Prompt of the unconditional branch.
            image_size: Height and width in pixels; by default the checkpoint's own.
            horizontal_flip: Mirror half of the training images.
            snapshots: Steps after which the model is also kept in `snapshots`; see
                `synthesizers.select_snapshot`.
            progress: Show a bar.

        Raises:
            DataError: If the images do not fit the checkpoint, a class has none, or a label has no
                class.
            ValueError: For a setting out of range.
            DivergedError: If loss or weights stop being finite.
            CheckpointError: If a checkpoint cannot be read, trained or written.
            ImportError: For adapters, without peft.
        """
        if config is None:
            config = TrainingConfig(learning_rate=1e-5 if lora_rank is None else 1e-4)
        for step in snapshots:
            if not 1 <= step <= config.steps:
                raise ValueError(f"`snapshots` must be in [1, {config.steps}], got {step}.")
        out = Path(output_dir)
        if out.resolve() == Path(checkpoint).expanduser().resolve():
            raise ValueError(f"`output_dir` is {checkpoint}, the checkpoint to start from.")
        job = FineTuneJob(
            checkpoint,
            real,
            lora_rank=lora_rank,
            table_factor=max(1.0, class_learning_rate / config.learning_rate),
            label_dropout=label_dropout,
            prompt_template=prompt_template,
            negative_prompt=negative_prompt,
            image_size=image_size,
            horizontal_flip=horizontal_flip,
            device=config.device,
        )
        cls(model=job.base)  # refuses what cannot draw

        def save(network: nn.Module, folder: Path) -> None:
            cls(model=job.model(network)).save_pretrained(folder)
            job.save_adapter(network, folder)

        network, result = job.run(
            out,
            config,
            on_checkpoint=lambda network: save(network, out),
            snapshots=snapshots,
            on_snapshot=lambda network, step: save(network, out / snapshot_name(step)),
            progress=progress,
        )
        return cls(model=job.model(network)), result


def _column(rows: Plan, name: str, default: float) -> NDArray[np.float64]:
    return rows.columns.get(name, np.full(len(rows), default))
