"""Synthesizers: one paper, one file. Each knows how to fit itself and how to draw."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthaug._noise import streams as streams
    from synthaug.synthesizers._base import AbstractSynthesizer as AbstractSynthesizer
    from synthaug.synthesizers._inversion_fit import InversionConfig as InversionConfig
    from synthaug.synthesizers._model import DiffusionModel as DiffusionModel
    from synthaug.synthesizers._selection import Selection as Selection
    from synthaug.synthesizers._selection import frechet_score as frechet_score
    from synthaug.synthesizers._selection import select_snapshot as select_snapshot
    from synthaug.synthesizers._stage import CascadeStage as CascadeStage
    from synthaug.synthesizers._variant_plan import soft_labels as soft_labels
    from synthaug.synthesizers.cascade import Cascade as Cascade
    from synthaug.synthesizers.class_conditional import ClassConditional as ClassConditional
    from synthaug.synthesizers.cold_diffusion import ColdDiffusion as ColdDiffusion
    from synthaug.synthesizers.constant import Constant as Constant
    from synthaug.synthesizers.diffusion_inversion import DiffusionInversion as DiffusionInversion
    from synthaug.synthesizers.from_pipeline import FromPipeline as FromPipeline
    from synthaug.synthesizers.low_density import LowDensity as LowDensity

_HOME = {
    "AbstractSynthesizer": "_base",
    "Cascade": "cascade",
    "CascadeStage": "_stage",
    "ClassConditional": "class_conditional",
    "ColdDiffusion": "cold_diffusion",
    "Constant": "constant",
    "DiffusionInversion": "diffusion_inversion",
    "DiffusionModel": "_model",
    "FromPipeline": "from_pipeline",
    "InversionConfig": "_inversion_fit",
    "LowDensity": "low_density",
    "Selection": "_selection",
    "frechet_score": "_selection",
    "select_snapshot": "_selection",
    "soft_labels": "_variant_plan",
    "streams": "_base",
}

__all__ = [
    "AbstractSynthesizer",
    "Cascade",
    "CascadeStage",
    "ClassConditional",
    "ColdDiffusion",
    "Constant",
    "DiffusionInversion",
    "DiffusionModel",
    "FromPipeline",
    "InversionConfig",
    "LowDensity",
    "Selection",
    "frechet_score",
    "select_snapshot",
    "soft_labels",
    "streams",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
