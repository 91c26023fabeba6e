"""Synthesizers: one paper, one file. Each knows how to fit itself and how to draw."""

from typing import TYPE_CHECKING

from synthaug._support.lazy import lazy_names

if TYPE_CHECKING:
    from synthaug._noise import streams as streams
    from synthaug.synthesizers._base import AbstractSynthesizer as AbstractSynthesizer
    from synthaug.synthesizers._loading import LoadingConfig as LoadingConfig
    from synthaug.synthesizers._losses import LossGrid as LossGrid
    from synthaug.synthesizers._model import DiffusionModel as DiffusionModel
    from synthaug.synthesizers._papers import Paper as Paper
    from synthaug.synthesizers._parameters import Method as Method
    from synthaug.synthesizers._parameters import RowParameter as RowParameter
    from synthaug.synthesizers._parameters import Setting as Setting
    from synthaug.synthesizers._published import PUBLISHED as PUBLISHED
    from synthaug.synthesizers._published import PublishedRecipe as PublishedRecipe
    from synthaug.synthesizers._published import published as published
    from synthaug.synthesizers._registry import METHODS as METHODS
    from synthaug.synthesizers._registry import register as register
    from synthaug.synthesizers._sampler import SamplerConfig as SamplerConfig
    from synthaug.synthesizers._selection import Selection as Selection
    from synthaug.synthesizers._selection import frechet_score as frechet_score
    from synthaug.synthesizers._selection import select_snapshot as select_snapshot
    from synthaug.synthesizers.cascade import CascadeSettings as CascadeSettings
    from synthaug.synthesizers.cascade._config import StageConfig as StageConfig
    from synthaug.synthesizers.cascade._stage import CascadeStage as CascadeStage
    from synthaug.synthesizers.cascade._synthesizer import Cascade as Cascade
    from synthaug.synthesizers.class_conditional._config import (
        DistillationConfig as DistillationConfig,
    )
    from synthaug.synthesizers.class_conditional._config import FineTuningConfig as FineTuningConfig
    from synthaug.synthesizers.class_conditional._synthesizer import (
        ClassConditional as ClassConditional,
    )
    from synthaug.synthesizers.cold import ColdSettings as ColdSettings
    from synthaug.synthesizers.cold._synthesizer import ColdDiffusion as ColdDiffusion
    from synthaug.synthesizers.constant import Constant as Constant
    from synthaug.synthesizers.inversion import InversionSettings as InversionSettings
    from synthaug.synthesizers.inversion._config import InversionConfig as InversionConfig
    from synthaug.synthesizers.inversion._config import TokenConfig as TokenConfig
    from synthaug.synthesizers.inversion._synthesizer import (
        DiffusionInversion as DiffusionInversion,
    )
    from synthaug.synthesizers.inversion._variant_plan import soft_labels as soft_labels
    from synthaug.synthesizers.low_density import SteeringSettings as SteeringSettings
    from synthaug.synthesizers.low_density._synthesizer import LowDensity as LowDensity
    from synthaug.synthesizers.pipeline import FromPipeline as FromPipeline

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

__getattr__, __dir__ = lazy_names(__name__, __file__)
