"""Cold diffusion: degrade an image without noise, and learn to restore it (Bansal et al. 2022).

Notation (code -> paper): `degradation` -> D(x, s); `network` -> R(x_s, s), which is told the time
s - 1; `num_levels` -> T; "improved" -> Algorithm 2; "naive" -> Algorithm 1; `severity` -> s / T.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from synthaug._images.source import ImageSource
from synthaug._noise import Streams, randn, streams
from synthaug._pixels import to_images
from synthaug._plan import Plan, settings_digest
from synthaug._support import arguments, devices, layout, torch_state
from synthaug._support.precision import Precision, Resolved, in_precision
from synthaug._training import checkpoints
from synthaug._training.loop import TrainingResult
from synthaug._training.parts import load_frozen, read_index, recorded_shape
from synthaug._training.training_config import TrainingConfig
from synthaug._types import JSON, Doubles, Images, ImageShape, Integers, Labels, Pixels
from synthaug.degradations import AbstractDegradation, Realization, from_config
from synthaug.denoisers import Denoiser
from synthaug.errors import CheckpointError, MismatchError
from synthaug.synthesizers._base import AbstractSourcedSynthesizer
from synthaug.synthesizers._losses import LossGrid
from synthaug.synthesizers._parameters import raise_problems
from synthaug.synthesizers.cold import METHOD, ColdSettings
from synthaug.synthesizers.cold._colors import ColorMixture
from synthaug.synthesizers.cold._config import RestorerConfig
from synthaug.synthesizers.cold._fit import ColdFitJob
from synthaug.synthesizers.cold._sampling import Restored, restore, visited_levels

_FILE = "synthaug.json"


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ColdDiffusion(AbstractSourcedSynthesizer, ColdSettings):
    """Restored views of real images, or images from nothing, by undoing a degradation.

        cold, _ = ColdDiffusion.fit(real, "runs/deblur", degradation=degradations.Blur())
        plan = cold.with_sources(real).plan(ratio=1, severity=[0.2, 0.4], seed=0)
        synthaug.generate(cold.with_sources(real), plan, "restored.h5")
        views = cold.degrade_and_restore(images, severity=torch.full((8,), 0.3), seeds=range(8))

    A restored view keeps its label; `severity` s / T in (0, 1] is the row parameter that says how
    much of the image is taken away and invented anew. Without sources, images are generated from
    level T, if the degradation leaves nothing or one color there. Its settings are those of
    `synthesizers.ColdSettings`.
    """

    row_parameters = METHOD.row_parameters

    network: nn.Module = field(repr=False)
    """R, a `UNet2DModel` without classes; it gets x_s and the time s - 1."""
    degradation: AbstractDegradation
    """D, which R was trained to undo."""
    image_shape: ImageShape
    """(C, H, W)."""
    classes: tuple[str, ...] = ("image",)
    """Names of the classes of the source images; R does not know them."""
    colors: ColorMixture | None = None
    """Where generation starts, if the last level leaves one color."""
    real: ImageSource | None = field(default=None, repr=False)
    """Where `source` indices point to; see `with_sources`."""

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        METHOD.check_choices(self)
        arguments.check_at_least(1, num_steps=self.num_steps)
        arguments.check_within("[0, 1)", symmetry_noise=self.symmetry_noise)
        if self.denoiser.in_channels != self.image_shape[0] or self.denoiser.takes_labels:
            raise CheckpointError(
                f"The network takes {self.denoiser.in_channels} channels"
                f"{' and class labels' if self.denoiser.takes_labels else ''}; a restorer of "
                f"images of shape {self.image_shape} takes {self.image_shape[0]} and no labels."
            )
        layout.settle_layout(self.network)

    @cached_property
    def denoiser(self) -> Denoiser:
        """The network in its own dtype and memory format."""
        return Denoiser(self.network)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.denoiser.device

    # -- restoring -------------------------------------------------------------------------------

    def predict(self, x_s: Images, s: Tensor) -> Images:
        """R(x_s, s): what the network takes for the clean images, float32 (n, C, H, W).

        Args:
            x_s: Degraded images (n, C, H, W).
            s: Their levels, int64 (n,), at least 1.
        """
        return self.denoiser(x_s, s - 1, None)

    @torch.no_grad()
    def restore(
        self, x_s: Images, s: int | Tensor, realization: Realization | None = None
    ) -> Restored:
        """Restores images that are at levels s, with this synthesizer's settings.

        Args:
            x_s: Degraded images (n, C, H, W), on the network's device; not clipped, not rounded.
            s: Level of all, or of each, int64 (n,).
            realization: The realization that degraded them, on the same device.

        Returns:
            Both images that the recursion leaves, not clipped.
        """
        levels = torch.as_tensor(s, dtype=torch.int64, device="cpu").expand(len(x_s))
        return restore(
            self.predict,
            self.degradation,
            x_s,
            levels,
            realization or {},
            algorithm=self.algorithm,
            num_steps=self.num_steps,
        )

    @torch.no_grad()
    def degrade_and_restore(
        self, images: Images, *, severity: ArrayLike | Tensor, seeds: Sequence[int] | Any
    ) -> Images:
        """Takes part of each image away, and restores it.

        Args:
            images: (n, C, H, W) in [-1, 1], on any device.
            severity: s / T of each image (n,), in (0, 1]. At least one level is undone.
            seeds: One per image, for what is random in the degradation.

        Returns:
            float32 (n, C, H, W) in [-1, 1], on the network's device.

        Raises:
            ValueError: For images of another shape, or a severity out of range.
        """
        if tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(
                f"`images` has shape {tuple(images.shape)}; this restorer was trained on images of "
                f"shape {self.image_shape}."
            )
        s = self.levels(severity)
        realization = self._realize(streams(seeds))
        x_s = self.degradation(images.to(self.device, torch.float32), s, realization)
        return self._result(self.restore(x_s, s, realization))

    @torch.inference_mode()
    def restoration_losses(self, pixels: Pixels, labels: Labels, grid: LossGrid) -> Doubles:
        """See `AbstractSynthesizer.restoration_losses`: the mean of |R(D(x, s), s) - x|."""
        x = to_images(devices.sent(pixels, self.device))
        losses = []
        for severity, seed in zip(grid.times.tolist(), grid.noise_seeds, strict=True):
            s = self.levels(np.full(len(x), severity))
            degraded = self.degradation(x, s, self._realize(streams([seed] * len(x))))
            errors = (self.predict(degraded, s) - x).cpu()  # not all devices have float64
            losses.append(errors.double().abs().flatten(1).mean(1))
        return torch.stack(losses, 1).numpy()

    def levels(self, severity: ArrayLike | Tensor) -> Tensor:
        """The level nearest to each severity, at least 1: int64 (n,)."""
        s = np.rint(np.asarray(severity, np.float64) * self.degradation.num_levels)
        return torch.from_numpy(np.maximum(1, s).astype(np.int64))

    def _realize(self, generators: Streams) -> Realization:
        drawn = self.degradation.realize(generators, self.image_shape)
        return {name: devices.sent(value, self.device) for name, value in drawn.items()}

    def _result(self, restoration: Restored) -> Images:
        chosen = restoration.x0 if self.output == "recursion" else restoration.prediction
        return chosen.clamp(-1, 1)

    # -- plans -----------------------------------------------------------------------------------

    @torch.inference_mode()
    @torch_state.full_precision()
    def draw(self, rows: Plan) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1].

        Raises:
            ValueError: If the rows have sources but the synthesizer has not, or the other way round
                for a degradation that images cannot be generated from.
            DataError: If a source image is not the one that the plan was made with.
        """
        self.check_classes(rows)
        fresh = np.flatnonzero(rows["source"] < 0)
        sourced = np.flatnonzero(rows["source"] >= 0)
        generators = streams(rows["seed"])
        realization = self._realize(generators)
        x = torch.zeros(len(rows), *self.image_shape, dtype=torch.float32, device="cpu")
        if len(sourced):
            x[torch.from_numpy(sourced)] = to_images(self._source_pixels(rows[sourced]))
        s = self._levels_of(rows)
        x_s = self.degradation(devices.sent(x, self.device), s, realization)
        if len(fresh):
            raise_problems(self._generation_problems())
            there = devices.sent(torch.from_numpy(fresh), self.device)
            start = x_s[there]  # D(0, T): all there is to know where the level leaves nothing
            own = [generators[i] for i in fresh]
            if self.colors is not None:
                start = devices.sent(self.colors.sample(own)[:, :, None, None], self.device)
            noise = devices.sent(randn(own, self.image_shape), self.device)
            x_s[there] = start + self.symmetry_noise * noise
        return self._result(self.restore(x_s, s, realization)).cpu()

    def _levels_of(self, rows: Plan) -> Tensor:
        return self.levels(np.where(rows["source"] < 0, 1.0, rows.get("severity", 1.0)))

    def _generation_problems(self) -> Iterator[str]:
        leaves = self.degradation.leaves(self.image_shape)
        if leaves == "image" or (leaves == "color") != (self.colors is not None):
            yield (
                f"Images cannot be generated from the last level of {self.degradation}: it "
                "depends on the image. Start from real images (`with_sources`), or train with a "
                "degradation that leaves one color (`Blur(exact_mean=True)`) or nothing."
            )

    def _plan_problems(self, columns: Mapping[str, Any]) -> Iterator[str]:
        if self.real is None:
            yield from self._generation_problems()
            if len(self.classes) > 1:
                yield (
                    "The restorer knows no classes, so generated images would bear random labels. "
                    "Start from real images (`with_sources`), or load it with a single class "
                    "(`classes`)."
                )

    def evaluations(self, rows: Plan) -> Integers:
        """Network evaluations per row: one per level visited."""
        if self.algorithm == "direct":
            return np.ones(len(rows), np.int64)
        visited = visited_levels(self._levels_of(rows), self.num_steps)
        return (visited > 0).sum(1).numpy()

    # -- identity and files ----------------------------------------------------------------------

    def recipe(self) -> dict[str, JSON]:
        """Settings and weight digests; see `AbstractSynthesizer.recipe`."""
        settings: dict[str, JSON] = {
            **METHOD.settings_of(self),
            "degradation": self.degradation.config(),
            "dtype": str(self.denoiser.dtype).removeprefix("torch."),
            "image_shape": list(self.image_shape),
        }
        weights: dict[str, JSON] = {"network": self._digest}
        if self.colors is not None:
            weights["colors"] = settings_digest(self.colors.config())
        return {"synthesizer": METHOD.name, "settings": settings, "weights": weights}

    @cached_property
    def _digest(self) -> str:
        return checkpoints.state_digest(self.network)

    def in_precision(self, precision: Resolved) -> "ColdDiffusion":
        """See `AbstractSynthesizer.in_precision`."""
        return replace(self, network=in_precision(self.network, precision))

    def save_pretrained(self, path: str | Path) -> None:
        """Writes the network in diffusers layout, and `synthaug.json` with the degradation.

        Raises:
            CheckpointError: If the disk is full or not writable. What was there before stays.
        """
        path = Path(path)
        own = {
            "synthesizer": METHOD.name,
            **METHOD.settings_of(self),
            "degradation": self.degradation.config(),
            "colors": None if self.colors is None else self.colors.config(),
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
        }
        with checkpoints.writing(path, "Free some space and save again."):
            path.mkdir(parents=True, exist_ok=True)
            with checkpoints.replaced(path / "unet") as new:
                checkpoints.save_network(self.network, new)
            checkpoints.write_json(path / _FILE, own)
            checkpoints.write_index(path, "DiffusionPipeline", {"unet": "UNet2DModel"})

    @classmethod
    @checkpoints.loading
    @torch_state.lasting_tensors()
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        degradation: AbstractDegradation | None = None,
        classes: Sequence[str] | None = None,
        dtype: torch.dtype | Precision = "auto",
        device: str | torch.device | None = None,
        **settings: Any,
    ) -> "ColdDiffusion":
        """Loads a directory that `save_pretrained` or `fit` wrote.

        Args:
            path: The directory, or "hub:OWNER/NAME".
            degradation: Needed where the checkpoint cannot describe it: `Custom`, `Animorphosis`.
            classes: Class names of the images to restore; by default those that it was trained on.
                A single one lets images be generated.
            dtype: Dtype of the network: "auto" is bfloat16 where the hardware makes it faster, and
                else float32.
            device: Where to run; a GPU if there is one by default.
            settings: `algorithm`, `output`, `num_steps`, `symmetry_noise`, instead of those saved.

        Raises:
            CheckpointError: If there is no such checkpoint, it is not one of cold diffusion, or was
                trained with another degradation than the one given.
            ValueError: For an unknown setting, or a device that torch cannot use.
        """
        target = devices.choose_device(device)
        path = checkpoints.resolve(path)
        index = read_index(path)
        own = checkpoints.read_record(path)
        chosen = METHOD.chosen_settings(own, settings)
        if own.get("synthesizer") != METHOD.name:
            raise MismatchError(
                f"{path} holds no checkpoint of cold diffusion, but of "
                f"{own.get('synthesizer', 'something else')}. Train one with `ColdDiffusion.fit`."
            )
        try:
            saved = own["degradation"]
            colors = None if own["colors"] is None else ColorMixture.from_config(own["colors"])
            shape: Any = recorded_shape(own)
            if shape is None:
                raise KeyError("image_shape")
            names = own["classes"] if classes is None else classes
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path / _FILE} is damaged: {error!r}.") from None
        if degradation is None:
            degradation = from_config(saved)
        elif json.loads(json.dumps(degradation.config())) != saved:
            raise MismatchError(
                f"{path} was trained with the degradation {saved}, not with "
                f"{degradation.config()}. Give that one, or leave it out."
            )
        return cls(
            network=load_frozen(path, index, dtype, target),
            degradation=degradation,
            image_shape=shape,
            classes=tuple(map(str, names)),
            colors=colors,
            **chosen,
        )

    # -- training --------------------------------------------------------------------------------

    @classmethod
    def fit(
        cls,
        real: Any,
        output_dir: str | Path,
        *,
        degradation: AbstractDegradation,
        config: TrainingConfig | None = None,
        progress: bool = True,
        **network: Any,
    ) -> tuple["ColdDiffusion", TrainingResult]:
        """Trains a restorer, and saves it in `output_dir`.

        Minimizes the mean of |R(D(x, s), s) - x| at uniformly drawn levels s >= 1 (stratified over
        the batch). Labels are not used. Run again with the same arguments it resumes.

        Args:
            real: Any map-style data set of images; class names are kept if it has any.
            output_dir: Becomes a diffusers directory; updated at every checkpoint.
            degradation: The degradation to undo. Images are degraded in floating point, in training
                as later; they are never rounded to 256 levels in between.
            config: How to optimize.
            progress: Show a bar.
            network: `channels`, `num_layers` and `horizontal_flip`, as for `ClassConditional.fit`,
                and `color_components`, the Gaussians in the mixture of colors that generation
                starts from, for a degradation whose last level leaves one color.

        Raises:
            DataError: If there are no images, or they cannot be halved often enough.
            ValueError: For a setting out of range, or images that cannot be degraded so.
            DivergedError: If loss or weights stop being finite.
            CheckpointError: If a checkpoint cannot be read or written.
        """

        def wrap(network: nn.Module) -> "ColdDiffusion":
            return cls(
                network=network,
                degradation=degradation,
                image_shape=job.image_shape,
                classes=job.classes,
                colors=job.colors,
            )

        config = config or TrainingConfig()
        job = ColdFitJob(real, degradation, RestorerConfig(**network), config.seed)
        return job.fit(output_dir, config, wrap, progress=progress)
