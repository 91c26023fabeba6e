"""How diffusion models are sampled: the settings and the row parameter that all of them share."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, final

from synthaug._support import arguments
from synthaug.errors import CheckpointError
from synthaug.synthesizers._papers import Paper
from synthaug.synthesizers._parameters import RowParameter, check_settings, declared_settings


@final
@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a diffusion model is sampled.

    Args:
        scheduler: ddim, ddpm, dpmsolver++, the name of a diffusers scheduler, or none for the
            checkpoint's own. For a network that predicts the flow, ddim is Euler's method.
        num_inference_steps: Denoising steps.
        eta: For ddim: 0 for deterministic steps, 1 for ancestral ones.
        log_variance_mix: For ddpm: v in [0, 1], where 0 gives its steps the smaller of their two
            variances (diffusers' `fixed_small`), 1 the larger (`fixed_large`), and the last step
            none; none leaves it to the checkpoint's scheduler.
        guidance_rescale: From 0 to 1, how far guided predictions are brought back to the contrast
            of those without guidance; 0.7 is usual, 0 leaves them (Lin et al. 2023).
    """

    scheduler: str | None = field(
        default="ddim", metadata={"sweep": ("ddpm", "ddim", "dpmsolver++")}
    )
    num_inference_steps: int = field(default=50, metadata={"sweep": (20, 50)})
    eta: float = field(default=0.0, metadata={"scheduler": "ddim"})
    log_variance_mix: float | None = field(
        default=None, metadata={"scheduler": "ddpm", "sweep": (0.0, 0.3, 1.0)}
    )
    guidance_rescale: float = 0.0

    def __post_init__(self) -> None:
        arguments.check_fields(self)
        arguments.check_at_least(1, num_inference_steps=self.num_inference_steps)
        arguments.check_finite(0, eta=self.eta)
        arguments.check_fraction(log_variance_mix=self.log_variance_mix)
        arguments.check_fraction(guidance_rescale=self.guidance_rescale)

    def changed(self, **settings: Any) -> "SamplerConfig":
        """The same with other settings; what the new scheduler would ignore does not carry over."""
        from synthaug.samplers import SCHEDULERS

        kind = SCHEDULERS.get(str(settings.get("scheduler")), settings.get("scheduler"))
        defaults = {f.name: f.default for f in fields(self)}
        for setting in SAMPLER_SETTINGS:
            if setting.scheduler and kind not in (None, SCHEDULERS[setting.scheduler]):
                settings.setdefault(setting.name, defaults[setting.name])
        return replace(self, **settings)

    def record(self) -> dict[str, Any]:
        """The settings as JSON; a `guidance_rescale` of 0 is left out, as in recipes."""
        settings = asdict(self)
        if not self.guidance_rescale:
            del settings["guidance_rescale"]
        return settings

    @classmethod
    def chosen(
        cls, saved: Mapping[str, Any], given: "SamplerConfig | Mapping[str, Any] | None"
    ) -> "SamplerConfig":
        """The sampler of a checkpoint, or the one given in its place.

        Args:
            saved: Settings of the checkpoint, other names among them; defaults fill the gaps.
            given: A whole config, or single settings that replace the saved ones.

        Raises:
            TypeError: If `sampler` is neither.
            ValueError: For an unknown setting.
        """
        if isinstance(given, SamplerConfig):
            return given
        if given is not None:
            arguments.check_type(
                Mapping, "a SamplerConfig, or some of its settings as a dict", sampler=given
            )
        from synthaug.samplers import SCHEDULER_NAMES

        names = [f.name for f in fields(cls)]
        check_settings(given or (), SAMPLER_SETTINGS, ())
        try:
            config = cls(**{k: saved[k] for k in names if k in saved})
            if config.scheduler not in (None, *SCHEDULER_NAMES):
                raise ValueError(f"`scheduler` is {config.scheduler!r}, which we do not know.")
        except (TypeError, ValueError) as error:
            raise CheckpointError(
                f"The sampler in synthaug.json: {error} Save it again."
            ) from error
        return config.changed(**(given or {}))


def split_sampler(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings of a `SamplerConfig`, and all others."""
    names = {setting.name for setting in SAMPLER_SETTINGS}
    sampler = {name: value for name, value in settings.items() if name in names}
    return sampler, {name: value for name, value in settings.items() if name not in names}


def is_rescale_idle(settings: Any, columns: Mapping[str, Any]) -> bool:
    """Whether a recipe rescales guidance that no row of a plan has.

    Args:
        settings: Settings of a recipe, whose parts may have samplers of their own.
        columns: Row parameters by name; each stage of a cascade has a guidance scale of its own.
    """
    import numpy as np

    scales = [np.ravel(values) for name, values in columns.items() if GUIDANCE_SCALE.name in name]
    unguided = bool(scales) and all((values == 1).all() for values in scales)
    return unguided and _rescales(settings)


def _rescales(settings: Any) -> bool:
    if not isinstance(settings, Mapping):
        return False
    return bool(settings.get("guidance_rescale")) or any(map(_rescales, settings.values()))


SAMPLER_SETTINGS = declared_settings(SamplerConfig)
"""The settings of a `SamplerConfig`, for the command line and for sweeps."""

GUIDANCE_SCALE = RowParameter(
    name="guidance_scale",
    help="Classifier-free guidance; 1 is no guidance.",
    default=1.0,
    sweep=(1.0, 1.5, 2.0),
    paper=Paper(
        "ho2022classifier",
        "Classifier-Free Diffusion Guidance",
        "Ho, Jonathan and Salimans, Tim",
        2022,
        "arXiv",
        "2207.12598",
    ),
)
