"""How generators are trained on tokens, and inverted, for Python and the command line alike."""

from dataclasses import dataclass
from typing import Any, Literal, final

from synthaug._support.arguments import (
    check_at_least,
    check_fields,
    check_finite,
    check_not_negative,
    check_positive,
    check_within,
)

Start = Literal["encoder", "prompt", "noise"]


@final
@dataclass(frozen=True, kw_only=True)
class TokenConfig:
    """The tokens that a generator is told of an image.

    Raises:
        ValueError: For a value out of range.
    """

    num_tokens: int = 4
    """Tokens per image."""
    token_width: int = 64
    """Width of a token."""
    token_noise: float = 0.2
    """Standard deviation of the noise on the tokens in training. More of it makes the tokens say
    less about an image, and their neighborhood smoother."""
    token_dropout: float = 0.1
    """Probability of null tokens, which train the unconditional branch."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_at_least(1, num_tokens=self.num_tokens, token_width=self.token_width)
        check_within("[0, 1)", token_dropout=self.token_dropout)
        check_finite(0, token_noise=self.token_noise)


@dataclass(frozen=True, kw_only=True)
class InversionConfig:
    """How to learn embeddings."""

    updates: int = 100
    """Updates that every embedding receives. Embeddings that start from noise need several times as
    many."""
    snapshots: tuple[int, ...] = ()
    """Further numbers of updates after which the embeddings are kept, such as 30,60."""
    batch_size: int = 64
    """Images per optimizer step. Does not change the embeddings."""
    learning_rate: float = 0.2
    """Of Adam, for the first update; embeddings have an RMS of about 1. The paper has 0.03 without
    `decay`, for 3,000 to 4,000 updates."""
    decay: bool = True
    """Lower the learning rate linearly to 0 at the last update."""
    num_tokens: int | None = None
    """Tokens per image; by default those of the encoder, or 5."""
    start: Start | None = None
    """Where embeddings start: "encoder" (the tokens of the checkpoint's image encoder), "prompt"
    (the class's prompt embedding) or "noise"; by default the first of these that there is."""
    start_std: float = 0.05
    """Standard deviation of the start "noise"."""
    block_size: int = 1024
    """Images that are learned at once; a block that is finished is a file. Several processes need
    as many blocks."""
    compile: bool = False
    """Compile the network: slow first step, then faster ones."""
    gradient_checkpointing: bool = False
    """Keep less of every step in memory, and compute it again on the way back: for large images. A
    step takes about a third longer."""
    seed: int = 0
    """Seeds all noise."""
    checkpoint_seconds: float = 120.0
    """Seconds between checkpoints of the block under work."""
    log_with: Any = None
    """Also sends the loss to "tensorboard" (into the output directory), "wandb" or "mlflow", or to
    a `GeneralTracker` of accelerate; for one process. Steps are updates of single images."""

    def __post_init__(self) -> None:
        check_fields(self)
        sizes = {"updates": self.updates, "batch_size": self.batch_size}
        check_at_least(1, **sizes, block_size=self.block_size, num_tokens=self.num_tokens)
        check_positive(learning_rate=self.learning_rate, start_std=self.start_std)
        check_finite(0, learning_rate=self.learning_rate, start_std=self.start_std)
        check_not_negative(checkpoint_seconds=self.checkpoint_seconds)
        if self.start not in (None, "encoder", "prompt", "noise"):
            raise ValueError(f"`start` must be encoder, prompt or noise, got {self.start!r}.")
        outside = [u for u in self.snapshots if not 0 <= u <= self.updates]
        if outside:
            raise ValueError(
                f"`snapshots` must be in [0, {self.updates}], the number of `updates`; got "
                f"{outside[0]}."
            )
        kept = tuple(sorted({*self.snapshots, self.updates}))
        object.__setattr__(self, "snapshots", kept)

    def learning_rate_at(self, update: int) -> float:
        """The learning rate of update `update`, counted from 0."""
        return self.learning_rate * (1 - update / self.updates if self.decay else 1.0)

    def binding(self, extra: Any) -> dict[str, Any]:
        """Identifies a run: all that changes its files."""
        free = ("checkpoint_seconds", "compile", "gradient_checkpointing", "log_with")
        kept = {k: v for k, v in vars(self).items() if k not in free}
        return {"config": kept, "extra": extra, "noise": "pairs"}
