"""What classifiers trained on some images say of others."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from synthaug._images.source import ImageSource
from synthaug._pixels import to_images
from synthaug._support.devices import choose_device
from synthaug._support.progress import bar
from synthaug._support.torch_state import lasting_tensors
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._types import Features, Pixels
from synthaug.evaluation._augment import standard_augment
from synthaug.evaluation._batches import Batches
from synthaug.evaluation._classifiers import build_classifier
from synthaug.evaluation._fit import FitSettings, device_of, fit, seed_initial_weights

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
        train: Labelled images that name their classes.
        pixels: The images to judge, uint8 (n, C, H, W).
        seeds: One classifier each.
        config: Network and training of the classifiers; by default `ClassifierConfig()`. Precision
            "auto" means float32 on every device.
        progress: Show one bar over all steps.

    Returns:
        float32 (n, num_classes); rows add up to 1.
    """
    config = config or ClassifierConfig()
    images, classes = _opened(train, config)
    total = torch.zeros(len(pixels), classes, dtype=torch.float32, device="cpu")
    with bar(len(seeds) * config.steps, "guess", "step", progress=progress) as shown:
        for seed in seeds:
            network = _trained(images, classes, config, seed, shown.update)
            place = device_of(network)
            with torch.inference_mode():
                logits = [network(to_images(part.to(place))) for part in pixels.split(_BATCH)]
            total += torch.cat(logits).softmax(dim=1).cpu()
    return np.asarray(total / len(seeds), np.float32)


def trained_classifier(
    train: Any,
    *,
    seed: int = 0,
    config: ClassifierConfig | None = None,
    progress: bool = True,
) -> nn.Module:
    """A classifier trained as those of `evaluate` are by default, in evaluation mode.

    Args:
        train: Labelled images that name their classes.
        seed: Of initial weights, order and augmentation.
        config: Network and training; by default `ClassifierConfig()`. Precision "auto" means
            float32 on every device.
        progress: Show a bar.

    Returns:
        Images float (n, C, H, W) in [-1, 1] => logits, on the device of `config`.
    """
    config = config or ClassifierConfig()
    images, classes = _opened(train, config)
    with bar(config.steps, "classifier", "step", progress=progress) as shown:
        return _trained(images, classes, config, seed, shown.update)


def _opened(train: Any, config: ClassifierConfig) -> tuple[Batches, int]:
    source = ImageSource.open(train, "`train`")
    names = source.named_classes()
    return Batches(source, names, choose_device(config.device)), len(names)


@lasting_tensors()
def _trained(
    images: Batches,
    classes: int,
    config: ClassifierConfig,
    seed: int,
    advance: Callable[[int], object],
) -> nn.Module:
    """Leaves the caller's random streams as they were."""
    device = choose_device(config.device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_initial_weights(seed)
        network = build_classifier(config.model, classes, images.image_shape).to(device)
        fit(
            network,
            images,
            FitSettings.of(config, "float32" if config.precision == "auto" else config.precision),
            seed=seed,
            run=f"classifier {seed}",
            augment=standard_augment(images.image_shape, horizontal_flip=config.horizontal_flip),
            advance=advance,
        )
    return network.eval()
