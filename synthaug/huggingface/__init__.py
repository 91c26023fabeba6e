"""For Hugging Face: data sets of `datasets` mixed with synthetic images, and `Trainer`'s epochs."""

from typing import TYPE_CHECKING, Any

from synthaug._support.extras import from_extra

if TYPE_CHECKING:
    from synthaug.huggingface._callback import SetEpoch as SetEpoch
    from synthaug.huggingface._dataset import MixedDataset as MixedDataset

__all__ = ["MixedDataset", "SetEpoch"]


def __getattr__(name: str) -> Any:
    if name == "MixedDataset":
        from synthaug.huggingface._dataset import MixedDataset

        return MixedDataset
    if name == "SetEpoch":
        needs = "`synthaug.huggingface.SetEpoch` is for the Trainer of transformers"
        with from_extra("transformers", needs, "text"):
            from synthaug.huggingface._callback import SetEpoch
        return SetEpoch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
