"""Cascaded diffusion (Ho et al. 2021): a base model, and stages that enlarge its images."""

from dataclasses import dataclass, replace

from synthaug.synthesizers._papers import Paper
from synthaug.synthesizers._parameters import Method, RowParameter, declared_settings
from synthaug.synthesizers._sampler import GUIDANCE_SCALE

STAGE_GUIDANCE_SCALE = replace(
    GUIDANCE_SCALE, name="stage_guidance_scale", help="Guidance of the stages.", sweep=()
)
NOISE_CONDITIONING_LEVEL = RowParameter(
    name="noise_conditioning_level",
    type=int,
    help="Noise on the smaller images that a stage is given, up to the level that it was trained "
    "with.",
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CascadeSettings:
    """Settings of `Cascade` that its images depend on, besides its models and rows.

    Args:
        truncated: Stop each chain at the noise level of the stage after it, in place of running it
            to its end and adding noise. The stages are the same.
    """

    truncated: bool = False


METHOD = Method(
    name="Cascade",
    module=f"{__name__}._synthesizer",
    title="Cascades",
    trainings=("upsample",),
    row_parameters=(GUIDANCE_SCALE, STAGE_GUIDANCE_SCALE, NOISE_CONDITIONING_LEVEL),
    settings=declared_settings(CascadeSettings),
    papers=(
        Paper(
            "ho2022cascaded",
            "Cascaded Diffusion Models for High Fidelity Image Generation",
            "Ho, Jonathan and Saharia, Chitwan and Chan, William and Fleet, David J. and Norouzi, "
            "Mohammad and Salimans, Tim",
            2022,
            "Journal of Machine Learning Research 23",
            "2106.15282",
        ),
    ),
)
