"""Which sampling parameters make the best training images? What `synthaug sweep` does.

from synthaug import sweeps

report = sweeps.sweep(
    synthesizer, real=train, validation=validation, output_dir="sweep",
    config=sweeps.SweepConfig(per_class=200),
)
"""

from synthaug._sweep.config import SweepConfig
from synthaug._sweep.report import SweepReport, SweepRow
from synthaug._sweep.run import sweep
from synthaug._sweep.settings import default_grid

__all__ = ["SweepConfig", "SweepReport", "SweepRow", "default_grid", "sweep"]
