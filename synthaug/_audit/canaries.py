"""Canaries: marked training images, which say how often an image must repeat until it comes back.

Kowalczuk et al. 2025, "SolidMark: Evaluating Image Memorization in Generative Models"
(https://arxiv.org/abs/2503.00592), marks images with a border of a random gray level; Carlini et
al. 2019, "The Secret Sharer", repeats random secrets and counts the repetitions. Both together:

Pairs of real images of one class are chosen. Both images of a pair get a border of random gray
levels, each its own: the key, which says nothing of the label. A coin decides which of the two is
trained on, in place of its original and as often as the dose says; the other one is the control.
Neither it nor any original of a pair is trained on. So whatever the generator draws, if it did not
learn the keys of the images that it saw, the two keys of a pair are equally likely to come back,
and every count of pairs in which only the trained key did has an exact binomial distribution.

A model that was trained with canaries draws borders. It measures the recipe of a training (data,
steps, size of the network); train the model that is used without them.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthaug._images.labeled import LabeledImages
from synthaug._images.source import ImageSource
from synthaug._noise import counter_rng
from synthaug._pixels import digest
from synthaug._plan import settings_digest
from synthaug._support.arguments import (
    check_at_least,
    check_distinct,
    check_fields,
    check_some,
)
from synthaug._support.files import write_text
from synthaug._support.reading import parse_json, read_text
from synthaug._support.report import DAMAGE, damage_of, decode, encode
from synthaug._types import Features, Indices, Pixels
from synthaug.errors import DataError

FILE = "canaries.json"
"""Name of the plan in the folder of a run."""
_FORMAT = "synthaug-canaries"
_CELLS = 16
"""A border is one cell wide, of about so many cells per side of the image."""


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """Configuration of canaries: the images to mark, and how often each is trained on."""

    pairs: int = 5
    """Pairs of canaries for each dose."""
    doses: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """How often the trained image of a pair is in the training set, one pair after the other."""
    seed: int = 0
    """Seed of the choice of images, of keys and coins."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, pairs=self.pairs)
        check_some("dose", doses=self.doses)
        check_distinct(doses=self.doses)
        for dose in self.doses:
            check_at_least(1, doses=dose)


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One marked image."""

    pair: int
    """Number of its pair."""
    trained: bool
    """Whether it is trained on; else it is the control."""
    dose: int
    """How often it is trained on, or would be."""
    row: int
    """Its row in the data set that was marked."""
    image: int
    """Content digest of the image before it was marked, 64 bits."""
    label: int
    """Its class."""
    key: list[int]
    """Gray level of each cell of the border, 0 to 255."""


@dataclass(frozen=True, kw_only=True)
class CanaryPlan:
    """The marked images of a data set, their marks and their doses.

    plan = CanaryPlan.load("runs/marked")      # reads runs/marked/canaries.json
    plan.save("runs/marked")
    """

    image_shape: tuple[int, int, int]
    """(C, H, W) of the images."""
    classes: tuple[str, ...]
    """Names of the classes."""
    source: str | None
    """Fingerprint of the data set that was marked."""
    config: CanaryConfig
    canaries: tuple[Canary, ...]

    @property
    def digest(self) -> str:
        """32 hexadecimal digits that name the plan, in recipes of models trained with it."""
        return settings_digest({"canaries": [asdict(canary) for canary in self.canaries]})

    def chosen(self, trained: bool) -> list[Canary]:
        """The canaries that are trained on, or the controls, in the order of their pairs."""
        return [canary for canary in self.canaries if canary.trained == trained]

    def save(self, folder: str | Path) -> Path:
        """Writes `canaries.json` into the folder of a run."""
        record = {"format": _FORMAT, "format_version": 1, "digest": self.digest, **vars(self)}
        return write_text(Path(folder) / FILE, encode(record, indent=1), private=True)

    @classmethod
    def load(cls, folder: str | Path) -> "CanaryPlan":
        """Reads a plan that `save` wrote.

        Raises:
            DataError: If the folder has no such file, or it was changed.
        """
        path = Path(folder) / FILE
        remedy = "Train with `synthaug train --canaries`, or plant canaries and save the plan."
        try:
            record = parse_json(read_text(path))
            name, version = record.pop("format"), record.pop("format_version")
            recorded_digest = record.pop("digest")
            plan: CanaryPlan = decode(cls, record)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist. {remedy}") from None
        except (OSError, *DAMAGE) as error:
            raise DataError(f"{path} is damaged ({damage_of(error)}). {remedy}") from error
        if (name, version, recorded_digest) != (_FORMAT, 1, plan.digest):
            raise DataError(f"{path} is not a plan of canaries, or was changed. {remedy}")
        return plan


class PlantedImages(LabeledImages):
    """A data set with canaries, to train on; made by `plant`.

    Its record, which models keep of what they learned from, names the plan.
    """

    def __init__(self, real: ImageSource, plan: CanaryPlan) -> None:
        marked, self.plan = plan.chosen(trained=True), plan
        kept = np.setdiff1d(np.arange(len(real)), [canary.row for canary in plan.canaries])
        repeats = np.repeat(np.arange(len(marked)), [canary.dose for canary in marked])
        images = mark(real.pixels([c.row for c in marked]), [c.key for c in marked])
        labels = np.array([c.label for c in marked], np.int64)[repeats]
        super().__init__(
            _Planted(real, kept, images.numpy()[repeats]),
            np.r_[real.labels[kept], labels],
            plan.classes,
            name=f"{real.title} with canaries",
        )
        self.canaries = plan.digest


class _Planted:
    """Where the pixels come from: the images that are not marked, then those that are."""

    def __init__(self, real: ImageSource, kept: Indices, marked: NDArray[np.uint8]) -> None:
        self.real, self.kept, self.marked = real, kept, marked
        self.shape = real.image_shape

    def read(self, rows: Indices) -> NDArray[np.uint8]:
        """uint8 (len(rows), C, H, W)."""
        pixels = np.empty((len(rows), *self.shape), np.uint8)
        real = rows < len(self.kept)
        if real.any():
            pixels[real] = self.real.pixels(self.kept[rows[real]]).numpy()
        pixels[~real] = self.marked[rows[~real] - len(self.kept)]
        return pixels


def plant(real: Any, config: CanaryConfig | None = None) -> PlantedImages:
    """Marks some images of a data set, and repeats those that a coin chooses.

        planted = plant(train, CanaryConfig(pairs=5))
        model, _ = ClassConditional.fit(planted, "runs/marked")
        planted.plan.save("runs/marked")

    A pure function of the data set and the settings: run again, it gives the same images.

    Args:
        real: Labeled images, any map-style data set that names its classes.
        config: How many are marked, and how often they are repeated.

    Returns:
        The data set to train on: without the originals of all canaries and without the controls.

    Raises:
        DataError: If canaries would be more than half of the images, a class would be left without
            an image, or classes hold too few images to make pairs.
        ValueError: For images below 8 x 8 pixels, whose borders hold no key, or a setting out of
            range.
    """
    config = config or CanaryConfig()
    source = ImageSource.open(real, "`real`")
    classes, labels = source.named_classes(), source.labels
    if min(source.image_shape[1:]) < 8:
        raise ValueError(
            f"`real` holds images of shape {source.image_shape}, too small for the "
            "random keys of canaries. Load larger ones."
        )
    rng = counter_rng(config.seed, 7)
    pairs = _pairs(labels, rng)[: config.pairs * len(config.doses)]
    if len(pairs) < config.pairs * len(config.doses) or 4 * len(pairs) > len(labels):
        raise DataError(
            f"{config.pairs} pairs for each of {len(config.doses)} doses need "
            f"{2 * config.pairs * len(config.doses):,} images, and at most half of the "
            f"{len(labels):,} images can be used, two of one class for each pair. Ask "
            "for fewer pairs or doses."
        )
    rows = [row for pair in pairs for row in pair]
    left = np.bincount(np.delete(labels, rows), minlength=len(classes))
    if (left == 0).any():
        raise DataError(
            f"Canaries would leave no image of class {classes[int(left.argmin())]!r}. Ask for "
            "fewer pairs or doses."
        )
    digests = [digest(image) for image in source.pixels(rows)]
    cells = int(_border(source.image_shape).max()) + 1
    canaries = []
    for number, pair in enumerate(pairs):
        coin = int(rng.integers(2))
        for side, row in enumerate(pair):
            canary = Canary(
                pair=number,
                trained=side == coin,
                dose=config.doses[number % len(config.doses)],
                row=row,
                image=digests[2 * number + side],
                label=int(labels[row]),
                key=rng.integers(0, 256, cells).tolist(),
            )
            canaries.append(canary)
    plan = CanaryPlan(
        image_shape=source.image_shape,
        classes=tuple(classes),
        source=source.fingerprint,
        config=config,
        canaries=tuple(canaries),
    )
    return PlantedImages(source, plan)


def _pairs(labels: Indices, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Random pairs of images of one class, in random order; no image twice."""
    waiting: dict[int, int] = {}
    pairs = []
    for row in rng.permutation(len(labels)).tolist():
        label = int(labels[row])
        if label in waiting:
            pairs.append((waiting.pop(label), row))
        else:
            waiting[label] = row
    return pairs


# -- keys ------------------------------------------------------------------------------------------


def _border(shape: Sequence[int]) -> NDArray[np.int64]:
    """Number of the key's cell that each pixel belongs to, int64 (H, W); -1 inside."""
    _, height, width = shape
    side = max(1, min(height, width) // _CELLS)
    # Where the cells do not fit evenly, the last one is larger.
    y, x = (np.minimum(np.arange(n) // side, n // side - 1) for n in (height, width))
    edge = np.isin(y, (0, y[-1]))[:, None] | np.isin(x, (0, x[-1]))[None]
    cells = y[:, None] * (x[-1] + 1) + x[None]
    numbers = np.full((height, width), -1, np.int64)
    numbers[edge] = np.unique(cells[edge], return_inverse=True)[1]
    return numbers


def mark(pixels: Pixels, keys: Sequence[Sequence[int]]) -> Pixels:
    """Images with their keys as borders, in all channels, uint8 (n, C, H, W)."""
    border = torch.from_numpy(_border(pixels.shape[1:]))
    levels = torch.tensor(keys, dtype=torch.uint8, device="cpu")[:, border.clamp(min=0)]
    return torch.where(border >= 0, levels[:, None], pixels)


def borders(pixels: Pixels) -> Features:
    """Mean gray level of each cell of the images' borders, float64 (n, K)."""
    border = _border(pixels.shape[1:])
    gray = pixels.double().mean(1).numpy()[:, border >= 0]
    cells = np.eye(int(border.max()) + 1)[border[border >= 0]]
    found: Features = gray @ (cells / cells.sum(0))
    return found
