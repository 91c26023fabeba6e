"""Commands that train classifiers: are synthetic images of use, and are they of their class?"""

import logging
import time
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from synthaug._cli.arguments import names, next_line, spoken_of, verdicts
from synthaug._cli.call import Call, Result
from synthaug._cli.declared import defaults
from synthaug._cli.options import EVALUATION, FileOptions, Tracker
from synthaug._cli.publishing import published
from synthaug._printable import amount
from synthaug._support.arguments import check_whole
from synthaug._training.classifier_config import ClassifierConfig
from synthaug.errors import DataError

logger = logging.getLogger("synthaug")

LABELS = defaults("evaluation._label_check:check_labels")
ATTACK = defaults("evaluation._adversarial:AdversarialConfig")


@dataclass(frozen=True, kw_only=True)
class ArmOptions:
    """Arms.

    Args:
        audit: JSON report of the cache; the images it withholds are left out.
        labels: JSON that evaluate labels wrote about the cache; what it withheld is left out.
        selection: JSON that select wrote about the cache; what it did not keep is left out.
        autoencoder: A latent diffusion checkpoint. Adds an arm of real images that its autoencoder
            encoded and decoded: the ceiling of the images that such a model draws.
        fraction: Share of the real images replaced by synthetic ones in the mixed arm.
        share: Gives synthetic images this share of every batch of the mixed arm instead, while the
            real images stay.
        augmentations: Adds arms of real images alone under stronger augmentations, such as
            randaugment,trivialaugment,cutmix,mixup.
        balance: Adds arms that count rare classes more, of real images, and with --share of both:
            balanced (all classes equally often), effective-number (weights of the loss),
            logit-adjustment (logits shifted by class shares).
        ratios: Compares amounts instead (0,1,2,3): the real images with so many synthetic ones per
            real one, as many of every class.
    """

    audit: str | None = None
    labels: str | None = None
    selection: str | None = None
    autoencoder: str | None = None
    fraction: float = 0.5
    share: float | None = None
    augmentations: str | list[str] | None = None
    balance: str | list[str] | None = None
    ratios: float | list[float] | None = None

    def build(self, images: Any, cache: Any, augment: Any, device: str | None) -> dict[str, Any]:
        """The arms by name: what to train on. `augment` is that of arms that must say it."""
        from synthaug._datasets import MixedDataset
        from synthaug.evaluation import (
            Arm,
            augmentation_arms,
            balanced_arms,
            reconstructions,
            scaling_arms,
            standard_arms,
        )

        report = verdicts(cache, audit=self.audit, labels=self.labels, selection=self.selection)
        if self.ratios is None:
            synthetic = MixedDataset(images, cache, audit=report, fraction=1.0)
            mixed: Any
            if self.share is None:
                mixed = MixedDataset(images, cache, audit=report, fraction=self.fraction)
            else:
                mixed = Arm(images, augment=augment, synthetic=synthetic, share=self.share)
            arms: dict[str, Any] = standard_arms(images, mixed=mixed, synthetic=synthetic)
        elif self.share is not None:
            raise ValueError("`share` sets the mixed arm, which `ratios` replaces. Drop one.")
        else:
            ratios = self.ratios if isinstance(self.ratios, list) else [self.ratios]
            arms = {**scaling_arms(images, cache, audit=report, ratios=ratios)}
        if self.augmentations is not None:
            strong: Any = names(self.augmentations)
            with spoken_of(names="augmentations"):
                arms |= augmentation_arms(images, strong)
        if self.balance is not None:
            ways: Any = names(self.balance)
            with spoken_of(names="balance"):
                arms |= balanced_arms(images, ways, augment=augment)
                if self.share is not None:
                    both: Any = {"synthetic": synthetic, "share": self.share}
                    arms |= balanced_arms(images, ways, augment=augment, **both)
        if self.autoencoder is not None:
            arms["real, decoded"] = reconstructions(images, self.autoencoder, device=device)
        return arms


@dataclass(frozen=True, kw_only=True)
class AdversarialOptions:
    """Adversarial training.

    Args:
        adversarial: Trains all arms on attacked images, and tests them under attack too. Attacks
            change every pixel by up to this, in [0, 1]: 0.031 are 8 of 255 levels.
        step_size: Change of a pixel per step of the training attack; by default 2.5 times the
            largest change, divided by the number of steps.
        attack_steps: Gradient steps of the training attack.
        test_steps: Gradient steps of the test attack.
        restarts: How often the test attack starts anew, at other random places.
        attack_mode: Mode of the network while a training image is attacked. Test attacks have eval
            always.
        ema_decay: Decay per optimizer step of the moving average of weights that is tested; 0 for
            the weights themselves.
    """

    adversarial: float | None = None
    step_size: float | None = ATTACK.step_size
    attack_steps: int = ATTACK.steps
    test_steps: int = ATTACK.test_steps
    restarts: int = ATTACK.restarts
    attack_mode: Literal["eval", "train"] = ATTACK.attack_mode
    ema_decay: float = ATTACK.ema_decay

    def config(self) -> Any:
        """The attack, or `None`."""
        from synthaug.evaluation import AdversarialConfig

        if self.adversarial is None:
            return None
        values = {name: value for name, value in vars(self).items() if name != "adversarial"}
        with spoken_of(epsilon="adversarial", steps="attack_steps"):
            return AdversarialConfig(
                epsilon=self.adversarial, steps=values.pop("attack_steps"), **values
            )


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Runs of the same training.

    Args:
        seeds: Runs with other initial weights and another order of the images.
        seed: Seed of the first run; run i uses seed + i.
        validation: Images to choose the best moment of training by; else the last one counts.
        augment: How images are augmented: small shifts (standard); shifts and turns between the
            pixels (affine); or the first, and then one of the stronger ones.
        padding: Largest random shift in pixels; by default an eighth of the side, and below 16
            pixels a side small shifts and turns between the pixels.
        allow_overlap: Go on if the splits share images; the report counts them.
        log_with: Also sends the curves of all runs to a tracker at the end, tensorboard into the
            directory OUT.
        class_sizes: Classes with fewer training images than the first number are few, with more
            than the second many; accuracies are told by such groups if there are several.
    """

    seeds: int = EVALUATION.seeds
    seed: int = 0
    validation: str | None = EVALUATION.validation
    augment: Literal["standard", "affine", "randaugment", "trivialaugment", "cutmix", "mixup"] = (
        EVALUATION.augment
    )
    padding: int | None = None
    allow_overlap: bool = EVALUATION.allow_overlap
    class_sizes: tuple[int, int] = EVALUATION.class_sizes
    log_with: Tracker | None = None

    def __post_init__(self) -> None:
        check_whole(1, seeds=self.seeds)
        check_whole(0, seed=self.seed)


def evaluate(
    real: str,
    synthetic: str,
    test: str,
    arms: ArmOptions,
    classifiers: ClassifierConfig,
    attack: AdversarialOptions,
    runs: RunOptions,
    files: FileOptions,
    *,
    out: str = "evaluation",
    call: Call,
) -> Result:
    """Train the same classifier on real, real plus synthetic, and synthetic images.

    synthaug evaluate folder:cifar10/train cifar10.h5 folder:cifar10/test --audit audit.json

    Args:
        real: Labeled training images. All real images are brought to the cache's image size and
            channels.
        synthetic: The cache.
        test: Test images; used once per run, at the end.
        arms: The arms to compare.
        classifiers: Settings of the classifiers.
        attack: Whether under attack.
        runs: How often.
        files: For folders.
        out: Writes OUT.html and OUT.json, and keeps finished runs in the directory OUT.
    """
    from synthaug._cache import SynthCache
    from synthaug._training.trackers import check_tracker
    from synthaug.evaluation import StandardAugment
    from synthaug.evaluation import evaluate as run

    check_tracker(runs.log_with)
    cache = SynthCache(synthetic)
    shape = cache.image_shape
    images = files.shaped(real, shape)
    augment: Any = runs.augment
    if runs.padding is not None:
        if augment != "standard":
            raise ValueError(f"`padding` is for `augment='standard'`, not {augment!r}. Drop one.")
        flip = classifiers.horizontal_flip
        augment = StandardAugment(padding=runs.padding, horizontal_flip=flip)
        classifiers = replace(classifiers, horizontal_flip=False)
    table = run(
        arms.build(images, cache, augment, classifiers.device),
        test=files.shaped(test, shape),
        validation=None if runs.validation is None else files.shaped(runs.validation, shape),
        seeds=range(runs.seed, runs.seed + runs.seeds),
        config=classifiers,
        augment=augment,
        baseline="real, augmented" if arms.ratios is None else None,
        adversarial=attack.config(),
        allow_overlap=runs.allow_overlap,
        class_sizes=runs.class_sizes,
        output_dir=out,
    )
    if runs.log_with is not None:
        try:
            table.to_tracker(runs.log_with, out)
        except DataError as error:  # what was measured is told all the same
            logger.warning("%s", error)
    call = call.having(precision=table.settings["precision"])
    record = {
        "baseline": table.baseline,
        "arms": {name: _arm(table, name) for name in table.arm_names},
    }
    decided = too_short(classifiers.steps) or _decided(table)
    text = f"{table.table()}\n{decided}"
    return published(table, call, out, record, text=text, next=next_line("cite", synthetic))


_FEW_STEPS = 100
"""A classifier that takes fewer optimizer steps has not learned enough to be compared."""


def too_short(steps: int) -> str:
    """Says that nothing was decided, if so few steps decide nothing."""
    if steps >= _FEW_STEPS:
        return ""
    return (
        f"{amount(steps, 'optimizer step')} of each classifier are too few to compare anything: "
        f"these numbers say that the command works, and nothing else. The default is "
        f"{ClassifierConfig.steps:,} `steps`."
    )


def _decided(table: Any) -> str:
    """Returns a sentence about the arm to use."""
    gains = {name: table.difference(name) for name in table.arm_names if name != table.baseline}
    best = max(gains, key=lambda name: gains[name].mean, default=None)
    if best is None or gains[best].mean <= 0:
        return f"Nothing gains on {table.baseline}: train on that."
    gain = gains[best]
    sure = gain.low is not None and gain.low > 0
    doubt = "" if sure else ", which may be chance: more --seeds tell"
    return f"Most accurate: {best}, {100 * gain.mean:+.1f} points on {table.baseline}{doubt}."


def _arm(table: Any, name: str) -> dict[str, Any]:
    """Accuracies of one arm, seed by seed, and its gain over the baseline."""

    def figures(result: str | None) -> dict[str, Any]:
        compared = name != table.baseline
        return {
            "accuracies": table.accuracies(name, result).tolist(),
            "mean": table.mean(name, result),
            "std": table.std(name, result),
            "gain": asdict(table.difference(name, result=result)) if compared else None,
        }

    return {**figures(None), **{result: figures(result) for result in table.results}}


_TIMED = 4
"""Steps that are measured, to say how long all take; fewer than ten times as many are not."""


def announce(images: Any, classifiers: ClassifierConfig, seeds: int) -> None:
    """Logs the trainings ahead and about how long they take."""
    from synthaug._plan import time_text
    from synthaug.evaluation import trained_classifier

    def seconds(steps: int) -> float:
        begun = time.monotonic()
        few = replace(classifiers, steps=steps, warmup_steps=None, eval_every=None)
        trained_classifier(images, config=few, progress=False)
        return time.monotonic() - begun

    steps, duration = seeds * classifiers.steps, ""
    if steps >= 10 * _TIMED:
        start = seconds(1)
        each = max(0.0, seconds(1 + _TIMED) - start) / _TIMED
        duration = f", {time_text(each * steps)}"
    logging.getLogger("synthaug").warning(
        "To train on the real images: %s, %s each%s.",
        amount(seeds, "classifier"),
        amount(classifiers.steps, "step"),
        duration,
    )


def evaluate_labels(
    synthetic: str,
    real: str,
    classifiers: ClassifierConfig,
    files: FileOptions,
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
        real: Labeled training images. They are brought to the cache's image size and channels.
        classifiers: Settings of the classifiers.
        files: For folders.
        threshold: Withholds images whose class has a lower probability.
        percentile: Withholds this share of the images of each class instead, in percent: those
            whose class has the lowest probability.
        seeds: How many classifiers, whose probabilities are averaged.
        out: Writes OUT.json, for evaluate --labels.
    """
    if (threshold is None) == (percentile is None):  # said before anything is loaded
        got = "none" if threshold is None else "both"
        raise ValueError(f"Give exactly one of `threshold` and `percentile`; got {got}.")
    check_whole(1, seeds=seeds)
    from synthaug._cache import SynthCache
    from synthaug.evaluation._label_check import check_labels

    cache = SynthCache(synthetic)
    images = files.shaped(real, cache.image_shape, cache.classes)
    announce(images, classifiers, seeds)
    check = check_labels(
        cache,
        images,
        threshold=threshold,
        percentile=percentile,
        seeds=range(seeds),
        config=classifiers,
    )
    check = replace(check, settings={**check.settings, "command": call.line})
    check.to_json(f"{out}.json")
    return Result(
        record={
            "withheld": check.withheld.nonzero()[0].tolist(),
            "counts": {name: list(pair) for name, pair in check.counts.items()},
            "json": f"{out}.json",
        },
        text=f"{check}\nNext: synthaug evaluate {real} {synthetic} TEST --labels {out}.json",
    )
