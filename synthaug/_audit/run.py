"""The memorization audit: are synthetic images copies of training images?

Every synthetic image is compared with all training images, of all classes, as it is and mirrored.
Held-out images take the very same path. What follows from it, in `decisions`:

1. rows with equal or nearly equal pixels, and rows that resemble a training image as
   near-duplicates do, are withheld, unless held-out images resemble the same one as often;
2. rows are flagged that come closer to a training image than held-out real images do, as far as
   that can be told at a given false discovery rate (`calibration`);
3. a test of all rows together notices copies that are too few to be flagged one by one
   (`precedence`);
4. training and hold-out images compete for being the closest match (`competition`). That needs more
   copies to see any, but holds for synthetic images that as a whole are closer to real ones than
   real ones are to each other. If they are so, this decides, and not 2 and 3.

Every statistic says how much closer than usual an image comes to one training image (`_matching`):
in every feature space the distance to the nearest training image over the mean distance to the next
ones (after Carlini et al. 2023, https://arxiv.org/abs/2301.13188), and likewise the distance under
the best alignment, and once registered. Such ratios keep their calibration better than bare
distances when a generator makes images that are more typical, and so closer to everything, than
real ones: with such images and 1 % planted copies, the share of wrong flags at a nominal 0.1 was
0.27 for the bare distance and 0.125 for the ratio.

Every audit also measures itself: it plants copies of training images, changed at random, among the
synthetic ones, repeats its tests, and reports how many copies it would have noticed and flagged
(`power`).
"""

from collections.abc import Sequence
from typing import Any

from synthaug._audit.assembly import report_of, shown_pairs
from synthaug._audit.comparison import compare
from synthaug._audit.inputs import read_set
from synthaug._audit.judgment import judgment_of
from synthaug._audit.report import AuditReport
from synthaug._audit.sets import sets_of
from synthaug._audit.settings import AuditSettings
from synthaug.features import ExtractionConfig, Extractor


def audit(
    synthetic: Any,
    train: Any,
    *,
    holdout: Any = None,
    features: str | Extractor | Sequence[str | Extractor] | None = None,
    fdr: float = 0.05,
    k: int | None = None,
    index: str = "exact",
    extraction: ExtractionConfig | None = None,
    max_pairs: int = 50,
    deduplicate: bool = False,
    progress: bool = True,
    seed: int = 0,
) -> AuditReport:
    """Looks for copies of training images among synthetic ones.

    Args:
        synthetic: A cache, any map-style image data set, uint8 pixels (n, C, H, W), features
            (n, d), or the path of a .npy, .npz or HDF5 file of either. Of a cache the finished rows
            are judged.
        train: All real images that the generator was trained on, in any of these forms, of the
            same shape. Every class is searched for every row. Test images, to ask whether these
            leaked into the synthetic ones.
        holdout: Real images from the same source that the generator has never seen, a random split
            made before it was trained. Without them the verdict is at best "inconclusive". Where
            `train` are test images: any other real ones.
        features: The space in which distances are taken, or several, each an extractor or a name
            that `features.named` knows; `features.Pixel(16)` by default. Equal and nearly equal
            pixels, and images that were shifted, cropped or recolored, are looked for in any case.
        fdr: False discovery rate: the share of flagged rows, on average, that may be no copies,
            and the chance to flag anything at all if nothing is copied. Both hold if synthetic
            images that are no copies come as close to training images as held-out ones do.
        k: Neighbors that the score looks at. By default 50, or the root of the number of training
            images if that is less.
        index: "exact"; or for very many training images "ivf", "hnsw", "sq", "pq" or "ivfpq", which
            may miss neighbors, and say how many they found; "auto" is ivf from a million images
            on.
        extraction: How features are computed, where they are kept, and whether the actors of a Ray
            cluster compute and search them, exactly. It changes no result.
        max_pairs: Pairs kept in the report as images.
        deduplicate: Sets hold-out images aside that are also training images, instead of refusing.
        progress: Shows a bar with the rate and the time left.
        seed: For choosing and changing the planted copies, and for random assignments.

    Returns:
        The report.

    Raises:
        TypeError: An argument is not of a kind named above.
        ValueError: A value out of range, no images, images of different shapes, a hold-out that
            overlaps the training images, or features that are not finite.
        DataError: A file cannot be read.
        EngineError: If Ray's actors find no place, or die again and again.
    """
    settings = AuditSettings(
        features=features,
        fdr=fdr,
        k=k,
        index=index,
        extraction=extraction or ExtractionConfig(),
        max_pairs=max_pairs,
        deduplicate=deduplicate,
        seed=seed,
    )
    S = read_set(synthetic, "synthetic", progress=progress)
    T = read_set(train, "train", progress=progress)
    H = None if holdout is None else read_set(holdout, "holdout", progress=progress)
    sets = sets_of(S, T, H, settings)
    comparison = compare(sets, settings, progress)
    judgment = judgment_of(sets, comparison, settings)
    pairs, holdout_pairs = shown_pairs(sets, comparison, judgment, settings)
    return report_of(sets, comparison, judgment, settings, pairs, holdout_pairs)
