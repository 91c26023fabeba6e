"""Which sampling parameters make the best training images? What `synthaug sweep` does.

from synthaug import sweeps

report = sweeps.sweep(
    synthesizer, real=train, validation=validation, output_dir="sweep",
    config=sweeps.SweepConfig(per_class=200),
)
"""

from synthaug._sweep import SweepConfig, SweepReport, SweepRow, default_grid, sweep

__all__ = ["SweepConfig", "SweepReport", "SweepRow", "default_grid", "sweep"]
