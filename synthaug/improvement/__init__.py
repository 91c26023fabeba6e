"""Finds the synthetic images that help a classifier, if any: the search of `synthaug improve`.

from synthaug import improvement

report = improvement.improve(
    train, "improved", test=test,
    recipes={"mine": improvement.Recipe(synthesizer, {"guidance_scale": 1.5})},
    config=improvement.ImproveConfig(minutes=30),
)
"""

from typing import TYPE_CHECKING

from synthaug._support.lazy import lazy_names

if TYPE_CHECKING:
    from synthaug.improvement._config import ImproveConfig
    from synthaug.improvement._gains import Gain
    from synthaug.improvement._recipes import Recipe
    from synthaug.improvement._report import Candidate, ImproveReport, Round
    from synthaug.improvement._run import improve

__all__ = ["Candidate", "Gain", "ImproveConfig", "ImproveReport", "Recipe", "Round", "improve"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "synthaug.improvement._config": "ImproveConfig",
        "synthaug.improvement._gains": "Gain",
        "synthaug.improvement._recipes": "Recipe",
        "synthaug.improvement._report": "Candidate ImproveReport Round",
        "synthaug.improvement._run": "improve",
    },
)
