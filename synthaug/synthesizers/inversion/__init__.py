"""Diffusion inversion (Zhou et al. 2023): learned embeddings, and variants from them."""

from dataclasses import replace
from typing import Literal

from synthaug.synthesizers._papers import Paper
from synthaug.synthesizers._parameters import Method, RowParameter, Setting
from synthaug.synthesizers._sampler import GUIDANCE_SCALE

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
    settings=(
        Setting(
            name="unconditional",
            type=Literal["mean", "class_mean", "group_mean", "zero", "null"],
            help="What guidance pushes away from: the mean of all embeddings, of the class or of "
            "a group of --group-size images, zeros, or the checkpoint's null tokens; mean unless "
            "the checkpoint says otherwise.",
        ),
        Setting(
            name="group_size",
            type=int,
            help="Images of a group, in the order of the data set, for group_mean.",
        ),
        Setting(
            name="spherical",
            type=bool,
            help="Interpolate along the arc, which keeps the length of the embeddings.",
        ),
        Setting(
            name="relative_noise",
            type=bool,
            help="With --no-relative-noise, --noise is a standard deviation, not a fraction.",
        ),
    ),
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
