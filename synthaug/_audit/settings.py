"""The settings of an audit, checked before any image is read."""

import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from synthaug._audit.inputs import AuditSet
from synthaug._neighbors import INDEXES
from synthaug._support.arguments import check_fields, check_whole
from synthaug._support.extras import installed_version
from synthaug._types import JSON
from synthaug.features import ExtractionConfig, Extractor, Pixel, named

Features = str | Extractor | Sequence[str | Extractor] | None
"""One feature space or several, by name or as extractors; `None` for the default."""


@dataclass(frozen=True, kw_only=True)
class AuditSettings:
    """The arguments of `audit` besides its images.

    Raises:
        TypeError: If `features` holds something that is no extractor.
        ValueError: If a value is out of range, naming all that are.
    """

    features: Features
    fdr: float
    k: int | None
    index: str
    extraction: ExtractionConfig
    max_pairs: int
    deduplicate: bool
    seed: int
    extractors: list[Extractor] = field(init=False)
    """The feature spaces of images, the first one judging if there are several."""

    def __post_init__(self) -> None:
        check_fields(self)
        engine = self.extraction.engine
        wrong = []
        if not 0 < self.fdr < 1:
            wrong.append(f"`fdr` must lie between 0 and 1, got {self.fdr}.")
        if self.max_pairs < 0:
            wrong.append(f"`max_pairs` must not be negative, got {self.max_pairs}.")
        if self.index not in INDEXES:
            wrong.append(f"`index` must be one of {', '.join(INDEXES)}, got {self.index!r}.")
        elif engine != "local" and self.index != "exact":
            wrong.append(
                f"`index` is {self.index!r}, but over Ray the search is exact. Leave it out."
            )
        if wrong:
            raise ValueError(" ".join(wrong))
        object.__setattr__(self, "extractors", _extractors(self.features))

    def neighbors(self, num_distinct: int) -> int:
        """The number of neighbors that a score looks at, among that many different images.

        Raises:
            ValueError: If `k` is out of range.
        """
        k = self.k if self.k is not None else min(50, max(2, int(num_distinct**0.5)))
        check_whole(0, k=k)
        if not 2 <= k <= num_distinct:
            raise ValueError(
                f"`k` is {k}, but must lie between 2 and {num_distinct}, the number of different "
                "training images."
            )
        return k

    def command(self, k: int, sets: Sequence[AuditSet]) -> str:
        """Returns a command that reproduces the audit, for the shell if everything has a name
        there.

        Args:
            k: Neighbors that the score looks at.
            sets: Synthetic, training and, if there are any, hold-out images.
        """
        listed: list[Any] = [] if self.features is None else [self.features]
        if isinstance(self.features, list | tuple):
            listed = list(self.features)
        sources = [images.source for images in sets]
        if all(sources) and all(isinstance(space, str) for space in listed):
            words = ["synthaug", "audit", *map(str, sources[:2])]
            words += ["--holdout", str(sources[2])] if sources[2:] else []
            words += ["--features", ",".join(map(str, listed))] if listed else []
            words += ["--fdr", str(self.fdr), "--k", str(k), "--index", self.index]
            words += ["--seed", str(self.seed)]
            return shlex.join(words + (["--deduplicate"] if self.deduplicate else []))
        text = [s.name if s.source is None else repr(s.source) for s in sets]
        text[2:] = [f"holdout={name}" for name in text[2:]]
        names = [space if isinstance(space, str) else space.name for space in listed]
        text += [f"features={names}"] if names else []
        text += [f"fdr={self.fdr}", f"k={k}", f"index={self.index!r}"]
        text += ["deduplicate=True"] if self.deduplicate else []
        return f"synthaug.audit({', '.join(text)}, seed={self.seed})"


class FeaturesAsGiven:
    """Stands for the network that made features of images that are not there."""

    name = "features as given"
    dim = None

    def __call__(self, pixels: Any) -> Any:
        """Raises TypeError: there is no network."""
        raise TypeError(
            "These features were given as numbers, so there is no network that could "
            "compute those of other images. Give images."
        )


def _extractors(features: Features) -> list[Extractor]:
    listed: list[Any] = [Pixel()]
    if features is not None:
        listed = list(features) if isinstance(features, list | tuple) else [features]
    listed = [named(space) if isinstance(space, str) else space for space in listed]
    for extractor in listed:
        if not isinstance(extractor, Extractor):
            raise TypeError(
                f"`features` holds a {type(extractor).__name__}, expected names or extractors such "
                "as `features.Pixel()` or `features.TorchModule(network)`."
            )
    names = [extractor.name for extractor in listed]
    if not names:
        raise ValueError("`features` is empty. Leave it out to compare pixels.")
    if len(set(names)) < len(names):
        raise ValueError(f"`features` holds two extractors of one name: {', '.join(names)}.")
    return listed


def environment() -> dict[str, JSON]:
    """The time, and the versions of what computed the audit."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        **{
            name: installed_version(name)
            for name in ("synthaug", "torch", "numpy", "faiss-cpu", "scipy", "pillow")
        },
    }
