"""Configures the files of a diffusers pipeline to load, for Python and the command line."""

from dataclasses import dataclass
from typing import final

from synthaug._support.arguments import check_fields


@final
@dataclass(frozen=True, kw_only=True)
class LoadingConfig:
    """The files of a pipeline to load, and where its networks wait.

    Raises:
        ValueError: For a value of another kind.
    """

    variant: str | None = None
    """Weights of this name where there are any, such as fp16."""
    lora: str | None = None
    """A .safetensors file with low-rank adapters, which are merged into the weights."""
    offload: bool = False
    """Keep the networks in the memory of the CPU, and move each to the GPU while it works."""

    def __post_init__(self) -> None:
        check_fields(self)
