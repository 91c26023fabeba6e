"""A gain, and how sure it is."""

from dataclasses import dataclass
from typing import final

from synthaug.evaluation import EvaluationReport


@final
@dataclass(frozen=True, kw_only=True)
class Gain:
    """An arm's accuracy minus that of its rival, in shares, paired by seed."""

    mean: float
    """Over the seeds."""
    standard_error: float | None
    """Of the mean; `None` for one seed."""
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
        """The gain of one arm over another; bounds by Student's t over the seeds."""
        from scipy.stats import t

        found = report.difference(arm, rival, result=result)
        if found.standard_error is None:
            return cls(mean=found.mean, standard_error=None, low=None, high=None, seeds=found.n)
        half = float(t.ppf(confidence, found.n - 1)) * found.standard_error
        return cls(
            mean=found.mean,
            standard_error=found.standard_error,
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
