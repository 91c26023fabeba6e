"""Commands that judge synthetic images: are they copies, and are they of use?"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from synthaug._cli.arguments import load, names
from synthaug._cli.call import Call, Result
from synthaug._cli.options import (
    ExtractorOptions,
    ImageOptions,
    RayOptions,
    RunOptions,
)
from synthaug._training.classifier_config import ClassifierConfig

FILES = (".npy", ".npz", ".hdf5")
"""Of images or features, which `synthaug.audit` reads itself; a .h5 file is a cache."""


def audit(
    synthetic: str,
    train: str,
    conform: ImageOptions,
    networks: ExtractorOptions,
    ray: RayOptions,
    *,
    holdout: str | None = None,
    out: str = "audit",
    features: str | list[str] | None = None,
    fdr: float = 0.05,
    k: int | None = None,
    index: Literal["exact", "auto", "ivf", "hnsw", "sq", "pq", "ivfpq"] = "exact",
    engine: Literal["local", "ray"] = "local",
    max_pairs: int = 50,
    deduplicate: bool = False,
    redact: bool = False,
    seed: int = 0,
    call: Call,
) -> Result:
    """Ask whether synthetic images are copies of training images.

    synthaug audit cifar10.h5 folder:cifar10/train --holdout folder:cifar10/test

    Args:
        synthetic: A cache (FILE.h5), a data set such as folder:PATH, or a .npy, .npz or .hdf5 file
            of images or features.
        train: The images that the generator was trained on. They are brought to the cache's image
            size and channels.
        conform: For data sets.
        networks: Where features are computed and kept.
        ray: How to spread over a cluster.
        holdout: Real images that it never saw. Without them the verdict is inconclusive at best.
        out: Writes OUT.html and OUT.json.
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
    from synthaug._audit import audit as run
    from synthaug._images.labeled import load_dataset
    from synthaug.features import ExtractionConfig

    spaces = [networks.extractor(name) for name in names(features or [])]
    if ":" not in synthetic and synthetic.lower().endswith(FILES):
        images: Any = synthetic
    else:
        images = conform.synthetic(synthetic)

    def real(spec: str) -> Any:
        if ":" not in spec and spec.lower().endswith((*FILES, ".h5")):
            return spec
        if isinstance(images, str):
            return load_dataset(spec, image_size=conform.image_size, channels=conform.channels)
        return load(spec, images.image_shape)

    with networks.kept(out) as features_dir:
        report = run(
            images,
            real(train),
            holdout=None if holdout is None else real(holdout),
            features=spaces or None,
            fdr=fdr,
            k=k,
            index=index,
            extraction=ExtractionConfig(directory=features_dir, engine=ray.engine(engine)),
            max_pairs=max_pairs,
            deduplicate=deduplicate,
            seed=seed,
        )
        report = replace(report, settings={**report.settings, "command": call.line})
        report.to_html(f"{out}.html", redact=redact)
        report.to_json(f"{out}.json", redact=redact)
    return Result(
        record={
            "verdict": report.verdict,
            "reasons": list(report.reasons),
            "judged": int((report.tier >= 0).sum()),
            "flagged": report.flagged.tolist(),
            "smallest_effect": report.smallest_effect,
            **written(out),
        },
        text=f"{report.verdict}: {' '.join(report.reasons)}\nReport: {out}.html, {out}.json",
        code=int(report.exit_code),
    )


def written(out: str, *more: str) -> dict[str, str]:
    """Where a report is."""
    return {ending: f"{out}.{ending}" for ending in ("html", "json", *more)}


@dataclass(frozen=True, kw_only=True)
class ArmOptions:
    """Arms.

    Args:
        audit: JSON report of the cache; the images it flagged are left out.
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


def evaluate(
    real: str,
    synthetic: str,
    test: str,
    arms: ArmOptions,
    classifiers: ClassifierConfig,
    runs: RunOptions,
    *,
    validation: str | None = None,
    padding: int | None = None,
    seed: int = 0,
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
        validation: Images to choose the best moment of training by; else the last one counts.
        padding: Largest random shift in pixels; by default an eighth of the side, and below 16
            pixels a side small shifts and turns between the pixels.
        seed: Seed of the first run; run i uses seed + i.
        out: Writes OUT.html and OUT.json, and keeps finished runs in the directory OUT.
    """
    from synthaug._cache import SynthCache
    from synthaug.evaluation import StandardAugment
    from synthaug.evaluation import evaluate as run

    cache = SynthCache(synthetic)
    shape = cache.image_shape
    images = load(real, shape)
    augment: Any = "standard"
    if padding is not None:
        augment = StandardAugment(padding=padding, horizontal_flip=classifiers.horizontal_flip)
        classifiers = replace(classifiers, horizontal_flip=False)
    table = run(
        arms.build(images, cache, classifiers.device),
        test=load(test, shape),
        validation=None if validation is None else load(validation, shape),
        seeds=list(range(seed, seed + runs.seeds)) if seed else runs.seeds,
        config=classifiers,
        augment=augment,
        baseline="real, augmented" if arms.ratios is None else None,
        allow_overlap=runs.allow_overlap,
        output_dir=out,
    )
    call = call.having(precision=table.settings["precision"])
    table = replace(table, settings={**table.settings, "command": call.line})
    table.to_html(f"{out}.html")
    table.to_json(f"{out}.json")
    return Result(
        record={
            "baseline": table.baseline,
            "arms": {name: _arm(table, name) for name in table.arm_names},
            **written(out),
        },
        text=f"{table.table()}\nReport: {out}.html, {out}.json",
    )


def _arm(table: Any, name: str) -> dict[str, Any]:
    """Accuracies of one arm, seed by seed, and its gain over the baseline."""
    gain = None if name == table.baseline else asdict(table.difference(name))
    return {
        "accuracies": table.accuracies(name).tolist(),
        "mean": table.mean(name),
        "std": table.std(name),
        "gain": gain,
    }


def evaluate_density(
    synthetic: str,
    train: str,
    conform: ImageOptions,
    networks: ExtractorOptions,
    *,
    features: str | None = None,
    holdout: str | None = None,
    out: str = "density",
    structure: Literal["full", "tied", "diagonal"] = "full",
    estimator: Literal["ledoit_wolf", "oas", "empirical"] = "ledoit_wolf",
    components: int | None = None,
    k: int = 5,
    call: Call,
) -> Result:
    """Say how rare synthetic images are among real ones of their class: hardness, AvgkNN, LOF.

    synthaug evaluate density cifar10.h5 folder:cifar10/train --features torchscript:encoder.pt

    Args:
        synthetic: A cache (FILE.h5), or a data set such as folder:PATH.
        train: Labelled real images, to which the Gaussians are fitted. All real images are brought
            to the cache's image size and channels.
        conform: For data sets.
        networks: Where features are computed and kept.
        features: What hardness is measured in: torchscript:FILE, torchvision:NAME, timm:NAME,
            pixels or spectrum. Those of a classifier or a self-supervised network mean most.
        holdout: Labelled real images that are not among them: what the synthetic ones compare with.
        out: Writes OUT.html and OUT.json.
        structure: One covariance per class, one for all, or variances alone.
        estimator: Of covariances; empirical needs more images of a class than dimensions.
        components: Projects the features on so many principal components first.
        k: Neighbours of AvgkNN and LOF.
    """
    from synthaug.evaluation._hardness import score_hardness

    extractor = networks.extractor(features)
    images = conform.synthetic(synthetic)
    classes = tuple(images.classes)
    with networks.kept(out) as features_dir:
        report = score_hardness(
            images,
            load(train, images.image_shape, classes),
            features=extractor,
            holdout=None if holdout is None else load(holdout, images.image_shape, classes),
            structure=structure,
            estimator=estimator,
            components=components,
            k=k,
            features_dir=features_dir,
        )
        report = replace(report, settings={**report.settings, "command": call.line})
        report.to_html(f"{out}.html")
        report.to_json(f"{out}.json")
    return Result(
        record={"summary": report.summary(), **written(out)},
        text=f"{report}\nReport: {out}.html, {out}.json",
    )


def evaluate_labels(
    synthetic: str,
    real: str,
    classifiers: ClassifierConfig,
    *,
    threshold: float | None = None,
    percentile: float | None = None,
    seeds: int = 3,
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


def evaluate_quality(
    synthetic: str,
    real: str,
    conform: ImageOptions,
    networks: ExtractorOptions,
    *,
    features: str | None = None,
    holdout: str | None = None,
    classifier: str | None = None,
    out: str = "quality",
    images: int | None = None,
    k: int = 5,
    force: bool = False,
    seed: int = 0,
    call: Call,
) -> Result:
    """Say how good synthetic images are as a whole: Fréchet and kernel distance, precision, recall.

    synthaug evaluate quality cifar10.h5 folder:cifar10/test --features torchscript:encoder.pt

    Args:
        synthetic: A cache (FILE.h5), or a data set such as folder:PATH.
        real: Labelled real images, the reference. They are brought to the cache's image size and
            channels.
        conform: For data sets.
        networks: Where features are computed and kept.
        features: What distances are measured in: torchscript:FILE, torchvision:NAME, timm:NAME,
            pixels or spectrum. Those of a classifier or a self-supervised network mean most.
        holdout: Other real images, to show what real images get. Without them the images of REAL
            are divided into two halves.
        classifier: torchscript:FILE, a classifier that returns logits, for the inception score.
        out: Writes OUT.html and OUT.json.
        images: Images of each set; by default as many as all of them have.
        k: Neighbours of precision, recall, density and coverage.
        force: Take the Fréchet distance of fewer images than twice the features.
        seed: Of the choice of the images.
    """
    from synthaug.evaluation._quality import score_quality

    extractor = networks.extractor(features)
    if classifier is not None and not classifier.startswith("torchscript:"):
        raise ValueError(
            f"`classifier` is {classifier!r}, expected torchscript:FILE, a network that returns "
            "logits."
        )
    found = conform.synthetic(synthetic)
    classes = tuple(found.classes)
    with networks.kept(out) as features_dir:
        report = score_quality(
            found,
            load(real, found.image_shape, classes),
            features=extractor,
            holdout=None if holdout is None else load(holdout, found.image_shape, classes),
            classifier=None if classifier is None else networks.extractor(classifier),
            images=images,
            k=k,
            force=force,
            seed=seed,
            features_dir=features_dir,
        )
        report = replace(report, settings={**report.settings, "command": call.line})
        report.to_html(f"{out}.html")
        report.to_json(f"{out}.json")
    return Result(
        record={
            "synthetic": asdict(report.synthetic),
            "floor": asdict(report.floor),
            **written(out),
        },
        text=f"{report}\nReport: {out}.html, {out}.json",
    )
