"""What classifiers trained on some images say of others."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from synthaug._images.source import ImageSource
from synthaug._pixels import to_images
from synthaug._support.progress import bar
from synthaug._support.torch_state import lasting_tensors
from synthaug._types import Features, Pixels
from synthaug.evaluation._augment import standard_augment
from synthaug.evaluation._batches import Batches
from synthaug.evaluation._classifiers import Builder, build_classifier
from synthaug.evaluation._fit import fit, seed_initial_weights, settings_of

_BATCH = 512


def class_probabilities(
    train: Any,
    pixels: Pixels,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1000,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Features:
    """Trains classifiers, and averages the class probabilities that they give to other images.

    They are trained as those of `evaluate` are by default, but in float32, on all of `train`.

    Args:
        train: Labelled images that name their classes.
        pixels: The images to judge, uint8 (n, C, H, W).
        seeds: One classifier each.
        steps: Optimiser steps of each.
        device: Where to train.
        progress: Show one bar over all steps.

    Returns:
        float32 (n, num_classes); rows add up to 1.
    """
    place = torch.device(device)
    images, classes = _opened(train, place)
    total = torch.zeros(len(pixels), classes, dtype=torch.float32, device="cpu")
    with bar(len(seeds) * steps, "guess", "step", progress=progress) as shown:
        for seed in seeds:
            network = _trained(images, classes, "small-cnn", seed, steps, place, shown.update)
            with torch.inference_mode():
                logits = [network(to_images(part.to(place))) for part in pixels.split(_BATCH)]
            total += torch.cat(logits).softmax(dim=1).cpu()
    return np.asarray(total / len(seeds), np.float32)


def trained_classifier(
    train: Any,
    *,
    model: str | Builder = "small-cnn",
    seed: int = 0,
    steps: int = 1000,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> nn.Module:
    """A classifier trained in float32, else as those of `evaluate` are, in evaluation mode.

    Args:
        train: Labelled images that name their classes.
        model: As for `evaluate`.
        seed: Of initial weights, order and augmentation.
        steps: Optimiser steps.
        device: Where to train.
        progress: Show a bar.

    Returns:
        Images float (n, C, H, W) in [-1, 1] => logits, on `device`.
    """
    place = torch.device(device)
    images, classes = _opened(train, place)
    with bar(steps, "classifier", "step", progress=progress) as shown:
        return _trained(images, classes, model, seed, steps, place, shown.update)


def _opened(train: Any, device: torch.device) -> tuple[Batches, int]:
    source = ImageSource.open(train, "`train`")
    names = source.named_classes()
    return Batches(source, names, device), len(names)


@lasting_tensors()
def _trained(
    images: Batches,
    classes: int,
    model: str | Builder,
    seed: int,
    steps: int,
    device: torch.device,
    advance: Callable[[int], object],
) -> nn.Module:
    """Leaves the caller's random streams as they were."""
    shape = images.image_shape
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        seed_initial_weights(seed)
        network = build_classifier(model, classes, shape).to(device)
        fit(
            network,
            images,
            settings_of(steps),
            seed=seed,
            augment=standard_augment(shape, horizontal_flip=False),
            validation=None,
            device=device,
            run=f"classifier {seed}",
            advance=advance,
        )
    return network.eval()
