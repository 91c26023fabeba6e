"""The candidates of a search: sources of synthetic images, and the rows to draw from them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np

from synthaug._audit import AuditReport, audit
from synthaug._cache import State, SynthCache, merge_rows
from synthaug._cache.serving import servable
from synthaug._generate import generate
from synthaug._images.source import ImageSource
from synthaug._plan import Plan
from synthaug._plan.quota import largest_remainders
from synthaug._support.arguments import check_type
from synthaug.errors import DataError
from synthaug.improvement._config import ImproveConfig
from synthaug.selection import Difficulty, ImageSelection, difficulty, select
from synthaug.synthesizers import AbstractSynthesizer, ClassConditional
from synthaug.synthesizers._sampler import SamplerConfig

logger = logging.getLogger("synthaug")

TRAINED = "class-conditional"
"""Name of the recipe whose generator is trained here."""
SAMPLER = SamplerConfig(scheduler="dpmsolver++", num_inference_steps=15)
"""How it is sampled."""
LEAST_OF_CLASS = 4
"""Real images of a class below which no classifier judges images that it has not learned from."""
_OVERDRAWN = 2
_TITLES = {"difficult": "difficult classes first", "selected": "selected"}


@final
@dataclass(frozen=True)
class Recipe:
    """A generator, and the row parameters of its images.

        Recipe(synthesizer, {"guidance_scale": 1.5})
        Recipe(SynthCache("images.h5"))      # images that are there already

    Raises:
        TypeError: If it is neither a synthesizer nor a cache.
    """

    source: Any
    """A synthesizer, of which images are drawn, or a `SynthCache`, all of whose images are used."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Row parameters of the plan."""

    def __post_init__(self) -> None:
        wanted = "a synthesizer (an AbstractSynthesizer), or a SynthCache"
        check_type((AbstractSynthesizer, SynthCache), wanted, source=self.source)


@final
@dataclass(frozen=True, eq=False)
class RecipeImages:
    """The synthetic images of one recipe, drawn round by round."""

    name: str
    given: Recipe | None
    """`None`: a generator is to be trained."""
    real: ImageSource
    holdout: Any
    folder: Path
    config: ImproveConfig
    progress: bool = False
    target: str = "random"
    """What is drawn and kept, of `config.targets`."""
    base: "RecipeImages | None" = None
    """The same recipe with random images, whose generator is trained once."""

    def targeting(self, target: str) -> "RecipeImages":
        """The same recipe, of which other images are drawn or kept."""
        folder = self.folder.with_name(f"{self.folder.name}-{target}")
        name = f"{self.name}, {_TITLES[target]}"
        return replace(self, name=name, folder=folder, target=target, base=self)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe; a generator that is to be trained is trained now."""
        if self.base is not None:
            return self.base.recipe
        if self.given is not None:
            return self.given
        synthesizer, _ = ClassConditional.fit(
            self.real.dataset,
            self.folder / "generator",
            channels=self.config.channels,
            config=self.config.generator,
            progress=self.progress,
        )
        return Recipe(synthesizer.with_settings(**SAMPLER.record()))

    @property
    def drawn(self) -> bool:
        """Whether images are drawn: of a cache all are there."""
        return self.given is None or not isinstance(self.given.source, SynthCache)

    def cache(self, counts: list[Mapping[str, int]]) -> SynthCache:
        """The images of all rounds so far, given how many of each class every round draws."""
        if not self.drawn:
            cache: SynthCache = self.recipe.source
            return cache
        parts = [self._round(number, part) for number, part in enumerate(counts)]
        if len(parts) == 1:
            return parts[0]
        path = self.folder / f"rounds-{len(parts)}.h5"
        whole = SynthCache(path) if path.exists() else None
        if whole is None or (whole.state == State.PENDING).any():
            whole = merge_rows([part.path for part in parts], path, progress=self.progress)
        # What an earlier audit withheld is not served because a later one has more rows to judge.
        before = self.cache(counts[:-1])
        whole.withdraw(np.flatnonzero(~self.audited(before).passed))
        return whole

    def _round(self, number: int, counts: Mapping[str, int]) -> SynthCache:
        recipe = self.recipe
        plan: Plan = recipe.source.plan(
            counts=dict(counts), seed=self.config.seed + number, **recipe.parameters
        )
        path = self.folder / f"round-{number + 1}.h5"
        return generate(recipe.source, plan, path, progress=self.progress)

    def audit_path(self, cache: SynthCache) -> Path:
        """Where the audit of a cache is kept."""
        return self.folder / f"{Path(cache.path).stem}-{cache.plan.digest[:8]}.audit.json"

    def audited(self, cache: SynthCache) -> AuditReport:
        """Returns an audit of the images; one that was made before is not made again."""
        path = self.audit_path(cache)
        if path.exists():
            return AuditReport.from_json(path)
        report = audit(
            cache,
            self.real.dataset,
            holdout=self.holdout,
            deduplicate=True,
            seed=self.config.seed,
            progress=self.progress,
        )
        report.to_json(path)
        report.to_html(path.with_suffix(".html"))
        return report

    @property
    def overdrawn(self) -> int:
        """How many images are drawn for each that is wanted."""
        return _OVERDRAWN if self.target == "selected" and self.drawn else 1

    @property
    def classifiers(self) -> int:
        """How many are trained before the images of a round are there."""
        return {"difficult": 2, "selected": 3}.get(self.target, 0)

    def selection_path(self, cache: SynthCache) -> Path:
        """Where the selection of a cache is kept."""
        return self.audit_path(cache).with_suffix("").with_suffix(".selection.json")

    def filters(self, cache: SynthCache) -> list[ImageSelection]:
        """Returns the selections that decide, beside the audit, which images are served.

        No class is left without images: where rules would do so, or cannot be asked, they are made
        fewer.
        """
        if self.target != "selected":
            return []
        path = self.selection_path(cache)
        if path.exists():
            return [ImageSelection.from_json(path)]
        passed = servable(cache, self.audited(cache)).mask
        labels = np.asarray(cache.labels)
        for rules in (("label", "support", "distinct", "k-center"), ("distinct", "k-center"), ()):
            try:
                chosen = select(
                    cache,
                    self.real.dataset,
                    keep=1 / _OVERDRAWN if rules else 1.0,
                    rules=rules,
                    config=self.config.classifiers,
                    seed=self.config.seed,
                    progress=self.progress,
                )
            except DataError as error:
                logger.warning("%s The rules are made fewer.", error)
                continue
            lost = set(labels[passed].tolist()) - set(labels[passed & chosen.passed].tolist())
            if not lost:
                break
            names = ", ".join(cache.classes[c] for c in sorted(lost))
            logger.warning(
                "The rules %s leave no image of %s. They are made fewer.", ", ".join(rules), names
            )
        chosen.to_json(path)
        chosen.to_html(path.with_suffix(".html"))
        return [chosen]

    def served(self, cache: SynthCache) -> int:
        """How many of the images are served."""
        mask = servable(cache, self.audited(cache)).mask
        for chosen in self.filters(cache):
            mask = mask & chosen.passed
        return int(mask.sum())

    def first_counts(self) -> dict[str, int]:
        """Images of every class for the first round: in the proportions of the real ones, or more
        of classes that are difficult."""
        if self.target != "difficult":
            return self._counts(np.bincount(self.real.labels, minlength=len(self._classes)))
        return self.targeted_counts(self._difficulty())

    def _difficulty(self) -> dict[str, float]:
        """Mean loss of every class, by classifiers that have not learned from its images."""
        path = self.folder / "difficulty.json"
        if path.exists():
            hard = Difficulty.from_json(path)
        else:
            try:
                hard = difficulty(
                    self.real.dataset,
                    runs=1,
                    config=self.config.classifiers,
                    seed=self.config.seed,
                    progress=self.progress,
                )
            except DataError as error:
                logger.warning("%s Classes are drawn in their proportions.", error)
                return {}
            hard.to_json(path)
            hard.to_html(path.with_suffix(".html"))
        labels = hard.labels
        return {
            self._classes[c]: float(hard.loss[labels == c].mean())
            for c in np.unique(labels).tolist()
        }

    def targeted_counts(self, errors: Mapping[str, float]) -> dict[str, int]:
        """The same number of images, more of them for classes with more errors.

        Half of the images go by the errors, half by the real proportions, so that no class is left
        out.

        Args:
            errors: Error rate, or mean loss, by class name; a class that is missing has the mean of
                the others.
        """
        present = np.bincount(self.real.labels, minlength=len(self._classes)).astype(np.float64)
        mean = float(np.mean(list(errors.values()))) if errors else 0.0
        weights = np.array([errors.get(name, mean) for name in self._classes]) * (present > 0)
        if not weights.sum():
            return self._counts(present)
        return self._counts(present / present.sum() + weights / weights.sum())

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return self.real.named_classes()

    def _counts(self, weights: Any) -> dict[str, int]:
        total = max(1, round(self.config.images_per_round * len(self.real))) * self.overdrawn
        exact = total * np.asarray(weights, np.float64) / np.sum(weights)
        counts = largest_remainders(exact, total)
        return {name: int(n) for name, n in zip(self._classes, counts, strict=True) if n}
