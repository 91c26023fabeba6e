"""Low-density sampling: draw the rare images of a class, and keep them real.

Sehwag et al. 2022, "Generating High Fidelity Data from Low-density Regions using Diffusion Models".
https://arxiv.org/abs/2203.17260

Two networks push every step of another synthesizer's sampler: one away from the dense region of the
image's class, the other towards what tells real images from synthetic ones. Notation (code ->
paper): see `synthaug.guidance`.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from synthaug._images.source import ImageSource
from synthaug._pixels import to_images
from synthaug._plan import Plan
from synthaug._support.arguments import check_positive
from synthaug._support.precision import Precision, Resolved
from synthaug._support.torch_state import lasting_tensors
from synthaug._training import checkpoints
from synthaug._training.loop import TrainingResult
from synthaug._training.training_config import TrainingConfig
from synthaug._types import JSON, Doubles, Images, ImageShape, Integers, Labels, Pixels, Singles
from synthaug.density import ClassGaussians
from synthaug.errors import CheckpointError, MismatchError
from synthaug.guidance import HardnessModel, HardnessPush
from synthaug.samplers import Push, check_pushable
from synthaug.synthesizers._base import AbstractSourcedSynthesizer, AbstractSynthesizer
from synthaug.synthesizers._diffusion import AbstractDiffusionSynthesizer
from synthaug.synthesizers._kinds import load, origin_of
from synthaug.synthesizers._losses import LossGrid
from synthaug.synthesizers._parameters import RowParameter
from synthaug.synthesizers._real import fitting_images
from synthaug.synthesizers._sampler import SamplerConfig
from synthaug.synthesizers.low_density import METHOD, SteeringSettings
from synthaug.synthesizers.low_density._config import GuideConfig
from synthaug.synthesizers.low_density._fit import REAL, SYNTHETIC, HardnessFitJob
from synthaug.synthesizers.low_density._hardness import NoiseAware, OnEstimate

_FILE = "synthaug.json"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class LowDensity(AbstractSynthesizer, SteeringSettings):
    """Hard images of every class, drawn by steering another synthesizer.

        steered, _ = LowDensity.fit(real, "runs/cifar", "runs/hard")      # once
        steered = LowDensity.from_pretrained("runs/hard", sampler={"scheduler": "ddpm"})
        plan = steered.plan(per_class=500, seed=0)
        synthaug.generate(steered, plan, "hard.h5")

    Row parameters: `alpha`, away from the dense region of the image's class, and `beta`, towards
    real images, each in units of the noise of every step. Those of the base come on top,
    `guidance_scale` among them. Rows with alpha = beta = 0 are what the base draws. The unit of
    both is a setting, see `synthesizers.SteeringSettings`; those of the base are settings too.
    """

    row_parameters = METHOD.row_parameters

    base: AbstractDiffusionSynthesizer
    """What is steered: `ClassConditional` or `DiffusionInversion`."""
    hardness: HardnessModel = field(repr=False)
    """Under every class of the base."""
    realism: HardnessModel | None = field(default=None, repr=False)
    """Under two classes: 0 is synthetic, 1 is real."""
    origin: Mapping[str, Any] | None = None
    """How the base was loaded, so that it need not be copied."""
    learned_from: Mapping[str, JSON] | None = None
    """Fingerprint and number of the real images that the networks learned from."""

    def __post_init__(self) -> None:
        _check_base(self.base)
        check_positive(temperature=self.temperature)
        METHOD.check_choices(self)
        known = self.hardness.num_classes if isinstance(self.hardness, NoiseAware) else None
        if known not in (None, len(self.classes)):
            raise ValueError(
                f"`hardness` knows {known} classes, the base {len(self.classes)}. Train it for "
                "this base."
            )

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the base's classes."""
        return self.base.classes

    @property
    def image_shape(self) -> ImageShape:
        """(C, H, W) of the images, in pixels."""
        return self.base.image_shape

    @property
    def can_be_guided(self) -> bool:
        """Whether `guidance_scale` may differ from 1."""
        return self.base.can_be_guided

    def restoration_losses(self, pixels: Pixels, labels: Labels, grid: LossGrid) -> Doubles:
        """See `AbstractSynthesizer.restoration_losses`: those of the base."""
        return self.base.restoration_losses(pixels, labels, grid)

    @property
    def default_strengths(self) -> dict[str, float]:
        """`alpha` and `beta` where a plan does not say: lengths of 0.5 and 1, in our unit.

        No `beta` without a discriminator.
        """
        size = math.prod(self.base.model.latent_shape) ** -0.5 if self.unit == "rms" else 1.0
        found = {p.name: size * (p.default or 0.0) for p in METHOD.row_parameters}
        return found if self.realism is not None else {**found, "beta": 0.0}

    @property
    def trained_on(self) -> Mapping[str, JSON] | None:
        """The real images that base and networks learned from, for the cache."""
        base = dict(self.base.trained_on or {})
        own = {} if self.learned_from is None else {"guides": dict(self.learned_from)}
        return {**base, **own} or None

    # -- plans -----------------------------------------------------------------------------------

    def with_sources(self, real: Any, labels: ArrayLike | None = None) -> "LowDensity":
        """The same synthesizer, its base starting from real images.

        Raises:
            ValueError: If the base cannot.
        """
        if not isinstance(self.base, AbstractSourcedSynthesizer):
            raise ValueError(f"A {type(self.base).__name__} does not start from other images.")
        return replace(self, base=self.base.with_sources(real, labels))

    def with_settings(self, **settings: Any) -> "LowDensity":
        """Changes settings: `temperature` and `unit` here, all others of the base."""
        own = {s.name: settings.pop(s.name) for s in METHOD.settings if s.name in settings}
        return replace(self, base=self.base.with_settings(**settings), **own)

    @property
    def has_sources(self) -> bool:
        """Whether the base starts from real images."""
        return self.base.has_sources

    def available_parameters(self) -> tuple[RowParameter, ...]:
        """`alpha` and `beta`, by default those of `default_strengths`, and those of the base."""
        default = self.default_strengths
        own = tuple(replace(p, default=default[p.name]) for p in METHOD.row_parameters)
        return (*own, *self.base.available_parameters())

    def _why_unknown(self, name: str, available: Iterable[str]) -> str:
        reason: str = self.base._why_unknown(name, available)
        return reason

    def _plan_problems(self, columns: Mapping[str, Any]) -> Iterator[str]:
        if self.realism is None and np.any(columns.get("beta", 0)):
            yield (
                f"`beta` is {columns['beta']}, but there is no discriminator. Use 0, or `fit` one."
            )
        yield from self.base._plan_problems(columns)

    def _lay_out(self, columns: Mapping[str, Any], quota: Mapping[str, Any], seed: int) -> Plan:
        """The base's rows, pushed."""
        pushes = {p.name: columns[p.name] for p in METHOD.row_parameters}
        rest = {name: value for name, value in columns.items() if name not in pushes}
        rows: Plan = self.base._lay_out(rest, quota, seed)
        return rows.with_parameters(pushes, settings=self._settings)

    def evaluations(self, rows: Plan) -> Integers:
        """Network evaluations per row: the base's, and what gradients cost.

        There is one gradient for alpha and one for beta at every step but the last.
        """
        found = self.base.evaluations(rows)
        plain = dict(rows.columns)
        if "guidance_scale" in plain:
            plain["guidance_scale"] = np.ones(len(rows))
        steps = self.base.with_settings(classifier_guidance=None).evaluations(
            Plan(columns=plain, classes=rows.classes, settings=rows.settings)
        )
        for name, model in (("alpha", self.hardness), ("beta", self.realism)):
            if model is not None:
                found = found + (rows.get(name, 0.0) != 0) * model.evaluations * (steps - 1)
        return found

    # -- sampling --------------------------------------------------------------------------------

    def draw(self, rows: Plan) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1].

        Raises:
            ValueError, DataError: Under the same conditions as the base.
        """
        return self.base.draw(rows, guide=self._pushes)

    def _pushes(self, rows: Plan, condition: Tensor | None) -> Sequence[Push]:
        """Returns the pushes of these rows; none that would push nothing."""
        labels = torch.tensor(rows["label"], dtype=torch.int64, device="cpu")
        found = []
        for name, model, leave in (
            ("alpha", self.hardness, labels),
            ("beta", self.realism, torch.full_like(labels, SYNTHETIC)),
        ):
            strength = torch.tensor(rows.get(name, 0.0), dtype=torch.float32, device="cpu")
            if not strength.any():
                continue
            if model is None:
                raise ValueError(
                    f"The plan has a `{name}`, but there is no discriminator. `fit` one, or make "
                    "the plan without."
                )
            found.append(
                HardnessPush(
                    model=model,
                    labels=leave,
                    strength=strength,
                    condition=condition,
                    temperature=self.temperature,
                    unit=self.unit,
                )
            )
        return found

    # -- identity and files ----------------------------------------------------------------------

    @property
    def _settings(self) -> dict[str, JSON]:
        base: dict[str, Any] = self.base.recipe()
        return {
            "base": {"synthesizer": base["synthesizer"], **base["settings"]},
            **METHOD.settings_of(self),
        }

    def recipe(self) -> dict[str, JSON]:
        """Settings and weight digests; see `AbstractSynthesizer.recipe`."""
        base: dict[str, Any] = self.base.recipe()
        weights = {**base["weights"], "hardness": self.hardness.weights}
        if self.realism is not None:
            weights["realism"] = self.realism.weights
        return {"synthesizer": METHOD.name, "settings": self._settings, "weights": weights}

    def in_precision(self, precision: Resolved) -> "LowDensity":
        """See `AbstractSynthesizer.in_precision`."""
        return replace(self, base=self.base.in_precision(precision))

    def save_pretrained(self, path: str | Path) -> None:
        """Writes both networks, and a copy of the base in the folder `base`.

        Raises:
            TypeError: If hardness comes from features of the denoised estimate, which may be any
                code.
            CheckpointError: If the disk is full or not writable.
        """
        self._write(Path(path), copy=True)

    def _write(self, path: Path, *, copy: bool) -> None:
        guides = {"hardness": self.hardness, "realism": self.realism}
        for name, guide in guides.items():
            if guide is not None and not isinstance(guide, NoiseAware):
                raise TypeError(
                    f"`{name}` is a {type(guide).__name__}, which cannot be saved: its features "
                    "may be any code. Build it again where it is needed."
                )
        if copy:
            self.base.save_pretrained(path / "base")
        with checkpoints.writing(path, "Free some space and save again."):
            path.mkdir(parents=True, exist_ok=True)
            for name, guide in guides.items():
                if isinstance(guide, NoiseAware):
                    guide.save(path / name)
            own = {
                "synthesizer": METHOD.name,
                "origin": None if copy else dict(self.origin or {}),
                "weights": self.base.recipe()["weights"],
                "dtype": str(self.base.model.denoiser.dtype),
                "classes": list(self.classes),
                "trained_on": None if self.learned_from is None else dict(self.learned_from),
                "settings": METHOD.settings_of(self),
            }
            checkpoints.write_json(path / _FILE, own)

    @classmethod
    @checkpoints.loading
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        checkpoint: str | Path | None = None,
        classes: Sequence[str] | None = None,
        dtype: torch.dtype | Precision = "auto",
        device: str | torch.device | None = None,
        sampler: SamplerConfig | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> "LowDensity":
        """Loads a directory that `fit` or `save_pretrained` wrote.

        Args:
            path: The directory.
            checkpoint: Where the base is now, if it moved.
            classes: Fixed when the networks were trained: leave it out.
            dtype: Dtype of the base's network; the two networks are float32 always. "auto" is
                bfloat16 where the hardware makes it faster, and else float32.
            device: Where to run; a GPU if there is one by default.
            sampler: Sampler of the base, as for `ClassConditional.from_pretrained`.
            settings: `temperature` and `unit` in place of those saved, and settings of the base.

        Raises:
            CheckpointError: If there is no such directory, or a part is missing or damaged.
            MismatchError: If the base is not the one that the networks were trained for.
        """
        if classes is not None:
            raise ValueError("`classes` was fixed when the networks were trained. Leave it out.")
        folder = Path(path).expanduser()
        own = checkpoints.read_json(folder / _FILE)
        if own.get("synthesizer") != "LowDensity":
            raise CheckpointError(
                f"{path} is a checkpoint for {own.get('synthesizer')!r}, not for LowDensity. Train "
                "one with `synthaug train --method hardness`."
            )
        origin = {} if own["origin"] is None else dict(own["origin"])
        saved_at = origin.pop("path", folder / "base")
        where = checkpoint or saved_at
        changes = {n: settings.pop(n) for n in own["settings"] if n in settings}
        base: Any = load(
            where, dtype=dtype, device=device, sampler=sampler, **{**origin, **settings}
        )
        _check_base(base)
        trained = base.in_precision(checkpoints.recorded_dtype(own))
        dtype_then, weights = trained.model.denoiser.dtype, trained.recipe()["weights"]
        if (name := checkpoints.changed_part(own, dtype_then, weights)) is not None:
            raise MismatchError(
                f"The {name} in {where} is not the one that the networks in {path} were trained "
                "for. Give the right `checkpoint`, or train them anew."
            )
        hardness = NoiseAware.load(folder / "hardness", base.model.device)
        if hardness is None:
            raise CheckpointError(f"{folder / 'hardness'} is missing. Train again.")
        return cls(
            base=base,
            hardness=hardness,
            realism=NoiseAware.load(folder / "realism", base.model.device),
            origin={"path": str(where), **origin},
            learned_from=own.get("trained_on"),
            **{**own["settings"], **changes},
        )

    # -- training --------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        real: Any,
        base: Any,
        output_dir: str | Path,
        *,
        synthetic: Any = None,
        config: TrainingConfig | None = None,
        dtype: torch.dtype | Precision = "float32",
        progress: bool = True,
        **guides: Any,
    ) -> tuple["LowDensity", TrainingResult]:
        """Trains a classifier and a discriminator of noisy images, and fits their Gaussians.

        Both see images, or latents, noised by the base's own schedule, and the timestep. They start
        from the first half of the base's network if that is a `UNet2DModel`. Run again with the
        same arguments it resumes.

        Args:
            real: Has `read(indices)`, `targets`, `classes` and `image_shape`; those of the base.
            base: The generator to steer: a directory, which is named and not copied, or a
                synthesizer, which is saved with the networks.
            output_dir: `from_pretrained` loads it.
            synthetic: Images that the base drew, for the discriminator: a cache, or anything with
                `read`, `image_shape` and a length. They are drawn now by default.
            config: How to optimize.
            dtype: Dtype of the base's network, if `base` is a directory. "auto" is float32 here, as
                it is of a base that was loaded so: the networks start from its weights.
            progress: Show bars.
            guides: `num_synthetic` (at most 5,000 by default), `embedding_dim` (features of each
                network), `noise_levels` (ranges of timesteps that have Gaussians of their own) and
                `horizontal_flip` (mirror half of the images).

        Raises:
            DataError, MismatchError: For images that do not fit the base.
            ValueError: For a base that cannot be steered, or a setting out of range.
            DivergedError: If loss or weights stop being finite.
            CheckpointError: If the directory holds another run, or cannot be read or written.
        """
        from accelerate import PartialState

        output_dir, config = Path(output_dir), config or TrainingConfig()
        origin: dict[str, Any] | None = None
        if isinstance(base, str | Path):
            origin = origin_of(base, ImageSource.open(real, "`real`").named_classes())
            base = load(**origin, dtype=dtype, device=config.device)
        _check_base(base)
        base = base.in_precision("float32")
        job = HardnessFitJob(base, real, synthetic, GuideConfig(**guides))
        hardness, realism, result = job.guides(output_dir, config, progress=progress)
        steered = cls(
            base=base,
            hardness=hardness,
            realism=realism,
            origin=origin,
            learned_from=job.real.record,
        )
        if PartialState().is_main_process:
            steered._write(output_dir, copy=origin is None)
        return steered, result

    @classmethod
    @lasting_tensors()
    def on_estimates(
        cls,
        base: Any,
        real: Any,
        features: nn.Module,
        *,
        synthetic: Any = None,
        batch_size: int = 64,
        **gaussians: Any,
    ) -> "LowDensity":
        """Steers by features of clean images, taken of the denoised estimate at every step.

        Nothing is trained. A gradient goes through the denoiser, so it costs three evaluations of
        the base's own network.

        Args:
            base: A synthesizer.
            real: Has `read(indices)`, `targets`, `classes` and `image_shape`; those of the base.
            features: Images float32 (n, C, H, W) in [-1, 1] => (n, d), differentiable. It is put
                into evaluation mode.
            synthetic: Images that the base drew; with them there is a `beta`.
            batch_size: Images per call of `features` while Gaussians are fitted.
            gaussians: `structure`, `estimator` and `components` of `density.ClassGaussians.fit`.

        Raises:
            MismatchError: For images of another shape or other classes than the base's.
            ValueError: For a base that cannot be steered, or Gaussians that cannot be fitted.
        """
        source = fitting_images(real, classes=base.classes, image_shape=base.image_shape)
        features = features.eval().requires_grad_(False).to(base.model.device)

        @torch.no_grad()
        def extracted(images: ImageSource) -> Singles:
            blocks = np.array_split(np.arange(len(images)), -(-len(images) // batch_size))
            device = base.model.device
            return np.concatenate(
                [
                    features(to_images(images.pixels(b)).to(device)).float().cpu().numpy()
                    for b in blocks
                ]
            )

        def model(found: Singles, labels: Integers) -> OnEstimate:
            fitted = ClassGaussians.fit(found, labels, **gaussians)
            fitted = fitted.to(base.model.device, torch.float32)
            return OnEstimate(model=base.model, features=features, gaussians=fitted)

        of_real = extracted(source)
        realism = None
        if synthetic is not None:
            drawn = ImageSource.open(synthetic, "`synthetic`")
            of_both = np.concatenate([of_real, extracted(drawn)])
            kinds = np.repeat([REAL, SYNTHETIC], [len(of_real), len(of_both) - len(of_real)])
            realism = model(of_both, kinds)
        return cls(base=base, hardness=model(of_real, source.labels), realism=realism)


def _check_base(base: Any) -> None:
    """Refuses a generator that cannot be steered."""
    if not isinstance(base, AbstractDiffusionSynthesizer):
        raise ValueError(
            f"`base` is a {type(base).__name__}, whose sampler cannot be steered. Use a "
            "ClassConditional or DiffusionInversion."
        )
    base.model.training_scheduler()  # refuses a student, whose steps are too long to be pushed
    check_pushable(base.model.scheduler(base.sampler))
