"""The training of the two networks that steer `LowDensity`, on the noise of its own generator."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthaug._images.source import ImageSource
from synthaug._noise import counter_rng, stream
from synthaug._pixels import to_images, to_pixels
from synthaug._plan import settings_digest
from synthaug._support.devices import sent
from synthaug._support.files import whole_file
from synthaug._support.progress import bar
from synthaug._support.stopping import kept_at_stop
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.checkpoints import load_tensors, reading, write_tensors, writing
from synthaug._training.fit_job import AbstractFitJob
from synthaug._training.loop import TrainingResult, own_rows
from synthaug._training.training_config import TrainingConfig
from synthaug._types import Array, Images, Indices, Integers, Pixels
from synthaug.density import ClassGaussians
from synthaug.errors import DataError, MismatchError
from synthaug.samplers import noised
from synthaug.synthesizers._diffusion import AbstractDiffusionSynthesizer
from synthaug.synthesizers._real import fitting_images
from synthaug.synthesizers.low_density._config import GuideConfig
from synthaug.synthesizers.low_density._hardness import NoiseAware, NoisyEncoder

logger = logging.getLogger("synthaug")

SYNTHETIC, REAL = 0, 1
"""Classes of the discriminator."""

_BLOCK = 256
_PER_LEVEL = 2048
"""Noisy images that the Gaussians of one noise level are fitted to, if there are few classes."""
_PER_CLASS = 100
"""At least so many of each class."""


class Guides(nn.Module):
    """The modules that are trained together: a classifier and a discriminator of noisy images."""

    def __init__(self, hardness: NoisyEncoder, realism: NoisyEncoder) -> None:
        super().__init__()
        self.hardness, self.realism = hardness, realism

    def forward(self, x_t: Images, t: Tensor, num_real: int) -> tuple[Tensor, Tensor]:
        """Class logits of the first `num_real` images, and real-or-synthetic logits of all."""
        return self.hardness(x_t[:num_real], t[:num_real]), self.realism(x_t, t)


class HardnessFitJob(AbstractFitJob[Guides]):
    """Everything that `LowDensity.fit` was asked for, checked before any work starts.

    Raises:
        MismatchError: For real or synthetic images that do not fit the generator.
        DataError: If there is nothing synthetic.
        ValueError: For a generator of one class, or too many sources of synthetic images.
    """

    def __init__(
        self, base: AbstractDiffusionSynthesizer, real: Any, synthetic: Any, config: GuideConfig
    ) -> None:
        self.base, self.model, self.config = base, base.model, config
        shape = base.image_shape
        self.real = fitting_images(real, classes=base.classes, image_shape=shape)
        missing = np.flatnonzero(np.bincount(self.real.labels, minlength=len(base.classes)) == 0)
        if len(missing):
            raise DataError(
                f"Class {base.classes[missing[0]]!r} has no real image, so nothing says what is "
                "hard in it. Add some."
            )
        if len(base.classes) < 2:
            raise ValueError(
                "`base` knows one class only. Hardness is learned by telling classes apart: use a "
                "generator with two or more."
            )
        self.synthetic: ImageSource | None = None
        if synthetic is not None:
            self.synthetic = ImageSource.open(synthetic, "`synthetic`")
            if config.num_synthetic is not None:
                raise ValueError(
                    f"`num_synthetic` is {config.num_synthetic}, but `synthetic` was given too. "
                    "Leave one of them out."
                )
            if self.synthetic.image_shape != shape:
                raise MismatchError(
                    f"`synthetic` holds images of shape {self.synthetic.image_shape}, the "
                    f"generator draws {shape}. Draw them with this generator."
                )
            self.synthetic_rows: Integers = np.flatnonzero(self.synthetic.done)
            if not len(self.synthetic_rows):
                raise DataError("`synthetic` holds no image. Generate some first.")
        self._scheduler = self.model.training_scheduler()
        self._labels = torch.from_numpy(self.real.labels)
        self.num_examples = len(self._labels)
        self._encoder_config = NoisyEncoder.config_for(self.model.denoiser, self.model.latent_shape)

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps of the generator's schedule."""
        return int(self._scheduler.config.num_train_timesteps)

    @lasting_tensors()
    def guides(
        self, output_dir: Path, config: TrainingConfig, *, progress: bool
    ) -> tuple[NoiseAware, NoiseAware, TrainingResult]:
        """Trains, then fits the Gaussians: hardness, realism, the course of the loss."""
        self._synthetic_name = self._draw_synthetic(output_dir, config.seed, progress)
        module, result = self.run(
            output_dir, config, on_checkpoint=lambda module: None, progress=progress
        )
        return *self._fitted(module.to(self.model.device), config.seed), result

    def _build(self) -> Guides:
        sizes = (len(self.base.classes), 2)
        config, width = self._encoder_config, self.config.embedding_dim
        encoders = [NoisyEncoder(config, outputs, width) for outputs in sizes]
        for encoder in encoders:
            encoder.start_from(self.model.denoiser)
        return Guides(*encoders)

    def _identity(self, module: Guides) -> dict[str, Any]:
        return {
            "synthesizer": "LowDensity",
            "base": self.base.recipe()["weights"],
            "data": self.real.fingerprint or len(self.real),
            "synthetic": self._synthetic_name,
            "network": module.hardness.settings,
            "horizontal_flip": self.config.horizontal_flip,
        }

    # -- synthetic images ------------------------------------------------------------------------

    def _draw_synthetic(self, output_dir: Path, seed: int, progress: bool) -> Any:
        """Sees to it that there are synthetic images, and returns what identifies them.

        Blocks that an earlier run has drawn are read from `output_dir/samples`.
        """
        if (given := self.synthetic) is not None:
            self._read_synthetic = lambda rows: given.pixels(self.synthetic_rows[rows])
            name = given.fingerprint or given.identity.get("plan_digest")
            return name, len(self.synthetic_rows)
        count = self.config.num_synthetic or min(self.num_examples, 5000)
        ratio = count / self.num_examples
        plan = self.base.plan(self.real.labels, ratio=ratio, seed=seed)
        name = settings_digest({"plan": plan.digest, "weights": self.base.recipe()["weights"]})
        folder = output_dir / "samples"
        blocks = []

        def kept() -> str:
            whole = len(list(folder.glob(f"{name[:16]}-*.safetensors"))) * _BLOCK
            return f"{min(whole, len(plan)):,} drawn images are kept in {folder}." if whole else ""

        with kept_at_stop(kept), bar(len(plan), "draw", "image", progress=progress) as shown:
            for i, rows in enumerate(plan.batches(_BLOCK)):
                path = folder / f"{name[:16]}-{i:05d}.safetensors"
                if path.exists():
                    with reading(path, "Delete it: its images are drawn again."):
                        pixels = load_tensors(path)["pixels"]
                else:
                    drawn = [self.base.draw(part) for part in rows.batches(64)]
                    pixels = to_pixels(torch.cat(drawn))
                    with (
                        writing(path, "Free some space and run again."),
                        whole_file(path) as part,  # every process draws them, and has its own
                    ):
                        write_tensors(part, {"pixels": pixels})
                blocks.append(pixels)
                shown.update(len(pixels))
        drawn_pixels = torch.cat(blocks)
        self.synthetic_rows = np.arange(len(drawn_pixels))
        self._read_synthetic = lambda rows: drawn_pixels[torch.from_numpy(rows)]
        return name

    # -- training --------------------------------------------------------------------------------

    def _loss(self, module: nn.Module, indices: Indices) -> Tensor:
        """Cross-entropy of both networks, at timesteps stratified over either half of the batch."""
        device = next(module.parameters()).device
        n = len(indices)
        # Everything random is drawn on the CPU, so that it is the same on every device.
        size, own = own_rows(n)
        count = len(self.synthetic_rows)
        chosen = torch.randint(count, (size,), dtype=torch.int64, device="cpu")[own].numpy()

        def uniform() -> Tensor:
            """Numbers in [0, 1) for the whole batch: of the real and of the synthetic images."""
            return torch.rand(2, size, dtype=torch.float32, device="cpu")

        def of_ours(drawn: Tensor) -> Tensor:
            """Returns the random draws for the examples of this process, the real ones first."""
            return drawn[:, own].flatten(0, 1)

        pixels = torch.cat([self.real.pixels(indices), self._read_synthetic(chosen)])
        if self.config.horizontal_flip:
            mirrored = of_ours(uniform()) < 0.5
            pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        strata = of_ours((torch.arange(size, dtype=torch.int64, device="cpu") + uniform()) / size)
        t = (strata * self.num_train_timesteps).long().clamp(max=self.num_train_timesteps - 1)
        x0 = self._encode(pixels)
        noise = of_ours(torch.randn(2, size, *x0.shape[1:], dtype=torch.float32, device="cpu"))
        x_t = sent(noised(self._scheduler, x0, noise, t), device)
        classes, realism = module(x_t, sent(t, device), n)
        labels = sent(self._labels[torch.from_numpy(indices)], device)
        kinds = torch.tensor([REAL, SYNTHETIC], dtype=torch.int64, device="cpu")
        kinds = sent(kinds.repeat_interleave(n), device)
        cross_entropy = nn.functional.cross_entropy
        return cross_entropy(classes.float(), labels) + cross_entropy(realism.float(), kinds)

    @torch.no_grad()
    def _encode(self, pixels: Pixels) -> Images:
        """Returns images as the generator denoises them, on the CPU."""
        if self.model.vae is None:
            return to_images(pixels)
        return self.model.encode(pixels).cpu()

    # -- Gaussians -------------------------------------------------------------------------------

    @torch.no_grad()
    def _fitted(self, module: Guides, seed: int) -> tuple[NoiseAware, NoiseAware]:
        """Gaussians of the features at every noise level, of as many images of each class."""
        count = max(_PER_CLASS, _PER_LEVEL // len(self.base.classes))
        by_class = self.real.rows_of_classes(len(self.base.classes))
        rows = [self._some(own, count, seed, c) for c, own in enumerate(by_class)]
        real = np.concatenate(rows)
        x_real = self._encode_all(self.real.pixels, real)
        labels = self.real.labels[real]
        fake = self._some(np.arange(len(self.synthetic_rows)), len(real), seed, -1)
        x_both = torch.cat([x_real, self._encode_all(self._read_synthetic, fake)])
        kinds = np.repeat([REAL, SYNTHETIC], [len(real), len(fake)])
        hardness = self._noise_aware(module.hardness, x_real, labels, seed, "classes")
        return hardness, self._noise_aware(module.realism, x_both, kinds, seed, "real or synthetic")

    def _some(self, rows: Array, count: int, seed: int, key: int) -> Integers:
        """`count` of these rows, each as often as the others; every one gets noise of its own."""
        order = counter_rng(seed, 3, key + 1).permutation(rows)
        return np.resize(order, count)

    def _encode_all(self, read: Callable[[Indices], Pixels], rows: Indices) -> Images:
        blocks = range(0, len(rows), _BLOCK)
        return torch.cat([self._encode(read(rows[i : i + _BLOCK])) for i in blocks])

    def _noise_aware(
        self, network: NoisyEncoder, x0: Images, labels: Array, seed: int, name: str
    ) -> NoiseAware:
        steps, device = self.num_train_timesteps, self.model.device
        levels = []
        for level in range(self.config.noise_levels):
            generator = stream(int(counter_rng(seed, 4, level).integers(2**63)))
            low, high = (-(-steps * i // self.config.noise_levels) for i in (level, level + 1))
            t = torch.randint(
                low, high, (len(x0),), generator=generator, dtype=torch.int64, device="cpu"
            )
            noise = torch.randn(x0.shape, generator=generator, dtype=torch.float32, device="cpu")
            x_t = noised(self._scheduler, x0, noise, t)
            parts = zip(x_t.split(_BLOCK), t.split(_BLOCK), strict=True)
            embedded = [network.embed(x.to(device), s.to(device)).cpu() for x, s in parts]
            features = torch.cat(embedded).numpy()
            gaussians = ClassGaussians.fit(features, labels.astype(np.int64))
            percent = 100 * (gaussians.all_hardness(features).argmin(1) == labels).mean()
            text = "timesteps %d to %d: %s told apart in %.1f %%"
            logger.info(text, low, high - 1, name, percent)
            levels.append(gaussians.to(device, torch.float32))
        return NoiseAware(
            network=network.eval(), gaussians=tuple(levels), num_train_timesteps=steps
        )
