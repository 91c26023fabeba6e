"""Class-conditional diffusion: DDPM, DDIM or DPM-Solver++ with classifier-free guidance.

Ho, Jain and Abbeel 2020 (denoising diffusion), Ho and Salimans 2022 (classifier-free guidance),
Meng et al. 2022 (starting from a noised real image), Azizi et al. 2023 (one- or two-word class
names as prompts, low guidance).

Notation (code -> papers): `x` -> x_t; `guidance_scale` -> g = 1 + w; `strength` -> t_0 / T;
`log_variance_mix` -> v.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from synthaug._images.source import ImageSource
from synthaug._noise import streams
from synthaug._plan import Plan
from synthaug._support.devices import sent
from synthaug._support.precision import Precision
from synthaug._support.torch_state import full_precision
from synthaug._training import checkpoints
from synthaug._training.checkpoints import loading
from synthaug._training.loop import TrainingResult
from synthaug._training.network_config import LabeledConfig
from synthaug._training.training_config import TrainingConfig
from synthaug._types import JSON, Images, Integers
from synthaug.guidance import ClassifierGuidance
from synthaug.samplers import predicts_flow, skipped_steps
from synthaug.synthesizers._base import AbstractSourcedSynthesizer, Guide
from synthaug.synthesizers._diffusion import (
    AbstractDiffusionSynthesizer,
    check_unguided,
    with_guidance,
)
from synthaug.synthesizers._fit import FitJob
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers._sampler import SamplerConfig
from synthaug.synthesizers._selection import snapshot_name
from synthaug.synthesizers.class_conditional import METHOD
from synthaug.synthesizers.class_conditional._config import DistillationConfig, FineTuningConfig
from synthaug.synthesizers.class_conditional._distillation import DistillJob
from synthaug.synthesizers.class_conditional._fine_tuning import FineTuneJob


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ClassConditional(AbstractSourcedSynthesizer, AbstractDiffusionSynthesizer):
    """Images of a class, from noise or from a real image of it.

        sampler = SamplerConfig(scheduler="dpmsolver++", num_inference_steps=25)
        synthesizer = ClassConditional.from_pretrained("runs/cifar", sampler=sampler)
        plan = synthesizer.plan(per_class=500, guidance_scale=1.5, seed=0)
        variants = synthesizer.with_sources(real).plan(per_class=500, strength=0.5, seed=0)

    Row parameters: `guidance_scale` (1 is no guidance), and with sources `strength` in (0, 1], the
    fraction of the diffusion that is undone and redone.
    """

    row_parameters = METHOD.row_parameters

    model: DiffusionModel
    """The trained network, and what belongs to it."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Scheduler, steps and noise."""
    real: ImageSource | None = field(default=None, repr=False)
    """Where `source` indices point to; see `with_sources`."""
    classifier_guidance: ClassifierGuidance | None = field(default=None, repr=False)
    """A classifier that steers the sampler; `with_settings(classifier_guidance=...)`."""

    def __post_init__(self) -> None:
        self.model.check_complete()
        self.model.check_sampler(self.sampler)
        self._check_guidance()

    @property
    def can_be_guided(self) -> bool:
        """Whether `guidance_scale` may differ from 1."""
        return self.model.can_be_guided

    @property
    def trained_on(self) -> Mapping[str, JSON] | None:
        """Fingerprint and number of the real images that the model learned from, for the cache."""
        return self.model.trained_on

    # -- sampling --------------------------------------------------------------------------------

    @torch.inference_mode()
    @full_precision()
    def draw(self, rows: Plan, *, guide: Guide | None = None) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1].

        Args:
            rows: Rows of a plan about our classes.
            guide: Pushes of the sampler; see `LowDensity`.

        Raises:
            ValueError: If the rows have sources but the synthesizer has not.
            DataError: If a source image is not the one that the plan was made with.
        """
        self.check_classes(rows)
        latents = torch.empty(
            len(rows), *self.model.latent_shape, dtype=torch.float32, device=self.model.device
        )
        strengths = np.where(rows["source"] < 0, -1.0, rows.get("strength", 1.0))
        for strength in np.unique(strengths):  # rows that share a start share a batch
            chosen = np.flatnonzero(strengths == strength)
            there = sent(torch.from_numpy(chosen), latents.device)
            latents[there] = self._sample(rows[chosen], float(strength), guide)
        return self.model.decode(latents).cpu()

    def _sample(self, rows: Plan, strength: float, guide: Guide | None) -> Tensor:
        labels = torch.tensor(rows["label"], dtype=torch.int64, device="cpu")
        condition = self.model.conditions(labels)
        scale = torch.tensor(rows.get("guidance_scale", 1.0), dtype=torch.float32, device="cpu")
        self.model.check_guidance(scale.numpy())
        return self.model.sample(
            self.sampler,
            condition,
            streams(rows["seed"]),
            guidance_scale=scale,
            null=lambda: self.model.null_conditions(len(rows)),
            sources=None if strength < 0 else self.model.encode(self._source_pixels(rows)),
            strength=abs(strength),
            pushes=[
                *([] if guide is None else guide(rows, condition)),
                *self.model.guided_by(self.classifier_guidance, labels, self.classes, condition),
            ],
        )

    def evaluations(self, rows: Plan) -> Integers:
        """Network evaluations per row: steps taken, twice with guidance; and what the gradients of
        a classifier cost at all steps but the last."""
        strengths = np.where(rows["source"] < 0, 1.0, rows.get("strength", 1.0))
        guided = rows.get("guidance_scale", 1.0) != 1
        flow = predicts_flow(self.model.scheduler_config)
        skipped = skipped_steps(self.sampler.num_inference_steps, strengths, flow=flow)
        order = int(self.model.scheduler(self.sampler).order)  # some visit a timestep twice
        steps = self.model.num_steps(self.sampler) - skipped * order
        return steps * (1 + guided) + (steps - 1) * self._guidance_evaluations()

    def _plan_problems(self, columns: Mapping[str, Any]) -> Iterator[str]:
        yield from self.model.guidance_problems(columns.get("guidance_scale", 1.0))
        if self.model.num_conditions is None and self.real is None and len(self.classes) > 1:
            yield (
                "This network knows no classes, so its images would bear random labels. Start from "
                "real images (`with_sources`), or name a single class."
            )

    # -- identity --------------------------------------------------------------------------------

    def recipe(self) -> dict[str, JSON]:
        """Settings and weight digests; see `AbstractSynthesizer.recipe`."""
        recipe = {
            "synthesizer": METHOD.name,
            "settings": self.model.settings(self.sampler),
            "weights": self.model.weights,
        }
        return with_guidance(recipe, self.classifier_guidance)

    # -- files -----------------------------------------------------------------------------------

    def save_pretrained(self, path: str | Path) -> None:
        """Writes a diffusers directory with safetensors weights, and `synthaug.json` beside them.

        Prompts are saved as the embeddings they became: the text encoder is not copied.

        Raises:
            CheckpointError: If the disk is full or not writable. What was there before stays.
            TypeError: With a `classifier_guidance`.
        """
        check_unguided(self.classifier_guidance)
        self.model.save_pretrained(path, {"synthesizer": METHOD.name, **self.sampler.record()})

    @classmethod
    @loading
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
        sampler: SamplerConfig | Mapping[str, Any] | None = None,
        null_class: bool = False,
    ) -> "ClassConditional":
        """Loads a diffusers directory, or a model of the hub.

        Args:
            path: A directory with `model_index.json`, or "hub:OWNER/NAME".
            classes: Class names. Needed unless the checkpoint was trained by us. For a checkpoint
                with a text encoder they are the prompts: one or two words each work best at low
                guidance (Azizi et al. 2023). Of a DiT that names its classes, any of these names;
                of others with a table of labels, a name for every class in the order of the table.
            image_size: Height and width in pixels; by default the checkpoint's own.
            prompt_template: `{}` in it stands for the class name; underscores become spaces.
            negative_prompt: Prompt of the unconditional branch.
            dtype: Dtype of the network: "auto" is bfloat16 where the hardware makes it faster, and
                else float32. In bfloat16 rounding differs between batch sizes by more.
            device: Where to run; a GPU if there is one by default.
            sampler: How to sample in place of what was saved; a mapping such as
                `{"num_inference_steps": 25}` changes single settings of it.
            null_class: Whether the last class of a `UNet2DModel` that was not trained by us is the
                null class, which has no name in `classes`; guidance needs it.

        Raises:
            ValueError: If the names do not fit the checkpoint, a prompt is too long for its text
                encoder, or two prompts are the same to it.
            CheckpointError: If there is no such directory, it is not a diffusers directory, a part
                is missing, or a weight is not finite.
        """
        if classes is not None and not classes:
            raise ValueError("`classes` is empty. Name at least one class.")
        model, saved = DiffusionModel.from_pretrained(
            path,
            classes=classes,
            image_size=image_size,
            prompt_template=prompt_template,
            negative_prompt=negative_prompt,
            dtype=dtype,
            device=device,
            null_class=null_class,
        )
        return cls(model=model, sampler=SamplerConfig.chosen(saved, sampler))

    # -- training --------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        real: Any,
        output_dir: str | Path,
        *,
        unlabeled: Any = None,
        config: TrainingConfig | None = None,
        progress: bool = True,
        **network: Any,
    ) -> tuple["ClassConditional", TrainingResult]:
        """Trains a pixel-space `UNet2DModel` on labeled images, and saves it in `output_dir`.

        Minimizes the mean squared error of the prediction at uniformly drawn timesteps (stratified
        over the batch), on a cosine noise schedule of 1,000 steps. With probability `label_dropout`
        the label is replaced by the null label, which trains the unconditional branch. Run again
        with the same arguments it resumes.

        Args:
            real: Labeled images, any map-style data set that names its classes.
            output_dir: Becomes a diffusers directory; updated at every checkpoint.
            unlabeled: Further images of the same shape; they train the unconditional branch only.
            config: How to optimize.
            progress: Show a bar.
            network: `channels` of the first level (the next ones have 2 and 4 times as many),
                `num_layers` (residual blocks per level), `prediction_type` ("v_prediction",
                "epsilon", "sample", or "flow": rectified flow at logit-normal timesteps),
                `horizontal_flip` (mirror half of the images), and
                `label_dropout`, the probability of the null label: at 0, and without `unlabeled`,
                the model has no unconditional branch, so it cannot be guided.

        Raises:
            DataError: If a class has no image, a label has no class, or the shapes of the two sets
                differ or cannot be halved often enough.
            ValueError: For a setting out of range.
            DivergedError: If loss or weights stop being finite.
            CheckpointError: If a checkpoint cannot be read or written.
        """
        job = FitJob(real, unlabeled, LabeledConfig(**network))
        return job.fit(output_dir, config, lambda net: cls(model=job.model(net)), progress=progress)

    @classmethod
    def fine_tune(
        cls,
        checkpoint: str | Path,
        real: Any,
        output_dir: str | Path,
        *,
        adaptation: FineTuningConfig | None = None,
        config: TrainingConfig | None = None,
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
            real: Labeled images, any map-style data set that names its classes. Names of one or two
                words make the best prompts (Azizi et al. 2023).
            output_dir: Becomes a diffusers directory, as of `fit`; not that of the checkpoint.
            adaptation: Settings of the adaptation: adapters or all weights, prompts, size and
                mirroring.
            config: How to optimize; by default at a learning rate of 1e-5, or 1e-4 with adapters.
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
        adaptation = adaptation or FineTuningConfig()
        config = config or TrainingConfig(learning_rate=adaptation.learning_rate)
        for step in snapshots:
            if not 1 <= step <= config.steps:
                raise ValueError(f"`snapshots` must be in [1, {config.steps}], got {step}.")
        out = Path(output_dir)
        if out.resolve() == Path(checkpoint).expanduser().resolve():
            raise ValueError(
                f"`output_dir` is {checkpoint}, the checkpoint to start from, which would be "
                "overwritten. Choose another directory."
            )
        job = FineTuneJob(
            checkpoint, real, adaptation, learning_rate=config.learning_rate, device=config.device
        )
        cls(model=job.base)  # refuses what cannot draw

        def save(network: nn.Module, folder: Path) -> None:
            job.save(network, folder, {"synthesizer": METHOD.name, **SamplerConfig().record()})

        network, result = job.run(
            out,
            config,
            on_checkpoint=lambda network: save(network, out),
            snapshots=snapshots,
            on_snapshot=lambda network, step: save(network, out / snapshot_name(step)),
            progress=progress,
        )
        return cls(model=job.model(network)), result

    def distill(
        self,
        real: Any,
        output_dir: str | Path,
        distillation: DistillationConfig | None = None,
        *,
        config: TrainingConfig | None = None,
        progress: bool = True,
    ) -> tuple["ClassConditional", TrainingResult]:
        """Trains a student that draws in very few steps what this model draws in many.

        A step of the student arrives where `teacher_steps` deterministic steps of the teacher do
        (Salimans and Ho 2022). It begins with the teacher's weights, and draws in its own number of
        steps only; that, and the teacher's guidance, are part of its recipe. Run again with the
        same arguments it resumes.

        Args:
            real: Labeled images of the teacher's classes and shape, as a rule those that it was
                trained on: noise is added to them.
            output_dir: Becomes a diffusers directory; not that of the teacher.
            distillation: How few steps.
            config: How to optimize; the teacher's network goes to the same device.
            progress: Show a bar.

        Raises:
            MismatchError: For images that do not fit the teacher.
            ValueError: For a setting out of range, guidance that the teacher cannot follow, or a
                directory with a checkpoint that is not a student.
            DivergedError: If loss or weights stop being finite.
            CheckpointError: For a teacher that predicts the noise, or is a student itself; if a
                checkpoint cannot be read or written.
        """
        out = Path(output_dir)
        taken = any((out / name).exists() for name in ("model_index.json", "synthaug.json"))
        if taken and not checkpoints.read_record(out).get("distilled"):  # the teacher, perhaps
            raise ValueError(
                f"`output_dir` is {out}, which holds a checkpoint that is not a student and "
                "would be overwritten. Choose another directory."
            )
        job = DistillJob(self.model, real, distillation or DistillationConfig())
        return job.fit(
            output_dir,
            config,
            lambda network: ClassConditional(model=job.model(network), sampler=job.sampler),
            progress=progress,
        )
