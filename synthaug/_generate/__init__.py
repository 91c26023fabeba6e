"""Fills caches: plan x synthesizer -> images, in one process or in many."""

from synthaug._generate.draw import Synthesizer, check_plan, checked_draw, fill
from synthaug._generate.run import generate, open_cache

__all__ = ["Synthesizer", "check_plan", "checked_draw", "fill", "generate", "open_cache"]
