"""The settings to try: those of the sampler and parameters of a plan, in all combinations."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from synthaug._plan import Plan, settings_digest
from synthaug.samplers import SCHEDULERS
from synthaug.synthesizers._parameters import Setting as DeclaredSetting
from synthaug.synthesizers._registry import METHODS
from synthaug.synthesizers._sampler import GUIDANCE_SCALE, SAMPLER_SETTINGS
from synthaug.synthesizers.pipeline import FromPipeline

Setting: TypeAlias = dict[str, Any]
"""Names and values of what is varied, such as {"scheduler": "ddim", "guidance_scale": 1.5}."""


_GUIDANCE = (1.0, 1.25, 1.5, 1.75, 2.0)


def default_grid(synthesizer: Any) -> Mapping[str, Sequence[Any]]:
    """A coarse grid of what is declared: 30 settings of a `ClassConditional`, or 10 of one that
    cannot be guided."""
    rows = {p.name: p.sweep for p in (GUIDANCE_SCALE, *(synthesizer.row_parameters or ()))}
    if not synthesizer.can_be_guided:
        rows.pop(GUIDANCE_SCALE.name)
    declared = _settings(synthesizer)
    shared = {s.name: s.sweep for s in declared if s.scheduler is None}
    special = {s.name: s.sweep for s in declared if s.scheduler is not None}
    return {name: values for name, values in (shared | rows | special).items() if values}


def default_guidance(synthesizer: Any) -> Sequence[float]:
    """Low guidance, which wins in the paper; nothing if guidance is no row parameter."""
    declared = synthesizer.row_parameters
    if declared is not None and GUIDANCE_SCALE.name not in {p.name for p in declared}:
        return ()
    return _GUIDANCE if synthesizer.can_be_guided else (1.0,)


def _settings(synthesizer: Any) -> list[DeclaredSetting]:
    """The settings of a synthesizer; all of a sampler's if it is not registered."""
    method = METHODS.get(type(synthesizer).__name__)
    sampler = SAMPLER_SETTINGS if method is None or method.has_sampler else ()
    return [*sampler, *(method.settings if method else ())]


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Every combination once; what a scheduler would ignore is left out of its combinations. A name
    without values is a ValueError."""
    for name, values in grid.items():
        if isinstance(values, str) or not len(values):
            raise ValueError(f"`grid` needs a list of values for {name!r}, got {values!r}.")
    settings: list[Setting] = []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        kind = SCHEDULERS.get(str(setting.get("scheduler")), setting.get("scheduler"))
        for one in SAMPLER_SETTINGS:
            if one.scheduler and "scheduler" in setting and kind != SCHEDULERS[one.scheduler]:
                setting.pop(one.name, None)
        if setting not in settings:
            settings.append(setting)
    return settings


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting: the synthesizer that has it, and its plan."""

    setting: Setting
    synthesizer: Any
    plan: Plan

    @classmethod
    def of(cls, synthesizer: Any, setting: Setting, *, per_class: int, seed: int) -> "Trial":
        """Raises a ValueError for what the synthesizer or its plan refuses."""
        declared = {one.name for one in (*SAMPLER_SETTINGS, *_settings(synthesizer))}
        if isinstance(synthesizer, FromPipeline):  # other texts change what a call gets, not a row
            declared |= {"prompts", "attributes", "negative_prompt"}
        row = {name: value for name, value in setting.items() if name not in declared}
        changes = {name: value for name, value in setting.items() if name in declared}
        if "scheduler" in changes and type(synthesizer).__name__ in METHODS:
            # What belongs to another scheduler does not carry over, even to the same one.
            changes = {"eta": 0.0, "log_variance_mix": None, **changes}
        configured = synthesizer.with_settings(**changes)
        plan = configured.plan(per_class=per_class, seed=seed, **row)
        return cls(setting=setting, synthesizer=configured, plan=plan)

    @property
    def stem(self) -> str:
        """Name of its files: readable, and different for different images."""
        shown = "-".join(f"{_SHORT.get(k, k)}{v}" for k, v in self.setting.items())
        key = settings_digest({**self.synthesizer.recipe(), "plan": self.plan.digest})
        return f"{re.sub(r'[^A-Za-z0-9.+-]+', '_', shown)[:100]}-{len(self.plan)}-{key[:8]}"

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
