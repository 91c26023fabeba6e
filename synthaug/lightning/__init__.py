"""For Lightning: a `LightningDataModule` that you have, with its training images mixed."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthaug.lightning._datamodule import MixedDataModule as MixedDataModule

__all__ = ["MixedDataModule"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from synthaug.lightning._datamodule import MixedDataModule
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] != "lightning":
            raise
        raise ImportError(
            "`synthaug.lightning` needs Lightning. Install it with "
            "`pip install 'synthaug[lightning]'`."
        ) from None
    return MixedDataModule


def __dir__() -> list[str]:
    return __all__
