"""Synthesizers: one paper, one file. Each knows how to fit itself and how to draw."""

from typing import TYPE_CHECKING

from synthaug._support.lazy import lazy_names

if TYPE_CHECKING:
    from synthaug._noise import streams
    from synthaug.synthesizers._base import AbstractSynthesizer
    from synthaug.synthesizers._loading import LoadingConfig
    from synthaug.synthesizers._losses import LossGrid
    from synthaug.synthesizers._model import DiffusionModel
    from synthaug.synthesizers._papers import Paper
    from synthaug.synthesizers._parameters import Method, RowParameter, Setting
    from synthaug.synthesizers._published import PUBLISHED, PublishedRecipe, published
    from synthaug.synthesizers._registry import METHODS, register
    from synthaug.synthesizers._sampler import SamplerConfig
    from synthaug.synthesizers._selection import Selection, frechet_score, select_snapshot
    from synthaug.synthesizers.cascade import CascadeSettings
    from synthaug.synthesizers.cascade._config import StageConfig
    from synthaug.synthesizers.cascade._stage import CascadeStage
    from synthaug.synthesizers.cascade._synthesizer import Cascade
    from synthaug.synthesizers.class_conditional._config import DistillationConfig, FineTuningConfig
    from synthaug.synthesizers.class_conditional._synthesizer import ClassConditional
    from synthaug.synthesizers.cold import ColdSettings
    from synthaug.synthesizers.cold._synthesizer import ColdDiffusion
    from synthaug.synthesizers.constant import Constant
    from synthaug.synthesizers.inversion import InversionSettings
    from synthaug.synthesizers.inversion._config import InversionConfig, TokenConfig
    from synthaug.synthesizers.inversion._synthesizer import DiffusionInversion
    from synthaug.synthesizers.inversion._variant_plan import soft_labels
    from synthaug.synthesizers.low_density import SteeringSettings
    from synthaug.synthesizers.low_density._synthesizer import LowDensity
    from synthaug.synthesizers.pipeline import FromPipeline

__all__ = [  # written out: documentation and type checkers read it without running anything
    "METHODS",
    "PUBLISHED",
    "AbstractSynthesizer",
    "Cascade",
    "CascadeSettings",
    "CascadeStage",
    "ClassConditional",
    "ColdDiffusion",
    "ColdSettings",
    "Constant",
    "DiffusionInversion",
    "DiffusionModel",
    "DistillationConfig",
    "FineTuningConfig",
    "FromPipeline",
    "InversionConfig",
    "InversionSettings",
    "LoadingConfig",
    "LossGrid",
    "LowDensity",
    "Method",
    "Paper",
    "PublishedRecipe",
    "RowParameter",
    "SamplerConfig",
    "Selection",
    "Setting",
    "StageConfig",
    "SteeringSettings",
    "TokenConfig",
    "frechet_score",
    "published",
    "register",
    "select_snapshot",
    "soft_labels",
    "streams",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "synthaug._noise": "streams",
        "synthaug.synthesizers._base": "AbstractSynthesizer",
        "synthaug.synthesizers._loading": "LoadingConfig",
        "synthaug.synthesizers._losses": "LossGrid",
        "synthaug.synthesizers._model": "DiffusionModel",
        "synthaug.synthesizers._papers": "Paper",
        "synthaug.synthesizers._parameters": "Method RowParameter Setting",
        "synthaug.synthesizers._published": "PUBLISHED PublishedRecipe published",
        "synthaug.synthesizers._registry": "METHODS register",
        "synthaug.synthesizers._sampler": "SamplerConfig",
        "synthaug.synthesizers._selection": "Selection frechet_score select_snapshot",
        "synthaug.synthesizers.cascade": "CascadeSettings",
        "synthaug.synthesizers.cascade._config": "StageConfig",
        "synthaug.synthesizers.cascade._stage": "CascadeStage",
        "synthaug.synthesizers.cascade._synthesizer": "Cascade",
        "synthaug.synthesizers.class_conditional._config": "DistillationConfig FineTuningConfig",
        "synthaug.synthesizers.class_conditional._synthesizer": "ClassConditional",
        "synthaug.synthesizers.cold": "ColdSettings",
        "synthaug.synthesizers.cold._synthesizer": "ColdDiffusion",
        "synthaug.synthesizers.constant": "Constant",
        "synthaug.synthesizers.inversion": "InversionSettings",
        "synthaug.synthesizers.inversion._config": "InversionConfig TokenConfig",
        "synthaug.synthesizers.inversion._synthesizer": "DiffusionInversion",
        "synthaug.synthesizers.inversion._variant_plan": "soft_labels",
        "synthaug.synthesizers.low_density": "SteeringSettings",
        "synthaug.synthesizers.low_density._synthesizer": "LowDensity",
        "synthaug.synthesizers.pipeline": "FromPipeline",
    },
)
