"""Cold diffusion (Bansal et al. 2022): real images, degraded without noise and restored."""

from dataclasses import dataclass, field
from typing import Literal

from synthaug.synthesizers._papers import Paper
from synthaug.synthesizers._parameters import Method, RowParameter, declared_settings


@dataclass(frozen=True, kw_only=True, eq=False)
class ColdSettings:
    """Settings of `ColdDiffusion` that its images depend on, besides degradation and rows.

    Args:
        algorithm: Restoration step: Algorithm 2 (improved), Algorithm 1 (naive), or the network
            applied once (direct); improved unless the checkpoint says otherwise.
        output: Image that is kept: that of the recursion, as in the paper, unless the checkpoint
            says otherwise, or the network's last prediction, as its published evaluation takes.
        num_steps: Restoration steps at most; by default every level is visited.
        symmetry_noise: Standard deviation, in [-1, 1], of the noise on the colors that images are
            generated from. An image of one color is symmetric, and stays too much so without.
    """

    algorithm: Literal["improved", "naive", "direct"] = "improved"
    output: Literal["recursion", "prediction"] = "recursion"
    num_steps: int | None = field(default=None, metadata={"optional": False})
    symmetry_noise: float = 0.002


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
    settings=declared_settings(ColdSettings),
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
