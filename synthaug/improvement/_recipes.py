"""Holds what may help: where synthetic images come from, and the rows that are drawn of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np

from synthaug._audit import AuditReport, audit
from synthaug._cache import State, SynthCache, merge_rows
from synthaug._generate import generate
from synthaug._images.source import ImageSource
from synthaug._plan import Plan
from synthaug._plan.quota import largest_remainders
from synthaug._support.arguments import check_type
from synthaug.improvement._config import ImproveConfig
from synthaug.synthesizers import AbstractSynthesizer, ClassConditional
from synthaug.synthesizers._sampler import SamplerConfig

TRAINED = "class-conditional"
"""Name of the recipe whose generator is trained here."""
SAMPLER = SamplerConfig(scheduler="dpmsolver++", num_inference_steps=15)
"""How it is sampled."""


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
class RecipeImages:
    """The synthetic images of one recipe, drawn round by round."""

    def __init__(
        self,
        name: str,
        recipe: Recipe | None,
        real: ImageSource,
        holdout: Any,
        folder: Path,
        config: ImproveConfig,
        progress: bool = False,
    ) -> None:
        self.name = name
        self.real, self._holdout = real, holdout
        self.folder, self._config, self._progress = folder, config, progress
        self.given = recipe
        """`None`: a generator is to be trained."""

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe; a generator that is to be trained is trained now."""
        if self.given is not None:
            return self.given
        synthesizer, _ = ClassConditional.fit(
            self.real.dataset,
            self.folder / "generator",
            channels=self._config.channels,
            config=self._config.generator,
            progress=self._progress,
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
            whole = merge_rows([part.path for part in parts], path, progress=self._progress)
        # What an earlier audit withheld is not served because a later one has more rows to judge.
        before = self.cache(counts[:-1])
        whole.withdraw(np.flatnonzero(~self.audited(before).passed))
        return whole

    def _round(self, number: int, counts: Mapping[str, int]) -> SynthCache:
        recipe = self.recipe
        plan: Plan = recipe.source.plan(
            counts=dict(counts), seed=self._config.seed + number, **recipe.parameters
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"round-{number + 1}.h5"
        return generate(recipe.source, plan, path, progress=self._progress)

    def audit_path(self, cache: SynthCache) -> Path:
        """Where the audit of a cache is kept."""
        return self.folder / f"{Path(cache.path).stem}-{cache.plan.digest[:8]}.audit.json"

    def audited(self, cache: SynthCache) -> AuditReport:
        """Says which of the images may be served; an audit that was made is not made again."""
        path = self.audit_path(cache)
        if path.exists():
            return AuditReport.from_json(path)
        report = audit(
            cache,
            self.real.dataset,
            holdout=self._holdout,
            deduplicate=True,
            seed=self._config.seed,
            progress=self._progress,
        )
        self.folder.mkdir(parents=True, exist_ok=True)
        report.to_json(path)
        report.to_html(path.with_suffix(".html"))
        return report

    def first_counts(self) -> dict[str, int]:
        """Images of every class for the first round, in the proportions of the real ones."""
        return self._counts(np.bincount(self.real.labels, minlength=len(self._classes)))

    def targeted_counts(self, errors: Mapping[str, float]) -> dict[str, int]:
        """The same number of images, more of them for classes with more errors.

        Half of the images go by the errors, half by the real proportions, so that no class is left
        out.

        Args:
            errors: Error rate by class name; a class that is missing has the mean of the others.
        """
        present = np.bincount(self.real.labels, minlength=len(self._classes)).astype(np.float64)
        mean = float(np.mean(list(errors.values()))) if errors else 0.0
        weights = np.array([errors.get(name, mean) for name in self._classes]) * (present > 0)
        if not weights.sum():
            return self.first_counts()
        return self._counts(present / present.sum() + weights / weights.sum())

    @cached_property
    def _classes(self) -> tuple[str, ...]:
        return self.real.named_classes()

    def _counts(self, weights: Any) -> dict[str, int]:
        total = max(1, round(self._config.images_per_round * len(self.real)))
        exact = total * np.asarray(weights, np.float64) / np.sum(weights)
        counts = largest_remainders(exact, total)
        return {name: int(n) for name, n in zip(self._classes, counts, strict=True) if n}
