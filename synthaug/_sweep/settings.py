"""What is tried: settings of the sampler and parameters of a plan, in all combinations."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias

from synthaug._plan import Plan, settings_digest
from synthaug.synthesizers import Cascade

Setting: TypeAlias = dict[str, Any]
"""Names and values of what is varied, such as {"scheduler": "ddim", "guidance_scale": 1.5}."""

SAMPLER = ("scheduler", "num_inference_steps", "eta", "log_variance_mix")
"""Settings of a synthesizer; all other names are parameters of its plans."""

_ONLY = {"log_variance_mix": ("ddpm", "DDPMScheduler"), "eta": ("ddim", "DDIMScheduler")}
"""Settings that other schedulers ignore."""

_GRID: dict[str, Sequence[Any]] = {
    "scheduler": ("ddpm", "ddim", "dpmsolver++"),
    "num_inference_steps": (20, 50),
    "guidance_scale": (1.0, 1.5, 2.0),
    "log_variance_mix": (0.0, 0.3, 1.0),
}
_GUIDANCE = (1.0, 1.25, 1.5, 1.75, 2.0)


def default_grid(synthesizer: Any) -> Mapping[str, Sequence[Any]]:
    """A coarse grid: 30 settings, or 10 of a network that cannot be guided."""
    guided = getattr(synthesizer, "can_be_guided", False)
    return {k: v for k, v in _GRID.items() if guided or k != "guidance_scale"}


def default_guidance(synthesizer: Any) -> Sequence[float]:
    """Low guidance, which wins in the paper."""
    return _GUIDANCE if getattr(synthesizer, "can_be_guided", False) else (1.0,)


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Every combination once; what a scheduler would ignore is left out of its combinations.

    Raises:
        ValueError: For a name without values.
    """
    for name, values in grid.items():
        if isinstance(values, str) or not len(values):
            raise ValueError(f"`grid` needs a list of values for {name!r}, got {values!r}.")
    found: list[Setting] = []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        for name, schedulers in _ONLY.items():
            if "scheduler" in setting and setting["scheduler"] not in schedulers:
                setting.pop(name, None)
        if setting not in found:
            found.append(setting)
    return found


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting: the synthesizer that has it, and its plan."""

    setting: Setting
    synthesizer: Any
    plan: Plan

    @classmethod
    def of(cls, synthesizer: Any, setting: Setting, *, per_class: int, seed: int) -> "Trial":
        """Raises a ValueError for what the synthesizer or its plan refuses."""
        configured = with_sampler(synthesizer, setting)
        row = {k: v for k, v in setting.items() if k not in SAMPLER}
        plan = configured.plan(per_class=per_class, seed=seed, **row)
        return cls(setting=setting, synthesizer=configured, plan=plan)

    @property
    def stem(self) -> str:
        """Name of its files: readable, and different for different images."""
        shown = "-".join(f"{_SHORT.get(k, k)}{v}" for k, v in self.setting.items())
        key = settings_digest({**self.synthesizer.recipe(), "plan": self.plan.digest})
        return f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', shown)}-{len(self.plan)}-{key[:8]}"

    @property
    def evaluations(self) -> float:
        """Network evaluations per image, on average."""
        return float(self.synthesizer.evaluations(self.plan).mean())


_SHORT = {
    "scheduler": "",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "log_variance_mix": "mix",
    "noise_conditioning_level": "level",
}


def with_sampler(synthesizer: Any, setting: Mapping[str, Any]) -> Any:
    """The synthesizer with the sampler's part of a setting; a cascade with it in all its models."""
    changes: dict[str, Any] = {name: setting[name] for name in SAMPLER if name in setting}
    if "scheduler" in changes:  # those that belong to another scheduler do not carry over
        changes = {"eta": 0.0, "log_variance_mix": None, **changes}
    if isinstance(synthesizer, Cascade):
        base: Any = synthesizer.base
        stages = [replace(stage, **changes) for stage in synthesizer.stages]
        return replace(synthesizer, base=replace(base, **changes), stages=stages)
    known = {f.name for f in fields(synthesizer)} if is_dataclass(synthesizer) else set()
    own = {k: v for k, v in changes.items() if k in setting or k in known}
    unknown = sorted(set(own) - known)
    if unknown:
        raise ValueError(
            f"`grid` varies {unknown[0]!r}, which a {type(synthesizer).__name__} has not."
        )
    return replace(synthesizer, **own) if own else synthesizer
