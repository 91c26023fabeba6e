"""Options of trainings, in parts: each is for one method, or shared by several."""

from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from synthaug._cli.arguments import spoken_of
from synthaug._cli.declared import config_options, defaults
from synthaug._cli.options import FileOptions, ImageOptions, Tracker
from synthaug._training.network_config import LabeledConfig
from synthaug._training.training_config import TrainingConfig
from synthaug.synthesizers.cascade._config import StageConfig
from synthaug.synthesizers.class_conditional._config import DistillationConfig, FineTuningConfig
from synthaug.synthesizers.cold._config import RestorerConfig
from synthaug.synthesizers.inversion._config import TokenConfig
from synthaug.synthesizers.low_density._config import GuideConfig

FIT = defaults("synthesizers.class_conditional._synthesizer:ClassConditional.fit")
DENOISER = defaults("_training.network_config:DenoiserConfig")
FINE_TUNING = defaults("synthesizers.class_conditional._synthesizer:ClassConditional.fine_tune")
HARDNESS = defaults("synthesizers.low_density._synthesizer:LowDensity.fit")
CANARIES = defaults("_audit.canaries:CanaryConfig")
_RATES = [FineTuningConfig(lora_rank=rank).learning_rate for rank in (None, 1)]

OptimizerOptions = config_options(
    "Training, with every method",
    TrainingConfig,
    learning_rate=(
        float | None,
        None,
        f"Peak learning rate of AdamW; {TrainingConfig.learning_rate:g} by default, for finetune "
        f"{_RATES[0]:g}, or {_RATES[1]:g} with --lora-rank.",
    ),
    log_with=(
        Tracker | None,
        None,
        "Also sends loss, learning rate, images per second and the sheet of samples to a tracker.",
    ),
)


@dataclass(frozen=True, kw_only=True)
class MirrorOptions:
    """Augmentation.

    Args:
        horizontal_flip: Mirror half of the training images.
    """

    horizontal_flip: bool = LabeledConfig.horizontal_flip


@dataclass(frozen=True, kw_only=True)
class NewNetworkOptions:
    """A new network (--method diffusion, cold, upsample).

    Args:
        width: Channels of its first level.
        num_layers: Residual blocks per level.
    """

    width: int = LabeledConfig.channels
    num_layers: int = LabeledConfig.num_layers


@dataclass(frozen=True, kw_only=True)
class PredictionOptions:
    """A new denoiser (--method diffusion, upsample).

    Args:
        prediction_type: Target of its prediction.
    """

    prediction_type: Literal["v_prediction", "epsilon", "sample", "flow"] = DENOISER.prediction_type


@dataclass(frozen=True, kw_only=True)
class DropoutOptions:
    """The unconditional branch (--method diffusion with --condition labels, upsample, finetune).

    Args:
        label_dropout: Share of the labels hidden, to train it.
    """

    label_dropout: float = LabeledConfig.label_dropout


@dataclass(frozen=True, kw_only=True)
class UnlabeledOptions:
    """Images without labels (--method diffusion with --condition labels, upsample).

    Args:
        unlabeled: Further images, which train the unconditional branch.
    """

    unlabeled: str | None = FIT.unlabeled


@dataclass(frozen=True, kw_only=True)
class BaseOptions:
    """A generator to begin with (--method hardness, finetune, distill).

    Args:
        base: The checkpoint that --method finetune goes on from, to whose size --image-size and
            --channels bring the images. Or the generator that --method hardness steers: its network
            sets the size of those that are trained, and images are brought to its size. Or the
            teacher of --method distill, to whose size images are brought as well.
    """

    base: str | None = None


@dataclass(frozen=True, kw_only=True)
class CanaryOptions:
    """Canaries (--method diffusion with --condition labels, finetune).

    Args:
        canaries: Pairs of marked images for each dose: a coin decides which of a pair is trained
            on, the other is its control. The model draws borders, so do not use its images. Then
            run synthaug evaluate canaries.
        canary_doses: How often the marked images are repeated, pair by pair.
        canary_seed: Seed of the choice of images, of marks and coins.
    """

    canaries: int | None = None
    canary_doses: tuple[int, ...] = CANARIES.doses
    canary_seed: int = CANARIES.seed

    def planted(self, real: Any) -> Any:
        """The images with canaries, if there are to be any."""
        if self.canaries is None:
            return real
        from synthaug._audit.canaries import CanaryConfig, plant

        with spoken_of(pairs="canaries", doses="canary_doses", seed="canary_seed"):
            config = CanaryConfig(
                pairs=self.canaries, doses=tuple(self.canary_doses), seed=self.canary_seed
            )
            return plant(real, config)


TokenOptions = config_options(
    "Generators that can be inverted (--method diffusion with --condition tokens)", TokenConfig
)


@dataclass(frozen=True, kw_only=True)
class ColdOptions:
    """Cold diffusion (--method cold).

    Args:
        degradation: The degradation to undo: blur, inpainting, super-resolution, snow,
            decolorization, animorphosis or noise.
        degradation_settings: Settings that differ from its defaults, for example
            '{"num_levels": 20}'.
        color_components: Gaussians in the mixture of colors that cold generation starts from.
        others: The images of another set that animorphosis turns images into.
    """

    degradation: str = "blur"
    degradation_settings: dict[str, Any] | None = None
    color_components: int = RestorerConfig.color_components
    others: str | None = None


StageOptions = config_options(
    "Stages of a cascade (--method upsample)",
    StageConfig,
    low_size=(int | None, None, "Shorter side of the small images that it starts from."),
)


@dataclass(frozen=True, kw_only=True)
class SteeringOptions:
    """Steering to rare images (--method hardness).

    Args:
        synthetic: Cache of images that --base drew; by default they are drawn now.
        num_synthetic: How many are drawn; at most 5,000 by default.
    """

    synthetic: str | None = HARDNESS.synthetic
    num_synthetic: int | None = GuideConfig.num_synthetic


FineTuningOptions = config_options("Fine-tuning (--method finetune)", FineTuningConfig)
DistillationOptions = config_options("Distillation (--method distill)", DistillationConfig)


@dataclass(frozen=True, kw_only=True)
class SnapshotOptions:
    """Snapshots (--method finetune).

    Args:
        snapshots: Steps after which the model is also kept in snapshots, for example 500,1000.
        validation: Images, neither training nor test images, on which the best snapshot is chosen,
            by the Fréchet distance.
        features: Space of that distance: torchscript:FILE, torchvision:NAME, timm:NAME, pixels or
            spectrum.
        trust_torchscript: Run torchscript:FILE, a program that can read and write your files.
    """

    snapshots: tuple[int, ...] = FINE_TUNING.snapshots
    validation: str | None = None
    features: str | None = None
    trust_torchscript: bool = False


PARTS = (
    ImageOptions,
    FileOptions,
    OptimizerOptions,
    MirrorOptions,
    NewNetworkOptions,
    PredictionOptions,
    DropoutOptions,
    UnlabeledOptions,
    CanaryOptions,
    BaseOptions,
    TokenOptions,
    ColdOptions,
    StageOptions,
    SteeringOptions,
    FineTuningOptions,
    DistillationOptions,
    SnapshotOptions,
)
if TYPE_CHECKING:
    TrainOptions: TypeAlias = Any
else:
    TrainOptions = make_dataclass(
        "TrainOptions",
        [],
        bases=PARTS,
        kw_only=True,
        frozen=True,
        namespace={"__module__": __name__, "__doc__": "All that a training can be asked for."},
    )
