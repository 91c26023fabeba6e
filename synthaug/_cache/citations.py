"""The papers behind the images of a cache: whom to thank, as text and as BibTeX.

What is known comes from the recipe and the plan alone, so it is about the images as they were
drawn: a cache without guidance does not cite guidance.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from synthaug._plan import Plan


@dataclass(frozen=True)
class Paper:
    """One entry of a bibliography."""

    key: str
    title: str
    authors: str
    """In BibTeX's form: "Surname, First and Surname, First"."""
    year: int
    venue: str
    arxiv: str

    def text(self) -> str:
        """One line: the surnames of up to three authors, year, title, venue, address."""
        names = [name.partition(",")[0] for name in self.authors.split(" and ")]
        who = f"{names[0]} et al." if len(names) > 3 else _enumerated(names)
        return f"{who} {self.year}. {self.title}. {self.venue}. https://arxiv.org/abs/{self.arxiv}"

    def bibtex(self) -> str:
        """The entry; titles keep their capitals."""
        return _entry(
            "misc",
            self.key,
            title=f"{{{self.title}}}",
            author=self.authors,
            year=str(self.year),
            howpublished=self.venue,
            eprint=self.arxiv,
            archiveprefix="arXiv",
        )


@dataclass(frozen=True)
class _Facts:
    """What a recipe and a plan say, without their nesting."""

    synthesizers: frozenset[str]
    settings: Mapping[str, frozenset[str]]
    """Values of every setting, whichever part of a composed synthesizer has it."""
    weights: frozenset[str]
    plan: Plan

    def any(self, setting: str, start: str) -> bool:
        """Whether a value of the setting begins so."""
        return any(value.startswith(start) for value in self.settings.get(setting, ()))

    def differs(self, column: str, neutral: float) -> bool:
        """Whether a column of the plan, also one that is numbered, holds anything else.

        Columns of a synthesizer that is not ours may mean anything.
        """
        return bool(self.synthesizers & _DIFFUSION) and any(
            bool(np.any(values != neutral))
            for name, values in self.plan.columns.items()
            if name.rstrip("0123456789").rstrip("_") == column
        )


_DIFFUSION = frozenset({"ClassConditional", "DiffusionInversion", "LowDensity", "Cascade"})

_RULES: list[tuple[Callable[[_Facts], bool], Paper]] = [
    (
        lambda facts: "ClassConditional" in facts.synthesizers,
        Paper(
            "azizi2023synthetic",
            "Synthetic Data from Diffusion Models Improves ImageNet Classification",
            "Azizi, Shekoofeh and Kornblith, Simon and Saharia, Chitwan and Norouzi, Mohammad and "
            "Fleet, David J.",
            2023,
            "Transactions on Machine Learning Research",
            "2304.08466",
        ),
    ),
    (
        lambda facts: "DiffusionInversion" in facts.synthesizers,
        Paper(
            "zhou2023training",
            "Training on Thin Air: Improve Image Classification with Generated Data",
            "Zhou, Yongchao and Sahak, Hshmat and Ba, Jimmy",
            2023,
            "arXiv",
            "2305.15316",
        ),
    ),
    (
        lambda facts: "ColdDiffusion" in facts.synthesizers,
        Paper(
            "bansal2022cold",
            "Cold Diffusion: Inverting Arbitrary Image Transforms Without Noise",
            "Bansal, Arpit and Borgnia, Eitan and Chu, Hong-Min and Li, Jie S. and Kazemi, Hamid "
            "and Huang, Furong and Goldblum, Micah and Geiping, Jonas and Goldstein, Tom",
            2022,
            "arXiv",
            "2208.09392",
        ),
    ),
    (
        lambda facts: "LowDensity" in facts.synthesizers,
        Paper(
            "sehwag2022generating",
            "Generating High Fidelity Data from Low-density Regions using Diffusion Models",
            "Sehwag, Vikash and Hazirbas, Caner and Gordo, Albert and Ozgenel, Firat and "
            "Canton Ferrer, Cristian",
            2022,
            "CVPR",
            "2203.17260",
        ),
    ),
    (
        lambda facts: "Cascade" in facts.synthesizers,
        Paper(
            "ho2022cascaded",
            "Cascaded Diffusion Models for High Fidelity Image Generation",
            "Ho, Jonathan and Saharia, Chitwan and Chan, William and Fleet, David J. and Norouzi, "
            "Mohammad and Salimans, Tim",
            2022,
            "Journal of Machine Learning Research 23",
            "2106.15282",
        ),
    ),
    (
        lambda facts: bool(facts.synthesizers & _DIFFUSION),
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
        lambda facts: facts.any("prediction_type", "v_prediction"),
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
    (
        lambda facts: (
            facts.differs("guidance_scale", 1) or facts.differs("stage_guidance_scale", 1)
        ),
        Paper(
            "ho2022classifier",
            "Classifier-Free Diffusion Guidance",
            "Ho, Jonathan and Salimans, Tim",
            2022,
            "arXiv",
            "2207.12598",
        ),
    ),
    (
        lambda facts: facts.differs("strength", 1),
        Paper(
            "meng2022sdedit",
            "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations",
            "Meng, Chenlin and He, Yutong and Song, Yang and Song, Jiaming and Wu, Jiajun and Zhu, "
            "Jun-Yan and Ermon, Stefano",
            2022,
            "ICLR",
            "2108.01073",
        ),
    ),
]
"""Which paper stands behind what; a cache cites those whose condition its facts meet."""


class Cache(Protocol):
    """What is asked of a cache."""

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
        synthesizers=settings.get("synthesizer", frozenset()),
        settings=settings,
        weights=frozenset(weights if isinstance(weights, dict) else ()),
        plan=cache.plan,
    )
    return [paper for applies, paper in _RULES if applies(facts)]


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


def _enumerated(names: list[str]) -> str:
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else last


def _version(manifest: Mapping[str, Any]) -> str:
    versions = manifest.get("versions")
    return str(versions.get("synthaug", "")) if isinstance(versions, dict) else ""


def _ourselves(manifest: Mapping[str, Any]) -> str:
    return _entry(
        "software",
        "synthaug",
        title="{synthaug}: synthetic images for training classifiers",
        author="{The synthaug developers}",
        year="2026",
        version=_version(manifest),
    )


def _entry(kind: str, key: str, **fields: str) -> str:
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])
