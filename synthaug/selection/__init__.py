"""Which images are worth drawing, keeping and weighing.

`difficulty` says which real images classifiers find hard: where to draw from.
"""

from synthaug.selection._difficulty import Difficulty, difficulty

__all__ = ["Difficulty", "difficulty"]
