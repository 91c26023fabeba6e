"""Low-density sampling (Sehwag et al. 2022): rare images of a class that stay real."""

from dataclasses import dataclass
from typing import Literal

from synthaug.synthesizers._papers import Paper
from synthaug.synthesizers._parameters import Method, RowParameter, declared_settings


@dataclass(frozen=True, kw_only=True, eq=False)
class SteeringSettings:
    """Settings of `LowDensity` that its images depend on, besides base and rows.

    Args:
        temperature: tau of the contrastive loss: the smaller, the more the nearest other class
            decides alone where images are pushed to.
        unit: Unit of alpha and beta: the rms of a push over all values of an image, its length,
            which means the same at every image size, or score, the gradient as it is.
    """

    temperature: float = 1.0
    unit: Literal["rms", "length", "score"] = "length"


METHOD = Method(
    name="LowDensity",
    module=f"{__name__}._synthesizer",
    title="Rare images, from a checkpoint of train --method hardness",
    trainings=("hardness",),
    row_parameters=(
        RowParameter(
            name="alpha",
            help="Push away from where the class is dense, in units of the noise of each step.",
            default=0.5,
        ),
        RowParameter(
            name="beta",
            help="Push towards real images, in units of the noise of each step.",
            default=1.0,
        ),
    ),
    settings=declared_settings(SteeringSettings),
    wraps=True,
    papers=(
        Paper(
            "sehwag2022generating",
            "Generating High Fidelity Data from Low-density Regions using Diffusion Models",
            "Sehwag, Vikash and Hazirbas, Caner and Gordo, Albert and Ozgenel, Firat and "
            "Canton Ferrer, Cristian",
            2022,
            "CVPR",
            "2203.17260",
        ),
    ),
)
