"""Diffusion inversion (Zhou et al. 2023): learned embeddings, and variants from them."""

from dataclasses import dataclass, replace
from typing import Literal

from synthaug.synthesizers._papers import Paper
from synthaug.synthesizers._parameters import Method, RowParameter, declared_settings
from synthaug.synthesizers._sampler import GUIDANCE_SCALE


@dataclass(frozen=True, kw_only=True, eq=False)
class InversionSettings:
    """Settings of `DiffusionInversion` that its images depend on, besides sampler and rows.

    Args:
        unconditional: The embedding that guidance pushes away from: the mean of all embeddings, of
            the class or of a group of group_size images, zeros, or the checkpoint's null tokens
            (for prompts, the negative prompt); mean unless the checkpoint says otherwise.
        group_size: Images of a group, in the order of the data set, for group_mean.
        spherical: Interpolate along the arc, which keeps the length of the embeddings.
        relative_noise: Whether noise is a fraction of the RMS of all embeddings of the snapshot,
            not a standard deviation.
    """

    unconditional: Literal["mean", "class_mean", "group_mean", "zero", "null"] = "mean"
    group_size: int = 100
    spherical: bool = False
    relative_noise: bool = True


METHOD = Method(
    name="DiffusionInversion",
    module=f"{__name__}._synthesizer",
    title="Diffusion inversion",
    trainings=("diffusion",),
    row_parameters=(
        replace(GUIDANCE_SCALE, default=2.0),
        RowParameter(
            name="noise",
            help="Noise on the embedding of an image, relative to the RMS of all embeddings.",
            default=0.1,
        ),
        RowParameter(
            name="interpolation",
            help="How far to go towards the embedding of a partner of the same class.",
            default=0.1,
            high=1,
        ),
        RowParameter(
            name="snapshot",
            type=int,
            help="Number of updates that the embedding had received; by default all.",
        ),
        RowParameter(
            name="cross_class",
            type=bool,
            help="Take partners from other classes. Such images belong to two classes; see "
            "synthaug.synthesizers.soft_labels.",
            default=False,
        ),
    ),
    settings=declared_settings(InversionSettings),
    papers=(
        Paper(
            "zhou2023training",
            "Training on Thin Air: Improve Image Classification with Generated Data",
            "Zhou, Yongchao and Sahak, Hshmat and Ba, Jimmy",
            2023,
            "arXiv",
            "2305.15316",
        ),
    ),
)
