"""For Lightning: a `LightningDataModule` that you have, with its training images mixed."""

from typing import TYPE_CHECKING, Any

from synthaug._support.extras import from_extra

if TYPE_CHECKING:
    from synthaug.lightning._datamodule import MixedDataModule as MixedDataModule

__all__ = ["MixedDataModule"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with from_extra("lightning", "`synthaug.lightning` needs Lightning", "lightning"):
        from synthaug.lightning._datamodule import MixedDataModule
    return MixedDataModule


def __dir__() -> list[str]:
    return __all__
