"""Commands that judge synthetic images: are they copies, and are they of use?"""

import shlex
import shutil
from pathlib import Path
from typing import Any, Literal

from synthaug._cli._inputs import load, names, synthetic_images

FILES = (".npy", ".npz", ".hdf5")
"""Of images or features, which `synthaug.audit` reads itself; a .h5 file is a cache."""


def audit(
    synthetic: str,
    train: str,
    *,
    holdout: str | None = None,
    out: str = "audit",
    features: str | list[str] | None = None,
    fdr: float = 0.05,
    k: int | None = None,
    index: Literal["exact", "auto", "ivf", "hnsw", "sq", "pq"] = "exact",
    features_dir: str | None = None,
    max_pairs: int = 50,
    image_size: int | None = None,
    channels: Literal[1, 3] | None = None,
    deduplicate: bool = False,
    redact: bool = False,
    device: str = "cpu",
    seed: int = 0,
) -> int:
    """Ask whether synthetic images are copies of training images.

    synthaug audit cifar10.h5 folder:cifar10/train --holdout folder:cifar10/test

    Args:
        synthetic: A cache (FILE.h5), a data set such as folder:PATH, or a .npy, .npz or .hdf5 file
            of images or features.
        train: The images that the generator was trained on. They are brought to the cache's image
            size and channels.
        holdout: Real images that it never saw. Without them the verdict is inconclusive at best.
        out: Writes OUT.html and OUT.json.
        features: Where distances are taken: pixels, spectrum, torchscript:FILE, torchvision:NAME or
            timm:NAME; several with commas between them.
        fdr: False discovery rate among the flagged images.
        k: Neighbours that an image's distance is compared with; 50 or fewer by default.
        index: How neighbours are searched; all but exact may miss some, and say the share found.
        features_dir: Folder in which the features of networks are kept for other audits. Without it
            they are in OUT.unfinished until the report is written, so that a kill costs less.
        max_pairs: Pairs of images shown in the report.
        image_size: For data sets: resize the shorter side to it and cut out the centre.
        channels: For data sets: 1 converts to grey, 3 to RGB.
        deduplicate: Set hold-out images aside that are training images, instead of refusing.
        redact: Leave real images, and flagged ones, out of the report.
        device: Where networks among the features run.
        seed: For the planted copies.
    """
    from synthaug._audit import audit as run
    from synthaug._cache import SynthCache
    from synthaug._data import load_dataset
    from synthaug._files import check_folder
    from synthaug.features import named

    check_folder(Path(out).parent)
    unfinished = f"{out}.unfinished"
    listed = names(features or [])
    spaces = [named(name, device=device) for name in listed]
    if ":" in synthetic:
        images: Any = load_dataset(synthetic, image_size=image_size, channels=channels)
    elif synthetic.lower().endswith(FILES):
        images = synthetic
    else:
        images = SynthCache(synthetic)
        if image_size is not None or channels is not None:
            raise ValueError(
                "`--image-size` and `--channels` are for folders; with a cache, real images are "
                f"brought to its shape, {images.image_shape}."
            )

    def real(spec: str) -> Any:
        if ":" not in spec and spec.lower().endswith((*FILES, ".h5")):
            return spec
        if isinstance(images, str):
            return load_dataset(spec, image_size=image_size, channels=channels)
        return load(spec, images.image_shape)

    options = {
        "holdout": holdout,
        "features": ",".join(listed) or None,
        "fdr": fdr,
        "k": k,
        "index": index,
        "image-size": image_size,
        "channels": channels,
        "seed": seed,
    }
    command = ["synthaug", "audit", synthetic, train]
    for name, value in options.items():
        command += [] if value is None else [f"--{name}", str(value)]
    command += ["--deduplicate"] if deduplicate else []
    report = run(
        images,
        real(train),
        holdout=None if holdout is None else real(holdout),
        features=spaces or None,
        fdr=fdr,
        k=k,
        index=index,
        features_dir=features_dir or unfinished,
        max_pairs=max_pairs,
        deduplicate=deduplicate,
        seed=seed,
        command=shlex.join(command),
    )
    report.to_html(f"{out}.html", redact=redact)
    report.to_json(f"{out}.json", redact=redact)
    shutil.rmtree(unfinished, ignore_errors=True)
    print(f"{report.verdict}: " + " ".join(report.reasons))
    print(f"Report: {out}.html, {out}.json")
    return int(report.exit_code)


def evaluate(
    real: str,
    synthetic: str,
    test: str,
    *,
    validation: str | None = None,
    audit: str | None = None,
    fraction: float = 0.5,
    ratios: list[float] | str | None = None,
    model: str = "small-cnn",
    steps: int = 2_000,
    batch_size: int = 128,
    seeds: int = 3,
    padding: int | None = None,
    horizontal_flip: bool = False,
    precision: Literal["float32", "bfloat16"] = "float32",
    allow_overlap: bool = False,
    device: str | None = None,
    out: str = "evaluation",
) -> None:
    """Train the same classifier on real, real plus synthetic, and synthetic images.

    synthaug evaluate folder:cifar10/train cifar10.h5 folder:cifar10/test --audit audit.json

    Args:
        real: Labelled training images. All real images are brought to the cache's image size and
            channels.
        synthetic: The cache.
        test: Test images; used once per run, at the end.
        validation: Images to choose the best moment of training by; else the last one counts.
        audit: JSON report of the cache; the images it flagged are left out.
        fraction: Share of the real images replaced by synthetic ones in the mixed arm.
        ratios: Compares amounts instead (0,1,2,3): the real images with so many synthetic ones per
            real one, as many of every class.
        model: small-cnn, resnet20, a torchvision model, or timm:NAME.
        steps: Optimiser steps of every arm.
        batch_size: Images per step.
        seeds: Runs per arm.
        padding: Largest random shift in pixels; by default an eighth of the side, and below 16
            pixels a side small shifts and turns between the pixels.
        horizontal_flip: Mirror half of the training images.
        precision: bfloat16 runs the network under autocast.
        allow_overlap: Go on if test images are also training images; the report counts them.
        device: cpu, cuda ...; a GPU if there is one by default.
        out: Writes OUT.html and OUT.json, and keeps finished runs in the directory OUT.
    """
    from synthaug._audit import AuditReport
    from synthaug._cache import SynthCache
    from synthaug._datasets import MixedDataset
    from synthaug._evaluation import StandardAugment, scaling_arms, standard_arms
    from synthaug._evaluation import evaluate as run

    cache = SynthCache(synthetic)
    shape = cache.image_shape
    images = load(real, shape)
    report = None if audit is None else AuditReport.from_json(audit)
    augment: Any = "standard"
    if padding is not None:
        augment = StandardAugment(padding=padding, horizontal_flip=horizontal_flip)
    arms: dict[str, Any]
    if ratios is None:
        arms = standard_arms(
            images,
            mixed=MixedDataset(images, cache, audit=report, fraction=fraction),
            synthetic=MixedDataset(images, cache, audit=report, fraction=1.0),
        )
    else:
        amounts = ratios.split(",") if isinstance(ratios, str) else ratios
        arms = scaling_arms(images, cache, audit=report, ratios=[float(x) for x in amounts])
    table = run(
        arms,
        test=load(test, shape),
        validation=None if validation is None else load(validation, shape),
        model=model,
        steps=steps,
        batch_size=batch_size,
        seeds=seeds,
        precision=precision,
        augment=augment,
        horizontal_flip=horizontal_flip and padding is None,
        allow_overlap=allow_overlap,
        device=device,
        baseline="real, augmented" if ratios is None else None,
        output_dir=out,
    )
    table.to_html(f"{out}.html")
    table.to_json(f"{out}.json")
    print(table.table())
    print(f"Report: {out}.html, {out}.json")


def evaluate_density(
    synthetic: str,
    train: str,
    *,
    features: str | None = None,
    holdout: str | None = None,
    out: str = "density",
    structure: Literal["full", "tied", "diagonal"] = "full",
    estimator: Literal["ledoit_wolf", "oas", "empirical"] = "ledoit_wolf",
    components: int | None = None,
    k: int = 5,
    image_size: int | None = None,
    channels: Literal[1, 3] | None = None,
    features_dir: str | None = None,
    device: str = "cpu",
) -> None:
    """Say how rare synthetic images are among real ones of their class: hardness, AvgkNN, LOF.

    synthaug evaluate density cifar10.h5 folder:cifar10/train --features torchscript:encoder.pt

    Args:
        synthetic: A cache (FILE.h5), or a data set such as folder:PATH.
        train: Labelled real images, to which the Gaussians are fitted. All real images are brought
            to the cache's image size and channels.
        features: What hardness is measured in: torchscript:FILE, torchvision:NAME, timm:NAME,
            pixels or spectrum. Those of a classifier or a self-supervised network mean most.
        holdout: Labelled real images that are not among them: what the synthetic ones compare with.
        out: Writes OUT.html and OUT.json.
        structure: One covariance per class, one for all, or variances alone.
        estimator: Of covariances; empirical needs more images of a class than dimensions.
        components: Projects the features on so many principal components first.
        k: Neighbours of AvgkNN and LOF.
        image_size: For data sets: resize the shorter side to it and cut out the centre.
        channels: For data sets: 1 converts to grey, 3 to RGB.
        features_dir: Folder in which the features of networks are kept for later calls.
        device: Where a network runs.
    """
    from synthaug._hardness import score_hardness
    from synthaug.features import NAMES, named

    if features is None:
        raise ValueError(f"`features` is missing. Choose one of {NAMES}.")
    images = synthetic_images(synthetic, image_size, channels)
    classes = tuple(images.classes)
    report = score_hardness(
        images,
        load(train, images.image_shape, classes),
        features=named(features, device=device),
        holdout=None if holdout is None else load(holdout, images.image_shape, classes),
        structure=structure,
        estimator=estimator,
        components=components,
        k=k,
        features_dir=features_dir,
    )
    report.to_html(f"{out}.html")
    report.to_json(f"{out}.json")
    print(report)
    print(f"Report: {out}.html, {out}.json")


def evaluate_quality(
    synthetic: str,
    real: str,
    *,
    features: str | None = None,
    holdout: str | None = None,
    classifier: str | None = None,
    out: str = "quality",
    images: int | None = None,
    k: int = 5,
    force: bool = False,
    image_size: int | None = None,
    channels: Literal[1, 3] | None = None,
    features_dir: str | None = None,
    device: str = "cpu",
    seed: int = 0,
) -> None:
    """Say how good synthetic images are as a whole: Fréchet and kernel distance, precision, recall.

    synthaug evaluate quality cifar10.h5 folder:cifar10/test --features torchscript:encoder.pt

    Args:
        synthetic: A cache (FILE.h5), or a data set such as folder:PATH.
        real: Labelled real images, the reference. They are brought to the cache's image size and
            channels.
        features: What distances are measured in: torchscript:FILE, torchvision:NAME, timm:NAME,
            pixels or spectrum. Those of a classifier or a self-supervised network mean most.
        holdout: Other real images, to show what real images get. Without them the images of REAL
            are divided into two halves.
        classifier: torchscript:FILE, a classifier that returns logits, for the inception score.
        out: Writes OUT.html and OUT.json.
        images: Images of each set; by default as many as all of them have.
        k: Neighbours of precision, recall, density and coverage.
        force: Take the Fréchet distance of fewer images than twice the features.
        image_size: For data sets: resize the shorter side to it and cut out the centre.
        channels: For data sets: 1 converts to grey, 3 to RGB.
        features_dir: Folder in which the features of networks are kept for later calls.
        device: Where networks run.
        seed: Of the choice of the images.
    """
    from synthaug._quality import score_quality
    from synthaug.features import NAMES, named

    if features is None:
        raise ValueError(f"`features` is missing. Choose one of {NAMES}.")
    if classifier is not None and not classifier.startswith("torchscript:"):
        raise ValueError(
            f"`classifier` is {classifier!r}, expected torchscript:FILE, a network that returns "
            "logits."
        )
    found = synthetic_images(synthetic, image_size, channels)
    classes = tuple(found.classes)
    report = score_quality(
        found,
        load(real, found.image_shape, classes),
        features=named(features, device=device),
        holdout=None if holdout is None else load(holdout, found.image_shape, classes),
        classifier=None if classifier is None else named(classifier, device=device),
        images=images,
        k=k,
        force=force,
        seed=seed,
        features_dir=features_dir,
    )
    report.to_html(f"{out}.html")
    report.to_json(f"{out}.json")
    print(report)
    print(f"Report: {out}.html, {out}.json")


def demo(out: str = "synthaug-demo", *, per_class: int = 3, seed: int = 0) -> None:
    """The whole job on scikit-learn's handwritten digits, within five minutes on two cores.

    synthaug demo

    Args:
        out: Directory to write; run again to resume, or with another --per-class to keep the
            generator.
        per_class: Labelled images per class, from 2 on.
        seed: Seed of the split, the models and the plan.
    """
    from synthaug._demo import Settings
    from synthaug._demo import demo as run

    run(out, seed=seed, settings=Settings(per_class=per_class))
