"""Which sampling parameters make the best training images? A search in two stages.

Azizi et al. 2023, "Synthetic Data from Diffusion Models Improves ImageNet Classification": first
all parameters on the Fréchet distance, then guidance alone on the Fréchet distance, the inception
score, and the accuracy of classifiers trained on the images (CAS). https://arxiv.org/abs/2304.08466
"""

from synthaug._sweep.report import SweepReport, SweepRow
from synthaug._sweep.run import sweep
from synthaug._sweep.settings import SweepConfig, default_grid

__all__ = ["SweepConfig", "SweepReport", "SweepRow", "default_grid", "sweep"]
