"""Cold diffusion (Bansal et al. 2022): real images, degraded without noise and restored."""

from typing import Literal

from synthaug.synthesizers._papers import Paper
from synthaug.synthesizers._parameters import Method, RowParameter, Setting

METHOD = Method(
    name="ColdDiffusion",
    module=f"{__name__}._synthesizer",
    title="Cold diffusion",
    trainings=("cold",),
    row_parameters=(
        RowParameter(
            name="severity",
            help="Fraction of each image of the sources that is taken away and restored.",
            default=0.3,
            low_included=False,
            high=1,
            needs_sources=True,
        ),
    ),
    settings=(
        Setting(
            name="algorithm",
            type=Literal["improved", "naive", "direct"],
            help="Restoration step: Algorithm 2 (improved), Algorithm 1 (naive), or the network "
            "applied once (direct); improved unless the checkpoint says otherwise.",
        ),
        Setting(
            name="output",
            type=Literal["recursion", "prediction"],
            help="Image that is kept: that of the recursion, unless the checkpoint says otherwise, "
            "or the network's last prediction.",
        ),
        Setting(name="num_steps", type=int, help="Restoration steps at most."),
        Setting(
            name="symmetry_noise",
            type=float,
            help="Standard deviation, in [-1, 1], of the noise on the colours that images are "
            "generated from.",
        ),
    ),
    has_sampler=False,
    papers=(
        Paper(
            "bansal2022cold",
            "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise",
            "Bansal, Arpit and Borgnia, Eitan and Chu, Hong-Min and Li, Jie S. and Kazemi, Hamid "
            "and Huang, Furong and Goldblum, Micah and Geiping, Jonas and Goldstein, Tom",
            2022,
            "arXiv",
            "2208.09392",
        ),
    ),
)
