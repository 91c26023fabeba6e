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
    from synthaug import errors as errors
    from synthaug import evaluation as evaluation
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
    from synthaug._cluster import RayEngine as RayEngine
    from synthaug._datasets import MixedBatchSampler as MixedBatchSampler
    from synthaug._datasets import MixedDataset as MixedDataset
    from synthaug._datasets import OnTheFlyDataset as OnTheFlyDataset
    from synthaug._datasets import SeededSampler as SeededSampler
    from synthaug._generate import generate as generate
    from synthaug._generate.cost import estimate_cost as estimate_cost
    from synthaug._generate.cost import evaluations_per_second as evaluations_per_second
    from synthaug._images.labeled import LabeledImages as LabeledImages
    from synthaug._images.labeled import load_dataset as load_dataset
    from synthaug._plan import Plan as Plan
    from synthaug._sweep import SweepReport as SweepReport
    from synthaug._sweep import sweep as sweep
    from synthaug._training.loop import TrainingConfig as TrainingConfig
    from synthaug.errors import AuditError as AuditError
    from synthaug.errors import AuditMismatchError as AuditMismatchError
    from synthaug.errors import CacheCorruptError as CacheCorruptError
    from synthaug.errors import CacheError as CacheError
    from synthaug.errors import CacheFormatError as CacheFormatError
    from synthaug.errors import CacheMismatchError as CacheMismatchError
    from synthaug.errors import CachePendingError as CachePendingError
    from synthaug.errors import CheckpointError as CheckpointError
    from synthaug.errors import CheckpointMismatchError as CheckpointMismatchError
    from synthaug.errors import DataError as DataError
    from synthaug.errors import DataMismatchError as DataMismatchError
    from synthaug.errors import DivergedError as DivergedError
    from synthaug.errors import EngineError as EngineError
    from synthaug.errors import SynthaugError as SynthaugError
    from synthaug.evaluation import AffineAugment as AffineAugment
    from synthaug.evaluation import Arm as Arm
    from synthaug.evaluation import CutMix as CutMix
    from synthaug.evaluation import EvaluationReport as EvaluationReport
    from synthaug.evaluation import StandardAugment as StandardAugment
    from synthaug.evaluation import evaluate as evaluate
    from synthaug.evaluation import scaling_arms as scaling_arms
    from synthaug.evaluation._hardness import HardnessReport as HardnessReport
    from synthaug.evaluation._hardness import score_hardness as score_hardness
    from synthaug.evaluation._label_check import LabelCheck as LabelCheck
    from synthaug.evaluation._label_check import check_labels as check_labels
    from synthaug.evaluation._quality import QualityReport as QualityReport
    from synthaug.evaluation._quality import score_quality as score_quality
    from synthaug.evaluation._reconstructions import reconstructions as reconstructions
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
    "AffineAugment": "evaluation",
    "Arm": "evaluation",
    "AuditError": "errors",
    "AuditMismatchError": "errors",
    "AuditReport": "_audit",
    "CacheCorruptError": "errors",
    "CacheError": "errors",
    "CacheFormatError": "errors",
    "CacheMismatchError": "errors",
    "CachePendingError": "errors",
    "Cascade": "synthesizers",
    "CheckpointError": "errors",
    "CheckpointMismatchError": "errors",
    "ClassConditional": "synthesizers",
    "CutMix": "evaluation",
    "ColdDiffusion": "synthesizers",
    "DataError": "errors",
    "DataMismatchError": "errors",
    "DiffusionInversion": "synthesizers",
    "DivergedError": "errors",
    "EngineError": "errors",
    "EvaluationReport": "evaluation",
    "HardnessReport": "evaluation._hardness",
    "InversionConfig": "synthesizers",
    "LabelCheck": "evaluation._label_check",
    "LabeledImages": "_images.labeled",
    "LowDensity": "synthesizers",
    "MixedBatchSampler": "_datasets",
    "MixedDataset": "_datasets",
    "OnTheFlyDataset": "_datasets",
    "Plan": "_plan",
    "QualityReport": "evaluation._quality",
    "RayEngine": "_cluster",
    "SeededSampler": "_datasets",
    "StandardAugment": "evaluation",
    "SweepReport": "_sweep",
    "SynthCache": "_cache",
    "SynthaugError": "errors",
    "TrainingConfig": "_training.loop",
    "audit": "_audit",
    "check_labels": "evaluation._label_check",
    "estimate_cost": "_generate.cost",
    "evaluate": "evaluation",
    "evaluations_per_second": "_generate.cost",
    "generate": "_generate",
    "load_dataset": "_images.labeled",
    "reconstructions": "evaluation._reconstructions",
    "scaling_arms": "evaluation",
    "score_hardness": "evaluation._hardness",
    "score_quality": "evaluation._quality",
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
    "errors",
    "evaluation",
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
