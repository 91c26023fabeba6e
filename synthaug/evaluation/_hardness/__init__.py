"""How hard synthetic images are, beside real ones."""

from synthaug.evaluation._hardness.report import HardnessReport, Scores
from synthaug.evaluation._hardness.score import score_hardness

__all__ = ["HardnessReport", "Scores", "score_hardness"]
