"""The whole job on real images that ship with a dependency: scikit-learn's handwritten digits.

The task: tell the digits apart with a few labeled images of each. The other images of the training
half have no labels. A generator needs none: a small diffusion model learns from all of them,
together with an encoder that says in a few tokens what an image looks like. Classifiers trained on
the labeled images guess the labels of the others. Diffusion inversion then learns an embedding of
every labeled image, and of every one whose guess is sure, and draws variants around and between
the embeddings of each class. How much the guesses do without a generator, and variants of the
labeled images without the guesses, are arms of the evaluation.

The test half is used once per classifier, at the end: no model ever sees it. (The
scans come writer by writer, so the two halves share one writer at most.) The settings below were
tried out on the training half, as `benchmarks/digits_choices.py` does.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup

from synthaug._audit import AuditReport, audit
from synthaug._audit.verdict_report import told
from synthaug._cache import SynthCache
from synthaug._datasets import MixedDataset
from synthaug._generate import generate
from synthaug._images.labeled import LabeledImages, load_dataset
from synthaug._noise import counter_rng
from synthaug._pixels import grid
from synthaug._support.arguments import check_fields
from synthaug._support.charts import Line, line_chart
from synthaug._support.files import write_text
from synthaug._support.html import blocks, data_uri, heading, page
from synthaug._training.classifier_config import ClassifierConfig
from synthaug._training.loop import TrainingResult
from synthaug._training.training_config import TrainingConfig
from synthaug._types import Indices, Pixels
from synthaug.evaluation import CAS, EvaluationReport, class_probabilities, evaluate
from synthaug.synthesizers import DiffusionInversion, InversionConfig, TokenConfig

MOST_PER_CLASS = 40
"""Every class has at least 86 images in the training half; most of them stay without labels."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Indices into the training half of the digits; they do not overlap."""

    labeled: Indices
    """The few images whose labels are known."""
    holdout: Indices
    """Kept from every model, to calibrate the audit."""
    pool: Indices
    """The rest. Their labels only count, for the report, how many guesses are right."""

    @property
    def seen(self) -> Indices:
        """Images that the generator learns from, ascending: the same for any number of labels."""
        return np.sort(np.concatenate([self.labeled, self.pool]))


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """Settings of the demo."""

    per_class: int = 3
    """Labeled images per class."""
    holdout_per_class: int = 20
    """Held-out images per class."""
    training_steps: int = 800
    """Optimizer steps of the generator."""
    width: int = 24
    """Channels of its first level."""
    num_tokens: int = 2
    """Tokens per image."""
    token_width: int = 16
    """Width of a token."""
    token_noise: float = 0.5
    """Noise on the tokens while the generator learns: more of it, and they say less."""
    sure: float = 0.5
    """Guessed labels of at least this probability are believed: likelier than all others."""
    updates: int = 10
    """Updates of every embedding."""
    synthetic_per_class: int = 60
    """Variants per class."""
    noise: tuple[float, ...] = (0.0, 0.25, 0.5)
    """Noise on the embeddings, relative to their RMS; used in turn."""
    interpolation: tuple[float, ...] = (0.25, 0.5)
    """How far variants are from their image, on the way to another one of its class; in turn."""
    guidance_scale: float = 2.0
    """1 is no guidance; more of it, and the images are clearer and less diverse."""
    num_inference_steps: int = 12
    """Denoising steps of DPM-Solver++."""
    fraction: float = 0.75
    """Share of synthetic (or guessed) images in the mixed arms."""
    classifier_steps: int = 300
    """Optimizer steps of every classifier."""
    seeds: int = 3
    """Classifiers per arm."""

    @property
    def classifiers(self) -> ClassifierConfig:
        """How classifiers are trained."""
        return ClassifierConfig(steps=self.classifier_steps, device="cpu")

    def __post_init__(self) -> None:
        check_fields(self)
        if not 2 <= self.per_class <= MOST_PER_CLASS:
            raise ValueError(
                f"`per_class` must be from 2 to {MOST_PER_CLASS}: variants lie between two images "
                f"of a class, and the rest of the training half stays without labels. Got "
                f"{self.per_class}."
            )


def split_digits(labels: Any, settings: DemoSettings, seed: int) -> Split:
    """The split of the training half: equal numbers of every class first, then the rest.

    A pure function of the labels and the seed. The held-out images are the same for any number of
    labels.
    """
    rng = counter_rng(seed, 1)
    labeled, holdout, pool = [], [], []
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(np.asarray(labels) == c))
        a, b = settings.per_class, len(rows) - settings.holdout_per_class
        labeled.append(rows[:a])
        pool.append(rows[a:b])
        holdout.append(rows[b:])
    return Split(
        labeled=np.concatenate(labeled), holdout=np.concatenate(holdout), pool=np.concatenate(pool)
    )


def classifier_seeds(seed: int, settings: DemoSettings) -> range:
    """The seeds of classifiers: others for every seed of the demo."""
    return range(seed * settings.seeds, (seed + 1) * settings.seeds)


@dataclass(frozen=True)
class Steps:
    """The steps of the demo, with what all of them need."""

    settings: DemoSettings
    """What to do."""
    seed: int
    """Seed of the models and the plans."""
    progress: bool
    """Show bars."""

    @property
    def classifiers(self) -> dict[str, Any]:
        """How classifiers are trained, as all functions that train some take it."""
        seeds = classifier_seeds(self.seed, self.settings)
        return {"seeds": seeds, "config": self.settings.classifiers, "progress": self.progress}

    def train_generator(
        self, seen: LabeledImages, out: Path
    ) -> tuple[DiffusionInversion, TrainingResult]:
        """Trains the generator on all images that it may see; it does not look at labels."""
        settings = self.settings
        generator, training = DiffusionInversion.fit_generator(
            seen,
            out,
            tokens=TokenConfig(
                num_tokens=settings.num_tokens,
                token_width=settings.token_width,
                token_noise=settings.token_noise,
            ),
            channels=settings.width,
            config=TrainingConfig(
                steps=settings.training_steps,
                batch_size=64,
                learning_rate=1e-3,
                decay_steps=settings.training_steps // 3,
                ema_decay=0.998,
                checkpoint_seconds=30,
                seed=self.seed,
                device="cpu",
            ),
            progress=self.progress,
        )
        steps = settings.num_inference_steps
        return generator.with_settings(scheduler="dpmsolver++", num_inference_steps=steps), training

    def guess_labels(self, half: LabeledImages, split: Split) -> tuple[LabeledImages, float]:
        """Names the pool's images that classifiers trained on the labeled ones are sure about.
        Returns these images, and the share of right names, which only the report looks at."""
        labeled, pool = half.subset(split.labeled), half.read(split.pool)
        probabilities = class_probabilities(labeled, pool, **self.classifiers)
        guess, largest = probabilities.argmax(axis=1), probabilities.max(axis=1)
        sure = largest >= self.settings.sure
        believed = split.pool[sure]
        named = LabeledImages(half.read(believed), guess[sure], half.classes, name="guessed digits")
        right = float((guess[sure] == half.labels[believed]).mean()) if sure.any() else 1.0
        return named, right

    def invert(
        self, generator: DiffusionInversion, sources: LabeledImages, folder: Path
    ) -> DiffusionInversion:
        """Learns an embedding of every source."""
        config = InversionConfig(updates=self.settings.updates, learning_rate=0.05, seed=self.seed)
        return generator.fit(sources, folder, config=config, progress=self.progress)[0]

    def draw_variants(
        self, inversion: DiffusionInversion, sources: LabeledImages, path: Path
    ) -> SynthCache:
        """Draws equally many variants of every class, of its sources in turn."""
        plan = inversion.plan(
            per_class=self.settings.synthetic_per_class,
            noise=self.settings.noise,
            interpolation=self.settings.interpolation,
            guidance_scale=self.settings.guidance_scale,
            seed=self.seed,
        )
        job: Any = {"source": sources, "batch_size": 256, "progress": self.progress}
        return generate(inversion, plan, path, **job)

    def compare(
        self,
        real: LabeledImages,
        guessed: LabeledImages,
        caches: dict[str, SynthCache],
        report: AuditReport,
        **options: Any,
    ) -> EvaluationReport:
        """Trains classifiers on real images alone, with guesses, and with synthetic images."""
        share = self.settings.fraction
        cache = caches["digits"]

        def mixed(cache: SynthCache, audit: AuditReport | None, fraction: float) -> MixedDataset:
            return MixedDataset(real, cache, audit=audit, fraction=fraction, seed=self.seed)

        arms = {
            "real, augmented": real,
            "real + variants of them": mixed(caches["few"], None, share),
            "real + guessed labels": with_guesses(real, guessed, share=share),
            "real + synthetic": mixed(cache, report, share),
            CAS: mixed(cache, report, 1.0),
        }
        return evaluate(arms, baseline="real, augmented", **self.classifiers, **options)


def joined(real: LabeledImages, guessed: LabeledImages, *, repeats: int = 1) -> LabeledImages:
    """Real images, `repeats` times each, and guessed ones."""
    pixels = torch.cat([_all(real).repeat(repeats, 1, 1, 1), _all(guessed)])
    labels = np.concatenate([np.tile(real.labels, repeats), guessed.labels])
    return LabeledImages(pixels, labels, real.classes, name="digits and guesses")


def with_guesses(real: LabeledImages, guessed: LabeledImages, *, share: float) -> LabeledImages:
    """Real images, repeated, and guessed ones, which make up about `share` of the whole."""
    repeats = max(1, round(len(guessed) * (1 - share) / share / len(real)))
    return joined(real, guessed, repeats=repeats)


def _all(images: LabeledImages) -> Pixels:
    return images.read(range(len(images)))


def demo(
    out: str | Path, *, seed: int = 0, settings: DemoSettings | None = None, progress: bool = True
) -> Path:
    """Labeled digits in; a better classifier, an audit and one HTML report out.

    Run again after a kill it goes on where it was. The generator is shared by runs with other
    numbers of labels in the same directory.

    Args:
        out: Directory to write: the generator in it, and all else in `N-per-class`.
        seed: Seed of the split, the models and the plan.
        settings: Settings of the demo; the defaults take less than five minutes on two cores.
        progress: Show bars.

    Returns:
        The path of the HTML report.
    """
    settings = settings or DemoSettings()
    folder = Path(out) / f"{settings.per_class}-per-class"
    folder.mkdir(parents=True, exist_ok=True)
    started, steps = time.monotonic(), Steps(settings, seed, progress)
    half = load_dataset("digits:train")
    test = load_dataset("digits:test")
    split = split_digits(half.targets, settings, seed)
    real, seen = half.subset(split.labeled), half.subset(split.seen)
    print(
        f"scikit-learn's digits: {len(real)} labeled images ({settings.per_class} per class), "
        f"{len(split.pool)} without labels, {len(split.holdout)} held out for the audit, "
        f"{len(test)} to test on."
    )
    print("1/4 train a diffusion model on all images, and guess labels")
    generator, training = steps.train_generator(seen, Path(out) / "generator")
    guessed, right = steps.guess_labels(half, split)
    print(f"Sure about {len(guessed)} of the {len(split.pool)}; {right:.1%} of these are right.")
    print("2/4 learn embeddings, and draw variants")
    caches = {}
    for name, sources in (("few", real), ("digits", joined(real, guessed))):
        inversion = steps.invert(generator, sources, folder / f"{name}-inverted")
        caches[name] = steps.draw_variants(inversion, sources, folder / f"{name}.h5")
    cache = caches["digits"]
    print("3/4 audit")
    holdout = half.subset(split.holdout)
    report = audit(cache, seen, holdout=holdout, seed=seed, progress=progress)
    report.to_json(folder / "audit.json")
    report.to_html(folder / "audit.html")
    print("4/4 train classifiers")
    evaluation = steps.compare(
        real, guessed, caches, report, test=test, output_dir=folder / "classifiers"
    )
    evaluation.to_json(folder / "evaluation.json")
    path = folder / "report.html"
    minutes = (time.monotonic() - started) / 60
    body = blocks(
        Markup("<h1>Handwritten digits: real, synthetic, and both</h1>"),
        _introduction(real, guessed, right, cache, settings, minutes),
        heading("The images"),
        *_pictures(real, guessed, cache, settings),
        *_results(evaluation, training, report),
    )
    write_text(path, page("synthaug demo", body, style=report.STYLE))
    print()
    print(evaluation.table())
    print()
    print(told(report.verdict, report.reasons))
    print(f"Report: {path.resolve()} ({minutes:.1f} minutes)")
    return path


def _introduction(
    real: LabeledImages,
    guessed: LabeledImages,
    right: float,
    cache: SynthCache,
    settings: DemoSettings,
    minutes: float,
) -> str:
    """Returns the introduction of the page."""
    return (
        f"{len(real)} labeled images, {settings.per_class} of each digit, are all the labels "
        "there are. A small diffusion model learned from all training images, without labels. "
        "Classifiers trained on the labeled images guessed the labels of the others, and were "
        f"sure about {len(guessed)} ({right:.1%} of these guesses are right). An embedding was "
        f"learned for each of these and of the labeled images, and {len(cache):,} variants were "
        "drawn between embeddings of the same digit; an audit compared them with everything the "
        "model had seen. Then the same classifier was trained on each of the arms below for "
        f"{settings.classifier_steps} steps, and tested on images by other writers. It took "
        f"{minutes:.1f} minutes."
    )


def _pictures(
    real: LabeledImages, guessed: LabeledImages, cache: SynthCache, settings: DemoSettings
) -> list[Markup]:
    """Labeled images, synthetic ones, and how these came about."""
    triples = _triples(cache, joined(real, guessed), 3)
    came_about = "How they came about, a row per class: image, partner, variant; three times"
    return [
        _picture("All labeled images, a row per class", _rows_by_class(real), settings.per_class),
        _picture("Synthetic images, a row per class", cache.read(_first_rows(cache, 10)), 10),
        _picture(came_about, triples, 9),
    ]


def _results(
    evaluation: EvaluationReport, training: TrainingResult, report: AuditReport
) -> list[Markup]:
    """Accuracies, the generator's loss, and the audit."""
    steps, losses = np.array(training.loss_curve).T
    loss = Line(name="loss", x=steps, y=losses)
    return [
        heading("Do they help?"),
        evaluation.html_sections(),
        heading("Training the generator"),
        line_chart([loss], x_label="optimizer step", y_label="mean squared error"),
        heading("Are they copies?"),
        Markup("<p><b>{}</b></p>").format(report.title),
        report.html_sections(),
    ]


def _rows_by_class(real: LabeledImages) -> Pixels:
    return real.read(np.argsort(np.asarray(real.targets), kind="stable"))


def _first_rows(cache: SynthCache, count: int) -> Indices:
    by_class = [np.flatnonzero(cache.labels == c)[:count] for c in range(len(cache.classes))]
    return np.concatenate(by_class)


def _triples(cache: SynthCache, sources: LabeledImages, count: int) -> Pixels:
    """Image, partner and variant of the first rows of every class, uint8 (n, C, H, W)."""
    rows = _first_rows(cache, count)
    plan = cache.plan[rows]
    three = [sources.read(plan["source"]), sources.read(plan["partner"]), cache.read(rows)]
    return torch.stack(three, dim=1).flatten(0, 1)


def _picture(caption: str, pixels: Pixels, columns: int) -> Markup:
    sheet = grid(pixels, columns=columns)
    return Markup(
        '<figure><img src="{}" alt="{}" style="width:{}px"><figcaption>{}</figcaption></figure>'
    ).format(data_uri(sheet), caption, sheet.width * 4, caption)
