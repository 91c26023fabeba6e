"""The functions and configurations in Python that each command of the command line calls."""

from collections.abc import Callable
from typing import Any

import synthaug
from synthaug import (
    caches,
    evaluation,
    improvement,
    memorization,
    selection,
    sweeps,
    synthesizers,
)
from synthaug._demo import DemoSettings, demo
from synthaug._training.network_config import LabeledConfig
from synthaug.synthesizers.cold._config import RestorerConfig
from synthaug.synthesizers.low_density._config import GuideConfig

__all__ = ["PYTHON", "PYTHON_NAMES", "DemoSettings"]

LOADING = (
    synthesizers.ClassConditional.from_pretrained,
    synthesizers.DiffusionInversion.from_pretrained,
    synthesizers.ColdDiffusion.from_pretrained,
    synthesizers.LowDensity.from_pretrained,
    synthesizers.Cascade.from_pretrained,
    synthesizers.FromPipeline.from_pretrained,
)
PIPELINE = (synthesizers.FromPipeline.__init__, synthesizers.LoadingConfig)
PLAN = synthesizers.AbstractSynthesizer.plan
PYTHON: dict[str, tuple[Callable[..., Any], ...]] = {
    "demo": (demo, DemoSettings),
    "split": (synthaug.split_for_audit, synthaug.load_dataset),
    "train": (
        synthaug.TrainingConfig,
        synthesizers.ClassConditional.fit,
        synthesizers.ClassConditional.fine_tune,
        synthesizers.FineTuningConfig,
        synthesizers.ClassConditional.distill,
        synthesizers.DistillationConfig,
        synthesizers.DiffusionInversion.fit_generator,
        synthesizers.TokenConfig,
        synthesizers.ColdDiffusion.fit,
        synthesizers.Cascade.fit_stage,
        synthesizers.StageConfig,
        synthesizers.LowDensity.fit,
        LabeledConfig,
        RestorerConfig,
        GuideConfig,
        memorization.CanaryConfig,
        synthaug.load_dataset,
    ),
    "invert": (
        synthesizers.InversionConfig,
        synthesizers.DiffusionInversion.from_pretrained,
        synthaug.load_dataset,
    ),
    "cascade": (synthesizers.Cascade.from_pretrained,),
    "plan": (
        PLAN,
        *LOADING,
        synthaug.guidance.ClassifierGuidance,
        *PIPELINE,
        caches.estimate_cost,
        caches.evaluations_per_second,
        synthaug.load_dataset,
    ),
    "generate": (
        PLAN,
        *LOADING,
        synthaug.guidance.ClassifierGuidance,
        *PIPELINE,
        synthaug.generate,
        caches.RayEngine,
        synthaug.load_dataset,
    ),
    "audit": (
        synthaug.audit,
        synthaug.AuditReport.to_html,
        synthaug.features.ExtractionConfig,
        synthaug.load_dataset,
        caches.RayEngine,
    ),
    "select": (selection.select, synthaug.ClassifierConfig, synthaug.load_dataset),
    "evaluate": (
        synthaug.evaluate,
        synthaug.ClassifierConfig,
        synthaug.MixedDataset.__init__,
        evaluation.scaling_arms,
        evaluation.AdversarialConfig,
        evaluation.Arm,
        evaluation.StandardAugment,
        synthaug.load_dataset,
    ),
    "evaluate canaries": (memorization.came_back, synthaug.load_dataset),
    "evaluate density": (evaluation.score_hardness, synthaug.load_dataset),
    "evaluate labels": (evaluation.check_labels, synthaug.ClassifierConfig, synthaug.load_dataset),
    "evaluate membership": (
        synthaug.membership,
        synthesizers.LossGrid,
        *LOADING,
        synthaug.load_dataset,
    ),
    "evaluate quality": (evaluation.score_quality, synthaug.load_dataset),
    "improve": (
        synthaug.improve,
        improvement.ImproveConfig,
        evaluation.AdversarialConfig,
        synthaug.ClassifierConfig,
        *LOADING,
        synthaug.load_dataset,
    ),
    "sweep": (
        sweeps.sweep,
        sweeps.SweepConfig,
        synthaug.ClassifierConfig,
        *LOADING,
        synthaug.load_dataset,
    ),
    "cite": (caches.cite,),
    "cache info": (),
    "cache verify": (),
    "cache merge": (caches.merge,),
    "cache export": (
        caches.export,
        caches.ContentCredentials,
        caches.SourceMasks.__init__,
        synthaug.load_dataset,
    ),
    "cache import": (caches.import_images, synthaug.load_dataset),
    "cache forget": (caches.forget, synthaug.load_dataset),
}
"""What each command calls."""
PYTHON_NAMES = {
    "precision": "dtype",
    "width": "channels",
    "ray_address": "address",
    "attack_steps": "steps",
    "canaries": "pairs",
    "canary_doses": "doses",
    "canary_seed": "seed",
    "classifier_scale": "scale",
    "test": "holdout",
    "key_algorithm": "algorithm",
}
"""Options that have another name in Python, or in some of it."""
