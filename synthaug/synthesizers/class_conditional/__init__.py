"""Class-conditional diffusion: its synthesizer, its training, and fine-tuning."""

from synthaug.synthesizers._papers import Paper
from synthaug.synthesizers._parameters import Method, RowParameter
from synthaug.synthesizers._sampler import GUIDANCE_SCALE

METHOD = Method(
    name="ClassConditional",
    module=f"{__name__}._synthesizer",
    title="Class-conditional diffusion",
    trainings=("diffusion", "finetune", "distill"),
    row_parameters=(
        GUIDANCE_SCALE,
        RowParameter(
            name="strength",
            help="Fraction of the diffusion that is undone and redone, from each image of the "
            "sources.",
            default=0.5,
            low_included=False,
            high=1,
            needs_sources=True,
            paper=Paper(
                "meng2022sdedit",
                "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
                "Meng, Chenlin and He, Yutong and Song, Yang and Song, Jiaming and Wu, Jiajun and "
                "Zhu, Jun-Yan and Ermon, Stefano",
                2022,
                "ICLR",
                "2108.01073",
            ),
        ),
    ),
    papers=(
        Paper(
            "azizi2023synthetic",
            "Synthetic Data from Diffusion Models Improves ImageNet Classification",
            "Azizi, Shekoofeh and Kornblith, Simon and Saharia, Chitwan and Norouzi, Mohammad and "
            "Fleet, David J.",
            2023,
            "Transactions on Machine Learning Research",
            "2304.08466",
        ),
    ),
)
