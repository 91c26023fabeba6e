"""A gain, and how sure it is."""

import math
from dataclasses import dataclass
from typing import final

from synthaug.evaluation import EvaluationReport


@final
@dataclass(frozen=True, kw_only=True)
class Gain:
    """An arm's accuracy minus that of its rival, in shares, paired by seed and by test image."""

    mean: float
    """Over the seeds."""
    standard_error: float | None
    """Of the mean, over other seeds and other test images; `None` for one seed."""
    low: float | None
    """One-sided lower bound at the confidence asked for; `None` for one seed."""
    high: float | None
    """One-sided upper bound."""
    seeds: int
    """Seeds that both have."""

    @classmethod
    def of(
        cls,
        report: EvaluationReport,
        arm: str,
        rival: str,
        confidence: float,
        result: str | None = None,
    ) -> "Gain":
        """The gain of one arm over another, over other seeds and other test images.

        Bounds are Student's, with the degrees of freedom of Welch and Satterthwaite.
        """
        from scipy.stats import t

        found = report.difference(arm, rival, result=result)
        error = found.standard_error
        if error is None or found.seed_error is None:
            return cls(mean=found.mean, standard_error=None, low=None, high=None, seeds=found.n)
        images = len(report.of(arm)[0].tested(result).correct)
        parts = [(found.seed_error, found.n), (found.image_error or 0.0, max(images, 2))]
        uncertain = sum(part**4 / (count - 1) for part, count in parts)
        freedom = error**4 / uncertain if uncertain else math.inf
        half = float(t.ppf(confidence, freedom)) * error
        return cls(
            mean=found.mean,
            standard_error=error,
            low=found.mean - half,
            high=found.mean + half,
            seeds=found.n,
        )

    def __str__(self) -> str:
        """In points: mean ± standard error, and the lower bound."""
        if self.standard_error is None or self.low is None:
            return f"{100 * self.mean:+.2f}"
        return (
            f"{100 * self.mean:+.2f} ± {100 * self.standard_error:.2f} "
            f"(lower bound {100 * self.low:+.2f})"
        )
