"""Features of all images, Gaussians and neighbours of the real ones, scores of every image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from synthaug._images.source import ImageSource
from synthaug._pixels import to_pil
from synthaug._support.html import data_uri
from synthaug._types import JSON, Features, Indices, Labels
from synthaug.density import ClassGaussians, Estimator, Neighbourhood, Structure
from synthaug.evaluation._comparison import check_comparable, common_classes, features_of, labels_in
from synthaug.evaluation._hardness.report import HardnessReport, HardnessScores
from synthaug.features import Extractor, describe

_PICTURES = 24
_PICTURE_SIDE = 96


def score_hardness(
    synthetic: Any,
    train: Any,
    *,
    features: Extractor,
    holdout: Any = None,
    structure: Structure = "full",
    estimator: Estimator = "ledoit_wolf",
    components: int | None = None,
    k: int = 5,
    batch_size: int = 512,
    features_dir: str | None = None,
    progress: bool = True,
) -> HardnessReport:
    """Scores synthetic images by how rare they are among real ones of their class.

        hardness = synthaug.evaluation.score_hardness(cache, train, holdout=test, features=encoder)
        hardness.to_html("density.html"), hardness.to_json("density.json")
        mixed = synthaug.MixedDataset(real, cache, audit=report, fraction=0.5,
                                      filters=[mixing.Highest(hardness, 0.2)])

    Hardness depends on the features: take those of a classifier or of a self-supervised network,
    and compare only scores of one extractor. Training images are scored as if each of them had been
    left out; a network that was trained on them still sees them better than others, so it is the
    held-out images that synthetic ones compare with.

    Args:
        synthetic: A `SynthCache`, of which the rows that are done are scored, or another labelled
            data set.
        train: Labelled real images, to which the Gaussians are fitted and among which neighbours
            are searched; at least four of every class by default.
        features: Extractor, as for `synthaug.audit`.
        holdout: Labelled real images that are not among `train`.
        structure: See `density.ClassGaussians.fit`.
        estimator: Likewise.
        components: Likewise. Neighbours are searched among the whole features.
        k: Neighbours of AvgkNN and of the outlier factor.
        batch_size: Images per call of the extractor.
        features_dir: Folder in which features of networks are kept for later calls.
        progress: Show bars.

    Raises:
        ValueError: For a set without images, or what `ClassGaussians.fit` refuses.
        MismatchError: If classes or image shapes differ.
    """
    sets = {"synthetic": synthetic, "train": train, "holdout": holdout}
    sources = {n: ImageSource.open(x, f"`{n}`") for n, x in sets.items() if x is not None}
    classes = common_classes(sources)
    rows = {name: source.done_rows("scored") for name, source in sources.items()}
    labels = {name: labels_in(classes, source) for name, source in sources.items()}
    check_comparable(sources, rows)

    vectors = {
        name: features_of(
            source,
            rows[name],
            features,
            name,
            batch_size=batch_size,
            features_dir=features_dir,
            progress=progress,
        )
        for name, source in sources.items()
    }
    gaussians = ClassGaussians.fit(
        vectors["train"],
        labels["train"][rows["train"]],
        len(classes),
        structure=structure,
        estimator=estimator,
        components=components,
    )
    neighborhood = Neighbourhood(vectors["train"], k)
    scores = {
        name: _scores(name, vectors[name], labels[name], rows[name], gaussians, neighborhood)
        for name in sources
    }
    settings: dict[str, JSON] = {
        "structure": structure,
        "estimator": estimator,
        "components": components,
        "k": k,
        **{name: source.fingerprint for name, source in sources.items() if name != "synthetic"},
    }
    return HardnessReport(
        identity=sources["synthetic"].identity,
        classes=classes,
        synthetic=scores["synthetic"],
        train=scores["train"],
        holdout=scores.get("holdout"),
        extractor=describe(features),
        settings=settings,
        pictures=_pictures(sources["synthetic"], scores["synthetic"]),
    )


def _scores(
    name: str,
    x: Features,
    labels: Labels,
    rows: Indices,
    gaussians: ClassGaussians,
    neighborhood: Neighbourhood,
) -> HardnessScores:
    """The scores of one set at the places of all its rows, NaN where a row cannot be read."""
    y = labels[rows]
    if name == "train":
        hardness, near = gaussians.leave_one_out(x, y), neighborhood.scores()
    else:
        hardness, near = gaussians.hardness(x, y), neighborhood.scores(x)
    columns = [np.full(len(labels), np.nan) for _ in range(3)]
    for column, values in zip(columns, (hardness, *near), strict=True):
        column[rows] = values
    return HardnessScores(labels, *columns)


def _pictures(
    source: ImageSource, scores: HardnessScores
) -> dict[str, tuple[dict[str, JSON], ...]]:
    """The hardest and the easiest images, as PNG in `data:` addresses."""
    order = np.argsort(scores.hardness, kind="stable")[: int(np.isfinite(scores.hardness).sum())]

    def shown(rows: Sequence[int]) -> tuple[dict[str, JSON], ...]:
        pictures: list[dict[str, JSON]] = []
        for row, pixels in zip(rows, source.pixels(rows), strict=True):
            image = to_pil(pixels)
            image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
            pictures.append({"row": int(row), "image": data_uri(image)})
        return tuple(pictures)

    hardest, easiest = order[::-1][:_PICTURES].tolist(), order[:_PICTURES].tolist()
    return {"hardest": shown(hardest), "easiest": shown(easiest)}
