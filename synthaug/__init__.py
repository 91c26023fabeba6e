"""Synthetic images for training classifiers, and the audit that says whether they are copies.

    import synthaug

    cache = synthaug.SynthCache("cifar.h5")
    report = synthaug.audit(cache, train, holdout=test)
    mixed = synthaug.MixedDataset(real, cache, audit=report, fraction=0.5)

Names are loaded when first used, so `import synthaug` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synthaug import albumentations as albumentations
    from synthaug import caches as caches
    from synthaug import degradations as degradations
    from synthaug import denoisers as denoisers
    from synthaug import density as density
    from synthaug import features as features
    from synthaug import guidance as guidance
    from synthaug import huggingface as huggingface
    from synthaug import lightning as lightning
    from synthaug import metrics as metrics
    from synthaug import mixing as mixing
    from synthaug import samplers as samplers
    from synthaug import synthesizers as synthesizers
    from synthaug import transforms as transforms
    from synthaug._audit import AuditReport as AuditReport
    from synthaug._audit import audit as audit
    from synthaug._audit import split_for_audit as split_for_audit
    from synthaug._cache import SynthCache as SynthCache
    from synthaug._cost import estimate_cost as estimate_cost
    from synthaug._cost import evaluations_per_second as evaluations_per_second
    from synthaug._data import LabelledImages as LabelledImages
    from synthaug._data import load_dataset as load_dataset
    from synthaug._datasets import MixedBatchSampler as MixedBatchSampler
    from synthaug._datasets import MixedDataset as MixedDataset
    from synthaug._datasets import SeededSampler as SeededSampler
    from synthaug._engines import RayEngine as RayEngine
    from synthaug._errors import AuditError as AuditError
    from synthaug._errors import AuditMismatchError as AuditMismatchError
    from synthaug._errors import CacheCorruptError as CacheCorruptError
    from synthaug._errors import CacheError as CacheError
    from synthaug._errors import CacheFormatError as CacheFormatError
    from synthaug._errors import CacheMismatchError as CacheMismatchError
    from synthaug._errors import CachePendingError as CachePendingError
    from synthaug._errors import CheckpointError as CheckpointError
    from synthaug._errors import CheckpointMismatchError as CheckpointMismatchError
    from synthaug._errors import DataError as DataError
    from synthaug._errors import DataMismatchError as DataMismatchError
    from synthaug._errors import DivergedError as DivergedError
    from synthaug._errors import EngineError as EngineError
    from synthaug._errors import SynthaugError as SynthaugError
    from synthaug._evaluation import AffineAugment as AffineAugment
    from synthaug._evaluation import Arm as Arm
    from synthaug._evaluation import CutMix as CutMix
    from synthaug._evaluation import EvaluationReport as EvaluationReport
    from synthaug._evaluation import StandardAugment as StandardAugment
    from synthaug._evaluation import evaluate as evaluate
    from synthaug._evaluation import scaling_arms as scaling_arms
    from synthaug._generate import generate as generate
    from synthaug._hardness import HardnessReport as HardnessReport
    from synthaug._hardness import score_hardness as score_hardness
    from synthaug._label_check import LabelCheck as LabelCheck
    from synthaug._label_check import check_labels as check_labels
    from synthaug._on_the_fly import OnTheFlyDataset as OnTheFlyDataset
    from synthaug._plan import Plan as Plan
    from synthaug._quality import QualityReport as QualityReport
    from synthaug._quality import score_quality as score_quality
    from synthaug._reconstructions import reconstructions as reconstructions
    from synthaug._sweep import SweepReport as SweepReport
    from synthaug._sweep import sweep as sweep
    from synthaug._training import TrainingConfig as TrainingConfig
    from synthaug.synthesizers import AbstractSynthesizer as AbstractSynthesizer
    from synthaug.synthesizers import Cascade as Cascade
    from synthaug.synthesizers import ClassConditional as ClassConditional
    from synthaug.synthesizers import ColdDiffusion as ColdDiffusion
    from synthaug.synthesizers import DiffusionInversion as DiffusionInversion
    from synthaug.synthesizers import InversionConfig as InversionConfig
    from synthaug.synthesizers import LowDensity as LowDensity
    from synthaug.synthesizers import soft_labels as soft_labels

_HOME = {
    "AbstractSynthesizer": "synthesizers",
    "AffineAugment": "_evaluation",
    "Arm": "_evaluation",
    "AuditError": "_errors",
    "AuditMismatchError": "_errors",
    "AuditReport": "_audit",
    "CacheCorruptError": "_errors",
    "CacheError": "_errors",
    "CacheFormatError": "_errors",
    "CacheMismatchError": "_errors",
    "CachePendingError": "_errors",
    "Cascade": "synthesizers",
    "CheckpointError": "_errors",
    "CheckpointMismatchError": "_errors",
    "ClassConditional": "synthesizers",
    "CutMix": "_evaluation",
    "ColdDiffusion": "synthesizers",
    "DataError": "_errors",
    "DataMismatchError": "_errors",
    "DiffusionInversion": "synthesizers",
    "DivergedError": "_errors",
    "EngineError": "_errors",
    "EvaluationReport": "_evaluation",
    "HardnessReport": "_hardness",
    "InversionConfig": "synthesizers",
    "LabelCheck": "_label_check",
    "LabelledImages": "_data",
    "LowDensity": "synthesizers",
    "MixedBatchSampler": "_datasets",
    "MixedDataset": "_datasets",
    "OnTheFlyDataset": "_on_the_fly",
    "Plan": "_plan",
    "QualityReport": "_quality",
    "RayEngine": "_engines",
    "SeededSampler": "_datasets",
    "StandardAugment": "_evaluation",
    "SweepReport": "_sweep",
    "SynthCache": "_cache",
    "SynthaugError": "_errors",
    "TrainingConfig": "_training",
    "audit": "_audit",
    "check_labels": "_label_check",
    "estimate_cost": "_cost",
    "evaluate": "_evaluation",
    "evaluations_per_second": "_cost",
    "generate": "_generate",
    "load_dataset": "_data",
    "reconstructions": "_reconstructions",
    "scaling_arms": "_evaluation",
    "score_hardness": "_hardness",
    "score_quality": "_quality",
    "soft_labels": "synthesizers",
    "split_for_audit": "_audit",
    "sweep": "_sweep",
}
_NAMESPACES = (
    "albumentations",
    "caches",
    "degradations",
    "denoisers",
    "density",
    "features",
    "guidance",
    "huggingface",
    "lightning",
    "metrics",
    "mixing",
    "samplers",
    "synthesizers",
    "transforms",
)

__all__ = sorted([*_HOME, *_NAMESPACES])


def __getattr__(name: str) -> Any:
    if name in _NAMESPACES:
        return import_module(f"synthaug.{name}")
    if name in _HOME:
        return getattr(import_module(f"synthaug.{_HOME[name]}"), name)
    from difflib import get_close_matches

    lower = {known.lower(): known for known in __all__}
    close = get_close_matches(name.lower(), lower, n=1)
    hint = f". Did you mean {lower[close[0]]!r}?" if close else ""
    raise AttributeError(f"module 'synthaug' has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    return list(__all__)
