"""How good synthetic images are as a whole, beside as many real ones."""

from synthaug.evaluation._quality.report import QualityReport, QualityScores
from synthaug.evaluation._quality.score import Measure, fingerprints, score_quality

__all__ = ["Measure", "QualityReport", "QualityScores", "fingerprints", "score_quality"]
