"""The result of one classifier of an evaluation."""

from dataclasses import dataclass, field
from typing import final

from synthaug.evaluation._gains import Correctness


@final
@dataclass(frozen=True, kw_only=True)
class Run:
    """One classifier: an arm and a seed."""

    arm: str
    """Name of the arm."""
    seed: int
    """Decides the initial weights, the order of the images and the augmentation."""
    steps: int
    """Optimizer steps."""
    selected_step: int
    """Step whose weights were tested: the best one on the validation set, else the last one."""
    test_accuracy: float
    """Share of the test images classified correctly, in [0, 1]."""
    class_accuracies: list[float | None]
    """The same for each class; `None` for a class without test images."""
    validation_accuracy: float | None
    """Accuracy on the validation set at `selected_step`, under attack if training is; `None`
    without one."""
    images_seen: int
    """Images in all batches together: steps times batch size."""
    unique_real: int
    """Different real images among them."""
    unique_synthetic: int
    """Different synthetic images among them."""
    seconds: float
    """Time for training and testing."""
    loss_curve: list[tuple[int, float]]
    """(step, mean training loss since the point before)."""
    validation_curve: list[tuple[int, float]]
    """(step, validation accuracy)."""
    correct: str = ""
    """For every test image 1 if it is classified correctly, else 0."""
    others: dict[str, Correctness] = field(default_factory=dict)
    """Further results by name: "robust" is that of the test images under attack, others are those
    on further test sets."""
    calibration_error: float | None = None
    """Expected calibration error on the test images, in [0, 1]."""
    auc: float | None = None
    """Of two classes: area under the receiver operating characteristic on the test images."""

    def tested(self, name: str | None = None) -> Correctness:
        """The result on the test images, or the further one of that name.

        Raises:
            ValueError: If there is none of that name.
        """
        if name is None:
            return Correctness(
                accuracy=self.test_accuracy,
                class_accuracies=self.class_accuracies,
                correct=self.correct,
                calibration_error=self.calibration_error,
                auc=self.auc,
            )
        if name not in self.others:
            known = ", ".join(map(repr, self.others)) or "none"
            raise ValueError(f"`result` {name!r} is unknown. Results besides the test: {known}.")
        return self.others[name]
