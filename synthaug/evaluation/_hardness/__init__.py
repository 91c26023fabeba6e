"""How hard synthetic images are, beside real ones."""

from synthaug.evaluation._hardness.report import HardnessReport, HardnessScores
from synthaug.evaluation._hardness.score import score_hardness

__all__ = ["HardnessReport", "HardnessScores", "score_hardness"]
