"""The runs of one evaluation: what they share, what tells them apart, and how one is made."""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

from synthaug._images.source import Epochs
from synthaug._plan import settings_digest
from synthaug._support.devices import choose_device
from synthaug._support.precision import Resolved
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.classifier_config import ClassifierConfig, name_of
from synthaug._training.loop import own_randomness
from synthaug._types import JSON
from synthaug.evaluation._augment import Augment, apply_augment
from synthaug.evaluation._batches import fingerprint
from synthaug.evaluation._classifiers import build_classifier
from synthaug.evaluation._fit import MOMENTUM, FitSettings, correct, fit, seed_initial_weights
from synthaug.evaluation._inputs import Inputs
from synthaug.evaluation._report import Run

_SAMPLE = 16


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that the runs of one evaluation need.

    Leaves the caller's random streams as they were, and its data sets in their epoch.
    """

    inputs: Inputs
    config: ClassifierConfig
    augments: Mapping[str, Augment | None]
    """For each arm."""
    precision: Resolved
    """What the precision of the configuration means here."""

    @cached_property
    def settings(self) -> FitSettings:
        """How weights change."""
        return FitSettings.of(self.config, self.precision)

    @cached_property
    def device(self) -> torch.device:
        """Where classifiers are trained."""
        return choose_device(self.config.device)

    @lasting_tensors()
    def run(self, arm: str, seed: int, *, advance: Callable[[int], object]) -> Run:
        """Trains and tests one classifier; `advance` is called with the number of steps made."""
        started = time.perf_counter()
        images = self.inputs.arms[arm]
        images.forget_seen()
        with self._leaving_no_trace():
            network = self._build(seed).to(self.device)
            # A fifth faster; but one's own network may not take it.
            if isinstance(self.config.model, str):
                network = network.to(memory_format=torch.channels_last)
            curves = fit(
                network,
                images,
                self.settings,
                seed=seed,
                augment=self.augments[arm],
                validation=self.inputs.validation,
                run=f"Arm {arm!r}, seed {seed}",
                advance=advance,
            )
            unique_real, unique_synthetic = images.seen()
            hits, labels = correct(network, self.inputs.test, self.settings)
        by_class = [hits[labels == c] for c in range(len(self.inputs.classes))]
        return Run(
            arm=arm,
            seed=seed,
            steps=self.settings.steps,
            selected_step=curves.selected_step,
            test_accuracy=float(hits.mean()),
            class_accuracies=[float(h.mean()) if len(h) else None for h in by_class],
            validation_accuracy=dict(curves.validation).get(curves.selected_step),
            images_seen=self.settings.steps * self.settings.batch_size,
            unique_real=unique_real,
            unique_synthetic=unique_synthetic,
            seconds=time.perf_counter() - started,
            loss_curve=curves.loss,
            validation_curve=curves.validation,
        )

    def facts(self, seed: int) -> dict[str, JSON]:
        """What all arms share. Builds a network, so one that cannot be built is found here."""
        with self._leaving_no_trace():
            network = self._build(seed)
        return {
            **self._shared(),
            "parameters": sum(p.numel() for p in network.parameters()),
            "test_images": len(self.inputs.test),
            "validation_images": len(self.inputs.validation or ()),
        }

    def arm_facts(self) -> dict[str, dict[str, JSON]]:
        """For each arm its number of images, its augmentation, and the audit of synthetic ones."""
        facts: dict[str, dict[str, JSON]] = {}
        for name, augment in self.augments.items():
            images = self.inputs.arms[name]
            audit = images.source.synthetic_facts
            facts[name] = {"images": len(images), "augment": name_of(augment), "synthetic": audit}
        return facts

    @cached_property
    def augmented_samples(self) -> dict[str, str]:
        """Digests of what the augmentation of each arm makes of its first images.

        Raises:
            ValueError: If an augmentation does not give what it must.
        """
        samples = {}
        for arm, augment in self.augments.items():
            images = self.inputs.arms[arm]
            with self._leaving_no_trace():
                torch.manual_seed(0)
                pixels, _ = images.batch(0, np.arange(min(_SAMPLE, len(images))))
                shown = pixels if augment is None else apply_augment(augment, pixels)
            samples[arm] = hashlib.blake2b(
                shown.cpu().numpy().tobytes(), digest_size=16
            ).hexdigest()
        return samples

    def files(
        self, seeds: Sequence[int], folder: str | os.PathLike[str] | None
    ) -> dict[tuple[str, int], Path]:
        """Where the run of every arm and seed is kept; none without a folder.

        The name ends with a digest of all that the run depends on. Functions are not known by their
        names alone, which two lambdas share: a network counts with its structure and initial
        weights, an augmentation with a sample of what it makes.
        """
        if folder is None:
            return {}
        with self._leaving_no_trace():
            arms = {arm: fingerprint(images) for arm, images in self.inputs.arms.items()}
            held_out = [self.inputs.test, self.inputs.validation]
            prints = [None if images is None else fingerprint(images) for images in held_out]
            weights = {seed: _digest_of(self._build(seed)) for seed in seeds}
        shared = {**self._shared(), "held out": prints}
        files = {}
        for arm, augment in self.augments.items():
            data = [arm, arms[arm], name_of(augment), self.augmented_samples[arm]]
            for seed in seeds:
                run = {"arm": data, "seed": seed, "network": weights[seed]}
                key = settings_digest({**shared, **run})
                files[arm, seed] = Path(folder) / f"{_slug(arm)}-seed{seed}-{key}.json"
        return files

    def _shared(self) -> dict[str, JSON]:
        return {
            **asdict(self.settings),
            "momentum": MOMENTUM,
            "model": self.config.model_name,
            "image_shape": list(self.inputs.test.image_shape),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }

    def _build(self, seed: int) -> nn.Module:
        seed_initial_weights(seed)
        return build_classifier(
            self.config.model, len(self.inputs.classes), self.inputs.test.image_shape
        )

    @contextmanager
    def _leaving_no_trace(self) -> Iterator[None]:
        epochs = Epochs(
            leaf for images in self.inputs.sets.values() for leaf in images.source.leaves
        )
        with own_randomness(self.device), epochs.kept():
            yield


def _slug(arm: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", arm.lower()).strip("-") or "arm"


def _digest_of(network: nn.Module) -> str:
    """32 hexadecimal digits over a network's structure and weights."""
    hashed = hashlib.blake2b(repr(network).encode(), digest_size=16)
    for name, value in network.state_dict().items():
        hashed.update(name.encode())
        hashed.update(value.cpu().numpy().tobytes())
    return hashed.hexdigest()
