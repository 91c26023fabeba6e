"""Diffusion inversion: learn a token sequence per real image, then draw variants of it.

Zhou, Sahak and Ba 2023, "Training on Thin Air: Improve Image Classification with Generated Data".
https://arxiv.org/abs/2305.15316

Notation (code -> paper): embedding -> c_i; `interpolation` -> s, where the paper has alpha = 1 - s;
`noise` -> lambda; `guidance_scale` -> g = 1 + w; mean embedding -> m.

    c = interpolate(c_i, c_j, s) + lambda RMS eta,  eta ~ N(0, I)
    prediction = network(m) + g (network(c) - network(m))
"""

import logging
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthaug._images.source import ImageSource
from synthaug._noise import Streams, randn, streams
from synthaug._pixels import to_images
from synthaug._plan import Plan
from synthaug._printable import shortened
from synthaug._support.arguments import check_at_least, check_fields
from synthaug._support.devices import sent
from synthaug._support.layout import settle_layout
from synthaug._support.precision import Precision, resolve_precision
from synthaug._support.progress import bar
from synthaug._support.torch_state import full_precision
from synthaug._training import checkpoints
from synthaug._training.loop import TrainingResult
from synthaug._training.network_config import DenoiserConfig
from synthaug._training.parts import read_index
from synthaug._training.trackers import logging_to
from synthaug._training.training_config import TrainingConfig
from synthaug._types import JSON, Images, Labels, Pixels
from synthaug.denoisers._networks import Prompted
from synthaug.errors import CheckpointError, DataError, MismatchError
from synthaug.guidance import ClassifierGuidance
from synthaug.synthesizers._base import Guide, RowSources
from synthaug.synthesizers._diffusion import (
    AbstractDiffusionSynthesizer,
    check_unguided,
    with_guidance,
)
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers._parameters import RowParameter
from synthaug.synthesizers._real import check_shape
from synthaug.synthesizers._sampler import SamplerConfig
from synthaug.synthesizers.inversion import METHOD, InversionSettings
from synthaug.synthesizers.inversion._config import InversionConfig, TokenConfig
from synthaug.synthesizers.inversion._embeddings import EmbeddingTable, interpolate
from synthaug.synthesizers.inversion._fit import (
    InversionCost,
    InversionJob,
    InversionResult,
    begun_precision,
)
from synthaug.synthesizers.inversion._tokens import (
    TokenEncoder,
    TokenFitJob,
    TokenModel,
)
from synthaug.synthesizers.inversion._variant_plan import with_partners

logger = logging.getLogger("synthaug")

_FILE = "inversion.json"
_PLAIN = {"classes": None, "image_size": None, "prompt_template": "{}", "negative_prompt": ""}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DiffusionInversion(AbstractDiffusionSynthesizer, InversionSettings):
    """Variants of real images, drawn from learned embeddings.

        inversion = DiffusionInversion.from_pretrained("runs/tokens")
        inversion, _ = inversion.fit(real, "runs/inverted")        # stage 1, once
        plan = inversion.plan(ratio=5, noise=[0.0, 0.1], interpolation=0.1, seed=0)
        synthaug.generate(inversion, plan, "variants.h5")          # stage 2

    Row parameters: `guidance_scale` (1 is no guidance), `noise` (relative to the embeddings' RMS),
    `interpolation` in [0, 1] towards a partner of the same class, and `snapshot`, the number of
    updates that the embedding had received. With `cross_class`, for all rows, partners are of other
    classes; such images belong to two classes, so train with `soft_labels(plan)`. Its settings are
    those of `synthesizers.InversionSettings`.
    """

    row_parameters = METHOD.row_parameters

    model: DiffusionModel
    """The frozen generator, whose network attends to tokens."""
    table: EmbeddingTable | None = field(default=None, repr=False)
    """What `fit` learned."""
    encoder: TokenEncoder | None = field(default=None, repr=False)
    """Image encoder of a generator of ours: the start of stage 1."""
    origin: Mapping[str, Any] | None = field(default=None, repr=False)
    """How the generator was loaded, so that `fit` need not copy it."""
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Scheduler, steps and noise."""
    classifier_guidance: ClassifierGuidance | None = field(default=None, repr=False)
    """A classifier that steers the sampler; `with_settings(classifier_guidance=...)`."""

    def __post_init__(self) -> None:
        check_fields(self)
        self.model.check_complete()
        self.model.check_sampler(self.sampler)
        self._check_guidance()
        METHOD.check_choices(self)
        check_at_least(1, group_size=self.group_size)
        if self.unconditional == "null" and self.model.class_embeddings is None:
            raise ValueError("`unconditional` is 'null', but the checkpoint has no null tokens.")
        if self.encoder is not None:
            settle_layout(self.encoder)

    @property
    def classes(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names of the classes of the real images, in the order of the label column."""
        return self.model.classes if self.table is None else self.table.classes

    @property
    def can_be_guided(self) -> bool:
        """Always: what guidance pushes away from is made of the embeddings."""
        return True

    @property
    def _learned(self) -> EmbeddingTable:
        if self.table is None:
            raise ValueError(
                "There are no embeddings yet. Learn them with `synthaug invert`, or in Python "
                "with `fit`."
            )
        return self.table

    # -- stage 1 ---------------------------------------------------------------------------------

    def cost(
        self, real: Any, config: InversionConfig | None = None, *, measure: bool = False
    ) -> InversionCost:
        """Estimates the cost of `fit`: passes, storage and, if measured on one batch, time."""
        return self._job(real, config).cost(measure=measure)

    def fit(
        self,
        real: Any,
        output_dir: str | Path,
        *,
        config: InversionConfig | None = None,
        progress: bool = True,
    ) -> tuple["DiffusionInversion", InversionResult]:
        """Learns one embedding per real image. The generator stays as it is.

        An embedding is a function of its image, the generator and the settings: not of the other
        images, the batch size or their order. Run again with the same arguments it resumes.
        Processes started by `accelerate launch` or torchrun share the work, and rank 0 writes what
        is not an embedding.

        Args:
            real: Labeled images, any map-style data set that names its classes.
            output_dir: Gets the embeddings; `from_pretrained` loads it.
            config: How to learn.
            progress: Show a bar.

        Returns:
            The synthesizer with embeddings, and the course of the loss in this process.

        Raises:
            MismatchError: For images of another shape than the generator's.
            ValueError: For a setting that does not fit.
            DivergedError: If a loss or an embedding stops being finite.
            CheckpointError: If the directory holds another run, or cannot be read or written.
        """
        output_dir = Path(output_dir)
        begun = begun_precision(output_dir)
        if begun is not None and (kept := self.model.in_precision(begun)) is not self.model:
            resolve_precision("auto", kept.device, begun=begun)  # logs it
            there = replace(self, model=kept)
            return there.fit(real, output_dir, config=config, progress=progress)
        job = self._job(real, config)
        source = job.real
        logger.info("learning embeddings: %s", job.cost())
        identity = {
            "weights": self._frozen_weights,
            "prompts": self.model.prompts,
            "data": source.fingerprint or len(source),
            "dtype": str(self.model.denoiser.dtype),
            "image_shape": list(self.image_shape),
        }
        losses: dict[int, list[float]] = {}
        started = time.monotonic()
        total = len(job.labels) * job.config.updates
        with (
            logging_to(job.config.log_with, vars(job.config), output_dir) as log,
            bar(total, "invert", "update", progress=progress) as shown,
        ):
            done = resumed = 0

            def report(images: int, update: int, loss: float) -> None:
                nonlocal done, resumed
                done += images
                shown.update(images)
                if math.isnan(loss):
                    resumed += images
                else:
                    losses.setdefault(update, []).append(loss / images)
                    shown.set_postfix(loss=f"{loss / images:.4f}")
                    rate = (done - resumed) / max(time.monotonic() - started, 1e-9)
                    values = {"loss": loss / images, "update": update, "updates_per_second": rate}
                    log(values, done)

            table = job.run(output_dir, identity=identity, report=report)
        learned = replace(self, table=table)
        if os.environ.get("RANK", "0") == "0":
            learned._write(output_dir, copy=self.origin is None)
        curve = [(u, math.fsum(x) / len(x)) for u, x in sorted(losses.items())]
        rate = (total - resumed) / (time.monotonic() - started)
        return learned, InversionResult(curve, rate)

    @property
    def _frozen_weights(self) -> dict[str, JSON]:
        """Digests of the generator's files; prompt embeddings are computed anew at every loading,
        and their last digits depend on the processor."""
        return {k: v for k, v in self.model.weights.items() if k != "class_embeddings"}

    def _job(self, real: Any, config: InversionConfig | None) -> InversionJob:
        source = ImageSource.open(real, "`real`")
        also = ", or the generator with another `image_size`"
        check_shape(source, self.image_shape, "the generator's", also)
        if not len(source):
            raise DataError("`real` holds no image.")
        _ = self.model.latent_shape  # refuses sizes that the autoencoder cannot halve
        return InversionJob(self.model, self.encoder, source, config or InversionConfig())

    # -- plans -----------------------------------------------------------------------------------

    def available_parameters(self) -> tuple[RowParameter, ...]:
        """Returns the base's parameters, with the snapshots that there are."""
        table = self._learned
        return tuple(
            replace(p, default=table.last, choices=tuple(table.snapshots))
            if p.name == "snapshot"
            else p
            for p in METHOD.row_parameters
        )

    @property
    def has_sources(self) -> bool:
        """Whether there are embeddings: all rows start from one."""
        return self.table is not None

    def _sources(self) -> RowSources:
        table = self._learned
        by_class = [table.of_class(c) for c in range(len(self.classes))]
        return RowSources(table.labels, by_class, table.keys)

    def _lay_out(self, columns: Mapping[str, Any], quota: Mapping[str, Any], seed: int) -> Plan:
        """Returns the base's conditions; rows that interpolate have a partner."""
        plan = super()._lay_out(columns, quota, seed)
        return with_partners(plan, self._learned, cross_class="cross_class" in columns)

    def evaluations(self, rows: Plan) -> NDArray[np.int64]:
        """Network evaluations per row: one per step, twice with guidance; and what the gradients of
        a classifier cost at all steps but the last."""
        steps = self.model.num_steps(self.sampler)
        own = steps * (1 + (rows["guidance_scale"] != 1))
        return own + (steps - 1) * self._guidance_evaluations()

    # -- stage 2 ---------------------------------------------------------------------------------

    @torch.inference_mode()
    @full_precision()
    def draw(self, rows: Plan, *, guide: Guide | None = None) -> Images:
        """One image per row, float32 (n, C, H, W) in [-1, 1].

        Args:
            rows: Rows of a plan of ours.
            guide: Pushes of the sampler; see `LowDensity`.

        Raises:
            ValueError: If the rows were made for other classes.
            DataError: If a source or partner is not among the images that were learned.
        """
        self.check_classes(rows)
        generators = streams(rows["seed"])
        labels = torch.tensor(rows["label"], dtype=torch.int64, device="cpu")
        condition = self.model.attending(self.conditions(rows, generators), labels)
        latents = self.model.sample(
            self.sampler,
            condition,
            generators,
            guidance_scale=torch.tensor(rows["guidance_scale"], dtype=torch.float32, device="cpu"),
            null=lambda: self._unconditional(rows, labels),
            pushes=[
                *([] if guide is None else guide(rows, condition)),
                *self.model.guided_by(self.classifier_guidance, labels, self.classes, condition),
            ],
        )
        return self.model.decode(latents).cpu()

    def conditions(self, rows: Plan, generators: Streams) -> Tensor:
        """The perturbed token sequences of some rows, float32 (n, k, d), on the CPU.

        Takes k d normal numbers from each row's stream, also where `noise` is 0.
        """
        table = self._learned
        tokens = self._tokens(rows, "source", "source_key")
        mixed = torch.from_numpy(np.flatnonzero(rows["partner"] >= 0))
        if len(mixed):
            chosen = rows[mixed.numpy()]
            other = self._tokens(chosen, "partner", "partner_key")
            share = torch.tensor(chosen["interpolation"], dtype=torch.float64, device="cpu")
            tokens[mixed] = interpolate(tokens[mixed], other, share, spherical=self.spherical)
        scale = rows["noise"]
        if self.relative_noise:
            scale = scale * np.array([table.rms[s] for s in rows["snapshot"].tolist()])
        eta = randn(generators, table.token_shape)
        return tokens + torch.tensor(scale, dtype=torch.float32, device="cpu").view(-1, 1, 1) * eta

    def _unconditional(self, rows: Plan, labels: Tensor) -> Any:
        """The unconditional branch's conditions: what is no token stays that of the class."""
        if self.unconditional == "null":
            return self.model.null_conditions(len(rows))
        return self.model.attending(self.unconditional_tokens(rows), labels)

    def unconditional_tokens(self, rows: Plan) -> Tensor:
        """The token sequences of the unconditional branch, float32 (n, k, d)."""
        if self.unconditional == "null":
            null = self.model.null_conditions(len(rows))
            tokens: Tensor = null.tokens if isinstance(null, Prompted) else null
            return tokens
        if self.unconditional == "zero":
            shape = (len(rows), *self._learned.token_shape)
            return torch.zeros(shape, dtype=torch.float32, device="cpu")
        scope = np.zeros(len(rows), np.int64)
        if self.unconditional == "class_mean":
            scope = rows["label"]
        elif self.unconditional == "group_mean":
            scope = rows["source"] // self.group_size
        pairs = zip(rows["snapshot"].tolist(), scope.tolist(), strict=True)
        return torch.stack([self._mean(*pair) for pair in pairs])

    def _mean(self, snapshot: int, scope: int) -> Tensor:
        key = snapshot, scope
        if key not in self._means:
            rows: Any = slice(None)
            if self.unconditional == "class_mean":
                rows = self._learned.of_class(scope)
            elif self.unconditional == "group_mean":
                rows = slice(scope * self.group_size, (scope + 1) * self.group_size)
            self._means[key] = self._learned.mean(snapshot, rows)
        return self._means[key]

    @cached_property
    def _means(self) -> dict[tuple[int, int], Tensor]:
        return {}

    def _tokens(self, rows: Plan, index: str, key: str) -> Tensor:
        """Embeddings of the images in a column, float32 (n, k, d), checked by their digests."""
        table, at = self._learned, rows[index]
        inside = (at >= 0) & (at < len(table))
        wrong = ~inside
        wrong[inside] = table.keys[at[inside]] != rows[key][inside].astype(np.uint64)
        if wrong.any():
            raise MismatchError(
                f"Real image {at[wrong][0]} of the plan is not among the images that were learned. "
                "Make the plan with this synthesizer."
            )
        tokens = torch.empty(len(rows), *table.token_shape, dtype=torch.float32, device="cpu")
        for snapshot in np.unique(rows["snapshot"]).tolist():
            if snapshot not in table.snapshots:
                raise MismatchError(
                    f"The plan uses snapshot {snapshot}; there are "
                    f"{', '.join(map(str, table.snapshots))}."
                )
            chosen = np.flatnonzero(rows["snapshot"] == snapshot)
            tokens[torch.from_numpy(chosen)] = table.snapshots[snapshot][at[chosen]]
        return tokens

    def _described(self, pixels: Pixels, labels: Labels) -> Any:
        """Tokens of the images themselves, as the encoder of a generator of ours makes them; else
        null tokens. What was learned about single images, the embeddings, is not looked at."""
        if self.encoder is None:
            return self.model.null_conditions(len(labels))
        return self.encoder(to_images(sent(pixels, self.model.device)))

    # -- identity and files ----------------------------------------------------------------------

    def recipe(self) -> dict[str, JSON]:
        """Settings and weight digests; see `AbstractSynthesizer.recipe`."""
        settings = {**self.model.settings(self.sampler), **METHOD.settings_of(self)}
        settings.pop("prompts", None)  # what reaches the images are embeddings
        weights = dict(self.model.weights)
        if self.unconditional != "null" and not self.model.denoiser.takes_prompts:
            # No part of it reaches the images.
            weights.pop("class_embeddings", None)
        recipe = {
            "synthesizer": METHOD.name,
            "settings": settings,
            "weights": {**weights, "embeddings": self._learned.digest},
        }
        return with_guidance(recipe, self.classifier_guidance)

    def save_pretrained(self, path: str | Path) -> None:
        """Writes everything, the generator too: a diffusers directory with what is ours beside it.

        Raises:
            CheckpointError: If the disk is full or not writable.
            TypeError: With a `classifier_guidance`.
        """
        check_unguided(self.classifier_guidance)
        path = Path(path)
        if self.table is not None:
            with checkpoints.writing(path, "Free some space and save again."):
                (path / "embeddings").mkdir(parents=True, exist_ok=True)
                for block in (path / "embeddings").glob("*.safetensors"):
                    block.unlink()
                self.table.save(path / "embeddings")
        self._write(path, copy=True)

    def _write(self, path: Path, *, copy: bool) -> None:
        sampler = self.sampler.record()
        if sampler["log_variance_mix"] is None:
            del sampler["log_variance_mix"]  # nothing to choose for most schedulers
        if copy:
            self.model.save_pretrained(path, {"synthesizer": METHOD.name})
        with checkpoints.writing(path, "Free some space and save again."):
            if copy and self.encoder is not None:
                self.encoder.save(path)
            own = {
                "origin": None if copy else dict(self.origin or {}),
                "weights": self._frozen_weights,
                "dtype": str(self.model.denoiser.dtype),
                "classes": list(self.classes) if self.table is not None else None,
                "settings": {**sampler, **METHOD.settings_of(self)},
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
        image_size: int | None = None,
        prompt_template: str = "{}",
        negative_prompt: str = "",
        dtype: torch.dtype | Precision = "auto",
        device: str | torch.device | None = None,
        sampler: SamplerConfig | Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> "DiffusionInversion":
        """Loads a generator to invert, or what `fit` wrote.

        Args:
            path: A directory in diffusers layout, "hub:OWNER/NAME", or the output directory of
                `fit`.
            checkpoint: Where the generator is now, if it moved since `fit`.
            classes: Class names of the real images: the prompts of a checkpoint with a text
                encoder, which needs them; of no use to others.
            image_size: Height and width to invert and to draw at, by default the checkpoint's own.
                Smaller is much cheaper, and the embeddings learn it.
            prompt_template: `{}` in it stands for the class name.
            negative_prompt: Prompt of the "null" unconditional branch.
            dtype: Dtype of the network; embeddings are float32 always. "auto" is bfloat16 where
                the hardware makes it faster, and else float32; `fit` goes on as it was begun.
            device: Where to run; a GPU if there is one by default.
            sampler: Same as for `ClassConditional.from_pretrained`.
            settings: `unconditional`, `group_size`, `spherical`, `relative_noise`.

        Raises:
            CheckpointError: If there is no such directory, a part is missing or damaged, or the
                generator is not the one that was inverted.
        """
        folder = Path(path).expanduser()
        saved = checkpoints.read_record(folder, _FILE)
        saved_settings = saved.get("settings", {})
        chosen = METHOD.chosen_settings(saved_settings, settings)
        given = {
            "classes": None if classes is None else list(classes),
            "image_size": image_size,
            "prompt_template": prompt_template,
            "negative_prompt": negative_prompt,
        }
        inverted = saved.get("classes") is not None
        changed = [name for name, value in given.items() if value != _PLAIN[name]]
        if inverted and changed:
            raise ValueError(
                f"`{changed[0]}` was fixed when the embeddings in {path} were learned. Leave it "
                "out, or load the generator and invert it anew."
            )
        if not inverted and not _has_text_encoder(path):
            # Its classes mean nothing here, so it need not name them.
            given["classes"] = None if _names_classes(path) else []
        origin = saved.get("origin") or {"path": checkpoints.lasting_address(path), **given}
        if checkpoint is not None:
            origin = {**origin, "path": str(checkpoint)}
        model, _ = DiffusionModel.from_pretrained(**origin, dtype=dtype, device=device)
        if saved:
            _check_weights(model, saved, origin["path"])
        table = None
        if inverted:
            names = saved["classes"]
            if not (isinstance(names, list) and names and all(isinstance(n, str) for n in names)):
                raise CheckpointError(
                    f"{folder / _FILE} is damaged: `classes` is {shortened(names)}, expected a "
                    "list of names. Copy the checkpoint again."
                )
            table = EmbeddingTable.load(folder / "embeddings", names)
        return cls(
            model=model,
            table=table,
            encoder=TokenEncoder.load(Path(origin["path"]).expanduser()),
            origin=origin,
            sampler=SamplerConfig.chosen(saved_settings, sampler),
            **chosen,
        )

    # -- a generator of our own ------------------------------------------------------------------

    @classmethod
    def fit_generator(
        cls,
        images: Any,
        output_dir: str | Path,
        *,
        config: TrainingConfig | None = None,
        tokens: TokenConfig | None = None,
        progress: bool = True,
        **network: Any,
    ) -> tuple["DiffusionInversion", TrainingResult]:
        """Trains a small generator that can be inverted: a pixel-space network and an encoder.

        The encoder turns each image into tokens of unit RMS; the network learns to denoise that
        image while it attends to them. Labels are not used. Run again it resumes.

        Args:
            images: Has `read(indices)` and `image_shape`; best many, and like those to invert.
            output_dir: Becomes a diffusers directory, the encoder beside the network.
            config: How to optimize.
            tokens: Number, width and noise of the tokens.
            progress: Show a bar.
            network: `channels`, `num_layers`, `prediction_type` and `horizontal_flip`, as for
                `ClassConditional.fit`.

        Raises:
            DataError: For images whose size cannot be halved often enough.
            ValueError: For a setting out of range.
            DivergedError, CheckpointError: Under the same conditions as `ClassConditional.fit`.
        """
        tokens = tokens or TokenConfig()
        job = TokenFitJob(images, tokens, DenoiserConfig(**network))

        def wrap(trained: TokenModel) -> "DiffusionInversion":
            model = DiffusionModel(
                network=trained.network,
                scheduler_config=job.scheduler_config,
                classes=(),
                image_shape=job.image_shape,
                class_embeddings=trained.null.detach().float().clone()[None],
                unconditional_branch=tokens.token_dropout > 0,
            )
            return cls(model=model, encoder=trained.encoder)

        fitted, result = job.fit(output_dir, config, wrap, progress=progress)
        return replace(fitted, origin={"path": str(Path(output_dir).absolute())}), result


def _has_text_encoder(path: str | Path) -> bool:
    folder = checkpoints.resolve(path)
    if "adapts" in checkpoints.read_record(folder):  # with embeddings in place of the encoder
        return False
    return bool(read_index(folder).get("text_encoder"))


def _names_classes(path: str | Path) -> bool:
    settings = checkpoints.read_record(checkpoints.resolve(path))
    return settings.get("classes") is not None


def _check_weights(model: DiffusionModel, saved: Mapping[str, Any], path: Any) -> None:
    """Whether this is the generator that the embeddings belong to."""
    model = model.in_precision(checkpoints.recorded_dtype(saved))
    if (name := checkpoints.changed_part(saved, model.denoiser.dtype, model.weights)) is not None:
        raise MismatchError(
            f"The {name} in {path} is not the one that the embeddings were learned with. Give the "
            "right `checkpoint`, or learn them anew."
        )
