"""Chooses the snapshot of a training that is best on images kept for this choice."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from synthaug._images.source import ImageSource
from synthaug._pixels import to_pixels
from synthaug.errors import MismatchError
from synthaug.features import Extractor, extract
from synthaug.metrics import check_rank, frechet_distance
from synthaug.synthesizers._kinds import load

Score = Callable[[Any], float]
"""`score(synthesizer)`: what its images are worth."""


@final
@dataclass(frozen=True, kw_only=True)
class Selection:
    """The snapshots of a run with their scores; made by `select_snapshot`."""

    step: int
    """Optimizer steps of the best one; of several equal ones the first."""
    path: Path
    """Its directory."""
    scores: dict[int, float]
    """By steps, rising."""


def select_snapshot(
    output_dir: str | Path, score: Score, *, higher_is_better: bool = False, **arguments: Any
) -> Selection:
    """Scores the snapshots of a run, and names the best one.

        score = synthaug.synthesizers.frechet_score(validation, encoder, per_class=100)
        best = synthaug.synthesizers.select_snapshot("runs/birds", score)
        synthesizer = synthaug.ClassConditional.from_pretrained(best.path)

    Args:
        output_dir: Directory of a training with `snapshots`.
        score: For example `frechet_score(...)`, or the accuracy of a classifier that is trained on
            the images (CAS). It must look at images that are neither training nor test images.
        higher_is_better: Whether a higher score is better, as for an accuracy.
        arguments: For loading, such as `device` and `sampler`.

    Raises:
        ValueError: Without snapshots, or for a score that is not finite.
    """
    paths = sorted(Path(output_dir).glob("snapshots/[0-9]*/model_index.json"))
    if not paths:
        raise ValueError(f"{output_dir} holds no snapshots. Train with `snapshots`, the steps.")
    scores = {}
    for path in (p.parent for p in paths):
        scores[int(path.name)] = value = float(score(load(path, **arguments)))
        if not np.isfinite(value):
            raise ValueError(f"`score` of {path} is {value}.")
    step = (max if higher_is_better else min)(scores, key=scores.__getitem__)
    return Selection(step=step, path=Path(output_dir) / snapshot_name(step), scores=scores)


def snapshot_name(step: int) -> str:
    """Where the snapshot of a step is, in the directory of its run."""
    return f"snapshots/{step:08d}"


def frechet_score(
    validation: Any,
    features: Extractor,
    *,
    per_class: int,
    seed: int = 0,
    batch_size: int = 64,
    force: bool = False,
    **parameters: Any,
) -> Score:
    """A score for `select_snapshot`: the Fréchet distance of drawn images to validation images.

    Azizi et al. 2023 choose so, by 10,000 images of the default sampler.

    Args:
        validation: Real images, neither training nor test images: has `read(indices)`, and a
            length.
        features: Extractor, as for `synthaug.evaluation.score_quality`.
        per_class: Images to draw of each class.
        seed: Seed of the plan; every snapshot draws from the same noise.
        batch_size: Images per batch; does not change them.
        force: Go on with fewer images than twice the features.
        parameters: Parameters of the rows, such as `guidance_scale`.

    Raises:
        ValueError: For too few images, before any is drawn.
        DataError: When called, for a synthesizer that was trained on `validation`.
    """
    source = ImageSource.open(validation, "`validation`")
    real = extract(features, source.pixels(), batch_size=batch_size)
    check_rank(*real.shape, name="`validation`", force=force)
    fingerprint = source.fingerprint

    def score(synthesizer: Any) -> float:
        trained = (synthesizer.trained_on or {}).get("labeled", {})
        if fingerprint is not None and trained.get("fingerprint") == fingerprint:
            raise MismatchError(
                "`validation` is what the generator was trained on, so copies would score best. "
                "Give other images."
            )
        plan = synthesizer.plan(per_class=per_class, seed=seed, **parameters)
        check_rank(len(plan), real.shape[1], name="Each set of drawn images", force=force)
        vectors = [features(to_pixels(synthesizer.draw(rows))) for rows in plan.batches(batch_size)]
        return frechet_distance(np.concatenate(vectors), real, force=force)

    return score
