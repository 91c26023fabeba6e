"""`evaluate`: checks first, then one run per arm and seed, kept as soon as it is done."""

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import nn
from torch.utils.data import Dataset

from synthaug._images.epochs import Epochs
from synthaug._noise import checked_seed
from synthaug._plan import settings_digest
from synthaug._printable import printable_line
from synthaug._support import arguments, devices, stopping, torch_state
from synthaug._support.files import check_folder, write_text
from synthaug._support.names import file_stem
from synthaug._support.precision import Resolved, fastest_precision, resolve_precision
from synthaug._support.progress import bar
from synthaug._support.report import encode, read_kept
from synthaug._training.classifier_config import ClassifierConfig, name_of
from synthaug._training.loop import own_randomness
from synthaug._types import JSON, ImageShape, StrPath
from synthaug.evaluation._adversarial import AdversarialConfig
from synthaug.evaluation._arms import Arm
from synthaug.evaluation._augment import Augment, AugmentName, apply_augment, named_augment
from synthaug.evaluation._classifiers import build_classifier
from synthaug.evaluation._fit import (
    MOMENTUM,
    FitSettings,
    fit,
    judged,
    robust,
    seed_initial_weights,
)
from synthaug.evaluation._gains import Correctness
from synthaug.evaluation._inputs import ArmImages, Batches, Inputs, check_overlap, fingerprint
from synthaug.evaluation._report import ROBUST, EvaluationReport
from synthaug.evaluation._runs import Run

logger = logging.getLogger("synthaug")

_SAMPLE = 16
"""Images of each arm whose augmentation is part of what a run depends on."""


def evaluate(
    arms: Mapping[str, Dataset[Any] | Arm],
    *,
    test: Dataset[Any] | Mapping[str, Dataset[Any]],
    validation: Dataset[Any] | None = None,
    seeds: int | Sequence[int] = 3,
    config: ClassifierConfig | None = None,
    augment: Augment | AugmentName | None = "standard",
    baseline: str | None = None,
    adversarial: AdversarialConfig | None = None,
    allow_overlap: bool = False,
    class_sizes: tuple[int, int] = (20, 100),
    output_dir: StrPath | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Trains the same classifier on every arm and tests it on real images.

        report = synthaug.evaluate({"real": real, "real + synthetic": mixed}, test=test, seeds=3)
        print(report.table())

    Args:
        arms: Name => what to train on: a map-style data set of (image, label), or an `Arm`, which
            says itself how its images are augmented, and may add a share of synthetic ones.
        test: Real images that no model and no choice has seen. Or several sets of them by name,
            such as `{"clean": test, **corruptions(test)}`: the first one is the test set, which is
            attacked if there are attacks; the others are further results of the report.
        validation: Real images for choosing, in each run, the step whose weights are tested.
            Without them it is the last step.
        seeds: So many seeds, 0, 1, ...; or the seeds themselves.
        config: Network and training of the classifiers; by default `ClassifierConfig()`.
        augment: For arms given as a data set alone. "standard": shifts by up to 1/8 of the side
            (`StandardAugment`); below 16 pixels a side, small shifts and turns between the pixels
            (`AffineAugment`, "affine" at all sizes). After it "randaugment" and "trivialaugment" of
            torchvision with their defaults, "cutmix" or "mixup". Or a function of pixels, uint8
            (n, C, H, W) => the same; or a torchvision v2 transform, called image by image.
        baseline: Arm that the others are compared with; by default the first.
        adversarial: Trains all arms on attacked images, and tests them under attack as well: the
            report then has their robust accuracy beside the clean one.
        allow_overlap: Go on if `test` or `validation` share images with an arm or each other. The
            report says how many.
        class_sizes: Classes with fewer training images than the first number are few, with more
            than the second many: the report has the mean accuracy of each group, if there is more
            than one.
        output_dir: Folder that keeps every finished run. Called again with the same data and
            settings, only runs that are missing are made.
        progress: Show one bar over all steps of all runs.

    Returns:
        The report. On a CPU it is the same, to the last bit, whenever data, settings and number of
        threads are.

    Raises:
        ValueError: For wrong arguments, before any training.
        DataError: If a data set is empty or cannot be read.
        MismatchError: If data sets differ in classes or shape, or share images with `test` or
            `validation`.
        DivergedError: If a loss becomes NaN or infinite. Finished runs stay in `output_dir`.
    """
    config = config or ClassifierConfig()
    if output_dir is not None:
        check_folder(output_dir)
    if adversarial is not None:
        arguments.check_type(AdversarialConfig, "an AdversarialConfig", adversarial=adversarial)
    checked_arms = _checked_arms(arms, augment, config)
    seed_list = _checked_seeds(seeds)
    low, high = _checked_sizes(class_sizes)
    baseline = next(iter(checked_arms)) if baseline is None else baseline
    if baseline not in checked_arms:
        raise ValueError(f"`baseline` {baseline!r} is not an arm. Arms: {', '.join(checked_arms)}.")
    device = devices.choose_device(config.device)
    datasets = {name: arm.dataset for name, arm in checked_arms.items()}
    test, others = _checked_tests(test, adversarial)
    added = {n: arm.synthetic for n, arm in checked_arms.items() if arm.synthetic is not None}
    inputs = Inputs.open(datasets, test, validation, device, added, others)
    contents = {name: images.contents for name, images in inputs.sets.items()}
    overlap = check_overlap(contents, allow=allow_overlap)
    shape, flip = inputs.test.image_shape, config.horizontal_flip
    augments = {name: _augment_of(arm, shape, flip) for name, arm in checked_arms.items()}
    precision = fastest_precision(device) if config.precision == "auto" else config.precision
    job = Job(
        inputs=inputs,
        images={n: _images_of(arm, n, inputs, config) for n, arm in checked_arms.items()},
        config=config,
        augments=augments,
        precision=precision,
        adversarial=adversarial,
    )
    _ = job.augmented_samples  # an augmentation that fails is found before any training
    job, files = job.resumed(seed_list, output_dir)
    facts = job.facts(seed_list[0])
    runs = job.make_runs(seed_list, files, progress=progress)
    return EvaluationReport(
        runs=[runs[name, seed] for name in checked_arms for seed in seed_list],
        classes=list(inputs.classes),
        settings={**facts, "overlap": {name: dict(counts) for name, counts in overlap.items()}},
        arms=job.arm_facts(),
        baseline=baseline,
        test_labels=inputs.test.labels().tolist(),
        train_counts=job.class_counts(baseline),
        class_sizes=(low, high),
    )


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that the runs of one evaluation need.

    Leaves the caller's random streams as they were, and its data sets in their epoch.
    """

    inputs: Inputs
    images: Mapping[str, ArmImages]
    """For each arm."""
    config: ClassifierConfig
    augments: Mapping[str, Augment | None]
    """For each arm."""
    precision: Resolved
    """What the precision of the configuration means here."""
    adversarial: AdversarialConfig | None = None

    @cached_property
    def settings(self) -> FitSettings:
        """How weights change."""
        return FitSettings.of(self.config, self.precision, self.adversarial)

    @cached_property
    def device(self) -> torch.device:
        """Where classifiers are trained."""
        return devices.choose_device(self.config.device)

    def resumed(
        self, seeds: Sequence[int], folder: StrPath | None
    ) -> tuple["Job", dict[tuple[str, int], Path]]:
        """The job in the precision of finished runs, if it may choose one, and its files."""
        job, files, begun = self, self.files(seeds, folder), None
        if self.config.precision == "auto" and files and not any(map(Path.exists, files.values())):
            other: Resolved = "float32" if self.precision == "bfloat16" else "bfloat16"
            elsewhere = replace(self, precision=other)
            finished = elsewhere.files(seeds, folder)
            if any(map(Path.exists, finished.values())):
                job, files, begun = elsewhere, finished, other
        resolve_precision(self.config.precision, self.device, begun=begun)
        return job, files

    def make_runs(
        self, seeds: Sequence[int], files: Mapping[tuple[str, int], Path], *, progress: bool
    ) -> dict[tuple[str, int], Run]:
        """Reads the runs that are kept in files, and makes and keeps the others."""
        runs = {run: read_kept(Run, path) for run, path in files.items() if path.exists()}
        if runs:
            folder = next(iter(files.values())).parent
            logger.info("%d of %d runs are in %s already.", len(runs), len(files), folder)
        # Seed by seed, so that what an interrupted job leaves can be compared.
        order = [(name, seed) for seed in seeds for name in self.augments]
        todo = [run for run in order if run not in runs]

        def kept() -> str:
            done = sum(path.exists() for path in files.values())
            return f"{done} of {len(order)} classifiers are trained and tested." if done else ""

        with (
            stopping.kept_at_stop(kept),
            bar(len(todo) * self.config.steps, "evaluate", "step", progress=progress) as shown,
        ):
            for name, seed in todo:
                shown.set_description(printable_line(f"{name}, seed {seed}"))
                runs[name, seed] = self.run(name, seed, advance=shown.update)
                if files:
                    write_text(files[name, seed], encode(runs[name, seed], indent=1))
        return runs

    @torch_state.lasting_tensors()
    def run(self, arm: str, seed: int, *, advance: Callable[[int], object]) -> Run:
        """Trains and tests one classifier; `advance` is called with the number of steps made."""
        started = time.perf_counter()
        images = self.images[arm]
        images.forget_seen()
        with self._leaving_no_trace():
            network = self._build(seed).to(self.device)
            # A fifth faster; but one's own network may not take it.
            if isinstance(self.config.model, str):
                network = network.to(memory_format=torch.channels_last)
            curves = fit(
                network,
                images,
                self.settings,
                seed=seed,
                augment=self.augments[arm],
                validation=self.inputs.validation,
                run=f"Arm {arm!r}, seed {seed}",
                advance=advance,
            )
            unique_real, unique_synthetic = images.seen()
            tested, others = self._tested(network, seed)
        return Run(
            arm=arm,
            seed=seed,
            steps=self.settings.steps,
            selected_step=curves.selected_step,
            test_accuracy=tested.accuracy,
            class_accuracies=tested.class_accuracies,
            validation_accuracy=dict(curves.validation).get(curves.selected_step),
            images_seen=self.settings.steps * self.settings.batch_size,
            unique_real=unique_real,
            unique_synthetic=unique_synthetic,
            seconds=time.perf_counter() - started,
            loss_curve=curves.loss,
            validation_curve=curves.validation,
            correct=tested.correct,
            others=others,
            calibration_error=tested.calibration_error,
            auc=tested.auc,
        )

    def _tested(self, network: nn.Module, seed: int) -> tuple[Correctness, dict[str, Correctness]]:
        """Results on the test images, and by name those under attack and on further sets."""
        classes, test = len(self.inputs.classes), self.inputs.test

        def result(images: Batches) -> Correctness:
            hits, labels, confidence, scores = judged(network, images, self.settings)
            return Correctness.of(hits, labels, classes, confidence, scores)

        others = {}
        if self.adversarial is not None:
            withstood = robust(network, test, self.settings, seed=seed, testing=True)
            others[ROBUST] = Correctness.of(withstood, test.labels(), classes)
        others |= {name: result(images) for name, images in self.inputs.others.items()}
        return result(test), others

    def facts(self, seed: int) -> dict[str, JSON]:
        """Returns the settings that all arms share. Builds a network, so one that cannot be built
        is found here.
        """
        with self._leaving_no_trace():
            network = self._build(seed)
        return {
            **self._shared(),
            "parameters": sum(p.numel() for p in network.parameters()),
            "test_images": len(self.inputs.test),
            "validation_images": len(self.inputs.validation or ()),
        }

    def arm_facts(self) -> dict[str, dict[str, JSON]]:
        """For each arm its number of images, its augmentation, and the audit of synthetic ones."""
        facts: dict[str, dict[str, JSON]] = {}
        for name, augment in self.augments.items():
            images = self.images[name]
            synthetic = images.base.source.synthetic_facts
            if images.added is not None:
                audit = images.added.source.synthetic_facts or f"{len(images.added):,} images"
                where = "" if images.augment_added else ", not augmented"
                synthetic = f"{audit}; {images.share:g} of each batch{where}"
            facts[name] = {
                "images": sum(map(len, images.parts)),
                "augment": name_of(augment),
                "synthetic": synthetic,
            }
            rare = self.images[name].rare_facts
            if rare:
                facts[name]["rare classes"] = rare
        return facts

    def class_counts(self, arm: str) -> list[int]:
        """Images of every class in the data set of an arm."""
        with self._leaving_no_trace():
            return self.images[arm].base.class_counts.tolist()

    @cached_property
    def augmented_samples(self) -> dict[str, str]:
        """Digests of what the augmentation of each arm makes of its first images, a ValueError if
        that is not what it must be."""
        samples = {}
        for arm, augment in self.augments.items():
            images = self.images[arm].base
            with self._leaving_no_trace():
                torch.manual_seed(0)
                pixels, _ = images.batch(0, np.arange(min(_SAMPLE, len(images))))
                shown = pixels if augment is None else apply_augment(augment, pixels)
            samples[arm] = hashlib.blake2b(
                shown.cpu().numpy().tobytes(), digest_size=16
            ).hexdigest()
        return samples

    def files(self, seeds: Sequence[int], folder: StrPath | None) -> dict[tuple[str, int], Path]:
        """Where the run of every arm and seed is kept; none without a folder.

        The name ends with a digest of all that the run depends on. Functions are not known by their
        names alone, which two lambdas share: a network counts with its structure and initial
        weights, an augmentation with a sample of what it makes.
        """
        if folder is None:
            return {}
        with self._leaving_no_trace():
            arms = {arm: images.fingerprint() for arm, images in self.images.items()}
            held_out = [self.inputs.test, self.inputs.validation]
            prints: list[Any] = [images and fingerprint(images) for images in held_out]
            prints += [[name, fingerprint(one)] for name, one in self.inputs.others.items()]
            weights = {seed: _digest_of(self._build(seed)) for seed in seeds}
        shared = {**self._shared(), "held out": prints}
        files = {}
        for arm, augment in self.augments.items():
            data = [arm, arms[arm], name_of(augment), self.augmented_samples[arm]]
            for seed in seeds:
                run = {"arm": data, "seed": seed, "network": weights[seed]}
                key = settings_digest({**shared, **run})
                files[arm, seed] = Path(folder) / f"{file_stem(arm)}-seed{seed}-{key}.json"
        return files

    def _shared(self) -> dict[str, JSON]:
        settings = asdict(self.settings)
        if self.adversarial is None:
            del settings["adversarial"]
        return {
            **settings,
            "momentum": MOMENTUM,
            "model": self.config.model_name,
            "image_shape": list(self.inputs.test.image_shape),
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }

    def _build(self, seed: int) -> nn.Module:
        seed_initial_weights(seed)
        return build_classifier(
            self.config.model, len(self.inputs.classes), self.inputs.test.image_shape
        )

    @contextmanager
    def _leaving_no_trace(self) -> Iterator[None]:
        epochs = Epochs(
            leaf for images in self.inputs.sets.values() for leaf in images.source.leaves
        )
        with own_randomness(self.device), epochs.kept():
            yield


def _digest_of(network: nn.Module) -> str:
    """32 hexadecimal digits over a network's structure and weights."""
    hashed = hashlib.blake2b(repr(network).encode(), digest_size=16)
    for name, value in network.state_dict().items():
        hashed.update(name.encode())
        hashed.update(value.cpu().numpy().tobytes())
    return hashed.hexdigest()


def _checked_arms(
    arms: Mapping[str, Dataset[Any] | Arm],
    augment: Augment | AugmentName | None,
    config: ClassifierConfig,
) -> dict[str, Arm]:
    if not isinstance(arms, Mapping) or not arms:
        raise ValueError(
            "`arms` must map at least one name to a data set, for example "
            '{"real": real, "real + synthetic": mixed}.'
        )
    for name in arms:
        if not isinstance(name, str) or not name:
            raise ValueError(f"Names of arms must be text that is not empty, got {name!r}.")
    checked = {
        name: arm if isinstance(arm, Arm) else Arm(arm, augment=augment)
        for name, arm in arms.items()
    }
    if config.horizontal_flip and not any(isinstance(a.augment, str) for a in checked.values()):
        raise ValueError(
            '`horizontal_flip` belongs to augment="standard", which no arm has. Mirror in the '
            "augmentation that was given, for example StandardAugment(horizontal_flip=True, ...)."
        )
    return checked


def _checked_tests(test: Any, adversarial: Any) -> tuple[Any, dict[str, Any]]:
    """The test set, and further ones by name."""
    if not isinstance(test, Mapping):
        return test, {}
    if not test or not all(isinstance(name, str) and name for name in test):
        raise ValueError("`test` must map at least one name, text, to a data set.")
    if adversarial is not None and ROBUST in test:
        raise ValueError(
            f"`test` has a set called {ROBUST!r}, the name of the result under attack. Rename it."
        )
    (_, first), *others = test.items()
    return first, dict(others)


def _checked_sizes(class_sizes: Sequence[int]) -> tuple[int, int]:
    """The two numbers that part few, medium and many images."""
    arguments.check_type(Sequence, "two whole numbers, such as (20, 100)", class_sizes=class_sizes)
    if len(class_sizes) != 2:
        raise ValueError(f"`class_sizes` must be two whole numbers, got {class_sizes!r}.")
    low, high = class_sizes
    arguments.check_whole(1, class_sizes=low)
    arguments.check_whole(low, "First the smaller number.", class_sizes=high)
    return low, high


def _checked_seeds(seeds: int | Sequence[int]) -> list[int]:
    if not isinstance(seeds, Sequence):
        count = checked_seed(seeds)
        if count < 1:
            raise ValueError(f"`seeds` must be at least 1, got {count}.")
        return list(range(count))
    chosen = [checked_seed(seed) for seed in seeds]
    if not chosen or min(chosen) < 0 or len(set(chosen)) < len(chosen):
        raise ValueError(f"`seeds` must be different numbers from 0 on, got {chosen}.")
    return chosen


def _augment_of(arm: Arm, image_shape: ImageShape, flip: bool) -> Augment | None:
    if arm.augment is None or callable(arm.augment):
        return arm.augment
    return named_augment(arm.augment, image_shape, horizontal_flip=flip)


def _images_of(arm: Arm, name: str, inputs: Inputs, config: ClassifierConfig) -> ArmImages:
    rare: dict[str, Any] = {way: vars(arm)[way] for way in arm.counts_rare_classes_more}
    if arm.share is None:
        return ArmImages(inputs.arms[name], **rare)
    images = ArmImages(
        inputs.arms[name], inputs.added[name], float(arm.share), arm.augment_synthetic, **rare
    )
    if min(count for _, count in images.divided(config.batch_size)) < 1:
        raise ValueError(
            f"`share` of arm {name!r} is {arm.share:g}, which leaves no synthetic or no real image "
            f"in a batch of {config.batch_size}. Choose a larger `batch_size` or another share."
        )
    return images
