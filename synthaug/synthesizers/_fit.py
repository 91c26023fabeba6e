"""The training of a class-conditional denoiser on real images."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset

from synthaug._images.source import ImageSource
from synthaug._pixels import to_images
from synthaug._support.devices import sent
from synthaug._training import fit_job
from synthaug._training.network_config import LabeledConfig
from synthaug._types import Images, Indices, Pixels
from synthaug.denoisers import build_unet
from synthaug.errors import MismatchError
from synthaug.samplers import make_scheduler
from synthaug.synthesizers._model import DiffusionModel


class FitJob(fit_job.AbstractFitJob[nn.Module]):
    """Everything that `ClassConditional.fit` was asked for, checked before any work starts.

    Args:
        real: Labeled images.
        unlabeled: Further images, or `None`.
        network: The network to train.

    Raises:
        DataError: For images or labels that cannot be trained on.
    """

    def __init__(self, real: Any, unlabeled: Any, network: LabeledConfig) -> None:
        self.real = ImageSource.open(real, "`real`")
        self.unlabeled: ImageSource | None = None
        self.classes, self.labels = self.real.named_classes(), self.real.labels
        self.image_shape = self.real.image_shape
        fit_job.check_labels(self.labels, self.classes)
        if unlabeled is not None:
            self.unlabeled = ImageSource.open(unlabeled, "`unlabeled`")
            if self.unlabeled.image_shape != self.image_shape:
                raise MismatchError(
                    f"`unlabeled` holds images of shape {self.unlabeled.image_shape}, "
                    f"`real` of {self.image_shape}."
                )
        self.network = network
        self.scheduler_config = fit_job.diffusion_config(network.prediction_type)
        self.unconditional_branch = network.label_dropout > 0 or unlabeled is not None
        sources = {"labeled": self.real, "unlabeled": self.unlabeled}
        self.trained_on: dict[str, Any] = {
            name: source.record for name, source in sources.items() if source is not None
        }
        self._scheduler = make_scheduler(None, self.scheduler_config)
        extra = 0 if unlabeled is None else len(unlabeled)
        null = np.full(extra, len(self.classes))
        parts = [s.dataset for s in (self.real, self.unlabeled) if s is not None]
        self._images = ImageSource.open(ConcatDataset(parts)) if parts[1:] else self.real
        self._all_labels = torch.from_numpy(np.concatenate([self.labels, null]))
        self.num_examples = len(self._all_labels)

    def model(self, network: nn.Module, class_embeddings: Tensor | None = None) -> DiffusionModel:
        """The model with the weights trained so far."""
        return DiffusionModel(
            network=network,
            scheduler_config=self.scheduler_config,
            classes=self.classes,
            image_shape=self.image_shape,
            class_embeddings=class_embeddings,
            unconditional_branch=self.unconditional_branch,
            trained_on=self.trained_on,
        )

    # What the stages of a cascade do otherwise:

    def _build(self) -> nn.Module:
        return self._unet()

    def _unet(self, **config: Any) -> Any:
        """The network, with entries of its config in place of the usual ones."""
        return build_unet(
            self.image_shape,
            num_classes=len(self.classes),
            channels=self.network.channels,
            num_layers=self.network.num_layers,
            **config,
        )

    def _identity(self, network: Any) -> dict[str, Any]:
        return {
            "synthesizer": "ClassConditional",
            "network": {k: v for k, v in network.config.items() if not k.startswith("_")},
            "data": [s["fingerprint"] or s["images"] for s in self.trained_on.values()],
            "classes": list(self.classes),
            "prediction_type": self.network.prediction_type,
            "label_dropout": self.network.label_dropout,
            "horizontal_flip": self.network.horizontal_flip,
        }

    def _predict(self, network: nn.Module, x_t: Images, t: Tensor, y: Tensor, x0: Images) -> Tensor:
        """The network's prediction for noisy images x_t of the real images `x0`."""
        del x0
        prediction: Tensor = network(x_t, t, class_labels=y, return_dict=False)[0]
        return prediction

    def _read(self, indices: Indices) -> Pixels:
        return self._images.pixels(indices)

    def _loss(self, network: nn.Module, indices: Indices) -> Tensor:
        """`denoising_loss`, with some of the labels hidden."""
        device = next(network.parameters()).device
        x0 = to_images(sent(self._read(indices), device))
        if self.network.horizontal_flip:
            x0 = fit_job.half_mirrored(x0)
        hidden = fit_job.chosen_rows(len(x0), self.network.label_dropout)
        y = self._all_labels[torch.from_numpy(indices)]
        y = sent(torch.where(hidden, len(self.classes), y), device)
        return fit_job.denoising_loss(
            self._scheduler, x0, lambda x_t, t: self._predict(network, x_t, t, y, x0)
        )
