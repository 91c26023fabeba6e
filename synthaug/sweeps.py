"""Which sampling parameters make the best training images? What `synthaug sweep` does.

from synthaug import sweeps

report = sweeps.sweep(synthesizer, train, holdout, out="sweep")
"""

from synthaug._sweep import SweepReport, SweepRow, default_grid, sweep

__all__ = ["SweepReport", "SweepRow", "default_grid", "sweep"]
