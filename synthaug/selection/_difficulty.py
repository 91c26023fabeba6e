"""How hard real images are for a classifier: when it learns them, and what it says without them.

Notation: learning time as in Toneva et al. 2019 and the "first epoch from which an image stays
right"; forgetting of Toneva et al. 2019, "An Empirical Study of Example Forgetting"; EL2N of Paul
et al. 2021, "Deep Learning on a Data Diet": |p - onehot(y)| early in the training.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from markupsafe import Markup
from PIL import Image

from synthaug._images.source import ImageSource
from synthaug._pixels import grid
from synthaug._support.arguments import check_choice, check_whole
from synthaug._support.charts import histogram
from synthaug._support.html import Part, checked_uri, data_uri, heading, table
from synthaug._support.report import Report
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._types import JSON, Doubles, Labels, Pixels, Singles, Unsigned
from synthaug.selection._folds import Judges

Measure = Literal["loss", "learning_time", "el2n", "forgetting"]
Kind = Literal["easy", "medium", "hard"] | tuple[float, float]
_MEASURES: dict[Measure, str] = {
    "loss": "mean cross-entropy over the training",
    "learning_time": "share of the training from which it stays right, above 1 for never",
    "el2n": "EL2N: distance of the early probabilities from the label",
    "forgetting": "how often it was right and became wrong",
}
_SHOWN_CLASSES = 10
_SHOWN = 6
_EARLY = 0.2
"""Share of the training after which EL2N is taken."""


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Difficulty(Report):
    """How hard real images are, made by `selection.difficulty`.

        hard = difficulty(real)
        hard.to_html("difficulty.html")
        plan = synthesizer.plan(per_class=500, source_weights=hard.weights("medium"))
        mixed = MixedDataset(real, cache, audit=report, fraction=0.5,
                             draw=mixing.Weighted(hard.of_sources(cache, hard.weights("medium"))))

    All measures grow with difficulty, and are means over the classifiers that judge an image.
    """

    _FORMAT = "synthaug difficulty"
    _NOUN = "a report of difficulty"
    _REMEDY = "Score the images again."
    _TITLE = "Difficulty of real images"
    _INDENT = None
    _PRIVATE = True  # its picture shows real images

    identity: dict[str, JSON]
    """Of the real images."""
    classes: tuple[str, ...]
    labels: Labels
    """Class of every image, int64 (N,)."""
    keys: Unsigned
    """Content digest of every image, by which sources of synthetic images are found."""
    loss: Doubles
    """Mean cross-entropy over the training, float64 (N,)."""
    learning_time: Doubles
    """Share of the training after which an image stays right, (0, 1]; above 1 for never."""
    el2n: Doubles
    """|p - onehot(y)| after a fifth of the training, from 0 to sqrt(2)."""
    forgetting: Doubles
    """How often an image was right at one look and wrong at the next."""
    agreement: Doubles
    """Share of the classifiers that are right in the end."""
    settings: dict[str, JSON]
    """How the classifiers were trained."""
    picture: str
    """The easiest and the hardest images of the first classes, a `data:` address."""

    def __post_init__(self) -> None:
        for name in (*_MEASURES, "agreement", "labels", "keys"):
            if len(vars(self)[name]) != len(self.loss) or not len(self.loss):
                raise ValueError("The columns of scores differ in length, or are empty")
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise ValueError("A label is none of the classes")

    def measure(self, by: Measure = "loss") -> Doubles:
        """One of the measures, float64 (N,)."""
        check_choice(_MEASURES, by=by)
        values: Doubles = vars(self)[by]
        return values

    def ranks(self, by: Measure = "loss", *, per_class: bool = True) -> Doubles:
        """Where every image is among those of its class, or of all, float64 (N,).

        0.5 / n for the easiest, 1 - 0.5 / n for the hardest of n; equal images have equal ranks.
        """
        values, ranks = self.measure(by), np.empty(len(self.labels))
        for c in np.unique(self.labels) if per_class else [None]:
            rows = np.flatnonzero(self.labels == c) if per_class else np.arange(len(values))
            _, place, counts = np.unique(values[rows], return_inverse=True, return_counts=True)
            ranks[rows] = ((np.cumsum(counts) - counts / 2) / len(rows))[place]
        return ranks

    def weights(self, kind: Kind = "medium", *, by: Measure = "loss") -> Doubles:
        """Weights of the images, float64 (N,) in [0, 1], by their ranks q in their classes.

        Args:
            kind: "easy" is 1 - q, "hard" is q, "medium" is 1 - |2 q - 1|; or a band of ranks, such
                as (0.6, 1.0), which have weight 1, and all others 0.
            by: The measure. Learning time has many equal values.

        Raises:
            ValueError: For another kind, or a band that holds no image of a class.
        """
        q = self.ranks(by)
        if not isinstance(kind, tuple):
            check_choice(("easy", "medium", "hard"), "Or give a band: (0.6, 1.0).", kind=kind)
        if kind == "easy":
            return 1 - q
        if kind == "hard":
            return q
        if kind == "medium":
            return 1 - np.abs(2 * q - 1)
        low, high = kind
        inside = (q >= low) & (q <= high)
        for c in np.unique(self.labels):
            if not inside[self.labels == c].any():
                raise ValueError(
                    f"`kind` {kind} holds no image of class {self.classes[c]!r}. Give a wider band "
                    "within [0, 1]."
                )
        return inside.astype(np.float64)

    def strata(self, bins: int = 10, *, by: Measure = "loss") -> Labels:
        """The part of equal size that every image is in, int64 (N,): 0 the easiest of all."""
        check_whole(2, bins=bins)
        ranks = self.ranks(by, per_class=False)
        return np.minimum((ranks * bins).astype(np.int64), bins - 1)

    def of_sources(self, cache: Any, values: Doubles | None = None) -> Doubles:
        """A value for every row of a cache: that of the real image it started from.

        Args:
            cache: A `SynthCache`, or anything with a plan.
            values: One per real image, float (N,); the loss by default.

        Returns:
            float64 (rows,); NaN for rows that started from noise or from another image.
        """
        values = self.loss if values is None else np.asarray(values, np.float64)
        if values.shape != self.loss.shape:
            raise ValueError(f"Got {len(values)} `values` for {len(self.loss)} real images.")
        plan = cache.plan
        order = np.argsort(self.keys, kind="stable")
        place = np.searchsorted(self.keys[order], plan["source_key"])
        found = order[np.minimum(place, len(order) - 1)]
        known = (plan["source"] >= 0) & (self.keys[found] == plan["source_key"])
        return np.where(known, values[found], np.nan)

    # -- the report ------------------------------------------------------------------------------

    def _summary(self) -> list[Part]:
        header = ["class", "images", "loss", "learning time", "never learned", "right in the end"]
        lines = [header]
        for c, name in enumerate(self.classes):
            own = self.labels == c
            if own.any():
                never = (self.learning_time[own] > 1).mean()
                numbers = (self.loss[own].mean(), np.median(self.learning_time[own]))
                shares = (never, self.agreement[own].mean())
                cells = [*(f"{x:.3g}" for x in numbers), *(f"{x:.1%}" for x in shares)]
                lines.append([name, f"{own.sum():,}", *cells])
        return [lines]

    def _pictures(self) -> list[Part]:
        caption = (
            f"The {_SHOWN} easiest images of each class on the left, the {_SHOWN} hardest on the "
            "right, the hardest last"
        )
        return [
            Markup(
                '<figure><img src="{}" alt="{}" style="max-width:100%"><figcaption>{}.</figcaption>'
                "</figure>"
            ).format(checked_uri(self.picture), caption, caption)
        ]

    def _sections(self) -> list[Part]:
        charts = [
            histogram({"all images": self.measure(m)}, x_label=_MEASURES[m]) for m in _MEASURES
        ]
        hardest = np.argsort(-self.loss, kind="stable")[:20]
        rows = [
            [
                str(i),
                self.classes[self.labels[i]],
                f"{self.loss[i]:.3g}",
                f"{self.agreement[i]:.0%}",
            ]
            for i in hardest.tolist()
        ]
        header = ["image", "class", "loss", "right in the end"]
        return [
            *self._summary(),
            *self._pictures(),
            "The hardest images of all may have wrong labels: look before you draw more of them.",
            table(header, rows),
            heading("How the measures are distributed"),
            *charts,
        ]

    def _columns(self) -> Mapping[str, Any]:
        """Returns a row per real image."""
        measures = {name: vars(self)[name] for name in (*_MEASURES, "agreement")}
        return {"class": np.array(self.classes, object)[self.labels], **measures}


def difficulty(
    real: Any,
    *,
    runs: int = 3,
    folds: int = 2,
    config: ClassifierConfig | None = None,
    looks: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Difficulty:
    """Scores real images by how hard classifiers find them that have not learned from them.

    Each run divides the images into folds, near-duplicates in one fold, and trains a classifier for
    each fold on the others; all are looked at `looks` times while they learn.

    Args:
        real: Labeled training images that name their classes: never test images.
        runs: How often it is repeated with other seeds and folds; at least 3 make scores stable.
        folds: 1 judges images by classifiers that learned from them, as forgetting and learning
            time were first defined; it needs half of the trainings of 2.
        config: Network and training of the classifiers; by default `ClassifierConfig()`.
        looks: How often images are judged during a training, at least 2.
        seed: Seed of the first run.
        progress: Show a bar.

    Raises:
        DataError: If a class has too few images to be divided.
        ValueError: If `real` does not name its classes, or for a number out of range.
    """
    check_whole(2, looks=looks)
    config = config or ClassifierConfig()
    judges = Judges(runs=runs, folds=folds, seed=seed, config=config, progress=progress)
    source = ImageSource.open(real, "`real`")
    classes, labels, pixels = source.named_classes(), source.labels, source.pixels()
    sums = {name: np.zeros(len(labels)) for name in (*_MEASURES, "agreement")}
    for judged, curves in judges.curves(source, pixels, np.arange(len(labels)), looks):
        for name, values in _measured(curves, labels[judged]).items():
            sums[name][judged] += values / runs
    return Difficulty(
        identity=source.identity,
        classes=classes,
        labels=labels,
        keys=source.keys(),
        **sums,
        settings={
            "runs": runs,
            "folds": folds,
            "looks": looks,
            "seed": seed,
            "steps": config.steps,
            **config.changes(),
        },
        picture=data_uri(_sheet(pixels, labels, sums["loss"])),
    )


def _measured(curves: Singles, labels: Labels) -> dict[str, Doubles]:
    """The measures of one training, each float64 (n,), from probabilities (looks, n, C)."""
    looks, each = len(curves), np.arange(len(labels))
    own = curves[:, each, labels].astype(np.float64)
    right = curves.argmax(2) == labels
    stays = np.flip(np.logical_and.accumulate(np.flip(right, 0), axis=0), 0)
    first = looks - stays.sum(0)  # looks before it stays right
    early = max(0, round(_EARLY * looks) - 1)
    error = curves[early].astype(np.float64)
    error[each, labels] -= 1
    return {
        "loss": -np.log(np.maximum(own, 1e-12)).mean(0),
        "learning_time": (first + 1) / looks,
        "el2n": np.sqrt(np.square(error).sum(1)),
        "forgetting": (right[:-1] & ~right[1:]).sum(0).astype(np.float64),
        "agreement": right[-1].astype(np.float64),
    }


def _sheet(pixels: Pixels, labels: Labels, loss: Doubles) -> Image.Image:
    """The easiest and the hardest images of the first classes, a row per class."""
    white = torch.full_like(pixels[:1], 255)
    rows = []
    for c in np.unique(labels)[:_SHOWN_CLASSES]:
        own = np.flatnonzero(labels == c)
        own = own[np.argsort(loss[own], kind="stable")]
        easy, hard = np.resize(own[:_SHOWN], _SHOWN), np.resize(own[-_SHOWN:], _SHOWN)
        rows += [pixels[easy], white, pixels[hard]]
    scale = max(1, 64 // max(pixels.shape[2:]))
    return grid(torch.cat(rows), columns=2 * _SHOWN + 1, scale=scale)
