"""How good synthetic images are as a whole, beside as many real ones."""

from synthaug.evaluation._quality.report import QualityReport, QualityScores
from synthaug.evaluation._quality.score import compare, fingerprints, score_quality

__all__ = ["QualityReport", "QualityScores", "compare", "fingerprints", "score_quality"]
