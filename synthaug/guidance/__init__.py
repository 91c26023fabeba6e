"""Guidance of samplers by what other networks say of the images: pushes of every step.

`HardnessPush` goes where a class has few images (Sehwag et al. 2022), by networks that know noisy
images. `ClassifierGuidance` goes where a classifier of yours is undecided, wrong or whatever else
you ask for; it looks at the clean image that the sampler predicts, so any classifier of clean
images will do.
"""

from synthaug.guidance._classifier import ClassifierGuidance, ClassifierPush, Criterion
from synthaug.guidance._density import UNITS, HardnessModel, HardnessPush, Unit, log_odds, unit_rms

__all__ = [
    "UNITS",
    "ClassifierGuidance",
    "ClassifierPush",
    "Criterion",
    "HardnessModel",
    "HardnessPush",
    "Unit",
    "log_odds",
    "unit_rms",
]
