"""Fills caches: plan x synthesizer -> images, in one process or in many."""

from synthaug._generate._draw import Synthesizer, check_plan, checked_draw, fill
from synthaug._generate._generate import generate, open_cache

__all__ = ["Synthesizer", "check_plan", "checked_draw", "fill", "generate", "open_cache"]
