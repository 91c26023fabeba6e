"""Predictions for some images by classifiers trained on others."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from synthaug._images.source import ImageSource
from synthaug._pixels import to_images
from synthaug._support.devices import choose_device
from synthaug._support.precision import Resolved
from synthaug._support.progress import bar
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._training.loop import own_randomness
from synthaug._types import Features, Pixels
from synthaug.evaluation._augment import standard_augment
from synthaug.evaluation._classifiers import build_classifier
from synthaug.evaluation._fit import FitSettings, device_of, fit, seed_initial_weights
from synthaug.evaluation._inputs import Batches

_BATCH = 512


def class_probabilities(
    train: Any,
    pixels: Pixels,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    config: ClassifierConfig | None = None,
    progress: bool = True,
) -> Features:
    """Trains classifiers, and averages the class probabilities that they give to other images.

    They are trained as those of `evaluate` are by default, on all of `train`.

    Args:
        train: Labeled images that name their classes.
        pixels: The images to judge, uint8 (n, C, H, W).
        seeds: One classifier each.
        config: Network and training of the classifiers; by default `ClassifierConfig()`. Precision
            "auto" means float32 on every device.
        progress: Show one bar over all steps.

    Returns:
        float32 (n, num_classes); rows add up to 1.
    """
    source = ImageSource.open(train, "`train`")
    classes = len(source.named_classes())
    total = torch.zeros(len(pixels), classes, dtype=torch.float32, device="cpu")
    for network in _trained(source, seeds, config, "guess", progress=progress):
        place = device_of(network)
        with torch.inference_mode():
            logits = [network(to_images(part.to(place))) for part in pixels.split(_BATCH)]
        total += torch.cat(logits).softmax(dim=1).cpu()
    return np.asarray(total / len(seeds), np.float32)


def trained_classifier(
    train: Any, *, seed: int = 0, config: ClassifierConfig | None = None, progress: bool = True
) -> nn.Module:
    """A classifier trained as those of `evaluate` are by default, in evaluation mode.

    Args:
        train: Labeled images that name their classes.
        seed: Seed of initial weights, order and augmentation.
        config: Network and training; by default `ClassifierConfig()`. Precision "auto" means
            float32 on every device.
        progress: Show a bar.

    Returns:
        Images float (n, C, H, W) in [-1, 1] => logits, on the device of `config`.
    """
    source = ImageSource.open(train, "`train`")
    (network,) = _trained(source, [seed], config, "classifier", progress=progress)
    return network


def _trained(
    train: ImageSource,
    seeds: Sequence[int],
    config: ClassifierConfig | None,
    name: str,
    *,
    progress: bool,
) -> Iterator[nn.Module]:
    """One classifier after the other, in evaluation mode; `name` names the bar over all steps."""
    config = config or ClassifierConfig()
    images = Batches(train, train.named_classes(), choose_device(config.device))
    with bar(len(seeds) * config.steps, name, "step", progress=progress) as shown:
        for seed in seeds:
            yield fitted_classifier(images, config, seed, lambda _, steps: shown.update(steps))


@lasting_tensors()
def fitted_classifier(
    images: Batches,
    config: ClassifierConfig,
    seed: int,
    advance: Callable[[nn.Module, int], object],
) -> nn.Module:
    """A classifier in evaluation mode. Leaves the caller's random streams as they were.

    Args:
        images: Training images.
        config: Network and training.
        seed: Seed of initial weights, order and augmentation.
        advance: Called now and then with the network and the number of steps made.
    """
    device = choose_device(config.device)
    precision: Resolved = "float32" if config.precision == "auto" else config.precision
    with own_randomness(device):
        seed_initial_weights(seed)
        classes = len(images.source.named_classes())
        network = build_classifier(config.model, classes, images.image_shape).to(device)
        fit(
            network,
            images,
            FitSettings.of(config, precision),
            seed=seed,
            run=f"classifier {seed}",
            augment=standard_augment(images.image_shape, horizontal_flip=config.horizontal_flip),
            advance=partial(advance, network),
        )
    return network.eval()
