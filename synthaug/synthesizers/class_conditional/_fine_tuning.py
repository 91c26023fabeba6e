"""Fine-tuning of a pretrained class-conditional denoiser, whole or through low-rank adapters.

Azizi et al. 2023 (all weights; one- or two-word class names as prompts, the text encoder frozen),
Hu et al. 2022 (LoRA: W + B A in place of W, where A and B alone are trained).
"""

import logging
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from synthaug._images.source import ImageSource
from synthaug._noise import counter_rng
from synthaug._support.devices import sent
from synthaug._support.torch_state import lasting_tensors
from synthaug._training import checkpoints, fit_job
from synthaug._training.loop import own_randomness
from synthaug._training.parts import part_class, read_index
from synthaug._types import JSON, Images, Indices
from synthaug.denoisers._networks import TRANSFORMERS
from synthaug.errors import CheckpointError
from synthaug.synthesizers._adapters import ADAPTED, Adapters, peft_library, save_adapters
from synthaug.synthesizers._class_names import SETTINGS
from synthaug.synthesizers._families import check_known
from synthaug.synthesizers._labels import label_embeddings
from synthaug.synthesizers._model import DiffusionModel
from synthaug.synthesizers._real import check_shape
from synthaug.synthesizers.class_conditional._config import FineTuningConfig

logger = logging.getLogger("synthaug")

_TABLES = ("class_embedding.weight", "embedding_table.weight")
"""Names of the tables in which networks look labels up."""

_KEPT_BYTES = 2**31
"""Latents of the training images are kept up to this size, else they are encoded at each use."""


class FineTuneJob(fit_job.AbstractFitJob[nn.Module]):
    """Everything that `ClassConditional.fine_tune` was asked for, checked before any work starts.

    Args:
        checkpoint: A directory in diffusers layout, or "hub:OWNER/NAME".
        real: Labeled images.
        config: Settings of the adaptation.
        learning_rate: Peak learning rate of all weights but a table with rows of new classes.
        device: Where to train.

    Raises:
        MismatchError: For images or labels that do not fit the checkpoint.
        ValueError: For a setting out of range.
        CheckpointError: For a checkpoint that cannot be loaded or trained.
        ImportError: For adapters, without peft.
    """

    base: DiffusionModel
    """The pretrained model, which knows our classes by now."""

    @lasting_tensors()
    def __init__(
        self,
        checkpoint: str | Path,
        real: Any,
        config: FineTuningConfig,
        *,
        learning_rate: float,
        device: str | None,
    ) -> None:
        if config.lora_rank is not None:
            peft_library()
        path = checkpoints.resolve(checkpoint)
        own = checkpoints.read_record(path)
        if (adapters := Adapters.of(path, own, SETTINGS)) is not None:
            raise CheckpointError(
                f"{path} holds adapters, which cannot be trained further. Fine-tune the checkpoint "
                f"that they belong to, {adapters.path}, with all images."
            )
        check_known(checkpoint, read_index(path), "fine-tune")
        self.real = ImageSource.open(real, "`real`")
        self.classes, self.labels = self.real.named_classes(), self.real.labels
        fit_job.check_labels(self.labels, self.classes)
        self.config = config
        self.num_examples = len(self.labels)
        known = tuple(map(str, own.get("classes", ())))
        base = self._load_base(path, known, device)
        self._scheduler = base.training_scheduler()
        fit_job.check_prediction_type(self._scheduler)
        self._base_weights = dict(base.weights)  # before the table of classes is changed
        pretrained_branch = base.can_be_guided
        self.table_factor = 1.0  # of the learning rate, for a table with rows of new classes
        if base.class_embeddings is None:
            pretrained_branch = learn_classes(base.network, known, self.classes, own)
            if not set(self.classes) <= set(known):
                self.table_factor = max(1.0, config.class_learning_rate / learning_rate)
        self.trained_on: dict[str, Any] = {
            "labeled": self.real.record,
            "base": {"weights": self._base_weights, **(base.trained_on or {})},
        }
        self.base = replace(
            base,
            classes=self.classes,
            unconditional_branch=pretrained_branch or config.label_dropout > 0,
            trained_on=self.trained_on,
        )
        self._origin = checkpoints.lasting_address(checkpoint)

    def _load_base(self, path: Path, known: tuple[str, ...], device: str | None) -> DiffusionModel:
        """The pretrained model, if it can be trained on the images; `known` are its classes."""
        # Prompts can be of any classes; those that a network looks up need not be ours yet.
        named = known if _takes_labels(path) else self.classes
        base, _ = DiffusionModel.from_pretrained(
            path,
            classes=named,
            image_size=self.config.image_size,
            prompt_template=self.config.prompt_template,
            negative_prompt=self.config.negative_prompt,
            dtype=torch.float32,
            device=device,
        )
        _check_network(base, path, adapters=self.config.lora_rank is not None)
        also = ", or give another `image_size`"
        check_shape(self.real, base.image_shape, "the checkpoint draws", also)
        return base

    # -- the run ---------------------------------------------------------------------------------

    def _build(self) -> nn.Module:
        network: Any = self.base.network
        if self.config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if self.config.lora_rank is None:
            return network.requires_grad_(True)
        peft = peft_library()
        config = peft.LoraConfig(
            r=self.config.lora_rank, lora_alpha=self.config.lora_rank, target_modules=list(ADAPTED)
        )
        peft.inject_adapter_in_model(config, network)  # freezes all other weights
        for table in class_tables(network):
            table.requires_grad_(True)
        return network

    def _identity(self, module: nn.Module) -> dict[str, Any]:
        del module
        return {
            "synthesizer": "ClassConditional",
            "base": self._base_weights,
            "scheduler": checkpoints.plain_config(self.base.scheduler_config),
            "data": self.trained_on["labeled"]["fingerprint"] or self.num_examples,
            "classes": list(self.classes),
            "image_shape": list(self.base.image_shape),
            "label_dropout": self.config.label_dropout,
            "lora_rank": self.config.lora_rank,
            "table_factor": self.table_factor,
            "horizontal_flip": self.config.horizontal_flip,
        }

    def _rate_factor(self, name: str) -> float:
        return self.table_factor if name.endswith(_TABLES) else 1.0

    def _loss(self, module: nn.Module, indices: Indices) -> Tensor:
        """`denoising_loss`, with some of the conditions hidden."""
        x0 = self._inputs(indices)
        hidden = fit_job.chosen_rows(len(x0), self.config.label_dropout)
        y = torch.where(hidden, len(self.classes), torch.from_numpy(self.labels[indices]))
        condition = self.base.conditions(y)
        denoiser = copy(self.base.denoiser)
        denoiser.network = module  # compiled or distributed, perhaps
        return fit_job.denoising_loss(
            self._scheduler, x0, lambda x_t, t: denoiser(x_t, t, condition)
        )

    # -- what the network sees -------------------------------------------------------------------

    def _inputs(self, indices: Indices) -> Images:
        """The images, half of them mirrored if asked for; of a latent model a sample of what the
        autoencoder makes of them."""
        n = len(indices)
        mirrored = torch.zeros(n, dtype=torch.bool, device="cpu")
        if self.config.horizontal_flip:
            mirrored = fit_job.chosen_rows(n, 0.5)
        if self._posteriors is None:
            mean, std = self._encode(indices, mirrored)
        else:
            rows = torch.from_numpy(indices) + self.num_examples * mirrored
            mean, std = (sent(part[rows], self.base.device) for part in self._posteriors)
        if std is None:
            return mean
        return mean + std * sent(fit_job.batch_noise(mean.shape), mean.device)

    @cached_property
    def _posteriors(self) -> tuple[Tensor, Tensor] | None:
        """Means and deviations of the latents of all images, and of all mirrored ones."""
        sides = [False, True] if self.config.horizontal_flip else [False]
        shape = (len(sides) * self.num_examples, *self.base.latent_shape)
        if self.base.vae is None or 8 * int(np.prod(shape)) > _KEPT_BYTES:
            return None
        logger.info("encoding %s images once", f"{shape[0]:,}")
        mean, std = (torch.empty(shape, dtype=torch.float32, device="cpu") for _ in range(2))
        for side, mirrored in enumerate(sides):
            for start in range(0, self.num_examples, 16):
                rows = np.arange(start, min(start + 16, self.num_examples))
                flips = torch.full((len(rows),), mirrored, dtype=torch.bool, device="cpu")
                found = self._encode(rows, flips)
                for part, values in zip((mean, std), found, strict=True):
                    assert values is not None  # with an autoencoder there is a deviation
                    part[torch.from_numpy(rows) + side * self.num_examples] = values.cpu()
        return mean, std

    @torch.no_grad()
    def _encode(self, indices: Indices, mirrored: Tensor) -> tuple[Images, Images | None]:
        pixels = self.real.pixels(indices)
        pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
        device = self.base.device
        if self.base.vae is not None:
            self.base.vae.to(device)  # where this process trains
        with torch.autocast(device.type, enabled=False):
            return self.base.posterior(pixels)

    # -- what comes out --------------------------------------------------------------------------

    def model(self, network: nn.Module) -> DiffusionModel:
        """The model with the weights trained so far, adapters merged into them."""
        adapted = self.config.lora_rank is not None
        return replace(self.base, network=merged(network) if adapted else network)

    def save(self, network: nn.Module, path: Path, settings: Mapping[str, JSON]) -> None:
        """Writes the weights trained so far, as `DiffusionModel.from_pretrained` loads them.

        Adapters of a model with prompts are also in `lora`, as diffusers' pipelines load them. (Of
        a model with a table of classes they would be of no use without it.) Beside those of a
        transformer or of Stable Diffusion XL the weights that did not change are not written.

        Args:
            network: The network to train.
            path: The directory; parts in it are replaced whole.
            settings: Settings of the synthesizer.

        Raises:
            CheckpointError: If the disk is full or not writable.
        """
        adapted = self.config.lora_rank is not None and self.base.denoiser.attends
        if adapted:
            save_adapters(network, self.base.denoiser.part, path / "lora")
        if adapted and self.base.denoiser.takes_prompts:
            adapts = {"path": self._origin, "network": self._base_weights["network"]}
            adapts |= self.base.digests_beside() | checkpoints.address_beside(path, self._origin)
            self.base.save_adapted(path, {**settings, "adapts": adapts})
        else:
            self.model(network).save_pretrained(path, settings)


@lasting_tensors()
def merged(network: Any) -> nn.Module:
    """A copy without adapters: W + B A in their place. What is trained stays as it is."""
    peft = peft_library()
    weights = {
        name.replace(".base_layer.", "."): weight.detach().clone()
        for name, weight in network.state_dict().items()
        if ".lora_" not in name
    }
    with own_randomness(torch.device("cpu")):  # building it draws weights that are then replaced
        # Only what is said: diffusers' private notes would put defaults in the place of changes.
        config = {k: v for k, v in network.config.items() if k[0] != "_"}
        plain: nn.Module = type(network).from_config(config)
    for name, layer in network.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            weights[f"{name}.weight"] += layer.get_delta_weight("default").detach()
    plain.load_state_dict(weights)
    return plain.to(next(network.parameters()).device).eval().requires_grad_(False)


# -- tables of classes -----------------------------------------------------------------------------


def class_tables(network: Any) -> list[nn.Embedding]:
    """The tables in which a network looks labels up: a DiT has one in each of its blocks."""
    if type(network).__name__ == "UNet2DModel":
        return [] if network.class_embedding is None else [network.class_embedding]
    return [part.embedding_table for part in label_embeddings(network)]


def learn_classes(
    network: Any, known: Sequence[str], classes: Sequence[str], own: dict[str, Any]
) -> bool:
    """Gives a network that looks labels up a row for each of `classes`, and a null row.

    A class that it knows by name keeps its row; the others start as random mixtures of the classes
    that it knows, with their mean and covariance, so that the network tells them apart at once. The
    null row is kept, or starts from the mean. A network that took no classes gets a table of zeros,
    so that at first it draws what it drew before.

    Args:
        network: `UNet2DModel` or `DiTTransformer2DModel`; changed in place.
        known: Names of the classes that it was trained on, in order; none if not by us.
        classes: Names of the classes to learn.
        own: Our record of its training, if it was by us.

    Returns:
        Whether it had an unconditional branch.
    """
    n = len(classes)
    if type(network).__name__ == "DiTTransformer2DModel":
        trained, null = int(network.config.num_embeds_ada_norm), True
        for part in label_embeddings(network):
            part.num_classes = n
            part.dropout_prob = 0.0  # labels are hidden by us, by random numbers of our own
            part.embedding_table = _table(part.embedding_table, trained, null, known, classes)
        network.register_to_config(num_embeds_ada_norm=n)
        return null
    table = network.class_embedding
    if table is None:
        null = True
        width = network.time_embedding.linear_2.out_features
        empty = torch.zeros(n + 1, width, dtype=torch.float32, device="cpu")
        network.class_embedding = nn.Embedding.from_pretrained(empty.to(network.device))
    else:
        trained = len(known) or table.num_embeddings
        null = bool(known) and bool(own.get("unconditional_branch", False))
        network.class_embedding = _table(table, trained, null, known, classes)
    network.register_to_config(num_class_embeds=n + 1)
    return null


def _table(
    old: nn.Embedding, trained: int, null: bool, known: Sequence[str], classes: Sequence[str]
) -> nn.Embedding:
    """Rows of `classes`, then the null row, out of `trained` rows and perhaps a null row."""
    weights = old.weight.detach()
    mean = weights[:trained].mean(0)
    # Mixtures, since rows that are alike learn to differ only slowly; the same ones in each table.
    mixing = counter_rng(0, 1).standard_normal((len(classes), trained)) / max(1, trained - 1) ** 0.5
    mixtures = mean + torch.from_numpy(mixing).to(weights) @ (weights[:trained] - mean)
    number = {name: c for c, name in enumerate(known)}
    rows = [
        weights[number[name]] if name in number else mixture
        for name, mixture in zip(classes, mixtures, strict=True)
    ]
    return nn.Embedding.from_pretrained(torch.stack([*rows, weights[trained] if null else mean]))


# -- checks ----------------------------------------------------------------------------------------


def _takes_labels(path: Path) -> bool:
    """Whether the network looks labels up, or would if it took any; else it attends to tokens."""
    index = read_index(path)
    name = "unet" if "unet" in index else "transformer"
    kinds = ("UNet2DConditionModel", *TRANSFORMERS)
    return name in index and part_class(path, index, name) not in kinds


def _check_network(base: DiffusionModel, path: Path, *, adapters: bool) -> None:
    base.check_complete()
    if adapters and not any(name.endswith(ADAPTED) for name, _ in base.network.named_modules()):
        raise CheckpointError(
            f"The network in {path} has no attention layer to put adapters on. Train all weights: "
            "leave `lora_rank` out."
        )
