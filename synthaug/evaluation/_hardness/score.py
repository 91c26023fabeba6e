"""Features of all images, Gaussians and neighbours of the real ones, scores of every image."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from synthaug._images.source import ImageSource
from synthaug._pixels import to_pil
from synthaug._support.html import data_uri
from synthaug._types import JSON, Indices
from synthaug.density import ClassGaussians, Estimator, Neighbourhood, Structure
from synthaug.evaluation._comparison import Comparison, Extraction
from synthaug.evaluation._hardness.report import Doubles, HardnessReport, HardnessScores
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
    sets = Comparison.open(synthetic=synthetic, train=train, holdout=holdout)
    sources, labels, rows = sets.sources, sets.labels, sets.rows
    extraction = Extraction(batch_size=batch_size, features_dir=features_dir, progress=progress)
    vectors = {n: extraction.features(s, rows[n], features, n) for n, s in sources.items()}
    gaussians = ClassGaussians.fit(
        vectors["train"],
        labels["train"][rows["train"]],
        len(sets.classes),
        structure=structure,
        estimator=estimator,
        components=components,
    )
    neighborhood = Neighbourhood(vectors["train"], k)
    scores = {}
    for name, x in vectors.items():
        y = labels[name][rows[name]]
        if name == "train":
            hardness, near = gaussians.leave_one_out(x, y), neighborhood.scores()
        else:
            hardness, near = gaussians.hardness(x, y), neighborhood.scores(x)
        columns = (_spread(values, rows[name], len(labels[name])) for values in (hardness, *near))
        scores[name] = HardnessScores(labels[name], *columns)
    settings: dict[str, JSON] = {
        "structure": structure,
        "estimator": estimator,
        "components": components,
        "k": k,
        **{name: source.fingerprint for name, source in sources.items() if name != "synthetic"},
    }
    return HardnessReport(
        identity=sources["synthetic"].identity,
        classes=sets.classes,
        synthetic=scores["synthetic"],
        train=scores["train"],
        holdout=scores.get("holdout"),
        extractor=describe(features),
        settings=settings,
        pictures=_pictures(sources["synthetic"], scores["synthetic"]),
    )


def _spread(values: Doubles, rows: Indices, count: int) -> Doubles:
    """Values at the places of their rows among all, float64 (count,); NaN elsewhere."""
    column = np.full(count, np.nan)
    column[rows] = values
    return column


def _pictures(
    source: ImageSource, scores: HardnessScores
) -> dict[str, tuple[dict[str, JSON], ...]]:
    """The hardest and the easiest images, as PNG in `data:` addresses."""
    order = np.argsort(scores.hardness, kind="stable")[: int(scores.scored.sum())]

    def shown(rows: Sequence[int]) -> tuple[dict[str, JSON], ...]:
        pictures: list[dict[str, JSON]] = []
        for row, pixels in zip(rows, source.pixels(rows), strict=True):
            image = to_pil(pixels)
            image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
            pictures.append({"row": int(row), "image": data_uri(image)})
        return tuple(pictures)

    hardest, easiest = order[::-1][:_PICTURES].tolist(), order[:_PICTURES].tolist()
    return {"hardest": shown(hardest), "easiest": shown(easiest)}
