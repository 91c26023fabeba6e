"""Fills caches: plan x synthesizer -> images, in one process or in many."""

from synthaug._cache.synthesizer import Synthesizer
from synthaug._generate.draw import check_plan, checked_draw, fill
from synthaug._generate.run import as_begun, generate, open_cache

__all__ = [
    "Synthesizer",
    "as_begun",
    "check_plan",
    "checked_draw",
    "fill",
    "generate",
    "open_cache",
]
