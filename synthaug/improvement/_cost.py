"""Estimates what a search will take, from what one step of everything takes here."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from synthaug._images.source import ImageSource
from synthaug._support.files import write_text
from synthaug._support.reading import parse_json, read_text
from synthaug._support.report import decode, encode
from synthaug._training.training_config import TrainingConfig
from synthaug.errors import DataError
from synthaug.evaluation import Arm, evaluate
from synthaug.improvement._config import ImproveConfig
from synthaug.improvement._recipes import SAMPLER, TRAINED, RecipeImages
from synthaug.synthesizers import ClassConditional

_FEW, _MORE = 2, 17
"""Steps of two short trainings, whose difference is the cost of steps alone."""
_BATCH, _SECONDS = 64, 10.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds, measured on this machine before the search. Audits are not in it."""

    classifier: float
    """To train and test one classifier."""
    generator: float
    """To train the generator; 0 if there is none to train."""
    images: dict[str, float]
    """To draw one image of each recipe; 0 for images that are there."""

    def total(
        self,
        taken: Sequence[tuple[str, float]],
        config: ImproveConfig,
        real: int,
        *,
        least: bool = False,
    ) -> float:
        """Seconds of a whole search.

        Args:
            taken: Recipes and shares that are tried.
            config: How.
            real: Training images.
            least: Cost if the cheapest recipe were tried alone.
        """
        names = {name for name, _ in taken} or {min(self.images, key=lambda n: self.images[n])}
        drawn = config.images_per_round * real
        later = max(self.images[name] for name in names) * drawn * (config.rounds - 1)
        first = sum(self.images[name] for name in names) * drawn
        trained = self.generator if TRAINED in names else 0.0
        tried = 1 if least else max(1, len(taken))
        return trained + first + later + runs(tried, config) * self.classifier


def runs(tried: int, config: ImproveConfig) -> int:
    """Classifiers that a search trains at most, with so many recipes and shares."""
    count, seeds, done = 2 * config.screening_seeds, config.screening_seeds, 0
    alive = tried
    while True:
        count += (alive + 1) * (seeds - done)
        if alive == 1 and seeds >= config.final_seeds:
            break
        alive, done = math.ceil(alive / 2), seeds
        seeds = min(2 * seeds, config.final_seeds) if alive > 1 else config.final_seeds
    return count + (config.rounds - 1) * config.final_seeds + 2 * config.final_seeds


def affordable(
    wanted: Sequence[tuple[str, float]], estimate: Estimate, config: ImproveConfig, real: int
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The first combinations that fit into the budget together, and the others."""
    taken: list[tuple[str, float]] = []
    for one in wanted:
        if estimate.total([*taken, one], config, real) <= 60 * config.minutes:
            taken.append(one)
    return taken, [one for one in wanted if one not in taken]


def measure(
    path: Path,
    pools: Mapping[str, RecipeImages],
    real: ImageSource,
    validation: ImageSource,
    config: ImproveConfig,
    own: Callable[[], float] | None,
) -> Estimate:
    """Measures what one step of everything costs, or reads what was measured before.

    Args:
        path: Keeps it, so that a search that goes on tries what it began with.
        pools: The recipes.
        real: Training images.
        validation: Images to test on.
        config: How recipes are tried.
        own: Trains the user's classifier and returns the seconds; `None` means ours.
    """
    if path.exists():
        try:
            return decode(Estimate, parse_json(read_text(path)))
        except (OSError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{path} is damaged: {error!r}. Delete it and run again.") from error
    classifier = _of_classifier(real, validation, config) if own is None else own()
    generator, images = 0.0, {}
    for name, pool in pools.items():
        if not pool.drawn:
            images[name] = 0.0
        elif pool.given is None:
            generator, images[name] = _of_training(real, config)
        else:
            images[name] = _per_image(pool.given.source, pool.given.parameters)
    estimate = Estimate(classifier=classifier, generator=generator, images=images)
    write_text(path, encode(estimate, indent=1))
    return estimate


def _of_training(real: ImageSource, config: ImproveConfig) -> tuple[float, float]:
    """Seconds of the whole training of a generator, and of one of its images."""
    made: list[Any] = []

    def train(steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            short: TrainingConfig = replace(
                config.generator, steps=steps, decay_steps=0, warmup_steps=0
            )
            made.append(
                ClassConditional.fit(
                    real.dataset, folder, channels=config.channels, config=short, progress=False
                )[0]
            )

    seconds = _extrapolated(train, config.generator.steps)
    return seconds, _per_image(made[-1].with_settings(**SAMPLER.record()), {})


def _of_classifier(real: ImageSource, validation: ImageSource, config: ImproveConfig) -> float:
    """Seconds to train and test one classifier, under attack if that is asked for."""

    def train(steps: int) -> None:
        evaluate(
            {"real": Arm(real.dataset, augment="standard")},
            test=validation.dataset,
            seeds=1,
            config=replace(config.classifiers, steps=steps),
            adversarial=config.adversarial,
            progress=False,
        )

    return _extrapolated(train, config.classifiers.steps)


def _extrapolated(train: Callable[[int], object], steps: int) -> float:
    """Seconds of a training, from two short ones after one that warms up."""
    train(_FEW)
    seconds = []
    for few in (_FEW, _MORE):
        started = time.perf_counter()
        train(few)
        seconds.append(time.perf_counter() - started)
    first, second = seconds
    step = max(second - first, 0.1 * second) / (_MORE - _FEW)
    return max(0.0, second + step * (steps - _MORE))


def _per_image(synthesizer: Any, parameters: Mapping[str, Any]) -> float:
    """Seconds per image, in batches that grow from one image up to those of the search."""
    plan = synthesizer.plan(per_class=_BATCH, seed=0, **parameters)

    def seconds(size: int) -> float:
        started = time.perf_counter()
        synthesizer.draw(plan[:size]).cpu()  # the transfer waits for the device
        return time.perf_counter() - started

    seconds(1)  # warms up
    begun, size = time.perf_counter(), 1
    while True:
        last = seconds(size)
        # A batch four times as large takes four times as long at most.
        if size >= _BATCH or time.perf_counter() - begun + 4 * last > _SECONDS:
            return last / size
        size *= 4
