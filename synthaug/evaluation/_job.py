"""The runs of one evaluation: what they share, what tells them apart, and how one is made."""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
import torchvision
from numpy.typing import NDArray
from torch import nn

from synthaug._images.source import Epochs
from synthaug._plan import settings_digest
from synthaug._support.devices import choose_device
from synthaug._support.precision import Resolved
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._types import JSON
from synthaug.evaluation._augment import Augment, apply_augment
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
            "validation_images": len(self.inputs.validation) if self.inputs.validation else 0,
        }

    def arm_facts(self) -> dict[str, dict[str, JSON]]:
        """For each arm its number of images, its augmentation, and the audit of synthetic ones."""
        return {
            name: {
                "images": len(self.inputs.arms[name]),
                "augment": _named(augment),
                "synthetic": self.inputs.sources[f"Arm {name!r}"].synthetic_facts,
            }
            for name, augment in self.augments.items()
        }

    def augmented_sample(self, arm: str) -> str:
        """Digest of what the augmentation of an arm makes of its first images.

        Raises:
            ValueError: If the augmentation does not give what it must.
        """
        first = np.arange(min(_SAMPLE, len(self.inputs.arms[arm])))
        with self._leaving_no_trace():
            torch.manual_seed(0)
            pixels, _ = self.inputs.arms[arm].batch(0, first)
            augment = self.augments[arm]
            shown = pixels if augment is None else apply_augment(augment, pixels)
        return hashlib.blake2b(shown.cpu().numpy().tobytes(), digest_size=16).hexdigest()

    def keys(
        self,
        seeds: Sequence[int],
        contents: Mapping[str, NDArray[np.uint64]],
        samples: Mapping[str, str],
    ) -> dict[tuple[str, int], str]:
        """A digest of all that a run depends on, for every arm and seed.

        Functions are not known by their names alone, which two lambdas share: a network counts
        with its structure and initial weights, an augmentation with a sample of what it makes.
        """
        with self._leaving_no_trace():
            prints = self.inputs.fingerprints(contents)
            weights = {seed: _digest_of(self._build(seed)) for seed in seeds}
        shared = {**self._shared(), "held out": [prints["`test`"], prints.get("`validation`")]}
        keys = {}
        for arm, augment in self.augments.items():
            data = [arm, prints[f"Arm {arm!r}"], _named(augment), samples[arm]]
            for seed in seeds:
                run = {"arm": data, "seed": seed, "network": weights[seed]}
                keys[arm, seed] = settings_digest({**shared, **run})
        return keys

    def _shared(self) -> dict[str, JSON]:
        return {
            **asdict(self.settings),
            "momentum": MOMENTUM,
            "model": self.config.model_name,
            "image_shape": list(self.inputs.image_shape),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }

    def _build(self, seed: int) -> nn.Module:
        seed_initial_weights(seed)
        return build_classifier(
            self.config.model, len(self.inputs.classes), self.inputs.image_shape
        )

    @contextmanager
    def _leaving_no_trace(self) -> Iterator[None]:
        devices = [self.device] if self.device.type == "cuda" else []
        epochs = Epochs(leaf for source in self.inputs.sources.values() for leaf in source.leaves)
        with torch.random.fork_rng(devices=devices), epochs.kept():
            yield


def _named(thing: object) -> str:
    """What a function or module is called in a report, the same in every process."""
    return getattr(thing, "__qualname__", None) or repr(thing)


def _digest_of(network: nn.Module) -> str:
    """32 hexadecimal digits over a network's structure and weights."""
    hashed = hashlib.blake2b(repr(network).encode(), digest_size=16)
    for name, value in network.state_dict().items():
        hashed.update(name.encode())
        hashed.update(value.cpu().numpy().tobytes())
    return hashed.hexdigest()
