"""Do the synthetic images help? The same classifier, trained on every arm for equal steps.

At a given seed all arms share the initial weights, the number of optimizer steps and images, the
learning rates, and the random streams of order and augmentation; only the images differ. A
validation set, if there is one, chooses the step whose weights are tested. The test set is used
once per run, after that choice.

Optimizer: SGD with Nesterov's momentum, weight decay, linear warm-up and half a cosine, the usual
recipe for convolutional networks. Training on synthetic images alone and testing on real ones gives
the classification accuracy score (CAS) of Ravuri and Vinyals 2019. https://arxiv.org/abs/1905.10887
"""

from synthaug._training.classifier_config import ClassifierConfig
from synthaug.evaluation._adversarial import AdversarialConfig
from synthaug.evaluation._arms import (
    CAS,
    Arm,
    augmentation_arms,
    balanced_arms,
    scaling_arms,
    standard_arms,
)
from synthaug.evaluation._augment import AffineAugment, Chain, CutMix, MixUp, StandardAugment
from synthaug.evaluation._baselines import class_gaussians, noisy_copies, rare_copies, retrieved
from synthaug.evaluation._corruptions import corruptions
from synthaug.evaluation._dynamics import learning_curves, probabilities
from synthaug.evaluation._evaluate import evaluate
from synthaug.evaluation._gains import Correctness, Difference
from synthaug.evaluation._hardness import HardnessReport, score_hardness
from synthaug.evaluation._inputs import check_overlap, digests
from synthaug.evaluation._label_check import LabelCheck, check_labels
from synthaug.evaluation._long_tail import long_tail
from synthaug.evaluation._predict import class_probabilities, trained_classifier
from synthaug.evaluation._quality import QualityReport, score_quality
from synthaug.evaluation._reconstructions import reconstructions
from synthaug.evaluation._report import EvaluationReport
from synthaug.evaluation._runs import Run

__all__ = [
    "CAS",
    "AdversarialConfig",
    "AffineAugment",
    "Arm",
    "Chain",
    "ClassifierConfig",
    "Correctness",
    "CutMix",
    "Difference",
    "EvaluationReport",
    "HardnessReport",
    "LabelCheck",
    "MixUp",
    "QualityReport",
    "Run",
    "StandardAugment",
    "augmentation_arms",
    "balanced_arms",
    "check_labels",
    "check_overlap",
    "class_gaussians",
    "class_probabilities",
    "corruptions",
    "digests",
    "evaluate",
    "learning_curves",
    "long_tail",
    "noisy_copies",
    "probabilities",
    "rare_copies",
    "reconstructions",
    "retrieved",
    "scaling_arms",
    "score_hardness",
    "score_quality",
    "standard_arms",
    "trained_classifier",
]
