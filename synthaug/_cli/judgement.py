"""Commands that judge synthetic images: are they copies, and are they of use?"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from synthaug._cli.arguments import load, names
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import defaults
from synthaug._cli.options import EVALUATION, ExtractorOptions, ImageOptions, RayOptions
from synthaug._training.classifier_config import ClassifierConfig

FILES = (".npy", ".npz", ".hdf5")
"""Of images or features, which `synthaug.audit` reads itself; a .h5 file is a cache."""
AUDIT = defaults("_audit.run:audit")
DENSITY = defaults("evaluation._hardness:score_hardness")
LABELS = defaults("evaluation._label_check:check_labels")
QUALITY = defaults("evaluation._quality:score_quality")


def published(
    report: Any,
    call: Call,
    out: str,
    record: Mapping[str, Any],
    *,
    text: str | None = None,
    code: int = 0,
    **redaction: bool,
) -> Result:
    """Writes a report, which keeps the command that made it, as OUT.html and OUT.json.

    Args:
        report: Any `Report` with `settings`.
        call: The command.
        out: Files to write, without their endings.
        record: What programs are told besides the names of the files.
        text: What people are told before them; by default the report.
        code: Exit code.
        redaction: Arguments of `to_html` and `to_json`.
    """
    report = replace(report, settings={**report.settings, "command": call.line})
    report.to_html(f"{out}.html", **redaction)
    report.to_json(f"{out}.json", **redaction)
    return Result(
        record={**record, "html": f"{out}.html", "json": f"{out}.json"},
        text=f"{report if text is None else text}\nReport: {out}.html, {out}.json",
        code=code,
    )


@dataclass(frozen=True, kw_only=True)
class AuditOptions:
    """The comparison.

    Args:
        holdout: Real images that it never saw. Without them the verdict is inconclusive at best.
        features: Where distances are taken: pixels, spectrum, torchscript:FILE, torchvision:NAME or
            timm:NAME; several with commas between them.
        fdr: False discovery rate among the flagged images.
        k: Neighbours that an image's distance is compared with; 50 or fewer by default.
        index: How neighbours are searched; all but exact may miss some, and say the share found.
        engine: local works in this process, ray on the actors of a cluster.
        max_pairs: Pairs of images shown in the report.
        deduplicate: Set hold-out images aside that are training images, instead of refusing.
        redact: Leave real images, and flagged ones, out of the report.
        seed: For the planted copies.
    """

    holdout: str | None = AUDIT.holdout
    features: str | list[str] | None = AUDIT.features
    fdr: float = AUDIT.fdr
    k: int | None = AUDIT.k
    index: Literal["exact", "auto", "ivf", "hnsw", "sq", "pq", "ivfpq"] = AUDIT.index
    engine: Literal["local", "ray"] = "local"
    max_pairs: int = AUDIT.max_pairs
    deduplicate: bool = AUDIT.deduplicate
    redact: bool = False
    seed: int = AUDIT.seed


def audit(
    synthetic: str,
    train: str,
    options: AuditOptions,
    conform: ImageOptions,
    networks: ExtractorOptions,
    ray: RayOptions,
    *,
    out: str = "audit",
    call: Call,
) -> Result:
    """Ask whether synthetic images are copies of training images.

    synthaug audit cifar10.h5 folder:cifar10/train --holdout folder:cifar10/test

    Args:
        synthetic: A cache (FILE.h5), a data set such as folder:PATH, or a .npy, .npz or .hdf5 file
            of images or features.
        train: The images that the generator was trained on. They are brought to the cache's image
            size and channels.
        options: What is compared, and how.
        conform: For data sets.
        networks: Where features are computed and kept.
        ray: How to spread over a cluster.
        out: Writes OUT.html and OUT.json.
    """
    from synthaug._audit import audit as run
    from synthaug.features import ExtractionConfig

    spaces = [networks.extractor(name) for name in names(options.features or [])]
    own_file = ":" not in synthetic and synthetic.lower().endswith(FILES)
    images: Any = synthetic if own_file else conform.synthetic(synthetic)

    def real(spec: str | None) -> Any:
        if spec is None or (":" not in spec and spec.lower().endswith((*FILES, ".h5"))):
            return spec
        return conform.load(spec) if own_file else load(spec, images.image_shape)

    settings = ("fdr", "k", "index", "max_pairs", "deduplicate", "seed")
    with networks.kept(out) as features_dir:
        engine = ray.engine(options.engine)
        report = run(
            images,
            real(train),
            holdout=real(options.holdout),
            features=spaces or None,
            extraction=ExtractionConfig(directory=features_dir, engine=engine),
            **{name: vars(options)[name] for name in settings},
        )
        record = {
            "verdict": report.verdict,
            "reasons": list(report.reasons),
            "judged": int((report.tier >= 0).sum()),
            "flagged": report.flagged.tolist(),
            "withheld": report.withheld.tolist(),
            "smallest_effect": report.smallest_effect,
        }
        text = f"{report.verdict}: {' '.join(report.reasons)}"
        code = int(report.exit_code)
        return published(report, call, out, record, text=text, code=code, redact=options.redact)


@dataclass(frozen=True, kw_only=True)
class ArmOptions:
    """Arms.

    Args:
        audit: JSON report of the cache; the images it withholds are left out.
        labels: JSON that evaluate labels wrote about the cache; what it withheld is left out.
        autoencoder: A latent diffusion checkpoint. Adds an arm of real images that its autoencoder
            encoded and decoded: the ceiling of the images that such a model draws.
        fraction: Share of the real images replaced by synthetic ones in the mixed arm.
        ratios: Compares amounts instead (0,1,2,3): the real images with so many synthetic ones per
            real one, as many of every class.
    """

    audit: str | None = None
    labels: str | None = None
    autoencoder: str | None = None
    fraction: float = 0.5
    ratios: float | list[float] | None = None

    def build(self, images: Any, cache: Any, device: str | None) -> dict[str, Any]:
        """The arms by name: what to train on."""
        from synthaug._datasets import MixedDataset
        from synthaug.evaluation import reconstructions, scaling_arms, standard_arms

        report = self._verdicts()
        if self.ratios is None:
            arms: dict[str, Any] = standard_arms(
                images,
                mixed=MixedDataset(images, cache, audit=report, fraction=self.fraction),
                synthetic=MixedDataset(images, cache, audit=report, fraction=1.0),
            )
        else:
            ratios = self.ratios if isinstance(self.ratios, list) else [self.ratios]
            arms = {**scaling_arms(images, cache, audit=report, ratios=ratios)}
        if self.autoencoder is not None:
            arms["real, decoded"] = reconstructions(images, self.autoencoder, device=device)
        return arms

    def _verdicts(self) -> Any:
        """Which images of the cache are left out."""
        from synthaug._audit import AuditReport
        from synthaug.evaluation import LabelCheck

        report: Any = None if self.audit is None else AuditReport.from_json(self.audit)
        if self.labels is None:
            return report
        check = LabelCheck.from_json(self.labels)
        return check if report is None else check.with_audit(report)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Runs of the same training.

    Args:
        seeds: Runs with other initial weights and another order of the images.
        seed: Seed of the first run; run i uses seed + i.
        validation: Images to choose the best moment of training by; else the last one counts.
        padding: Largest random shift in pixels; by default an eighth of the side, and below 16
            pixels a side small shifts and turns between the pixels.
        allow_overlap: Go on if the splits share images; the report counts them.
    """

    seeds: int = EVALUATION.seeds
    seed: int = 0
    validation: str | None = EVALUATION.validation
    padding: int | None = None
    allow_overlap: bool = EVALUATION.allow_overlap


def evaluate(
    real: str,
    synthetic: str,
    test: str,
    arms: ArmOptions,
    classifiers: ClassifierConfig,
    runs: RunOptions,
    *,
    out: str = "evaluation",
    call: Call,
) -> Result:
    """Train the same classifier on real, real plus synthetic, and synthetic images.

    synthaug evaluate folder:cifar10/train cifar10.h5 folder:cifar10/test --audit audit.json

    Args:
        real: Labelled training images. All real images are brought to the cache's image size and
            channels.
        synthetic: The cache.
        test: Test images; used once per run, at the end.
        arms: What is compared.
        classifiers: What is trained.
        runs: How often.
        out: Writes OUT.html and OUT.json, and keeps finished runs in the directory OUT.
    """
    from synthaug._cache import SynthCache
    from synthaug.evaluation import StandardAugment
    from synthaug.evaluation import evaluate as run

    cache = SynthCache(synthetic)
    shape = cache.image_shape
    images = load(real, shape)
    augment: Any = EVALUATION.augment
    if runs.padding is not None:
        flip = classifiers.horizontal_flip
        augment = StandardAugment(padding=runs.padding, horizontal_flip=flip)
        classifiers = replace(classifiers, horizontal_flip=False)
    table = run(
        arms.build(images, cache, classifiers.device),
        test=load(test, shape),
        validation=None if runs.validation is None else load(runs.validation, shape),
        seeds=range(runs.seed, runs.seed + runs.seeds),
        config=classifiers,
        augment=augment,
        baseline="real, augmented" if arms.ratios is None else None,
        allow_overlap=runs.allow_overlap,
        output_dir=out,
    )
    call = call.having(precision=table.settings["precision"])
    record = {
        "baseline": table.baseline,
        "arms": {name: _arm(table, name) for name in table.arm_names},
    }
    return published(table, call, out, record, text=table.table())


def _arm(table: Any, name: str) -> dict[str, Any]:
    """Accuracies of one arm, seed by seed, and its gain over the baseline."""
    gain = None if name == table.baseline else asdict(table.difference(name))
    return {
        "accuracies": table.accuracies(name).tolist(),
        "mean": table.mean(name),
        "std": table.std(name),
        "gain": gain,
    }


@dataclass(frozen=True, kw_only=True)
class ScoringOptions:
    """What is compared.

    Args:
        features: What is measured in: torchscript:FILE, torchvision:NAME, timm:NAME, pixels or
            spectrum. Those of a classifier or a self-supervised network mean most.
        holdout: Labelled real images that are not among the others: what synthetic ones compare
            with.
    """

    features: str | None = None
    holdout: str | None = None


@contextmanager
def _scored(
    run: Callable[..., Any],
    synthetic: str,
    real: str,
    options: ScoringOptions,
    conform: ImageOptions,
    networks: ExtractorOptions,
    out: str,
    **settings: Any,
) -> Iterator[Any]:
    """The report of `run` about synthetic and real images; features are kept until it is written.

    Args:
        run: Compares them.
        synthetic: A cache or a data set.
        real: A data set, which is brought to its shape and classes.
        options: What they are compared by.
        conform: For data sets.
        networks: Where features are computed and kept.
        out: The report.
        settings: Further arguments of `run`.
    """
    extractor = networks.extractor(options.features)
    images = conform.synthetic(synthetic)

    def opened(spec: str) -> Any:
        return load(spec, images.image_shape, tuple(images.classes))

    with networks.kept(out) as features_dir:
        yield run(
            images,
            opened(real),
            features=extractor,
            holdout=None if options.holdout is None else opened(options.holdout),
            features_dir=features_dir,
            **settings,
        )


@dataclass(frozen=True, kw_only=True)
class DensityOptions(ScoringOptions):
    """Density.

    Args:
        structure: One covariance per class, one for all, or variances alone.
        estimator: Of covariances; empirical needs more images of a class than dimensions.
        components: Projects the features on so many principal components first.
        k: Neighbours of AvgkNN and LOF.
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
    networks: ExtractorOptions,
    *,
    out: str = "density",
    call: Call,
) -> Result:
    """Say how rare synthetic images are among real ones of their class: hardness, AvgkNN, LOF.

    synthaug evaluate density cifar10.h5 folder:cifar10/train --features torchvision:resnet50

    Args:
        synthetic: A cache (FILE.h5), or a data set such as folder:PATH.
        train: Labelled real images, to which the Gaussians are fitted. All real images are brought
            to the cache's image size and channels.
        options: What is measured.
        conform: For data sets.
        networks: Where features are computed and kept.
        out: Writes OUT.html and OUT.json.
    """
    from synthaug.evaluation._hardness import score_hardness

    settings = {name: vars(options)[name] for name in ("structure", "estimator", "components", "k")}
    scored = _scored(score_hardness, synthetic, train, options, conform, networks, out, **settings)
    with scored as report:
        return published(report, call, out, {"summary": report.summary()})


def evaluate_labels(
    synthetic: str,
    real: str,
    classifiers: ClassifierConfig,
    *,
    threshold: float | None = LABELS.threshold,
    percentile: float | None = LABELS.percentile,
    seeds: int = len(LABELS.seeds),
    out: str = "labels",
    call: Call,
) -> Result:
    """Withhold synthetic images that classifiers trained on real ones do not take for their class.

    synthaug evaluate labels variants.h5 folder:cifar10/train --threshold 0.2

    Args:
        synthetic: The cache.
        real: Labelled training images. They are brought to the cache's image size and channels.
        classifiers: What is trained.
        threshold: Withholds images whose class has a lower probability.
        percentile: Withholds this share of the images of each class instead, in percent: those
            whose class has the lowest probability.
        seeds: How many classifiers, whose probabilities are averaged.
        out: Writes OUT.json, for evaluate --labels.
    """
    from synthaug._cache import SynthCache
    from synthaug._support.files import check_folder
    from synthaug.evaluation._label_check import check_labels

    cache = SynthCache(synthetic)
    check_folder(Path(out).parent)
    check = check_labels(
        cache,
        load(real, cache.image_shape, cache.classes),
        threshold=threshold,
        percentile=percentile,
        seeds=range(seeds),
        config=classifiers,
    )
    check = replace(check, settings={**check.settings, "command": call.line})
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    check.to_json(f"{out}.json")
    return Result(
        record={
            "withheld": check.withheld.nonzero()[0].tolist(),
            "counts": {name: list(pair) for name, pair in check.counts.items()},
            "json": f"{out}.json",
        },
        text=f"{check}\nNext: synthaug evaluate {real} {synthetic} TEST --labels {out}.json",
    )


@dataclass(frozen=True, kw_only=True)
class QualityOptions(ScoringOptions):
    """Scores.

    Args:
        classifier: torchscript:FILE, a classifier that returns logits, for the inception score.
        images: Images of each set; by default as many as all of them have.
        k: Neighbours of precision, recall, density and coverage.
        force: Take the Fréchet distance of fewer images than twice the features.
        seed: Of the choice of the images.
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
    networks: ExtractorOptions,
    *,
    out: str = "quality",
    call: Call,
) -> Result:
    """Say how good synthetic images are as a whole: Fréchet and kernel distance, precision, recall.

    synthaug evaluate quality cifar10.h5 folder:cifar10/test --features torchvision:resnet50

    Args:
        synthetic: A cache (FILE.h5), or a data set such as folder:PATH.
        real: Labelled real images, the reference. They are brought to the cache's image size and
            channels. Without --holdout they are divided into two halves, to show what real images
            get.
        options: What is measured.
        conform: For data sets.
        networks: Where features are computed and kept.
        out: Writes OUT.html and OUT.json.
    """
    from synthaug.evaluation._quality import score_quality

    settings = {name: vars(options)[name] for name in ("images", "k", "force", "seed")}
    if options.classifier is not None:
        if not options.classifier.startswith("torchscript:"):
            raise ValueError(
                f"`classifier` is {options.classifier!r}, expected torchscript:FILE, a network "
                "that returns logits."
            )
        settings["classifier"] = networks.extractor(options.classifier, "--classifier")
    scored = _scored(score_quality, synthetic, real, options, conform, networks, out, **settings)
    with scored as report:
        record = {"synthetic": asdict(report.synthetic), "floor": asdict(report.floor)}
        return published(report, call, out, record)
