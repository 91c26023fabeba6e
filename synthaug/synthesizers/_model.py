"""A diffusion model as the synthesizers see it: network, schedule, autoencoder, conditions.

On disk it is a directory in diffusers layout with `synthaug.json` beside the parts, which holds
what diffusers does not say: class names, image shape, the settings of the synthesizer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from synthaug._images.source import recorded
from synthaug._noise import Streams
from synthaug._pixels import to_images
from synthaug._plan import settings_digest
from synthaug._printable import shortened
from synthaug._support import arguments, devices, layout, torch_state
from synthaug._support.digests import tensor_digest
from synthaug._support.precision import Precision, Resolved, in_precision
from synthaug._training import checkpoints
from synthaug._training.parts import (
    check_parts,
    default_shape,
    load_autoencoder,
    load_frozen,
    part_folder,
    read_index,
    recorded_shape,
)
from synthaug._types import JSON, Images, ImageShape, Labels, Pixels
from synthaug.denoisers import OWN_PIPELINE, AnyDenoiser, Denoiser, GuidanceTerm, guided
from synthaug.denoisers._networks import Prompted
from synthaug.errors import CheckpointError
from synthaug.guidance import ClassifierGuidance, ClassifierPush
from synthaug.samplers import (
    Push,
    Trajectory,
    adapt_to_size,
    check_timesteps,
    check_trained_for,
    make_scheduler,
    predicts_flow,
    sample,
    set_timesteps,
    step_arguments,
    timesteps_until,
)
from synthaug.synthesizers import _autoencoder
from synthaug.synthesizers._adapters import Adapters
from synthaug.synthesizers._class_names import (
    EMBEDDINGS,
    SETTINGS,
    check_names,
    embeddings_of,
    settle_classes,
)
from synthaug.synthesizers._families import family_of
from synthaug.synthesizers._parameters import raise_problems
from synthaug.synthesizers._sampler import SamplerConfig


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class DiffusionModel:
    """A trained denoiser, in pixels or in the latents of an autoencoder.

        model = DiffusionModel.from_pretrained("stable-diffusion-v1-5", classes=["goldfinch"])

    Raises:
        CheckpointError: If the network knows fewer classes than are named, predicts what our
            samplers cannot read, or needs what they never give; if weights are missing.
    """

    network: nn.Module = field(repr=False)
    """One of `denoisers.KINDS`."""
    scheduler_config: Mapping[str, Any]
    """The checkpoint's scheduler config, with `_class_name`."""
    classes: tuple[str, ...]
    image_shape: ImageShape
    """(C, H, W) of the images, in pixels."""
    vae: Any = field(default=None, repr=False)
    """`AutoencoderKL` of a latent model, or another one of diffusers."""
    class_embeddings: Tensor | Prompted | None = field(default=None, repr=False)
    """Token sequences of the classes, float32 (num_classes + 1, k, d), the last one for the
    unconditional branch; for networks that attend to tokens. Or `Prompted`, for those that take
    more of a prompt; or vectors (num_classes + 1, d), for networks that add one to the embedding of
    the timestep."""
    prompts: tuple[str, ...] | None = None
    """The prompts that `class_embeddings` were computed from, the last one the negative prompt."""
    unconditional_branch: bool = True
    """Whether the last condition of the network is the null condition, and was trained: guidance
    needs it."""
    trained_on: Mapping[str, JSON] | None = None
    """Fingerprint and number of the real images that it learned from, if we trained it."""
    distilled: Mapping[str, JSON] | None = None
    """Of a student, which draws in a few steps of its own: the fields of its `DistillationConfig`,
    and the weights of its teacher."""

    def __post_init__(self) -> None:
        # Only what the file says: diffusers' private notes would not survive being saved.
        config = {
            k: v for k, v in self.scheduler_config.items() if k == "_class_name" or k[0] != "_"
        }
        object.__setattr__(self, "scheduler_config", config)
        layout.settle_layout(self.network)
        if self.vae is not None:
            layout.settle_layout(self.vae)
        check_trained_for(config)
        self._check_weights()
        _check_size(self.denoiser, self.vae, self.image_shape)
        if isinstance(self.class_embeddings, Prompted):
            sized = self.class_embeddings.sized(*self.image_shape[1:])
            object.__setattr__(self, "class_embeddings", sized)
        known = self.num_conditions
        if known is not None and known - self.unconditional_branch < len(self.classes):
            raise CheckpointError(
                f"The network knows {known - self.unconditional_branch} classes, but "
                f"{len(self.classes)} are named."
            )

    def _check_weights(self) -> None:
        """Weights must be here, and latents of a known scale."""
        for name, part in (("network", self.network), ("autoencoder", self.vae)):
            if part is not None and any(weight.is_meta for weight in part.parameters()):
                raise CheckpointError(
                    f"The weights of the {name} are offloaded (on the device 'meta'), so we can "
                    "neither hash them nor draw with them. Load it without offloading."
                )
        if self.vae is None:
            return
        factor = self.vae.config.get("scaling_factor")
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not factor > 0:
            raise CheckpointError(
                f"The autoencoder's config sets `scaling_factor` to {factor!r}, which must be a "
                "positive number. Correct vae/config.json."
            )
        for name in ("latents_mean", "latents_std"):
            values = self.vae.config.get(name)
            if values is not None and len(values) != self.vae.config.latent_channels:
                raise CheckpointError(
                    f"The autoencoder's config sets `{name}` to {len(values)} numbers for "
                    f"{self.vae.config.latent_channels} channels. Correct vae/config.json."
                )

    def check_complete(self) -> None:
        """Refuses a network that needs more than noise, a timestep and a condition with a
        CheckpointError: a stage of a cascade, one that edits images, or one that is told more."""
        config, denoiser = self.denoiser.config, self.denoiser
        given, said = denoiser.in_channels, denoiser.out_channels
        latents = self.vae is not None
        wanted = int(self.vae.config.latent_channels) if latents else self.image_shape[0]
        if given != wanted:
            raise CheckpointError(
                f"The network takes {given} channels, of which {wanted} are noise: the others are "
                "another image, as in inpainting, editing and superresolution. Load the "
                "text-to-image or class-conditional model. A stage of a cascade belongs in a "
                "`Cascade`."
            )
        if said not in (wanted, 2 * wanted):
            raise CheckpointError(
                f"The network takes {wanted} channels and predicts {said}; we know what {wanted}, "
                f"or {2 * wanted} with a variance, mean. {OWN_PIPELINE}"
            )
        told = ["class_embed_type"]
        if self.denoiser.kind == "UNet2DConditionModel":
            told.append("num_class_embeds")
        for name in told:
            if config.get(name) is not None:
                raise CheckpointError(
                    f"The network needs more than an image, a timestep and a prompt or label "
                    f"(`{name}` is {config[name]!r}), and we do not know what. {OWN_PIPELINE}"
                )

    # -- conditions ------------------------------------------------------------------------------

    @cached_property
    def denoiser(self) -> Denoiser:
        """The network behind the one call that samplers use."""
        return Denoiser(self.network)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.denoiser.device

    @property
    def num_conditions(self) -> int | None:
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
        """Whether there is a trained unconditional branch beside the classes."""
        return self.num_conditions is not None and self.unconditional_branch

    def guidance_problems(self, scales: ArrayLike) -> list[str]:
        """Returns the problem of these guidance scales for this model: one message, or none."""
        values = np.atleast_1d(np.asarray(scales, float))
        if self.can_be_guided or (values == 1).all():
            return []
        if self.num_conditions is None:
            lack = "knows no classes"
        elif self.distilled is not None:
            lack = f"was distilled at the scale {self.distilled['guidance_scale']}, and keeps it"
        else:
            lack = "was not trained without labels (`label_dropout` 0, or not a model of ours)"
        return [
            f"`guidance_scale` must be 1, got {', '.join(f'{scale:g}' for scale in values)}: "
            f"guidance compares with and without a class, and this network {lack}."
        ]

    def check_guidance(self, scales: ArrayLike) -> None:
        """Refuses guidance scales other than 1 without classes or unconditional branch with a
        ValueError."""
        raise_problems(self.guidance_problems(scales))

    def conditions(self, labels: Tensor) -> Any:
        """Returns the network's inputs for these classes: indices int64 (n,), token sequences
        float32 (n, k, d), `Prompted`, or nothing.
        """
        if self.class_embeddings is not None:
            table = self.class_embeddings  # its rows are copied, not all of it
            chosen = table[labels.to(table.device)]
            if isinstance(chosen, Prompted):
                return chosen.sent(self.device)
            return devices.sent(chosen, self.device)
        return devices.sent(labels, self.device) if self.denoiser.takes_labels else None

    def attending(self, tokens: Tensor, labels: Tensor) -> Any:
        """Conditions that attend to token sequences float32 (n, k, d) in place of their prompts.

        Whatever else the network takes stays that of the prompts of the classes int64 (n,).
        """
        conditions = self.conditions(labels) if self.denoiser.takes_prompts else None
        tokens = devices.sent(tokens, self.device)
        return conditions.attending(tokens) if isinstance(conditions, Prompted) else tokens

    def known_conditions(self, labels: Labels) -> Any:
        """`conditions` of classes int64 (n,), and of -1, an unknown class, the null condition; a
        ValueError if that was not trained."""
        unknown = labels < 0
        if unknown.any() and self.num_conditions is not None and not self.unconditional_branch:
            raise ValueError(
                f"The class of {unknown.sum():,} images is not known, and the network was not "
                "trained without classes (`label_dropout` 0). Give images with labels."
            )
        null = (self.num_conditions or 0) - 1
        return self.conditions(torch.from_numpy(np.where(unknown, null, labels)))

    def null_conditions(self, n: int) -> Any:
        """The unconditional branch's conditions, n times."""
        null = (self.num_conditions or 0) - 1
        return self.conditions(torch.full((n,), null, dtype=torch.int64, device="cpu"))

    def sample(
        self,
        sampler: SamplerConfig,
        condition: Any,
        generators: Streams,
        *,
        guidance_scale: Tensor,
        null: Callable[[], Any],
        denoiser: AnyDenoiser | None = None,
        pushes: Sequence[Push] = (),
        **course: Any,
    ) -> Tensor:
        """Draws one latent per row, float32 (n, *latent_shape), with guidance if any row has some.

        Args:
            sampler: Scheduler, steps and noise.
            condition: One condition per row.
            generators: One stream per row.
            guidance_scale: float32 (n,); 1 is no guidance.
            null: Makes the conditions of the unconditional branch; called if they are needed.
            denoiser: Denoiser to sample from; by default the network.
            pushes: Added to what each step arrives at.
            course: Where the `Trajectory` starts and stops: `sources`, `strength`, `until`.
        """
        denoiser = denoiser or self.denoiser
        terms: list[GuidanceTerm] = []
        if (guidance_scale != 1).any():
            rescale = sampler.guidance_rescale
            denoiser, terms = guided(denoiser, guidance_scale, condition, null(), rescale=rescale)
        steps = sampler.num_inference_steps
        return sample(
            denoiser,
            self.scheduler(sampler),
            condition,
            Trajectory(num_inference_steps=steps, eta=sampler.eta, **course),
            shape=self.latent_shape,
            generators=generators,
            terms=terms,
            pushes=pushes,
        )

    def guided_by(
        self,
        guidance: ClassifierGuidance | None,
        labels: Tensor,
        classes: Sequence[str],
        condition: Any,
        denoiser: AnyDenoiser | None = None,
    ) -> list[Push]:
        """Returns the push of a classifier on these rows: one `Push`, or none.

        Args:
            guidance: How the classifier guides, if any does.
            labels: Class of every row, int64 (n,).
            classes: Their names.
            condition: One condition per row.
            denoiser: Denoiser that is sampled from; by default the network.
        """
        if guidance is None or not guidance.scale:
            return []
        push = ClassifierPush(
            guidance=guidance,
            labels=guidance.numbered(labels, classes),
            denoiser=denoiser or self.denoiser,
            condition=condition,
            prediction_type=self.prediction_type,
            decode=self.decode,
        )
        return [push]

    # -- pixels and latents ----------------------------------------------------------------------

    @property
    def prediction_type(self) -> str:
        """The target of the network's predictions, as `samplers.denoised_estimate` takes it."""
        if predicts_flow(self.scheduler_config):
            return "flow"
        return str(self.scheduler_config.get("prediction_type", "epsilon"))

    def make_scheduler(self, name: str | None, log_variance_mix: float | None = None) -> Any:
        """A fresh scheduler for this network; see `samplers.make_scheduler`."""
        scheduler = make_scheduler(name, self.scheduler_config, log_variance_mix)
        clips = "clip_sample" in scheduler.config and "clip_sample" not in self.scheduler_config
        if clips and self.vae is not None:  # diffusers' default is True, which is for pixels
            scheduler.register_to_config(clip_sample=False)
        if predicts_flow(self.scheduler_config):
            _, height, width = self.latent_shape
            patches = height * width // self.denoiser.patch**2
            even = self.denoiser.kind == "FluxTransformer2DModel" or self.distilled is not None
            adapt_to_size(scheduler, patches, even=even)
        return scheduler

    def training_scheduler(self) -> Any:
        """A fresh scheduler by which images are noised as in training.

        Raises:
            CheckpointError: For a student, which knows the timesteps of its few steps alone.
        """
        if self.distilled is not None:
            raise CheckpointError(
                "This checkpoint is a student that was distilled, and knows the timesteps of its "
                f"{self.distilled['evaluations']} steps alone. Take its teacher."
            )
        return self.make_scheduler(None if predicts_flow(self.scheduler_config) else "ddpm")

    def scheduler(self, sampler: SamplerConfig) -> Any:
        """A fresh scheduler for this network, as the sampler's settings say."""
        return self.make_scheduler(sampler.scheduler, sampler.log_variance_mix)

    def num_steps(self, sampler: SamplerConfig, until: float = 1.0) -> int:
        """Network evaluations of a chain from noise to the signal level `until`, in (0, 1]; PNDM
        repeats one timestep."""
        scheduler = self.scheduler(sampler)
        set_timesteps(scheduler, sampler.num_inference_steps)
        return len(timesteps_until(scheduler, until))

    def check_sampler(self, sampler: SamplerConfig) -> None:
        """Refuses sampler settings that this checkpoint cannot follow.

        Raises:
            ValueError: For an unfit scheduler, no step or more than it can take, an `eta` or a
                `log_variance_mix` that the scheduler would ignore, or a start from pure noise that
                the network or the scheduler cannot leave.
            CheckpointError: If the scheduler's config is damaged.
        """
        steps = sampler.num_inference_steps
        arguments.check_whole(1, num_inference_steps=steps)
        if sampler.guidance_rescale and not self.can_be_guided:
            raise ValueError(
                f"`guidance_rescale` = {sampler.guidance_rescale:g} has no effect: this checkpoint "
                "has no unconditional branch to be guided by. Leave it out."
            )
        scheduler = self.scheduler(sampler)
        trained = scheduler.config.num_train_timesteps
        if steps > trained:
            raise ValueError(
                f"`num_inference_steps` is {steps}, but the checkpoint has only {trained} "
                "timesteps."
            )
        step_arguments(scheduler, [], sampler.eta)
        self._check_student_sampler(sampler, scheduler)
        try:
            set_timesteps(scheduler, steps)
        except Exception as error:  # at some values of its config diffusers looks only now
            raise CheckpointError(
                f"{type(scheduler).__name__} cannot choose {steps} timesteps by the scheduler's "
                f"config ({type(error).__name__}: {shortened(error)}). Correct "
                "scheduler_config.json."
            ) from error
        check_timesteps(scheduler, sampler.eta)

    def _check_student_sampler(self, sampler: SamplerConfig, scheduler: Any) -> None:
        """A student draws in the steps that it was distilled for, and in no others."""
        if self.distilled is None:
            return
        few, own = self.distilled["evaluations"], type(self.make_scheduler("ddim"))
        if (sampler.num_inference_steps, sampler.eta, type(scheduler)) != (few, 0.0, own):
            raise ValueError(
                f"`scheduler`, `num_inference_steps` and `eta` are {sampler.scheduler}, "
                f"{sampler.num_inference_steps} and {sampler.eta:g}, but this checkpoint is a "
                f"student that was distilled to draw in ddim, {few} and 0. Leave them out, or draw "
                "with its teacher."
            )

    def settings(self, sampler: SamplerConfig) -> dict[str, JSON]:
        """Returns the settings that determine an image besides weights and row, for a recipe."""
        settings: dict[str, JSON] = {
            **checkpoints.scheduler_settings(self.scheduler(sampler)),
            "num_inference_steps": sampler.num_inference_steps,
            "eta": sampler.eta,
            "dtype": str(self.denoiser.dtype).removeprefix("torch."),
            "image_shape": list(self.image_shape),
        }
        if sampler.guidance_rescale:
            settings["guidance_rescale"] = sampler.guidance_rescale
        if self.distilled is not None:
            settings["distilled"] = dict(self.distilled)
        if self.prompts is not None:
            settings["prompts"] = list(self.prompts)
        if canaries := recorded(self.trained_on, "canaries"):
            settings["canaries"] = sorted(canaries)
        return settings

    @property
    def latent_shape(self) -> ImageShape:
        """(C, H, W) of what the network denoises.

        Raises:
            ValueError: If the autoencoder cannot halve the image size often enough, or the latents
                have half a patch of a transformer's.
        """
        return _latent_shape(self.denoiser, self.vae, self.image_shape)

    def encode(self, pixels: Pixels) -> Images:
        """Real images uint8 (n, C, H, W) as the network's inputs, float32 (n, *latent_shape).

        The mean of the autoencoder's posterior, not a sample: a draw here would add nothing to the
        noise that follows.
        """
        return self.posterior(pixels)[0]

    def posterior(self, pixels: Pixels) -> tuple[Images, Images | None]:
        """Mean and standard deviation of the network's inputs, float32 (n, *latent_shape) each.

        A pixel-space model has no deviation.
        """
        images = to_images(devices.sent(pixels, self.device))
        if self.vae is None:
            return images, None
        return _autoencoder.posterior(self.vae, images)

    def decode(self, latents: Tensor) -> Images:
        """Images float32 (n, C, H, W) in [-1, 1] of what the network denoised."""
        if self.vae is None:
            return latents.clamp(-1, 1)
        return _autoencoder.decode(self.vae, latents).clamp(-1, 1)

    # -- identity and files ----------------------------------------------------------------------

    @cached_property
    def weights(self) -> dict[str, JSON]:
        """Digests of all weights, for a recipe."""
        weights: dict[str, JSON] = {"network": checkpoints.state_digest(self.network)}
        if self.vae is not None:
            weights["vae"] = checkpoints.state_digest(self.vae)
        if self.class_embeddings is not None:
            table = self.class_embeddings
            parts = table.tensors() if isinstance(table, Prompted) else {"": table}
            weights["class_embeddings"] = tensor_digest(parts)
        return weights

    def digests_beside(self) -> dict[str, str]:
        """Returns digests of the schedule, and of the autoencoder with its scale."""
        config = checkpoints.plain_config(self.scheduler_config)
        digests = {"scheduler": settings_digest(config)}
        if self.vae is not None:
            names = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
            scale = {name: self.vae.config.get(name) for name in names}
            weights = checkpoints.state_digest(self.vae)
            digests["vae"] = settings_digest({"weights": weights, "scale": scale})
        return digests

    def in_precision(self, precision: Resolved) -> "DiffusionModel":
        """The same model, its network in a precision, if its own was chosen automatically."""
        network = in_precision(self.network, precision)
        return self if network is self.network else replace(self, network=network)

    def save_pretrained(self, path: str | Path, settings: Mapping[str, JSON]) -> None:
        """Writes the directory. Prompts are saved as the embeddings they became: the text encoder
        is not copied.

        Args:
            path: The directory; parts in it are replaced whole.
            settings: Settings of the synthesizer; `from_pretrained` gives them back.

        Raises:
            CheckpointError: If the disk is full or not writable. What was there before stays.
        """
        path = Path(path)
        with checkpoints.writing(path, "Free some space and save again."):
            path.mkdir(parents=True, exist_ok=True)
            self._save(path, settings)

    def _save(self, path: Path, settings: Mapping[str, JSON]) -> None:
        folder = self.denoiser.part
        parts = {folder: self.denoiser.kind, "scheduler": self.scheduler_config["_class_name"]}
        with checkpoints.replaced(path / folder) as new:
            checkpoints.save_network(self.network, new)
        (path / "scheduler").mkdir(exist_ok=True)
        config = dict(self.scheduler_config)
        checkpoints.write_json(path / "scheduler" / "scheduler_config.json", config)
        if self.vae is not None:
            parts["vae"] = type(self.vae).__name__
            with checkpoints.replaced(path / "vae") as new:
                self.vae.save_pretrained(new, safe_serialization=True)
        self._save_own(path, settings)
        plain = folder == "unet" and self.vae is None
        checkpoints.write_index(path, "DDPMPipeline" if plain else "DiffusionPipeline", parts)

    def save_adapted(self, path: str | Path, settings: Mapping[str, JSON]) -> None:
        """Writes what is beside the weights of network and autoencoder, which stay elsewhere.

        Args:
            path: The directory, with adapters in `lora`.
            settings: Settings of the synthesizer, with `adapts`: the `path` of the checkpoint that
                the adapters belong to, the digest of its `network`, and `digests_beside`.

        Raises:
            CheckpointError: If the disk is full or not writable.
        """
        path = Path(path)
        with checkpoints.writing(path, "Free some space and save again."):
            path.mkdir(parents=True, exist_ok=True)
            self._save_own(path, settings)

    def _save_own(self, path: Path, settings: Mapping[str, JSON]) -> None:
        """Writes what diffusers does not know."""
        if self.class_embeddings is not None:
            table = self.class_embeddings
            parts = table.tensors() if isinstance(table, Prompted) else {"class_embeddings": table}
            checkpoints.save_tensors(path / EMBEDDINGS, parts)
        own = {
            **settings,
            "classes": list(self.classes),
            "image_shape": list(self.image_shape),
            "prompts": None if self.prompts is None else list(self.prompts),
            "unconditional_branch": self.unconditional_branch,
            "trained_on": None if self.trained_on is None else dict(self.trained_on),
        }
        if self.distilled is not None:
            own["distilled"] = dict(self.distilled)
        checkpoints.write_json(path / SETTINGS, own)

    @classmethod
    @torch_state.lasting_tensors()
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
        null_class: bool = False,
    ) -> "tuple[DiffusionModel, dict[str, JSON]]":
        """Loads a diffusers directory; arguments as in `ClassConditional.from_pretrained`.

        An empty list of `classes` leaves a network's table of labels as it is, to be trained.

        Returns:
            The model, frozen, and the settings that were saved with it (empty if not by us).
        """
        if isinstance(classes, str):
            raise ValueError(f"`classes` must be a list of names, got the string {classes!r}.")
        target = devices.choose_device(device)
        path = checkpoints.resolve(path)
        own = checkpoints.read_record(path)
        adapters = Adapters.of(path, own, SETTINGS)
        base = path if adapters is None else adapters.base()
        index = read_index(base)
        if family_of(index) is None:
            check_parts(base, index)
        scheduler_config = _read_scheduler_config(base, index)
        network = load_frozen(base, index, dtype, target, adapters and adapters.add_to)
        vae = load_autoencoder(base, index)
        with checkpoints.reading(path / SETTINGS, "Save the checkpoint again."):
            saved_names = tuple(map(str, own.get("classes", ())))
            saved_shape = recorded_shape(own)
        names = saved_names if classes is None else tuple(map(str, classes))
        check_names(path, own, classes, names)
        if names != saved_names and Denoiser(network).takes_labels:
            settle_classes(path, index, network, names, saved_names, null_class)
        denoiser = Denoiser(network)
        shape = _checked_shape(network, vae, saved_shape, image_size)
        embeddings, prompts = embeddings_of(
            path, own, index, names, denoiser, (prompt_template, negative_prompt)
        )
        has_table = denoiser.config.get("num_class_embeds") is not None
        if null_class and (saved_names or not has_table):
            raise ValueError(
                "`null_class` has no effect: it is for a `UNet2DModel` with a table of classes "
                "that was not trained by us. Leave it out."
            )
        branch = null_class or embeddings is not None or not has_table
        model = cls(
            network=network,
            scheduler_config=scheduler_config,
            classes=names,
            image_shape=shape,
            vae=None if vae is None else vae.eval().requires_grad_(False).to(target),
            class_embeddings=embeddings,
            prompts=prompts,
            unconditional_branch=own.get("unconditional_branch", branch)
            or not (has_table or embeddings is not None),
            **{name: own.get(name) for name in ("trained_on", "distilled")},
        )
        if adapters is not None:
            adapters.check(model.digests_beside())
        return model, own


def _checked_shape(
    network: nn.Module, vae: Any, saved: ImageShape | None, image_size: int | None
) -> ImageShape:
    """(C, H, W) of the images, checked before prompts are embedded, which takes long."""
    shape = saved or default_shape(network, vae)
    if image_size is not None:
        shape = (shape[0], image_size, image_size)
    _check_size(Denoiser(network), vae, shape)
    return shape


def _latent_shape(denoiser: Denoiser, vae: Any, image_shape: ImageShape) -> ImageShape:
    """(C, H, W) of what a network denoises."""
    if vae is None:
        return image_shape
    patch = denoiser.patch if denoiser.takes_prompts else 1
    return _autoencoder.latent_shape(vae, image_shape, patch)


def _check_size(denoiser: Denoiser, vae: Any, image_shape: ImageShape) -> None:
    """A `UNet2DModel` joins halves to what they were before, so each must be even; the network
    of SD3 has a table of places."""
    _, height, width = image_shape
    if min(height, width) < 1:
        raise ValueError(f"`image_size` must be at least 1, got {min(height, width)}.")
    latent_shape = _latent_shape(denoiser, vae, image_shape)
    if denoiser.kind == "UNet2DModel":
        factor = 2 ** (len(denoiser.config.block_out_channels) - 1)
        _, height, width = latent_shape
        if height % factor or width % factor:
            raise ValueError(
                f"`image_size` gives the network {height} x {width}, which must be a multiple of "
                f"{factor}."
            )
    places = denoiser.config.get("pos_embed_max_size")
    if places is not None:
        pixels, latents = max(image_shape[1:]), max(latent_shape[1:])
        largest = int(places) * denoiser.patch * pixels // latents
        if pixels > largest:
            raise ValueError(
                f"`image_size` is {pixels}, and the network knows places of images up to "
                f"{largest} x {largest} (`pos_embed_max_size`). Take a smaller one."
            )


def _read_scheduler_config(path: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    folder = part_folder(path, index, "scheduler")
    config = checkpoints.read_json(folder / "scheduler_config.json")
    check_trained_for(config)
    return config
