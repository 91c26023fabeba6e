"""How pretrained models are fine-tuned and distilled, for Python and the command line alike."""

from dataclasses import dataclass
from typing import final

from synthaug._support import arguments


@final
@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """How a pretrained model is adapted to classes of its own.

    Raises:
        ValueError: For a value out of range.
    """

    lora_rank: int | None = None
    """Train low-rank adapters of the attention layers instead of all weights; they are merged into
    the weights that are saved. Those of a model with prompts are also in `lora`, as diffusers'
    pipelines load them."""
    class_learning_rate: float = 1e-3
    """Peak learning rate of the table of labels, if it has rows of new classes: at that of the
    other weights they would stay alike, and so would the images of all classes. Ignored if it is
    the smaller one."""
    label_dropout: float = 0.1
    """Probability of the null label or negative prompt, in [0, 1)."""
    prompt_template: str = "{}"
    """Prompt of a class, where {} stands for its name."""
    negative_prompt: str = ""
    """Prompt of the unconditional branch."""
    image_size: int | None = None
    """Height and width in pixels; by default the checkpoint's own."""
    horizontal_flip: bool = False
    """Mirror half of the training images."""
    gradient_checkpointing: bool = False
    """Keep less of every step in memory, and compute it again on the way back: for large images. A
    step takes about a third longer, and learns the same."""

    @property
    def learning_rate(self) -> float:
        """The peak learning rate of all other weights, if none is given."""
        return 1e-5 if self.lora_rank is None else 1e-4

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_within("[0, 1)", label_dropout=self.label_dropout)
        arguments.check_at_least(1, lora_rank=self.lora_rank, image_size=self.image_size)
        arguments.check_positive(class_learning_rate=self.class_learning_rate)
        arguments.check_finite(0, class_learning_rate=self.class_learning_rate)


@final
@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """How few steps a student is to draw in, and what it learns from.

    Raises:
        ValueError: For a value out of range.
    """

    evaluations: int = 3
    """Network evaluations of an image of the student: its steps."""
    teacher_steps: int = 8
    """Steps of the teacher that one step of the student stands for."""
    guidance_scale: float = 1.0
    """Classifier-free guidance of the teacher, which the student learns along with the rest: it
    cannot be guided itself. 1 is no guidance."""

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_whole(1, evaluations=self.evaluations, teacher_steps=self.teacher_steps)
        arguments.check_finite(0, guidance_scale=self.guidance_scale)
