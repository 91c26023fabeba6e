"""The whole job on real images that ship with a dependency: scikit-learn's handwritten digits.

The task: tell the digits apart with three labelled images of each. The other images of the training
half have no labels. Classifiers trained on the labelled ones guess them, and a class-conditional
diffusion model learns from the labelled images and from those guesses that are sure; what is left
trains its unconditional branch (as in dual pseudo training, You et al. 2023). How much the guesses
help without a generator is an arm of the evaluation. The test half is used once per classifier, at
the end: no model and no choice ever sees it. (The scans come writer by writer, so the two halves
share one writer at most.) The settings below were chosen on the training half alone, by
`benchmarks/digits_choices.py`.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup, escape

from synthaug._audit import AuditReport, audit
from synthaug._audit._page import STYLE, sections
from synthaug._cache import SynthCache
from synthaug._data import LabelledImages, load_dataset
from synthaug._datasets import MixedDataset
from synthaug._evaluation import CAS, Arm, EvaluationReport, class_probabilities, evaluate
from synthaug._files import write_text
from synthaug._generate import generate
from synthaug._html import Line, data_uri, line_chart, page
from synthaug._noise import counter_rng
from synthaug._pixels import grid
from synthaug._training import TrainingConfig, TrainingResult
from synthaug._types import Indices, Pixels
from synthaug.synthesizers import ClassConditional


@dataclass(frozen=True, kw_only=True)
class Split:
    """Indices into the training half of the digits; they do not overlap."""

    labelled: Indices
    """The few images whose labels are known."""
    holdout: Indices
    """Kept from every model, to calibrate the audit."""
    pool: Indices
    """The rest. Their labels only count, for the report, how many guesses are right."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the demo does."""

    per_class: int = 3
    """Labelled images per class."""
    holdout_per_class: int = 20
    """Held-out images per class."""
    training_steps: int = 1200
    """Optimiser steps of the generator."""
    width: int = 24
    """Channels of its first level."""
    sure: float = 0.5
    """Guessed labels of at least this probability are believed: likelier than all others."""
    synthetic_per_class: int = 50
    """Synthetic images per class."""
    num_inference_steps: int = 12
    """Denoising steps of DPM-Solver++."""
    guidance_scale: float = 1.0
    """1 is no guidance: diverse images rather than typical ones."""
    fraction: float = 0.5
    """Share of synthetic (or guessed) images in the mixed arms."""
    classifier_steps: int = 300
    """Optimiser steps of every classifier."""
    seeds: int = 3
    """Classifiers per arm."""


def split_digits(labels: Any, settings: Settings, seed: int) -> Split:
    """The split of the training half: equal numbers of every class first, then the rest.

    A pure function of the labels and the seed.
    """
    rng = counter_rng(seed, 1)
    labelled, holdout, pool = [], [], []
    for c in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(np.asarray(labels) == c))
        a = settings.per_class
        b = a + settings.holdout_per_class
        labelled.append(rows[:a])
        holdout.append(rows[a:b])
        pool.append(rows[b:])
    return Split(
        labelled=np.concatenate(labelled),
        holdout=np.concatenate(holdout),
        pool=np.concatenate(pool),
    )


def classifier_seeds(seed: int, settings: Settings) -> range:
    """The seeds of classifiers: others for every seed of the demo."""
    return range(seed * settings.seeds, (seed + 1) * settings.seeds)


def guess_labels(
    half: LabelledImages, split: Split, settings: Settings, *, seed: int, progress: bool
) -> tuple[LabelledImages, LabelledImages, float]:
    """Names the pool's images that classifiers trained on the labelled ones are sure about.

    Returns:
        The images with believed guesses for labels; the others, all with the label 0, which means
        nothing; and the share of the believed guesses that is right, which only the report looks
        at.
    """
    probabilities = class_probabilities(
        half.subset(split.labelled),
        half.read(split.pool),
        steps=settings.classifier_steps,
        seeds=classifier_seeds(seed, settings),
        progress=progress,
    )
    guess, sure = probabilities.argmax(axis=1), probabilities.max(axis=1) >= settings.sure
    believed = split.pool[sure]
    named = LabelledImages(half.read(believed), guess[sure], half.classes, name="guessed digits")
    right = float((guess[sure] == half.labels[believed]).mean()) if sure.any() else 1.0
    rest = half.read(split.pool[~sure])
    return named, LabelledImages(rest, np.zeros(len(rest), np.int64), half.classes), right


def with_guesses(real: LabelledImages, guessed: LabelledImages, *, share: float) -> LabelledImages:
    """Real images, repeated, and guessed ones, which make up about `share` of the whole."""
    repeats = max(1, round(len(guessed) * (1 - share) / share / len(real)))
    pixels = torch.cat([real.read(range(len(real))).repeat(repeats, 1, 1, 1), _all(guessed)])
    labels = np.concatenate([np.tile(real.labels, repeats), guessed.labels])
    return LabelledImages(pixels, labels, real.classes, name="digits and guesses")


def train_generator(
    real: LabelledImages,
    guessed: LabelledImages,
    rest: LabelledImages,
    out: Path,
    settings: Settings,
    *,
    seed: int,
    progress: bool,
) -> tuple[ClassConditional, TrainingResult]:
    """Trains the class-conditional generator on all images that it may see."""
    return ClassConditional.fit(
        LabelledImages(
            torch.cat([_all(real), _all(guessed)]),
            np.concatenate([real.labels, guessed.labels]),
            real.classes,
        ),
        out,
        unlabelled=rest if len(rest) else None,
        channels=settings.width,
        config=TrainingConfig(
            steps=settings.training_steps,
            batch_size=64,
            learning_rate=1e-3,
            decay_steps=settings.training_steps // 3,
            ema_decay=0.998,
            checkpoint_seconds=30,
            seed=seed,
            device="cpu",
        ),
        progress=progress,
    )


def _all(images: LabelledImages) -> Pixels:
    return images.read(range(len(images)))


def demo(
    out: str | Path, *, seed: int = 0, settings: Settings | None = None, progress: bool = True
) -> Path:
    """Labelled digits in; a better classifier, an audit and one HTML report out.

    Run again after a kill it goes on where it was.

    Args:
        out: Directory to write: the generator, the cache, the reports.
        seed: Seed of the split, the models and the plan.
        settings: What to do; the defaults take less than five minutes on two cores.
        progress: Show bars.

    Returns:
        The path of the HTML report.
    """
    settings = settings or Settings()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    half = load_dataset("digits:train")
    test = load_dataset("digits:test")
    split = split_digits(half.targets, settings, seed)
    real = half.subset(split.labelled)
    print(
        f"scikit-learn's digits: {len(real)} labelled images ({settings.per_class} per class), "
        f"{len(split.pool)} without labels, {len(split.holdout)} held out for the audit, "
        f"{len(test)} to test on."
    )
    print("1/4 guess labels, and train a diffusion model")
    guessed, rest, right = guess_labels(half, split, settings, seed=seed, progress=progress)
    print(f"Sure about {len(guessed)} of the {len(split.pool)}; {right:.1%} of these are right.")
    synthesizer, training = train_generator(
        real, guessed, rest, out / "generator", settings, seed=seed, progress=progress
    )
    synthesizer = ClassConditional.from_pretrained(
        out / "generator",
        scheduler="dpmsolver++",
        num_inference_steps=settings.num_inference_steps,
        device="cpu",
    )
    print("2/4 generate")
    plan = synthesizer.plan(
        per_class=settings.synthetic_per_class,
        guidance_scale=settings.guidance_scale,
        seed=seed,
    )
    seen = half.subset(np.concatenate([split.labelled, split.pool]))
    cache = generate(synthesizer, plan, str(out / "digits.h5"), source=seen, progress=progress)
    print("3/4 audit")
    holdout = half.subset(split.holdout)
    report = audit(cache, seen, holdout=holdout, seed=seed, progress=progress)
    report.to_json(out / "audit.json")
    report.to_html(out / "audit.html")
    print("4/4 train classifiers")
    mixed = MixedDataset(real, cache, audit=report, fraction=settings.fraction, seed=seed)
    evaluation = evaluate(
        {
            "real": Arm(real),
            "real, augmented": real,
            "real + guessed labels": with_guesses(real, guessed, share=settings.fraction),
            "real + synthetic": mixed,
            CAS: MixedDataset(real, cache, audit=report, fraction=1.0, seed=seed),
        },
        test=test,
        steps=settings.classifier_steps,
        seeds=classifier_seeds(seed, settings),
        baseline="real, augmented",
        device="cpu",
        output_dir=out / "classifiers",
        progress=progress,
    )
    evaluation.to_json(out / "evaluation.json")
    path = out / "report.html"
    minutes = (time.monotonic() - started) / 60
    body = _body(real, guessed, right, cache, report, evaluation, training, settings, minutes)
    write_text(path, page("synthaug demo", body, style=STYLE))
    print()
    print(evaluation.table())
    print()
    print(f"Audit: {report.verdict}. {' '.join(report.reasons)}")
    print(f"Report: {path.resolve()} ({minutes:.1f} minutes)")
    return path


def _body(
    real: LabelledImages,
    guessed: LabelledImages,
    right: float,
    cache: SynthCache,
    report: AuditReport,
    evaluation: EvaluationReport,
    training: TrainingResult,
    settings: Settings,
    minutes: float,
) -> Markup:
    """The report: task, images, accuracy, training curve, audit."""
    rows = [r for c in range(len(cache.classes)) for r in np.flatnonzero(cache.labels == c)[:10]]
    steps, losses = np.array(training.loss_curve).T
    parts = [
        Markup("<h1>Handwritten digits: real, synthetic, and both</h1>"),
        Markup(
            "<p>{} labelled images, {} of each digit, are all the labels there are. Classifiers "
            "trained on them guessed the labels of the other training images, and were sure about "
            "{} ({:.1%} of these guesses are right). A class-conditional diffusion model learned "
            "from all of these, and drew {:,} images in {} steps each; an audit compared them with "
            "everything the model had seen. Then the same classifier was trained on each of the "
            "arms below for {} steps, and tested on images by other writers. It took {:.1f} "
            "minutes.</p>"
        ).format(
            len(real),
            settings.per_class,
            len(guessed),
            right,
            len(cache),
            settings.num_inference_steps,
            settings.classifier_steps,
            minutes,
        ),
        Markup("<h2>The images</h2>"),
        _picture("All labelled images, a row per class", _rows_by_class(real), settings.per_class),
        _picture("Synthetic images, a row per class", cache.read(rows), 10),
        Markup("<h2>Do they help?</h2>"),
        evaluation.html_sections(),
        Markup("<h2>Training the generator</h2>"),
        line_chart(
            [Line(name="loss", x=steps, y=losses)],
            x_label="optimiser step",
            y_label="mean squared error",
        ),
        Markup("<h2>Are they copies?</h2>"),
        sections(report),
    ]
    return Markup("\n").join(parts)


def _rows_by_class(real: LabelledImages) -> Pixels:
    return real.read(np.argsort(np.asarray(real.targets), kind="stable"))


def _picture(caption: str, pixels: Pixels, columns: int) -> Markup:
    sheet = grid(pixels, columns=columns)
    return Markup(
        '<figure><img src="{}" alt="{}" style="width:{}px"><figcaption>{}</figcaption></figure>'
    ).format(data_uri(sheet), caption, sheet.width * 4, escape(caption))
