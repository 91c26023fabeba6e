"""The papers behind the images of a cache: whom to thank, as text and as BibTeX.

What is known comes from the recipe, the plan and the option `--recipe` of the command, so it is
about the images as they were drawn: a cache without guidance does not cite guidance.
"""

import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from synthaug._plan import Plan
from synthaug.synthesizers._papers import Paper, bibtex_entry
from synthaug.synthesizers._parameters import Method, RowParameter
from synthaug.synthesizers._published import PUBLISHED
from synthaug.synthesizers._registry import METHODS


@dataclass(frozen=True)
class _Facts:
    """The facts of a recipe and a plan, without nesting."""

    methods: tuple[Method, ...]
    """Those of the synthesizers that are named."""
    settings: Mapping[str, frozenset[str]]
    """Values of every setting, whichever part of a composed synthesizer has it."""
    weights: frozenset[str]
    plan: Plan

    def any(self, setting: str, start: str) -> bool:
        """Whether a value of the setting begins so."""
        return any(value.startswith(start) for value in self.settings.get(setting, ()))

    def used(self, parameter: RowParameter) -> bool:
        """Whether its column, or a numbered one, holds anything but the neutral value."""
        return any(
            bool(np.any(values != parameter.neutral))
            for name in self.plan.columns
            if name.rstrip("0123456789").rstrip("_") == parameter.name
            for _, values in self.plan.pieces(name)
        )


_RULES: list[tuple[Callable[[_Facts], bool], Paper]] = [
    (
        lambda facts: any(method.has_sampler for method in facts.methods),
        Paper(
            "ho2020denoising",
            "Denoising Diffusion Probabilistic Models",
            "Ho, Jonathan and Jain, Ajay and Abbeel, Pieter",
            2020,
            "NeurIPS",
            "2006.11239",
        ),
    ),
    (
        lambda facts: any(name.rpartition(".")[2] == "vae" for name in facts.weights),
        Paper(
            "rombach2022high",
            "High-Resolution Image Synthesis with Latent Diffusion Models",
            "Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and "
            "Ommer, Björn",
            2022,
            "CVPR",
            "2112.10752",
        ),
    ),
    (
        lambda facts: facts.any("beta_schedule", "squaredcos"),
        Paper(
            "nichol2021improved",
            "Improved Denoising Diffusion Probabilistic Models",
            "Nichol, Alexander Quinn and Dhariwal, Prafulla",
            2021,
            "ICML",
            "2102.09672",
        ),
    ),
    (
        lambda facts: (
            facts.any("prediction_type", "v_prediction") or "teacher_steps" in facts.settings
        ),
        Paper(
            "salimans2022progressive",
            "Progressive Distillation for Fast Sampling of Diffusion Models",
            "Salimans, Tim and Ho, Jonathan",
            2022,
            "ICLR",
            "2202.00512",
        ),
    ),
    (
        lambda facts: facts.any("scheduler", "DDIM"),
        Paper(
            "song2021denoising",
            "Denoising Diffusion Implicit Models",
            "Song, Jiaming and Meng, Chenlin and Ermon, Stefano",
            2021,
            "ICLR",
            "2010.02502",
        ),
    ),
    (
        lambda facts: facts.any("scheduler", "DPMSolver"),
        Paper(
            "lu2022dpm",
            "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
            "Lu, Cheng and Zhou, Yuhao and Bao, Fan and Chen, Jianfei and Li, Chongxuan and Zhu, "
            "Jun",
            2022,
            "arXiv",
            "2211.01095",
        ),
    ),
]
"""Papers of techniques that methods share; a cache cites those whose condition its facts meet."""


class Cache(Protocol):
    """Interface of the caches that can be cited."""

    @property
    def manifest(self) -> Mapping[str, Any]:
        """With `recipe`, as synthesizers write it."""
        ...

    @property
    def plan(self) -> Plan:
        """One row per image."""
        ...


def papers(cache: Cache) -> list[Paper]:
    """The papers behind the images: methods first, then what these build on.

    Those of the generator's own training data and weights are not known here.
    """
    recipe = cache.manifest["recipe"]
    found = list(_pairs(recipe))
    settings = {
        name: frozenset(str(value) for key, value in found if key == name) for name, _ in found
    }
    weights = recipe.get("weights")
    facts = _Facts(
        methods=tuple(m for name, m in METHODS.items() if name in settings.get("synthesizer", ())),
        settings=settings,
        weights=frozenset(weights if isinstance(weights, dict) else ()),
        plan=cache.plan,
    )
    published = PUBLISHED.get(_option(cache.manifest.get("command"), "--recipe"))
    cited = [] if published is None else [published.paper]
    cited += [paper for method in facts.methods for paper in method.papers]
    cited += [paper for applies, paper in _RULES if applies(facts)]
    for parameter in (p for method in facts.methods for p in method.row_parameters):
        if parameter.paper is not None and facts.used(parameter):
            cited.append(parameter.paper)
    return list(dict.fromkeys(cited))


def cite(cache: Cache, *, bibtex: bool = False) -> str:
    """The papers behind the images of a cache, and synthaug itself.

    Args:
        cache: A `SynthCache`.
        bibtex: BibTeX entries instead of lines of text.
    """
    found = papers(cache)
    if bibtex:
        return "\n\n".join([*(paper.bibtex() for paper in found), _ourselves(cache.manifest)])
    lines = [paper.text() for paper in found]
    if not found:
        name = cache.manifest["recipe"].get("synthesizer", "unknown")
        lines.append(f"The synthesizer {name!r} is not one of ours: cite what made the images.")
    return "\n".join([*lines, f"synthaug {_version(cache.manifest)}, which made the cache."])


def _pairs(settings: Any) -> Iterator[tuple[str, Any]]:
    """Every name and value, however deeply nested."""
    if isinstance(settings, dict):
        for name, value in settings.items():
            if isinstance(value, dict | list):
                yield from _pairs(value)
            else:
                yield name, value
    elif isinstance(settings, list):
        for value in settings:
            yield from _pairs(value)


def _option(command: Any, option: str) -> str:
    """The value of an option in the command line that made a cache; "" if it has none."""
    try:
        words = shlex.split(command) if isinstance(command, str) else []
    except ValueError:  # of a stranger's file
        words = []
    return next((value for name, value in pairwise(words) if name == option), "")


def _version(manifest: Mapping[str, Any]) -> str:
    versions = manifest.get("versions")
    return str(versions.get("synthaug", "")) if isinstance(versions, dict) else ""


def _ourselves(manifest: Mapping[str, Any]) -> str:
    return bibtex_entry(
        "software",
        "synthaug",
        title="{synthaug}: synthetic images for training classifiers",
        author="{The synthaug developers}",
        year="2026",
        version=_version(manifest),
    )
