"""How networks are trained, as Python and the command line have it; loads nothing heavy."""

from dataclasses import dataclass
from typing import Any

from synthaug._support import arguments
from synthaug._support.precision import Precision, check_precision

TRACKERS = ("tensorboard", "wandb", "mlflow")
"""What a training can be logged with, each by an extra of its name."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to optimize."""

    steps: int = 10_000
    """Optimizer steps. A run may be resumed with more."""
    batch_size: int = 64
    """Examples per step, over all processes."""
    learning_rate: float = 3e-4
    """Peak learning rate of AdamW."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises linearly from 0; by default a tenth of all steps,
    but 200 at most."""
    decay_steps: int = 0
    """Steps at the end over which it falls linearly to 0; 0 keeps it constant."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients with a larger norm are scaled down to it."""
    ema_decay: float = 0.9995
    """Decay of the moving average of the weights. Step n, counted from 0, uses
    min(decay, (1 + n) / (10 + n)), so that a short run is averaged over its last tenth; the first
    step copies the weights."""
    precision: Precision = "auto"
    """bfloat16 runs the loss under autocast; weights and optimizer stay in float32. auto is that of
    the run that is resumed; for a new one, bfloat16 where the hardware makes it faster."""
    compile: bool = False
    """Compile the network: slow first step, then about twice as fast on a CPU."""
    seed: int = 0
    """Seeds the order of the data and all noise."""
    checkpoint_seconds: float = 120.0
    """Seconds between checkpoints."""
    device: str | None = None
    """cpu, cuda, cuda:1 ...; by default a GPU if there is one."""
    log_with: Any = None
    """Also sends loss, learning rate and images per second to "tensorboard" (into the output
    directory), "wandb" or "mlflow", or to a `GeneralTracker` of accelerate."""

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_at_least(1, steps=self.steps, batch_size=self.batch_size)
        arguments.check_positive(learning_rate=self.learning_rate, max_grad_norm=self.max_grad_norm)
        arguments.check_not_negative(weight_decay=self.weight_decay)
        arguments.check_finite(0, learning_rate=self.learning_rate, weight_decay=self.weight_decay)
        arguments.check_not_negative(warmup_steps=self.warmup_steps, decay_steps=self.decay_steps)
        for name in ("warmup_steps", "decay_steps"):
            if (vars(self)[name] or 0) > self.steps:
                raise ValueError(
                    f"`{name}` must be from 0 to `steps`={self.steps}, got {vars(self)[name]}: the "
                    "learning rate would never reach its peak."
                )
        arguments.check_not_negative(checkpoint_seconds=self.checkpoint_seconds)
        arguments.check_within("[0, 1)", ema_decay=self.ema_decay)
        check_precision(self.precision)

    @classmethod
    def trial(cls, **changes: Any) -> "TrainingConfig":
        """Settings for a first look at a small, new network: shapes after minutes on a CPU.

            model, result = ClassConditional.fit(
                real, "runs/look", config=TrainingConfig.trial(), channels=16
            )

        Few steps of small batches at a higher learning rate; warm-up and the average of the weights
        scale with the number of steps.

        Args:
            changes: Other settings than these.
        """
        return cls(**{"steps": 400, "batch_size": 16, "learning_rate": 1e-3, **changes})

    def binding(self, extra: Any) -> dict[str, Any]:
        """Identifies a run: all that changes its result, but not how long or where it runs."""
        free = ("steps", "decay_steps", "checkpoint_seconds", "device", "compile", "log_with")
        kept = {k: v for k, v in vars(self).items() if k not in free}
        return {"config": kept, "extra": extra}

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        usual_warmup = min(200, self.steps // 10)
        warmup = usual_warmup if self.warmup_steps is None else self.warmup_steps
        rate = self.learning_rate * min(1.0, (step + 1) / max(1, warmup))
        if self.decay_steps:
            rate *= min(1.0, max(0.0, (self.steps - step) / self.decay_steps))
        return rate
