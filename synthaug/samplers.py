"""One denoising loop over diffusers schedulers, with one random stream per row.

The loop is the usual one: predict, add the guidance terms, let the scheduler step. What is ours is
the bookkeeping that makes an image a pure function of its row: each row's initial noise and every
later draw come from that row's stream, and a scheduler's state never outlives a batch.
"""

import copy
import inspect
import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from synthaug._noise import Streams, randn
from synthaug._printable import printable_line, shortened
from synthaug._support.arguments import check_fields, check_fraction, check_within
from synthaug._support.devices import sent
from synthaug._support.signatures import unfit_setting
from synthaug._support.torch_state import lasting_tensors, torch_defaults
from synthaug._types import Array, Images, Integers
from synthaug.denoisers import OWN_PIPELINE, AnyDenoiser, GuidanceTerm
from synthaug.errors import CheckpointError

SCHEDULERS = {
    "ddpm": "DDPMScheduler",
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
}
"""Short names for the schedulers of `make_scheduler`."""

_KNOWN = (
    *SCHEDULERS.values(),
    "DEISMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
)
"""Schedulers for networks trained on discrete timesteps. Those for flow matching, consistency
models or other noise scales run too, but turn such a network's predictions into noise."""

_TRAINED_ALIKE = (
    *_KNOWN,
    "DDIMParallelScheduler",
    "DDPMParallelScheduler",
    "DPMSolverSDEScheduler",
    "SASolverScheduler",
)
"""Schedulers of checkpoints whose networks the known ones can draw with."""

_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
"""Schedulers for networks that predict the flow, noise - image, of (1 - s) image + s noise at the
timestep s * `num_train_timesteps`."""

_FLOW_SOLVER = SCHEDULERS["dpmsolver++"]
"""Also for such networks, with `use_flow_sigmas`."""

SCHEDULER_NAMES = (*SCHEDULERS, *_KNOWN, *_FLOW)
"""Names that a sampler's `scheduler` may have."""

_PREDICTIONS = ("epsilon", "sample", "v_prediction")


@final
@dataclass(frozen=True)
class Step:
    """One step of the sampler, from the timestep `t` to the next one that it visits."""

    t: Tensor
    """Scalar, on the training grid."""
    signal: float
    """alpha-bar at `t`: x_t = scale (sqrt(alpha-bar) x_0 + sqrt(1 - alpha-bar) noise)."""
    next_signal: float
    """alpha-bar where the step arrives; 1 for a clean image."""
    eta: float
    """0 for a deterministic step, 1 for an ancestral one."""
    scale: float = 1.0
    """1 but for a flow: x_t = (1 - s) x_0 + s noise has a smaller one."""
    next_scale: float = 1.0
    """The same where the step arrives."""
    flow: bool = False
    """Whether it is a step of a flow."""

    @classmethod
    def of_flow(cls, t: Tensor, share: float, next_share: float) -> "Step":
        """A step from one noise share to another: sqrt(alpha-bar) is to sqrt(1 - alpha-bar) as
        1 - s is to s."""
        scale, next_scale = (math.hypot(1 - s, s) for s in (share, next_share))
        signal, after = ((1 - share) / scale) ** 2, ((1 - next_share) / next_scale) ** 2
        return cls(t, signal, after, 0.0, scale, next_scale, flow=True)

    @property
    def clean_share(self) -> float:
        """The share of the clean image in x_t, by which a gradient in x_0 is one in x_t."""
        return self.scale * math.sqrt(self.signal)

    @property
    def sigma(self) -> float:
        """sigma_t, standard deviation of q(x_{t-1} | x_t, x_0): the noise of an ancestral step.

        0 if it arrives at a clean image. Of a deterministic step it is that of the ancestral one
        between the same timesteps.
        """
        ratio = (1 - self.next_signal) / (1 - self.signal)
        return self.next_scale * math.sqrt(max(0.0, ratio * (1 - self.signal / self.next_signal)))

    @property
    def score_weight(self) -> float:
        """By what a change of the score of x_t moves where the step arrives.

        For a flow exactly, since its first steps multiply the share of the image; else, and from
        pure noise, in the limit of small steps.
        """
        if not self.flow or not self.signal:
            return (1 + self.eta**2) / 2 * self.sigma**2 * self.scale / self.next_scale
        noise = self.scale * math.sqrt(1 - self.signal)
        next_noise = self.next_scale * math.sqrt(1 - self.next_signal)
        next_clean = self.next_scale * math.sqrt(self.next_signal)
        return (next_clean * noise / self.clean_share - next_noise) * noise


@runtime_checkable
class Push(Protocol):
    """Something that moves where a step arrives, as a gradient in its mean does. Pushes add up.

    A prediction that is changed instead may be undone: schedulers clip the image that it implies.
    """

    def __call__(self, x: Images, step: Step, prediction: Images) -> Images | float:
        """Returns the term to add to x_{t-1} for the noisy images `x` = x_t before the step, given
        the network's prediction with all guidance terms; row i depends on row i alone.
        """
        ...

    def evaluations(self) -> Tensor:
        """Network evaluations this push costs each row per step with a `sigma`, int64 (n,)."""
        ...


_MOST_TIMESTEPS = 2**20
"""Of a checkpoint's schedule, which has a few numbers for each of them. Models have 1,000."""


def predicts_flow(config: Mapping[str, Any]) -> bool:
    """Whether the network of a checkpoint with this scheduler's config predicts the flow."""
    kind = config.get("_class_name")
    solves = kind == _FLOW_SOLVER and bool(config.get("use_flow_sigmas"))
    return kind in _FLOW or (solves and config.get("prediction_type") == "flow_prediction")


def steps_flow(scheduler: Any) -> bool:
    """Whether a scheduler takes the steps of a network that predicts the flow."""
    return type(scheduler).__name__ in _FLOW or bool(scheduler.config.get("use_flow_sigmas"))


def flow_shift(scheduler: Any) -> float:
    """By what a flow's noise shares s become s' = shift s / (1 + (shift - 1) s): more noise for
    larger images, whose neighboring pixels say the same (Esser et al. 2024, section 5.3.2).

    Raises:
        ValueError: If it depends on the size of the images, and nobody said it.
    """
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return float(config.get("shift" if "shift" in config else "flow_shift", 1.0))
    if "mu" not in config:
        raise ValueError(
            "The scheduler's shift depends on the size of the images (`use_dynamic_shifting`). "
            "Load the checkpoint by `ClassConditional`, which knows it."
        )
    linear = config.get("time_shift_type") == "linear"
    return float(config.mu if linear else math.exp(config.mu))


def shifted(shares: Tensor, scheduler: Any) -> Tensor:
    """Noise shares in [0, 1] of a flow, as the scheduler shifts them."""
    shift = flow_shift(scheduler)
    return shift * shares / (1 + (shift - 1) * shares)


def adapt_to_size(scheduler: Any, patches: int, *, even: bool) -> None:
    """Tells a flow's scheduler what pipelines compute from the size of the images.

    Args:
        scheduler: A fresh one.
        patches: Patches of an image, the length of the sequence that the network sees. The shift is
            exp(mu), where mu is a line through (`base_image_seq_len`, `base_shift`) and
            (`max_image_seq_len`, `max_shift`).
        even: Whether the n steps begin at the noise shares 1, 1 - 1/n, ..., 1/n before the shift,
            as those of FLUX do, and of our own models, whose configs say so (`even_shares`).
    """
    config = scheduler.config
    if config.get("use_dynamic_shifting"):
        low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
        first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        slope = (high - low) / (last - first)
        scheduler.register_to_config(mu=low + slope * (patches - first))
    if even and type(scheduler).__name__ == _FLOW[0]:
        scheduler.register_to_config(even_shares=True)


def set_timesteps(scheduler: Any, steps: int) -> None:
    """Sets the timesteps of a scheduler, by what `adapt_to_size` has told it."""
    config = scheduler.config
    given: dict[str, Any] = {"num_inference_steps": steps}
    if config.get("use_dynamic_shifting"):
        flow_shift(scheduler)  # refuses one that nobody told the size
        given["mu"] = config.mu
    if config.get("even_shares"):
        if type(scheduler).__name__ == _FLOW[0]:
            given["sigmas"] = np.linspace(1, 1 / steps, steps).tolist()
        else:  # Heun's spaces down to its `sigma_min`; the solver's are even, and has none
            scheduler.sigma_min = 1 / steps
    scheduler.set_timesteps(**given)


def check_trained_for(config: Mapping[str, Any]) -> None:
    """Refuses the scheduler's config of a checkpoint whose network our samplers would misread.

    Whatever scheduler draws, the network predicts what its training asked for.

    Args:
        config: The checkpoint's scheduler config.

    Raises:
        CheckpointError: For a network that maps noise to images at once, or was trained on
            continuous timesteps; for one that predicts a flow, but whose timesteps its pipeline
            chooses.
    """
    if predicts_flow(config) and not config.get("invert_sigmas"):
        return
    kind, prediction = config.get("_class_name"), config.get("prediction_type", "epsilon")
    name = str(kind)
    if "FlowMatch" in name or config.get("use_flow_sigmas") or prediction == "flow_prediction":
        fault = "predicts a flow, at timesteps that its pipeline chooses"
    elif name.startswith(("CM", "LCM", "TCD")):
        fault = "is a consistency model, which maps noise to images at once"
    elif kind is not None and kind not in _TRAINED_ALIKE:
        fault = "may predict something else than noise, velocity or images"
    elif config.get("timestep_type", "discrete") != "discrete":
        fault = f"takes timesteps of the type {shortened(config['timestep_type'])!r}"
    elif prediction not in _PREDICTIONS:
        fault = f"has the `prediction_type` {shortened(prediction)!r}"
    else:
        return
    raise CheckpointError(
        f"The checkpoint's scheduler is {shortened(name)!r}: its network {fault}, and our samplers "
        f"would draw wrong images with it. {OWN_PIPELINE}"
    )


@lasting_tensors()
def make_scheduler(name: str | None, config: Any, log_variance_mix: float | None = None) -> Any:
    """A fresh diffusers scheduler of the kind `name` for a checkpoint's scheduler config.

    For a network that predicts the flow, "ddim" is Euler's method: the steps are the same. There
    "dpmsolver++" is the same solver as for others, on the flow's noise shares.

    Args:
        name: "ddpm", "ddim" or "dpmsolver++", the class name of a diffusers scheduler for discrete
            timesteps, or `None` for the kind that the checkpoint ships.
        config: The checkpoint's scheduler config, a mapping with `_class_name`.
        log_variance_mix: v in [0, 1], for DDPM: the variance of a step lies between the posterior's
            and that of the forward process, exp(v log beta_t + (1 - v) log beta~_t), both of the
            steps that are taken. `None` leaves it to the config.

    Raises:
        ValueError: For a scheduler that cannot run a network trained on discrete timesteps, or a
            mix that is out of range or that the scheduler would ignore.
        CheckpointError: For a config from which diffusers cannot make a scheduler, or of a network
            that no scheduler here can draw with.
    """
    import diffusers

    check_trained_for(config)
    kind = SCHEDULERS.get(name, name) if name is not None else config.get("_class_name")
    overrides: dict[str, Any] = {}
    if predicts_flow(config):
        kind = _FLOW[0] if name == "ddim" else kind
        if kind not in (*_FLOW, _FLOW_SOLVER):
            raise ValueError(
                f"`scheduler` is {name!r}, but the checkpoint's network predicts a flow. Use ddim "
                f"(Euler's method), dpmsolver++ or diffusers' {' or '.join(_FLOW)}."
            )
        _check_shift(str(kind), config)
        overrides = _converted_flow(str(kind), config)
    elif kind not in _KNOWN:
        origin = "`scheduler`" if name is not None else "The checkpoint's scheduler"
        raise ValueError(
            f"{origin} is {kind!r}. Known are {', '.join(SCHEDULERS)}, and diffusers' "
            f"{', '.join(k for k in _KNOWN if k not in SCHEDULERS.values())}."
        )
    many = config.get("num_train_timesteps", 0)
    if isinstance(many, int) and many > _MOST_TIMESTEPS:
        raise CheckpointError(
            f"The scheduler's config sets `num_train_timesteps` to {many:,}, more than the "
            f"{_MOST_TIMESTEPS:,} that we allow. Correct scheduler_config.json."
        )
    largest = float(np.finfo(np.float32).max)
    for setting, value in config.items():
        if isinstance(value, float) and largest < abs(value) < math.inf:  # met while rows are drawn
            raise CheckpointError(
                f"The scheduler's config sets `{printable_line(setting)}` to {value:g}, which "
                "float32 cannot hold. Correct scheduler_config.json."
            )
    if kind != config.get("_class_name"):  # what one kind takes for none, another may not take
        config = {setting: value for setting, value in config.items() if value is not None}
    cls: Any = getattr(diffusers, kind)  # a lazy module, asked for one of the names above
    if fault := unfit_setting(cls.__init__, config):
        raise CheckpointError(f"In the scheduler's config, {fault}. Correct scheduler_config.json.")
    if kind == "DPMSolverMultistepScheduler" and config.get("_class_name") != kind:
        overrides |= {"algorithm_type": "dpmsolver++", "solver_order": 2}
    if log_variance_mix is None:
        try:
            return _made(cls, config, **overrides)
        except Exception as error:  # diffusers raises whatever the values provoke
            raise CheckpointError(
                f"diffusers' {kind} cannot be made from the scheduler's config "
                f"({type(error).__name__}: {shortened(error)}). Correct scheduler_config.json."
            ) from error
    check_fraction(log_variance_mix=log_variance_mix)
    if kind != SCHEDULERS["ddpm"]:
        raise ValueError(
            f"`log_variance_mix` = {log_variance_mix:g} has no effect with {kind}. Use the "
            "scheduler 'ddpm', or leave it out."
        )
    scheduler = _made(cls, config, variance_type="learned_range")
    scheduler.register_to_config(log_variance_mix=float(log_variance_mix))
    return scheduler


def _check_shift(kind: str, config: Mapping[str, Any]) -> None:
    """Refuses a scheduler that cannot shift a flow by the size of the images as its config says."""
    linear = config.get("time_shift_type") == "linear"
    if not config.get("use_dynamic_shifting") or kind == _FLOW[0]:
        return
    if kind == _FLOW_SOLVER and not linear:
        return
    way = "linearly (`time_shift_type`) " if linear else ""
    raise ValueError(
        f"`scheduler` is {kind}, which cannot shift the timesteps {way}by the size of the images, "
        "as the checkpoint's config has it (`use_dynamic_shifting`). Use ddim (Euler's method)"
        f"{'' if linear else ' or dpmsolver++'}."
    )


def _converted_flow(kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a flow's scheduler of another kind than the checkpoint's, which have other
    names."""
    if kind == config.get("_class_name"):
        return {}
    if kind == _FLOW_SOLVER:
        changes = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        return {**changes, "flow_shift": config.get("shift", 1.0)}
    return {"shift": config["flow_shift"]} if "flow_shift" in config else {}


_SCHEDULERS_MADE: dict[bytes, Any] = {}
_MOST_SCHEDULERS = 32


def _made(cls: Any, config: Mapping[str, Any], **changes: Any) -> Any:
    """A fresh scheduler of a class of diffusers: a copy, if such a one was made before.

    Each batch needs one, and the schedule of a thousand timesteps is computed in Python, for some
    classes in a second.
    """
    key = pickle.dumps((cls.__name__, dict(config), changes))
    scheduler = _SCHEDULERS_MADE.get(key)
    if scheduler is None:
        ours = {name: config[name] for name in ("even_shares",) if name in config}
        theirs = {name: value for name, value in config.items() if name not in ours}
        scheduler = cls.from_config(theirs, **changes)
        scheduler.register_to_config(**ours)
        if len(_SCHEDULERS_MADE) >= _MOST_SCHEDULERS:
            _SCHEDULERS_MADE.clear()
        _SCHEDULERS_MADE[key] = scheduler
    return copy.deepcopy(scheduler)


def step_arguments(scheduler: Any, generators: Streams, eta: float) -> dict[str, Any]:
    """The keyword arguments that `scheduler.step` takes, of those that make a step random.

    Raises:
        ValueError: If `eta` is not in [0, 1], or this scheduler would silently ignore it; for DDPM
            with a variance that the network predicts, of which denoisers take the mean only.
    """
    config, kind = scheduler.config, type(scheduler).__name__
    learned = kind == SCHEDULERS["ddpm"] and "learned" in config.variance_type
    if learned and "log_variance_mix" not in config:
        raise ValueError(
            "The checkpoint's network predicts the variance of DDPM's steps, which is not used. "
            "Choose it with `log_variance_mix`, from 0 to 1."
        )
    check_fraction(eta=eta)
    accepted = inspect.signature(scheduler.step).parameters
    if eta and "eta" not in accepted:
        raise ValueError(
            f"`eta` = {eta} has no effect with {type(scheduler).__name__}. Use the scheduler "
            "'ddim', or leave `eta` at 0."
        )
    arguments: dict[str, Any] = {}
    if "eta" in accepted:
        arguments["eta"] = eta
    if "generator" in accepted:
        arguments["generator"] = list(generators)
    return arguments


def check_timesteps(scheduler: Any, eta: float) -> None:
    """Refuses timesteps from which a scheduler cannot step.

    Args:
        scheduler: Its timesteps are set.
        eta: Eta of the steps.

    Raises:
        ValueError: For timesteps beyond the training grid or none between two, as some ways to
            space very many of them give; for DDIM's ancestral steps from pure noise.
        CheckpointError: For a start from pure noise (zero terminal SNR) with a network that
            predicts the noise.
    """
    config, timesteps = scheduler.config, scheduler.timesteps.double().flatten()
    kind, trained = type(scheduler).__name__, config.num_train_timesteps
    if steps_flow(scheduler):
        return
    # Solvers of several stages visit a timestep twice.
    idle = bool((timesteps == timesteps[0]).all()) and len(timesteps) > 1
    if idle or float(timesteps.max()) > trained - 1:
        raise ValueError(
            f"`num_inference_steps` is {scheduler.num_inference_steps:,}, which {kind} cannot "
            f"space as {config.get('timestep_spacing')!r} over the checkpoint's {trained:,} "
            "timesteps. Take fewer steps."
        )
    # Some schedulers put a tiny number in the place of zero.
    signal = float(scheduler.alphas_cumprod[round(float(timesteps.max()))])
    if signal > (2**-23 if config.get("rescale_betas_zero_snr") else 0):
        return
    if config.prediction_type == "epsilon":
        raise CheckpointError(
            "The checkpoint's schedule ends in pure noise (`rescale_betas_zero_snr`), where the "
            "noise that the network predicts tells nothing of an image. If it was trained so, set "
            "`prediction_type` to 'v_prediction' in scheduler_config.json; else set "
            "`rescale_betas_zero_snr` to false."
        )
    if eta == 1:
        raise ValueError(
            "`eta` = 1 gives no finite image on a schedule that ends in pure noise "
            "(`rescale_betas_zero_snr`). Use the `scheduler` 'ddpm', which takes the same steps."
        )


def check_pushable(scheduler: Any) -> None:
    """Refuses schedulers that a push would mislead.

    Raises:
        ValueError: For one that takes a step in several parts, corrects it later, or works at
            another scale: those not in `SCHEDULERS`.
    """
    kind = type(scheduler).__name__
    if kind not in (*SCHEDULERS.values(), _FLOW[0]):
        raise ValueError(
            f"`scheduler` is {kind}, whose steps cannot be pushed. Use {', '.join(SCHEDULERS)}."
        )


def steps_of(scheduler: Any, timesteps: Tensor, eta: float, until: float = 1.0) -> list[Step]:
    """Returns the effect of each step on signal and noise.

    Args:
        scheduler: One that `check_pushable` accepts, its timesteps set.
        timesteps: The timesteps that are visited, descending.
        eta: Eta of DDIM; ancestral schedulers have 1 whatever it is.
        until: Signal level that the last step arrives at.
    """
    if steps_flow(scheduler):
        first = scheduler.begin_index or 0
        shares = scheduler.sigmas[first : first + len(timesteps) + 1].tolist()
        return [Step.of_flow(*of) for of in zip(timesteps, shares, shares[1:], strict=False)]
    signals = [float(scheduler.alphas_cumprod[int(t)]) for t in timesteps]
    if type(scheduler).__name__ == SCHEDULERS["ddpm"]:
        eta = 1.0
    ends = [*signals[1:], until]
    return [Step(*of, eta) for of in zip(timesteps, signals, ends, strict=True)]


def skipped_steps(num_inference_steps: int, strength: float | Array, *, flow: bool) -> Integers:
    """How many of the first steps a chain leaves out, by the share of them that it takes.

    As in diffusers' image-to-image pipelines: of a flow (SD3, FLUX) the steps that are left out are
    rounded down, else those that are taken. Unlike there, at least one step is always taken.
    """
    taken = np.asarray(num_inference_steps * strength)
    skipped = num_inference_steps - (taken if flow else np.floor(taken))
    return np.clip(skipped, 0, num_inference_steps - 1).astype(np.int64)


def timesteps_from(scheduler: Any, num_inference_steps: int, strength: float) -> Tensor:
    """The timesteps to visit: all of them for `strength` 1, the last part for less.

    `strength` is the share of the schedule, rounded as by `skipped_steps`: the source image is
    noised to the first timestep returned.
    """
    skipped = int(skipped_steps(num_inference_steps, strength, flow=steps_flow(scheduler)))
    if skipped and hasattr(scheduler, "set_begin_index"):  # diffusers' that count their steps
        scheduler.set_begin_index(skipped * scheduler.order)
    return scheduler.timesteps[skipped * scheduler.order :]


def check_until(scheduler: Any) -> None:
    """Refuses to stop a chain halfway with a scheduler that does not keep x_t as the paper has it.

    Raises:
        ValueError: For other schedulers than those of `SCHEDULERS`, and for dynamic thresholding.
    """
    kind, thresholding = type(scheduler).__name__, scheduler.config.get("thresholding")
    if kind not in SCHEDULERS.values() or thresholding or steps_flow(scheduler):
        raise ValueError(
            f"A chain cannot be stopped halfway with {kind}"
            f"{' and thresholding' if thresholding else ''}. Use the scheduler "
            f"{', '.join(SCHEDULERS)}, or run it to its end."
        )


def timesteps_until(scheduler: Any, until: float) -> Tensor:
    """The timesteps of `scheduler` that are noisier than the signal level `until`, in (0, 1]."""
    timesteps: Tensor = scheduler.timesteps
    if until >= 1:
        return timesteps
    return timesteps[scheduler.alphas_cumprod[timesteps.cpu()] < until]


def denoised_estimate(
    prediction: Images, x: Images, signal: float | Tensor, prediction_type: str
) -> Images:
    """x0_hat, the clean image that a prediction implies.

    Args:
        prediction: Prediction of the network for `x`.
        x: Noisy images x_t.
        signal: alpha-bar at t, one or (n, 1, 1, 1).
        prediction_type: "epsilon", "v_prediction", "sample" or "flow". Of a flow `signal` is what
            it would be if x had a variance of 1, see `Step.of_flow`.

    Raises:
        ValueError: For another type.
    """
    a, b = signal**0.5, (1 - signal) ** 0.5
    if prediction_type == "epsilon":
        return (x - b * prediction) / a
    if prediction_type == "v_prediction":
        return a * x - b * prediction
    if prediction_type == "sample":
        return prediction
    if prediction_type == "flow":  # x - s v, where s : (1 - s) = b : a
        return x - b / (a + b) * prediction
    raise ValueError(
        f"`prediction_type` must be v_prediction, epsilon, sample or flow, got {prediction_type!r}."
    )


def step_to(
    scheduler: Any,
    prediction: Tensor,
    t: Tensor,
    x: Images,
    until: float,
    *,
    generators: Streams,
    eta: float,
) -> Images:
    """One step from timestep `t` to the signal level `until`, which need not be on the grid.

    Song et al. 2021 (DDIM), equation 12, with alpha-bar = `until` for the level to reach: with
    `eta` 1, or the DDPM scheduler, it is the posterior q(x_until | x_t, x_0).
    """
    a_t = float(scheduler.alphas_cumprod[t])
    x0 = denoised_estimate(prediction, x, a_t, scheduler.config.prediction_type)
    if scheduler.config.get("clip_sample"):
        limit = scheduler.config.get("clip_sample_range", 1.0)
        x0 = x0.clamp(-limit, limit)
    noise_hat = (x - a_t**0.5 * x0) / (1 - a_t) ** 0.5
    if type(scheduler).__name__ == SCHEDULERS["ddpm"]:
        eta = 1.0
    variance = eta**2 * (1 - until) / (1 - a_t) * (1 - a_t / until)
    x = until**0.5 * x0 + (1 - until - variance) ** 0.5 * noise_hat
    mix = scheduler.config.get("log_variance_mix")
    if mix is not None:  # it does not move the mean
        variance = (1 - a_t / until) ** mix * variance ** (1 - mix)
    if variance:
        x = x + variance**0.5 * sent(randn(generators, x.shape[1:]), x.device)
    return x


def noised(scheduler: Any, x0: Images, noise: Images, t: Tensor) -> Images:
    """x_t at the timesteps `t`, (n,), of a scheduler of any kind that we know."""
    if steps_flow(scheduler):
        share = t / scheduler.config.num_train_timesteps
        return add_flow_noise(x0, noise, share.view(-1, *[1] * (x0.ndim - 1)))
    x_t: Images = scheduler.add_noise(x0, noise, t)
    return x_t


def clean_estimate(scheduler: Any, prediction: Images, x: Images, t: Tensor) -> Images:
    """`denoised_estimate` at a timestep of a scheduler, a scalar."""
    if steps_flow(scheduler):
        signal = Step.of_flow(t, float(t) / scheduler.config.num_train_timesteps, 0.0).signal
        return denoised_estimate(prediction, x, signal, "flow")
    signal = float(scheduler.alphas_cumprod[int(t)])
    return denoised_estimate(prediction, x, signal, scheduler.config.prediction_type)


def add_flow_noise(x0: Images, noise: Images, share: Tensor | float) -> Images:
    """x_t on the straight way from an image (share 0) to noise (share 1); its derivative by the
    share is noise - x0."""
    return (1 - share) * x0 + share * noise


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory:
    """Where a chain starts, how it steps, and where it stops.

    Raises:
        ValueError: For a `strength` outside (0, 1].
    """

    num_inference_steps: int
    """Steps of the full schedule."""
    eta: float = 0.0
    """0 for deterministic DDIM steps, 1 for ancestral ones."""
    sources: Images | None = None
    """Images to start from, (n, *shape) in [-1, 1] (or latents); noise if `None`."""
    strength: float = 1.0
    """With `sources`, the share of the schedule to redo, in (0, 1]. At 1 the start is still the
    source noised to the first timestep, which differs from pure noise only if the schedule does not
    reach zero signal."""
    until: float = 1.0
    """Signal level (alpha-bar) in (0, 1] at which to stop. Below 1 the result is still noisy: x_s
    with alpha-bar_s = `until`. Not with `sources`."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_within("(0, 1]", strength=self.strength)

    def start(self, scheduler: Any, noise: Images) -> tuple[Tensor, Images]:
        """The timesteps to visit, and the noisy images at the first of them."""
        with torch_defaults():
            set_timesteps(scheduler, self.num_inference_steps)
        flow = steps_flow(scheduler)
        if self.sources is None:
            timesteps = timesteps_until(scheduler, self.until)
            return timesteps, noise if flow else noise * scheduler.init_noise_sigma
        timesteps = timesteps_from(scheduler, self.num_inference_steps, self.strength)
        if flow:
            share = float(timesteps[0]) / scheduler.config.num_train_timesteps
            if type(scheduler).__name__ == _FLOW_SOLVER:  # its timesteps are rounded
                share = float(scheduler.sigmas[scheduler.begin_index or 0])
            return timesteps, add_flow_noise(self.sources.to(noise.device), noise, share)
        first = timesteps[:1].expand(len(noise)).to(noise.device)
        return timesteps, scheduler.add_noise(self.sources.to(noise.device), noise, first)


def sample(
    denoiser: AnyDenoiser,
    scheduler: Any,
    condition: Any,
    trajectory: Trajectory,
    *,
    shape: Sequence[int],
    generators: Streams,
    terms: Sequence[GuidanceTerm] = (),
    pushes: Sequence[Push] = (),
) -> Images:
    """Draws one image (or latent) per row, float32 (n, *shape).

    Args:
        denoiser: The network.
        scheduler: A fresh scheduler (`make_scheduler`); its state is used up.
        condition: One condition per row, or `None`.
        trajectory: From where, in how many steps, and how far.
        shape: (C, H, W) of one image or latent.
        generators: One stream per row (`_noise.streams`); everything random comes from them.
        terms: Guidance terms, added to the prediction.
        pushes: Added to what each step arrives at, where that is noisy still.

    Raises:
        ValueError: For an `eta` that the scheduler ignores, or a scheduler that cannot stop
            halfway, or not be pushed.
    """
    until, eta = trajectory.until, trajectory.eta
    if until < 1:
        check_until(scheduler)
    arguments = step_arguments(scheduler, generators, eta)
    if pushes:
        check_pushable(scheduler)
    noise = sent(randn(generators, shape), denoiser.device)
    timesteps, x = trajectory.start(scheduler, noise)
    steps = steps_of(scheduler, timesteps, eta, until) if pushes else []
    mix = scheduler.config.get("log_variance_mix")
    flow = steps_flow(scheduler)  # its networks take x_t as it is
    for i, t in enumerate(timesteps, 1):
        x_in = x if flow else scheduler.scale_model_input(x, t)
        prediction = denoiser(x_in, t, condition)
        total = prediction
        for term in terms:
            total = total + term(x_in, t, prediction)
        moved = [push(x, steps[i - 1], total) for push in pushes if steps[i - 1].sigma > 0]
        if until < 1 and i == len(timesteps):
            x = step_to(scheduler, total, t, x, until, generators=generators, eta=eta)
        else:
            if mix is not None:
                # diffusers takes it as if the network had predicted it, in [-1, 1], behind the
                # mean. A step that arrives at a clean image has beta~ = 0, and adds no noise.
                level = 2 * mix - 1 if i < len(timesteps) else -1.0
                total = torch.cat([total, torch.full_like(total, level)], dim=1)
            with torch_defaults():
                x = scheduler.step(total, t, x, **arguments).prev_sample
        for way in moved:
            x = x + way
    return x


__all__ = [
    "SCHEDULERS",
    "Push",
    "Step",
    "Trajectory",
    "adapt_to_size",
    "add_flow_noise",
    "check_pushable",
    "check_timesteps",
    "check_trained_for",
    "check_until",
    "clean_estimate",
    "denoised_estimate",
    "flow_shift",
    "make_scheduler",
    "noised",
    "predicts_flow",
    "sample",
    "set_timesteps",
    "shifted",
    "skipped_steps",
    "step_arguments",
    "step_to",
    "steps_flow",
    "steps_of",
    "timesteps_from",
    "timesteps_until",
]
