"""What classifiers trained on some images say of others."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from synthaug._adapt import classes_of
from synthaug._classifiers import build_classifier
from synthaug._evaluation._augment import standard_augment
from synthaug._evaluation._fit import fit, seed_initial_weights, settings_of
from synthaug._evaluation._sources import open_source
from synthaug._pixels import to_images
from synthaug._types import Features, Pixels

_BATCH = 512


def class_probabilities(
    train: Dataset[Any],
    pixels: Pixels,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    steps: int = 1000,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> Features:
    """Trains classifiers, and averages the class probabilities that they give to other images.

    They are trained as those of `evaluate` are by default, on all of `train`.

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
    names = classes_of(train)
    if names is None:
        raise ValueError("`train` does not name its classes.")
    shape = (int(pixels.shape[1]), int(pixels.shape[2]), int(pixels.shape[3]))
    source = open_source(train, "`train`", names, place)
    total = torch.zeros(len(pixels), len(names))
    with (
        torch.random.fork_rng(devices=[place] if place.type == "cuda" else []),
        tqdm(total=len(seeds) * steps, desc="guess", unit="step", disable=not progress) as bar,
    ):
        for seed in seeds:
            seed_initial_weights(seed)
            network = build_classifier("small-cnn", len(names), shape).to(place)
            fit(
                network,
                source,
                settings_of(steps),
                seed=seed,
                augment=standard_augment(shape, horizontal_flip=False),
                validation=None,
                device=place,
                run=f"classifier {seed}",
                advance=bar.update,
            )
            network.eval()
            with torch.inference_mode():
                logits = [network(to_images(part.to(place))) for part in pixels.split(_BATCH)]
            total += torch.cat(logits).softmax(dim=1).cpu()
    return np.asarray(total / len(seeds), np.float32)
