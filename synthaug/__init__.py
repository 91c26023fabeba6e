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
    from synthaug import images as images
    from synthaug import improvement as improvement
    from synthaug import lightning as lightning
    from synthaug import memorization as memorization
    from synthaug import metrics as metrics
    from synthaug import mixing as mixing
    from synthaug import samplers as samplers
    from synthaug import selection as selection
    from synthaug import sweeps as sweeps
    from synthaug import synthesizers as synthesizers
    from synthaug import transforms as transforms
    from synthaug._audit import AuditReport as AuditReport
    from synthaug._audit import audit as audit
    from synthaug._audit import membership as membership
    from synthaug._audit import split_for_audit as split_for_audit
    from synthaug._cache import SynthCache as SynthCache
    from synthaug._datasets import MixedBatchSampler as MixedBatchSampler
    from synthaug._datasets import MixedDataset as MixedDataset
    from synthaug._datasets import OnTheFlyDataset as OnTheFlyDataset
    from synthaug._generate import generate as generate
    from synthaug._images.labeled import load_dataset as load_dataset
    from synthaug._plan import Plan as Plan
    from synthaug._training.classifier_config import ClassifierConfig as ClassifierConfig
    from synthaug._training.training_config import TrainingConfig as TrainingConfig
    from synthaug.errors import SynthaugError as SynthaugError
    from synthaug.evaluation import evaluate as evaluate
    from synthaug.improvement import improve as improve
    from synthaug.synthesizers import AbstractSynthesizer as AbstractSynthesizer
    from synthaug.synthesizers import Cascade as Cascade
    from synthaug.synthesizers import ClassConditional as ClassConditional
    from synthaug.synthesizers import ColdDiffusion as ColdDiffusion
    from synthaug.synthesizers import DiffusionInversion as DiffusionInversion
    from synthaug.synthesizers import FromPipeline as FromPipeline
    from synthaug.synthesizers import LowDensity as LowDensity
    from synthaug.synthesizers import SamplerConfig as SamplerConfig

_HOME = {
    "AbstractSynthesizer": "synthesizers",
    "AuditReport": "_audit",
    "Cascade": "synthesizers",
    "ClassConditional": "synthesizers",
    "ClassifierConfig": "_training.classifier_config",
    "ColdDiffusion": "synthesizers",
    "DiffusionInversion": "synthesizers",
    "FromPipeline": "synthesizers",
    "LowDensity": "synthesizers",
    "MixedBatchSampler": "_datasets",
    "MixedDataset": "_datasets",
    "OnTheFlyDataset": "_datasets",
    "Plan": "_plan",
    "SamplerConfig": "synthesizers",
    "SynthCache": "_cache",
    "SynthaugError": "errors",
    "TrainingConfig": "_training.training_config",
    "audit": "_audit",
    "evaluate": "evaluation",
    "generate": "_generate",
    "improve": "improvement",
    "load_dataset": "_images.labeled",
    "membership": "_audit",
    "split_for_audit": "_audit",
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
    "images",
    "improvement",
    "lightning",
    "memorization",
    "metrics",
    "mixing",
    "samplers",
    "selection",
    "sweeps",
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
