"""The command that chooses among synthetic images."""

from dataclasses import dataclass
from typing import Any

from synthaug._cli.arguments import names, next_line
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import defaults
from synthaug._cli.evaluation import announce
from synthaug._cli.options import ExtractorOptions, FileOptions
from synthaug._cli.publishing import published
from synthaug._training.classifier_config import ClassifierConfig

SELECT = defaults("selection._select:select")


@dataclass(frozen=True, kw_only=True)
class RuleOptions:
    """The choice.

    Args:
        keep: How many images of each class to keep at most: a share with a point (0.25), or a
            number (500). What the rules leave beyond it is drawn by lot.
        rules: Applied in this order: label (classifiers take an image for its class), support (near
            enough to real images), useful (neither the easiest nor the hardest), distinct
            (near-duplicates go), k-center, facility-location (cover the class), mmd (like the real
            images). none draws all by lot.
        features: Space of the distances: torchscript:FILE, torchvision:NAME, timm:NAME, pixels or
            spectrum; by default the last layer of a classifier trained on the real images.
        trust_torchscript: Run torchscript:FILE, a program that can read and write your files.
        runs: How often the classifiers of label and useful are trained.
        folds: Parts of the real images; no classifier judges an image whose source it learned from.
        seed: Seed of classifiers and lots.
    """

    keep: int | float = SELECT.keep
    rules: str | list[str] = SELECT.rules
    features: str | None = SELECT.features
    trust_torchscript: bool = ExtractorOptions.trust_torchscript
    runs: int = SELECT.runs
    folds: int = SELECT.folds
    seed: int = SELECT.seed

    def built(self, classifiers: ClassifierConfig) -> dict[str, Any]:
        """Arguments of `select`."""
        networks = ExtractorOptions(
            trust_torchscript=self.trust_torchscript, device=classifiers.device
        )
        return {
            "keep": self.keep,
            "rules": [] if self.rules == "none" else names(self.rules),
            "features": None if self.features is None else networks.extractor(self.features),
        }


def select(
    cache: str,
    choice: RuleOptions,
    classifiers: ClassifierConfig,
    files: FileOptions,
    *,
    real: str,
    out: str = "selection",
    dry_run: bool = False,
    call: Call,
) -> Result:
    """Choose the synthetic images that are worth training on, out of more than are needed.

    synthaug select many.h5 --real folder:cifar10/train --keep 0.25
    synthaug select many.h5 --real folder:cifar10/train --keep 500 --rules label,distinct,mmd

    Args:
        cache: The cache that was drawn.
        choice: The images to keep.
        classifiers: Settings of the classifiers, which learn from real images and judge synthetic
            ones.
        files: For folders.
        real: Labeled training images, never test images. They are brought to the cache's image
            size and channels.
        out: Writes OUT.json, for evaluate --selection and cache export --selection, and OUT.html
            with pictures of what each rule took.
        dry_run: Check all arguments, say what would be done, and stop.
    """
    from synthaug._cache import SynthCache
    from synthaug.selection._folds import Judges
    from synthaug.selection._select import planned
    from synthaug.selection._select import select as run

    opened = SynthCache(cache)
    images = files.shaped(real, opened.image_shape)
    how = choice.built(classifiers)
    training: dict[str, Any] = {
        "runs": choice.runs,
        "folds": choice.folds,
        "seed": choice.seed,
        "config": classifiers,
    }
    plan = planned(opened, images, **how, judges=Judges(**training))
    if plan.classifiers:
        announce(images, classifiers, plan.classifiers)
    if dry_run:
        text = f"{plan}\nNothing was written. Next: the same line without --dry-run."
        return Result(record={"images": len(plan.candidates.rows), "kept": None}, text=text)
    report = run(opened, images, **how, **training)
    record = {
        "images": len(plan.candidates.rows),
        "kept": int(report.passed.sum()),
        "taken": {name: int(n.sum()) for name, n in report.counts.items() if name != "kept"},
    }
    next = next_line("evaluate", real, cache, "TEST", "--selection", f"{out}.json")
    return published(report, call, out, record, next=next)
