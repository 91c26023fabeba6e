"""Published ways to draw training images, as plans of our synthesizers; loads nothing heavy."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from synthaug._support.arguments import check_choice
from synthaug.synthesizers import class_conditional, inversion
from synthaug.synthesizers._papers import Paper

if TYPE_CHECKING:
    from synthaug._plan import Plan


@final
@dataclass(frozen=True, kw_only=True)
class PublishedRecipe:
    """A published way to draw training images, with the numbers of its paper.

    recipe = synthaug.synthesizers.published("da-fusion")
    print(recipe)                               # what it does, what differs here, and the paper
    variants = recipe.prepared(synthesizer.with_sources(real))
    plan = recipe.plan(variants, seed=0)
    """

    name: str
    does: str
    """What is drawn, in one sentence."""
    use: str
    """How the paper trains on the images, and how that is written here."""
    differs: tuple[str, ...]
    """What is not as in the paper."""
    paper: Paper
    starts_from_images: bool = False
    """Whether images start from real ones."""
    quota: Mapping[str, Any] = field(default_factory=dict)
    """How many images; empty where the paper has no number that fits all data sets."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Row parameters."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the sampler."""

    def prepared(self, synthesizer: Any) -> Any:
        """The synthesizer with the recipe's settings."""
        return synthesizer.with_settings(**self.settings) if self.settings else synthesizer

    def plan(self, synthesizer: Any, labels: Any = None, **changes: Any) -> "Plan":
        """The rows to draw.

        Args:
            synthesizer: One that is prepared, with sources if images start from real ones.
            labels: The labels of real images that the synthesizer's `plan` takes.
            changes: Its other arguments; they count more than the recipe's.

        Raises:
            ValueError: If the synthesizer lacks sources or a row parameter, or for a wrong change.
        """
        if self.starts_from_images and not synthesizer.has_sources:
            raise ValueError(
                f"The recipe {self.name!r} starts from real images. Give them: "
                "`synthesizer.with_sources(real)`."
            )
        given = {"per_class", "ratio", "counts", "fill_to"} & changes.keys()
        quota = {} if given else self.quota
        plan: Plan = synthesizer.plan(labels, **{**quota, **self.parameters, **changes})
        return plan

    def __str__(self) -> str:
        numbers = {**self.quota, **self.parameters, **self.settings}
        values = ", ".join(f"{name}={value!r}" for name, value in numbers.items())
        lines = [f"{self.name}: {self.does}", f"Numbers of the paper: {values}.", self.use]
        lines += [f"Differs: {text}" for text in self.differs]
        return "\n".join([*lines, self.paper.text()])


_PUBLISHED = (
    PublishedRecipe(
        name="real-guidance",
        does="Each image starts from a real one, half of whose diffusion is redone.",
        use="Train on real and synthetic images together.",
        differs=(
            "The strength is that of the comparison in the paper of DA-Fusion. He et al. choose it "
            "by the number of images of a class: the more there are, the less is redone.",
            "Their generator is GLIDE, and their classifier a tuned CLIP.",
        ),
        paper=Paper(
            "he2023synthetic",
            "Is Synthetic Data from Generative Models Ready for Image Recognition?",
            "He, Ruifei and Sun, Shuyang and Yu, Xin and Xue, Chuhui and Zhang, Wenqing and "
            "Torr, Philip and Bai, Song and Qi, Xiaojuan",
            2023,
            "International Conference on Learning Representations",
            "2210.07574",
        ),
        starts_from_images=True,
        quota={"ratio": 10.0},
        parameters={"strength": 0.5, "guidance_scale": 7.5},
    ),
    PublishedRecipe(
        name="da-fusion",
        does="Ten images start from each real one, half of whose diffusion is redone.",
        use="Half of the training images are synthetic: `MixedDataset(..., fraction=0.5)`.",
        differs=(
            "Learning a word for each class (textual inversion) is not part of drawing: train the "
            "checkpoint's tokens before, or each class has its own prompt.",
            "A guidance of 7.5 is for prompts of Stable Diffusion. For a generator of classes "
            "choose a lower one.",
        ),
        paper=Paper(
            "trabucco2024effective",
            "Effective Data Augmentation With Diffusion Models",
            "Trabucco, Brandon and Doherty, Kyle and Gurinas, Max and Salakhutdinov, Ruslan",
            2024,
            "International Conference on Learning Representations",
            "2302.07944",
        ),
        starts_from_images=True,
        quota={"ratio": 10.0},
        parameters={"strength": 0.5, "guidance_scale": 7.5},
    ),
    PublishedRecipe(
        name="azizi",
        does="Images of all classes in equal number from noise, with low guidance and many steps.",
        use="Add up to three synthetic images to each real one, which is where gains ended at 256 "
        "pixels: `evaluation.scaling_arms(real, cache, audit=report)`.",
        differs=(
            "Their generator is Imagen, tuned on ImageNet, and its two stages of upsampling have "
            "no guidance. A `Cascade` takes settings by stage.",
            "How many images is yours to say, such as `per_class`.",
        ),
        paper=class_conditional.METHOD.papers[0],
        parameters={"guidance_scale": 1.25},
        settings={"scheduler": "ddpm", "num_inference_steps": 1000, "log_variance_mix": 0.0},
    ),
    PublishedRecipe(
        name="diffusion-inversion",
        does="Five images for each inverted one, between it and others of its class, with noise.",
        use="Train on the synthetic images, or on as many real as synthetic ones in each batch.",
        differs=(
            "The numbers are those of the public code for STL-10.",
            "Its guidance and scheduler are those of the checkpoint here.",
        ),
        paper=inversion.METHOD.papers[0],
        quota={"ratio": 5.0},
        parameters={"interpolation": 0.1, "noise": 0.1},
        settings={"num_inference_steps": 100},
    ),
)
PUBLISHED: dict[str, PublishedRecipe] = {recipe.name: recipe for recipe in _PUBLISHED}
"""By name. What needs more than our synthesizers do is not among them."""


def published(name: str) -> PublishedRecipe:
    """The published recipe of a name.

    Raises:
        ValueError: For an unknown name, with all that are known.
    """
    check_choice(PUBLISHED, recipe=name)
    return PUBLISHED[name]
