"""Finds the sampling parameters that make the best training images: the search of `synthaug sweep`.

from synthaug import sweeps

report = sweeps.sweep(
    synthesizer, real=train, validation=validation, output_dir="sweep",
    config=sweeps.SweepConfig(per_class=200),
)
"""

from typing import TYPE_CHECKING

from synthaug._support.lazy import lazy_names

if TYPE_CHECKING:
    from synthaug.sweeps._config import SweepConfig
    from synthaug.sweeps._report import SweepReport, SweepRow
    from synthaug.sweeps._run import sweep
    from synthaug.sweeps._settings import default_grid

__all__ = ["SweepConfig", "SweepReport", "SweepRow", "default_grid", "sweep"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "synthaug.sweeps._config": "SweepConfig",
        "synthaug.sweeps._report": "SweepReport SweepRow",
        "synthaug.sweeps._run": "sweep",
        "synthaug.sweeps._settings": "default_grid",
    },
)
