"""Cascades: a base model draws small images, and stages enlarge them one after the other.

Ho et al. 2021, "Cascaded Diffusion Models for High Fidelity Image Generation".
https://arxiv.org/abs/2106.15282

Notation (code -> paper): `noise_conditioning_level` -> s; `truncated` -> sections 4.2 (true) and
4.3 (false).

    z_s = the base's chain stopped at s, or sqrt(alpha-bar_s) z_0 + sqrt(1 - alpha-bar_s) eps'
    x_0 ~ p(x_0 | z_s, s, c)
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from synthaug._noise import streams
from synthaug._pixels import to_images, to_pixels
from synthaug._plan import Plan, row_seed
from synthaug._support.precision import Precision, Resolved
from synthaug._support.torch_state import full_precision
from synthaug._training.checkpoints import loading, read_record, resolve, write_json, writing
from synthaug._training.loop import TrainingResult
from synthaug._training.network_config import LabeledConfig
from synthaug._training.training_config import TrainingConfig
from synthaug._types import JSON, Doubles, Images, ImageShape, Integers, Labels, Pixels
from synthaug.denoisers import AnyDenoiser
from synthaug.errors import CheckpointError
from synthaug.guidance import ClassifierGuidance
from synthaug.samplers import Push, check_until
from synthaug.synthesizers._base import AbstractSynthesizer
from synthaug.synthesizers._diffusion import (
    AbstractDiffusionSynthesizer,
    check_guidable,
    check_unguided,
    evaluations_per_step,
    with_guidance,
)
from synthaug.synthesizers._losses import LossGrid, diffusion_losses
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers._parameters import RowParameter
from synthaug.synthesizers._sampler import GUIDANCE_SCALE, SamplerConfig, split_sampler
from synthaug.synthesizers.cascade import (
    METHOD,
    NOISE_CONDITIONING_LEVEL,
    STAGE_GUIDANCE_SCALE,
    CascadeSettings,
)
from synthaug.synthesizers.cascade._chain import DiffusionChain, run_chain
from synthaug.synthesizers.cascade._config import StageConfig
from synthaug.synthesizers.cascade._fit import StageFitJob
from synthaug.synthesizers.cascade._stage import CascadeStage

_GUIDANCE, _LEVEL = STAGE_GUIDANCE_SCALE.name, NOISE_CONDITIONING_LEVEL.name


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class _Base:
    """The base model of a cascade that was loaded from one directory."""

    model: DiffusionModel
    sampler: SamplerConfig


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Cascade(AbstractSynthesizer, CascadeSettings):
    """Images of a class, drawn small and then enlarged.

        base, _ = ClassConditional.fit(small, "runs/base")
        stage, _ = Cascade.fit_stage(real, "runs/16to32", StageConfig(low_size=16))
        cascade = Cascade(base=base, stages=[stage])
        cascade.save_pretrained("runs/cascade")
        plan = cascade.plan(per_class=500, guidance_scale=1.25, noise_conditioning_level=100)

    Row parameters: `guidance_scale` of the base, `stage_guidance_scale` and
    `noise_conditioning_level` of the stage. With several stages those of stage k are called
    `stage_guidance_scale_k` and `noise_conditioning_level_k`, counted from 1, and the names without
    a number stand for all stages. Its setting is that of `synthesizers.CascadeSettings`.

    Raises:
        ValueError: If the models do not fit each other, or cannot be truncated.
    """

    row_parameters = METHOD.row_parameters

    base: DiffusionChain = field(repr=False)
    """The model of the small images: a `ClassConditional`."""
    stages: Sequence[CascadeStage] = field(repr=False)
    """From small to large."""
    classifier_guidance: ClassifierGuidance | None = field(default=None, repr=False)
    """A classifier that steers the last stage; `with_settings(classifier_guidance=...)`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", tuple(self.stages))
        if not self.stages:
            raise ValueError("`stages` is empty. A base alone is a `ClassConditional`.")
        if isinstance(self.base, AbstractSynthesizer) and self.base.has_sources:
            raise ValueError("`base` starts from real images; a cascade starts from noise.")
        for k, (before, stage) in enumerate(zip(self._chains, self.stages, strict=False), 1):
            drawn = before.model.image_shape
            if drawn != stage.low_shape:
                raise ValueError(
                    f"Stage {k} was trained on images of shape {stage.low_shape}, but is given "
                    f"{drawn}. Train it with `low_size` {drawn[1]}, on images of {drawn[0]} "
                    "channels."
                )
            if stage.model.num_conditions is not None and stage.model.classes != self.classes:
                raise ValueError(
                    f"Stage {k} knows the classes {', '.join(stage.model.classes)}, the base "
                    f"{', '.join(self.classes)}. They must be the same, in one order."
                )
            if self.truncated and stage.signals is not None:
                if before.model.vae is not None:
                    raise ValueError(
                        f"`truncated`: the chain before stage {k} runs in the latents of an "
                        "autoencoder, so it has no noisy image to stop at. Leave it out."
                    )
                before.model.training_scheduler()  # refuses a student: its steps are not cut short
                check_until(before.model.scheduler(before.sampler))
        base = self.base
        base.model.check_sampler(base.sampler)
        if isinstance(base, AbstractDiffusionSynthesizer) and base.classifier_guidance is not None:
            raise ValueError(
                "`base` has a `classifier_guidance`, which a cascade does not follow. Give it to "
                "the cascade, whose last stage it steers."
            )
        last = self.stages[-1]
        check_guidable(last.model, last.sampler, self.classifier_guidance, self.classes)
        if self.truncated and all(stage.signals is None for stage in self.stages):
            raise ValueError(
                "`truncated` needs a stage that was trained with noise "
                "(`conditioning_augmentation` 'gaussian')."
            )

    @property
    def _chains(self) -> tuple[DiffusionChain, ...]:
        return (self.base, *self.stages)

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the classes, in the order of the label column."""
        return self.base.model.classes

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W) of the images that the last stage draws."""
        return self.stages[-1].image_shape

    @property
    def can_be_guided(self) -> bool:
        """Whether `guidance_scale` may differ from 1."""
        return self.base.model.can_be_guided

    @property
    def trained_on(self) -> Mapping[str, JSON] | None:
        """Fingerprint and number of the real images of the base and of each stage."""
        names = ["base", *(f"stage_{k}" for k in range(1, len(self.stages) + 1))]
        found: dict[str, JSON] = {
            name: dict(chain.model.trained_on)
            for name, chain in zip(names, self._chains, strict=True)
            if chain.model.trained_on is not None
        }
        return found or None

    def with_settings(self, **settings: Any) -> "Cascade":
        """Changes settings of the base; those of the sampler reach all models."""
        changes, rest = split_sampler(settings)
        base: Any = self.base
        sampled = replace(
            self,
            base=replace(base, sampler=base.sampler.changed(**changes)),
            stages=[replace(s, sampler=s.sampler.changed(**changes)) for s in self.stages],
        )
        return AbstractSynthesizer.with_settings(sampled, **rest)

    # -- plans -----------------------------------------------------------------------------------

    def _name(self, parameter: str, k: int) -> str:
        """The column of a parameter of stage k, counted from 1."""
        return parameter if len(self.stages) == 1 else f"{parameter}_{k}"

    def available_parameters(self) -> tuple[RowParameter, ...]:
        """Returns the parameters of the base and of each stage, with the levels of its training."""
        found = [METHOD.row_parameters[0]]
        for k, stage in enumerate(self.stages, 1):
            found.append(replace(STAGE_GUIDANCE_SCALE, name=self._name(_GUIDANCE, k)))
            if stage.max_noise_level is not None:
                default, high = stage.noise_conditioning_level, stage.max_noise_level
                level = replace(NOISE_CONDITIONING_LEVEL, default=default, high=high)
                found.append(replace(level, name=self._name(_LEVEL, k)))
        return tuple(found)

    def _spelled_out(self, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """Names without a number stand for all stages that take such a parameter."""
        columns = {p.name for p in self.available_parameters()}
        found = dict(given)
        if _LEVEL in found and all(stage.signals is None for stage in self.stages):
            self.stages[-1].check_levels(np.atleast_1d(found.pop(_LEVEL)).tolist())
        for name in (_GUIDANCE, _LEVEL):
            if name in found and name not in columns:
                value = found.pop(name)
                numbered = [self._name(name, k) for k in range(1, len(self.stages) + 1)]
                found = {**{n: value for n in numbered if n in columns}, **found}
        return found

    def _plan_problems(self, columns: Mapping[str, Any]) -> Iterator[str]:
        for k, chain in enumerate(self._chains):
            yield from chain.model.guidance_problems(columns.get(self._guidance_name(k), 1.0))
        if self.base.model.num_conditions is None and len(self.classes) > 1:
            yield (
                "The base knows no classes, so its images would bear random labels. Name a single "
                "class."
            )

    # -- sampling --------------------------------------------------------------------------------

    def _levels(self, rows: Plan, k: int) -> Integers:
        """Noise levels of stage k, int64 (n,)."""
        levels = rows.get(self._name(_LEVEL, k), 0)
        self.stages[k - 1].check_levels(np.unique(levels).tolist())
        return levels

    def _until(self, rows: Plan, k: int) -> Doubles:
        """Signal levels at which chain k stops, the base being 0; float64 (n,)."""
        if self.truncated and k < len(self.stages):
            signals = self.stages[k].signals
            if signals is not None:
                return signals.double().numpy()[self._levels(rows, k + 1)]
        return np.ones(len(rows))

    def _guidance_name(self, k: int) -> str:
        """The column of the guidance of chain k, the base being 0."""
        return GUIDANCE_SCALE.name if k == 0 else self._name(_GUIDANCE, k)

    def _guidance(self, rows: Plan, k: int) -> Doubles:
        return rows.get(self._guidance_name(k), 1.0)

    @torch.inference_mode()
    @full_precision()
    def draw(self, rows: Plan) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1].

        The base takes its noise from the row's stream, as if it stood alone; every stage has two
        streams of its own, one for the noise on the smaller image and one for its own chain.

        Raises:
            ValueError: If the rows were made for other classes, or have a noise level that the
                stage was not trained with.
        """
        self.check_classes(rows)
        images = self._run(0, rows, None)
        for k, stage in enumerate(self.stages, 1):
            if not self.truncated:
                levels = torch.tensor(self._levels(rows, k), dtype=torch.int64, device="cpu")
                noise = streams([row_seed(int(s), "cascade", "noise", k) for s in rows["seed"]])
                images = stage.add_noise(images, levels, noise)
            images = self._run(k, rows, images)
        return images

    def _run(self, k: int, rows: Plan, low: Images | None) -> Images:
        """The images of chain k, on the CPU; rows that stop at one level share a batch."""
        chain, until = self._chains[k], self._until(rows, k)
        images = torch.empty(len(rows), *chain.model.image_shape, dtype=torch.float32, device="cpu")
        for level in np.unique(until):
            chosen = np.flatnonzero(until == level)
            index, part = torch.from_numpy(chosen), rows[chosen]
            labels = torch.tensor(part["label"], dtype=torch.int64, device="cpu")
            scale = torch.tensor(self._guidance(part, k), dtype=torch.float32, device="cpu")
            if low is None:
                drawn = run_chain(chain, labels, scale, streams(part["seed"]), until=float(level))
            else:
                seeds = [row_seed(int(s), "cascade", "stage", k) for s in part["seed"]]
                drawn = self.stages[k - 1].draw(
                    low[index],
                    torch.tensor(self._levels(part, k), dtype=torch.int64, device="cpu"),
                    labels,
                    scale,
                    streams(seeds),
                    until=float(level),
                    guide=self._guide if k == len(self.stages) else None,
                )
            images[index] = drawn.cpu()
        return images

    def _guide(self, labels: Tensor, condition: Any, denoiser: AnyDenoiser) -> Sequence[Push]:
        """Returns the pushes for the sampler of the last stage."""
        guided, guidance = self.stages[-1].model, self.classifier_guidance
        return guided.guided_by(guidance, labels, self.classes, condition, denoiser)

    def evaluations(self, rows: Plan) -> Integers:
        """Network evaluations per row, of the base and all stages: twice with guidance; and what
        the gradients of a classifier cost at all steps of the last stage but the last."""
        total = np.zeros(len(rows), np.int64)
        for k, chain in enumerate(self._chains):
            until = self._until(rows, k)
            levels, place = np.unique(until, return_inverse=True)
            steps = np.array([chain.model.num_steps(chain.sampler, float(x)) for x in levels])
            total += steps[place] * (1 + (self._guidance(rows, k) != 1))
        return total + (steps[place] - 1) * evaluations_per_step(self.classifier_guidance)

    @torch.inference_mode()
    def restoration_losses(self, pixels: Pixels, labels: Labels, grid: LossGrid) -> Doubles:
        """See `AbstractSynthesizer.restoration_losses`: of the base on smaller copies, then of each
        stage beside a smaller copy without noise."""
        copies = [to_images(pixels)]
        for stage in reversed(self.stages):
            copies.insert(0, stage.shrink(copies[0]))
        model = self.base.model
        x0, condition = model.encode(to_pixels(copies[0])), model.known_conditions(labels)
        losses = [diffusion_losses(model, x0, condition, grid)]
        for stage, low, image in zip(self.stages, copies, copies[1:], strict=False):
            losses.append(stage.restoration_losses(to_pixels(image), low, labels, grid))
        return np.concatenate(losses, 1)

    # -- identity and files ----------------------------------------------------------------------

    def recipe(self) -> dict[str, JSON]:
        """Settings and weight digests of all models; see `AbstractSynthesizer.recipe`."""
        weights: dict[str, JSON] = {f"base.{k}": v for k, v in self.base.model.weights.items()}
        for k, stage in enumerate(self.stages, 1):
            weights |= {f"stage_{k}.{name}": value for name, value in stage.weights.items()}
        settings: dict[str, JSON] = {
            "truncated": self.truncated,
            "base": self.base.model.settings(self.base.sampler),
            "stages": [stage.settings() for stage in self.stages],
        }
        recipe = {"synthesizer": METHOD.name, "settings": settings, "weights": weights}
        return with_guidance(recipe, self.classifier_guidance)

    def in_precision(self, precision: Resolved) -> "Cascade":
        """See `AbstractSynthesizer.in_precision`."""
        base: Any = self.base
        return replace(
            self,
            base=replace(base, model=base.model.in_precision(precision)),
            stages=[stage.in_precision(precision) for stage in self.stages],
        )

    def save_pretrained(self, path: str | Path) -> None:
        """Writes one directory: `base`, `stage_1`, ... in diffusers layout, and `synthaug.json`.

        `base` can also be loaded by `ClassConditional`, and a stage by `CascadeStage`.

        Raises:
            CheckpointError: If the disk is full or not writable.
            TypeError: With a `classifier_guidance`.
        """
        check_unguided(self.classifier_guidance)
        path = Path(path)
        self.base.model.save_pretrained(
            path / "base", {"synthesizer": "ClassConditional", **self.base.sampler.record()}
        )
        for k, stage in enumerate(self.stages, 1):
            stage.save_pretrained(path / f"stage_{k}")
        with writing(path, "Free some space and save again."):  # last: makes it a checkpoint
            own = {
                "synthesizer": METHOD.name,
                "stages": len(self.stages),
                "truncated": self.truncated,
            }
            write_json(path / "synthaug.json", own)

    @classmethod
    @loading
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        stages: Sequence[str | Path] | None = None,
        truncated: bool | None = None,
        classes: Sequence[str] | None = None,
        dtype: torch.dtype | Precision = "auto",
        device: str | torch.device | None = None,
        sampler: SamplerConfig | Mapping[str, Any] | None = None,
        noise_conditioning_level: int | None = None,
    ) -> "Cascade":
        """Loads a cascade from its directory, or puts one together.

            Cascade.from_pretrained("runs/cascade")
            Cascade.from_pretrained("runs/base", stages=["runs/8to16", "runs/16to32"])

        Args:
            path: Directory that `save_pretrained` wrote, or "hub:OWNER/NAME"; with `stages`, the
                base: any checkpoint that `ClassConditional` loads.
            stages: Directories of the stages, from small to large; see `CascadeStage`.
            truncated: By default as saved.
            classes: Class names or prompts, for a base that does not name them.
            dtype: Dtype of all networks: "auto" is bfloat16 where the hardware makes it faster,
                and else float32.
            device: Where to run; a GPU if there is one by default.
            sampler: Sampler of the base and all stages, as for `ClassConditional.from_pretrained`.
            noise_conditioning_level: Level of all stages that take one, where a plan does not say.

        Raises:
            CheckpointError: If there is no such directory, or a part of it is missing or damaged.
            ValueError: For an unknown setting, or models that do not fit each other.
        """
        folder = resolve(path)
        own: dict[str, Any] = {}
        if stages is None:
            own = read_record(folder)
            if own.get("synthesizer") != METHOD.name:
                raise CheckpointError(
                    f"{path} is not a cascade. Pass `stages` to put one together from it, or "
                    "assemble one with `synthaug cascade`."
                )
            stages = [folder / f"stage_{k}" for k in range(1, int(own["stages"]) + 1)]
            folder = folder / "base"
        where: dict[str, Any] = {"dtype": dtype, "device": device}
        model, saved = DiffusionModel.from_pretrained(folder, classes=classes, **where)
        base = _Base(model=model, sampler=SamplerConfig.chosen(saved, sampler))
        loaded: list[CascadeStage] = []
        for stage_path in stages:
            low = (loaded[-1].model if loaded else model).image_shape[1:]
            stage = CascadeStage.from_pretrained(
                stage_path, classes=model.classes, low_size=low, sampler=sampler, **where
            )
            loaded.append(stage)
        if noise_conditioning_level is not None:  # a stage that takes none refuses it itself
            some = any(stage.signals is not None for stage in loaded)
            loaded = [
                replace(stage, noise_conditioning_level=noise_conditioning_level)
                if stage.signals is not None or not some
                else stage
                for stage in loaded
            ]
        chosen = own.get("truncated", False) if truncated is None else truncated
        return cls(base=base, stages=loaded, truncated=bool(chosen))

    # -- training --------------------------------------------------------------------------------

    @classmethod
    def fit_stage(
        cls,
        real: Any,
        output_dir: str | Path,
        stage: StageConfig,
        *,
        unlabeled: Any = None,
        config: TrainingConfig | None = None,
        progress: bool = True,
        **network: Any,
    ) -> tuple[CascadeStage, TrainingResult]:
        """Trains a stage on real images and smaller copies of them, and saves it.

        It does not see the model before it: both are trained separately, on images of the same
        data set. (The base is `ClassConditional.fit` on the data set loaded with the smaller
        `image_size`.) Run again with the same arguments it resumes.

        Args:
            real: Has `read(indices)`, `targets`, `classes` and `image_shape`.
            output_dir: Becomes a diffusers directory; updated at every checkpoint.
            stage: Sizes that it enlarges, and the degradation of the smaller copies.
            unlabeled: Further images of the same shape; they train the unconditional branch only.
            config: How to optimize.
            progress: Show a bar.
            network: Same as for `ClassConditional.fit`.

        Raises:
            DataError: For images or labels that cannot be trained on.
            ValueError: For a setting out of range.
            DivergedError: If loss or weights stop being finite.
            CheckpointError: If a checkpoint cannot be read or written.
        """
        job = StageFitJob(real, unlabeled, stage, LabeledConfig(**network))
        return job.fit(output_dir, config, job.stage, progress=progress)
