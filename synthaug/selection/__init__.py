"""Finds the images that are worth drawing, keeping and weighing.

`difficulty` says which real images classifiers find hard: where to draw from. `select` chooses
among images that were drawn. `teacher_labels` and `pseudo_label` say what classifiers see in images
whose label may be wrong, or is not known. Classifiers judge no image that they have learned from.
"""

from synthaug.selection._difficulty import Difficulty, difficulty
from synthaug.selection._labels import PseudoLabels, pseudo_label, teacher_labels
from synthaug.selection._rules import (
    Candidates,
    Covering,
    Distinct,
    LikeReal,
    Recognized,
    Rule,
    Supported,
    Useful,
)
from synthaug.selection._select import ImageSelection, select

__all__ = [
    "Candidates",
    "Covering",
    "Difficulty",
    "Distinct",
    "ImageSelection",
    "LikeReal",
    "PseudoLabels",
    "Recognized",
    "Rule",
    "Supported",
    "Useful",
    "difficulty",
    "pseudo_label",
    "select",
    "teacher_labels",
]
