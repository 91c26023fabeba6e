"""Commands that compare synthetic images with real ones in a space of features."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from synthaug._cli.arguments import next_line
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import defaults
from synthaug._cli.options import ExtractorOptions, FileOptions, ImageOptions
from synthaug._cli.publishing import published

DENSITY = defaults("evaluation._hardness:score_hardness")
QUALITY = defaults("evaluation._quality:score_quality")


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """Images and features.

    Args:
        features: Space of the measurements: torchscript:FILE, torchvision:NAME, timm:NAME, pixels
            or spectrum. Those of a classifier or a self-supervised network mean most.
        holdout: Labeled real images that are not among the others: what synthetic ones compare
            with.
    """

    features: str | None = None
    holdout: str | None = None


@contextmanager
def _scored(
    run: Callable[..., Any],
    compared: tuple[str, str],
    options: ScoringOptions,
    conform: ImageOptions,
    files: FileOptions,
    networks: ExtractorOptions,
    out: str,
    **classifiers: Any,
) -> Iterator[Any]:
    """The report of `run` about synthetic and real images; features are kept until it is written.

    Args:
        run: Compares them.
        compared: A cache or a data set; and real images, brought to its shape and classes.
        options: Settings of the comparison; those of a command alone are settings of `run`.
        conform: For data sets.
        files: For folders.
        networks: Where features are computed and kept.
        out: The report.
        classifiers: Settings of `run` that options merely name.
    """
    extractor, (synthetic, real) = networks.extractor(options.features), compared
    images = conform.synthetic(synthetic, files)
    shared = {field.name for field in fields(ScoringOptions)}
    settings = {name: value for name, value in vars(options).items() if name not in shared}

    def opened(spec: str) -> Any:
        return files.shaped(spec, images.image_shape, tuple(images.classes))

    with networks.kept(out) as features_dir:
        yield run(
            images,
            opened(real),
            features=extractor,
            holdout=None if options.holdout is None else opened(options.holdout),
            features_dir=features_dir,
            **{**settings, **classifiers},
        )


@dataclass(frozen=True, kw_only=True)
class DensityOptions(ScoringOptions):
    """Density.

    Args:
        structure: One covariance per class, one for all, or variances alone.
        estimator: Estimator of covariances; empirical needs more images of a class than dimensions.
        components: Projects the features on so many principal components first.
        k: Neighbors of AvgkNN and LOF.
    """

    structure: Literal["full", "tied", "diagonal"] = DENSITY.structure
    estimator: Literal["ledoit_wolf", "oas", "empirical"] = DENSITY.estimator
    components: int | None = DENSITY.components
    k: int = DENSITY.k


def evaluate_density(
    synthetic: str,
    train: str,
    options: DensityOptions,
    conform: ImageOptions,
    files: FileOptions,
    networks: ExtractorOptions,
    *,
    out: str = "density",
    call: Call,
) -> Result:
    """Say how rare synthetic images are among real ones of their class: hardness, AvgkNN, LOF.

    synthaug evaluate density cifar10.h5 folder:cifar10/train --features torchvision:resnet50

    Args:
        synthetic: A cache (FILE.h5), or a data set such as folder:PATH.
        train: Labeled real images, to which the Gaussians are fitted. All real images are brought
            to the cache's image size and channels.
        options: Settings of the measurement.
        conform: For data sets.
        files: For folders.
        networks: Where features are computed and kept.
        out: Writes OUT.html and OUT.json.
    """
    from synthaug.evaluation._hardness import score_hardness

    compared = synthetic, train
    with _scored(score_hardness, compared, options, conform, files, networks, out) as report:
        line = next_line("evaluate", "quality", synthetic, train)
        return published(report, call, out, {"summary": report.summary()}, next=line)


@dataclass(frozen=True, kw_only=True)
class QualityOptions(ScoringOptions):
    """Scores.

    Args:
        classifier: torchscript:FILE, a classifier that returns logits, for the inception score.
        images: Images of each set; by default as many as all of them have.
        k: Neighbors of precision, recall, density and coverage.
        force: Take the Fréchet distance of fewer images than twice the features.
        seed: Seed of the choice of the images.
    """

    classifier: str | None = QUALITY.classifier
    images: int | None = QUALITY.images
    k: int = QUALITY.k
    force: bool = QUALITY.force
    seed: int = QUALITY.seed


def evaluate_quality(
    synthetic: str,
    real: str,
    options: QualityOptions,
    conform: ImageOptions,
    files: FileOptions,
    networks: ExtractorOptions,
    *,
    out: str = "quality",
    call: Call,
) -> Result:
    """Say how good synthetic images are as a whole: Fréchet and kernel distance, precision, recall.

    synthaug evaluate quality cifar10.h5 folder:cifar10/test --features torchvision:resnet50

    Args:
        synthetic: A cache (FILE.h5), or a data set such as folder:PATH.
        real: Labeled real images, the reference. They are brought to the cache's image size and
            channels. Without --holdout they are divided into two halves, to show what real images
            get.
        options: Settings of the measurement.
        conform: For data sets.
        files: For folders.
        networks: Where features are computed and kept.
        out: Writes OUT.html and OUT.json.
    """
    from synthaug.evaluation._quality import score_quality

    named: dict[str, Any] = {}
    if options.classifier is not None:
        if not options.classifier.startswith("torchscript:"):
            raise ValueError(
                f"`classifier` is {options.classifier!r}, expected torchscript:FILE, a network "
                "that returns logits."
            )
        named["classifier"] = networks.extractor(options.classifier, "--classifier")
    compared = synthetic, real
    scored = _scored(score_quality, compared, options, conform, files, networks, out, **named)
    with scored as report:
        record = {"synthetic": asdict(report.synthetic), "floor": asdict(report.floor)}
        line = next_line("evaluate", "TRAIN", synthetic, "TEST")
        return published(report, call, out, record, next=line)
