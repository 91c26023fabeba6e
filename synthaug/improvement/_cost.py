"""Estimates what a search will take, from what one step of everything takes here."""

import logging
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from synthaug._audit import audit
from synthaug._generate.cost import drawing_time
from synthaug._images.source import ImageSource
from synthaug._support.files import write_text
from synthaug._support.progress import bar
from synthaug._support.report import encode, read_kept
from synthaug._support.stopping import nothing_kept
from synthaug._training.training_config import TrainingConfig
from synthaug.errors import DataError, SynthaugError
from synthaug.evaluation import Arm, evaluate
from synthaug.improvement._config import ImproveConfig
from synthaug.improvement._recipes import SAMPLER, RecipeImages
from synthaug.synthesizers import ClassConditional

logger = logging.getLogger("synthaug")

_FEW, _MORE = 2, 17
"""Steps of two short trainings, whose difference is the cost of steps alone."""
_BATCH = 64
_LONGEST = 1e7
"""Seconds of a measurement: four months."""
_AUDITED = 50, 400
"""Images of each set of two audits, whose difference is the cost of images alone."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds, measured on this machine before the search."""

    classifier: float
    """To train and test one classifier."""
    generator: float
    """To train the generator; 0 if there is none to train."""
    images: dict[str, float]
    """To draw what one image of each recipe and target needs; 0 for images that are there."""
    classifiers: dict[str, int]
    """How many judge the images of a round, for each recipe and target."""
    overdrawn: dict[str, int]
    """How many images are drawn and audited for each that is wanted."""
    audit: float
    """To audit any images."""
    audited_image: float
    """For each synthetic or held-out image of an audit more: training images cost little."""
    rivals: int
    """Arms without a generator."""

    def check(self, path: Path) -> None:
        """Refuses seconds that nobody waited for, with a DataError that names their file."""
        seconds = (self.classifier, self.generator, self.audit, self.audited_image)
        for value in (*seconds, *self.images.values()):
            if not 0 <= value <= _LONGEST:
                raise DataError(
                    f"{path} is damaged: a step of {value:g} seconds was not measured. Delete it "
                    "and run again."
                )

    def total(
        self,
        taken: Sequence[tuple[str, float]],
        config: ImproveConfig,
        real: int,
        held: int = 0,
        *,
        least: bool = False,
    ) -> float:
        """Seconds of a whole search.

        Args:
            taken: Recipes and shares that are tried.
            config: How recipes are tried.
            real: Training images.
            held: Validation images, which audits compare with training images too.
            least: Cost if the cheapest recipe were tried alone.
        """
        names = {name for name, _ in taken} or {min(self.images, key=lambda n: self.images[n])}
        drawn = config.images_per_round * real
        dearest = max(names, key=lambda name: self._of_round(name, 1, drawn, held))
        later = sum(
            self._of_round(dearest, number, drawn, held) for number in range(2, config.rounds + 1)
        )
        first = sum(self._of_round(name, 1, drawn, held) for name in names)
        tried = 1 if least else max(1, len(taken))
        return self.generator + first + later + runs(tried, config, self.rivals) * self.classifier

    def _of_round(self, name: str, number: int, drawn: float, held: int) -> float:
        """Seconds to draw and choose the images of a round, and to audit those of all so far."""
        audited = self.overdrawn[name] * number * drawn + held
        return (
            self.images[name] * drawn
            + self.classifiers[name] * self.classifier
            + self.audit
            + self.audited_image * audited
        )


def runs(tried: int, config: ImproveConfig, rivals: int) -> int:
    """Classifiers that a search trains at most, with so many recipes and shares, and rivals."""
    count, seeds, done = rivals * config.screening_seeds, config.screening_seeds, 0
    alive = tried
    while True:
        count += (alive + 1) * (seeds - done)
        if alive == 1 and seeds >= config.final_seeds:
            break
        alive, done = math.ceil(alive / 2), seeds
        seeds = min(2 * seeds, config.final_seeds) if alive > 1 else config.final_seeds
    return count + (config.rounds - 1) * config.final_seeds + 2 * config.final_seeds


def affordable(
    wanted: Sequence[tuple[str, float]],
    estimate: Estimate,
    config: ImproveConfig,
    real: int,
    held: int = 0,
) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """The first combinations that fit into the budget together, and the others."""
    taken: list[tuple[str, float]] = []
    for one in wanted:
        if estimate.total([*taken, one], config, real, held) <= 60 * config.minutes:
            taken.append(one)
    return taken, [one for one in wanted if one not in taken]


def measure(
    path: Path,
    pools: Mapping[str, RecipeImages],
    real: ImageSource,
    validation: ImageSource,
    config: ImproveConfig,
    own: Callable[[], float] | None,
    rivals: int,
    *,
    progress: bool = True,
) -> Estimate:
    """Measures what one step of everything costs, or reads what was measured before.

    Args:
        path: Keeps it, so that a search that goes on tries what it began with.
        pools: The recipes.
        real: Training images.
        validation: Images to test on.
        config: How recipes are tried.
        own: Trains the user's classifier and returns the seconds; `None` means ours.
        rivals: Arms without a generator.
        progress: Show a bar.
    """
    if path.exists():
        kept: Estimate = read_kept(Estimate, path)
        kept.check(path)
        return kept
    logger.warning(
        "Measuring what one step of everything costs here: classifiers, generators, an audit."
    )
    recipes = {id(pool.given) for pool in pools.values()}
    with bar(2 + len(recipes), "measure costs", "part", progress=progress) as shown:
        classifier = _of_classifier(real, validation, config) if own is None else own()
        shown.update()
        generator, images = 0.0, {}
        of_recipe: dict[int, float] = {}  # targets share their recipe
        for name, pool in pools.items():
            key = id(pool.given)
            if key not in of_recipe:
                if not pool.drawn:
                    of_recipe[key] = 0.0
                elif pool.given is None:
                    generator, of_recipe[key] = _of_training(real, config)
                else:
                    of_recipe[key] = _per_image(pool.given.source, pool.given.parameters)
                shown.update()
            images[name] = of_recipe[key] * pool.overdrawn
        fixed, each = _of_audit(real, validation)
        shown.update()
    estimate = Estimate(
        classifier=classifier,
        generator=generator,
        images=images,
        classifiers={name: pool.classifiers for name, pool in pools.items()},
        overdrawn={name: pool.overdrawn for name, pool in pools.items()},
        audit=fixed,
        audited_image=each,
        rivals=rivals,
    )
    write_text(path, encode(estimate, indent=1))
    return estimate


_MEASURING = "The time of a training was being measured, and nothing of that is kept."


def _of_training(real: ImageSource, config: ImproveConfig) -> tuple[float, float]:
    """Seconds of the whole training of a generator, and of one of its images."""
    made: list[Any] = []

    def train(steps: int) -> None:
        with tempfile.TemporaryDirectory() as folder, nothing_kept(_MEASURING):
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


def _of_audit(real: ImageSource, validation: ImageSource) -> tuple[float, float]:
    """Seconds of any audit, and of each synthetic or held-out image: of two audits of few real
    images, some of which stand in for synthetic ones, after one that warms up."""
    measured = []
    for few in (_AUDITED[0], *_AUDITED):
        stand_ins, train, holdout = _part(real, few, 1), _part(real, few), _part(validation, few)
        started = time.perf_counter()
        try:
            audit(stand_ins, train, holdout=holdout, deduplicate=True, progress=False)
        except SynthaugError as error:
            logger.warning("How long audits take was not measured: %s", error)
            return 0.0, 0.0
        seconds = time.perf_counter() - started
        measured.append((len(stand_ins) + len(holdout), seconds))
    _, (few, first), (more, second) = measured
    each = max(0.0, second - first) / (more - few) if more > few else second / max(1, more)
    return max(0.0, second - each * more), each


def _part(source: ImageSource, count: int, start: int = 0) -> Subset[Any]:
    """Every other image of a set from one on, at most so many."""
    return Subset(source.dataset, list(range(start, len(source), 2))[:count])


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
    rows, taken = drawing_time(synthesizer, plan, batch_size=_BATCH)
    return taken / len(rows)
