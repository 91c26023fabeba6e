"""How hard synthetic images are, beside real ones."""

from synthaug._hardness._report import HardnessReport, Scores
from synthaug._hardness._score import score_hardness

__all__ = ["HardnessReport", "Scores", "score_hardness"]
