"""The sets of an audit, found to fit each other."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from synthaug._audit.inputs import AuditSet, Contents, check_comparable
from synthaug._audit.settings import AuditSettings, FeaturesAsGiven
from synthaug._types import JSON, Indices, Labels
from synthaug.features import Extractor, describe


@dataclass(frozen=True, kw_only=True)
class AuditSets:
    """The images of an audit."""

    S: AuditSet
    """Synthetic images."""
    T: AuditSet
    """Training images."""
    H: AuditSet | None
    """Hold-out images, those that are training images set aside."""
    distinct: Contents
    """The different training images."""
    overlap: Indices
    """Training images to which hold-out images were equal that were set aside, int64 (k,)."""
    overlap_labels: Labels
    """Labels of these hold-out images, int64 (k,)."""
    extractors: list[Extractor]
    k: int
    """Neighbors that a score looks at."""

    def facts(self, index: str) -> dict[str, JSON]:
        """Returns the report's facts about the sets and their comparison, on which scores depend.

        Args:
            index: How neighbors are searched.
        """
        return {
            "k": self.k,
            "kind": "images" if self.are_images else "features",
            "features": [describe(extractor) for extractor in self.extractors],
            "index": index,
            "train_identity": self.T.identity,
            "holdout_identity": None if self.H is None else self.H.identity,
            "holdout_dropped": len(self.overlap),
        }

    @property
    def are_images(self) -> bool:
        """Whether these are images, and not features of images."""
        return isinstance(self.S.samples, Tensor)


def sets_of(S: AuditSet, T: AuditSet, H: AuditSet | None, settings: AuditSettings) -> AuditSets:
    """Puts synthetic, training and hold-out images together; refuses what cannot be compared."""
    check_comparable(S, T, *([] if H is None else [H]))
    are_images = isinstance(S.samples, Tensor)
    if not are_images and settings.features is not None:
        raise ValueError(
            "`features` names features to compute from images, but `train` holds "
            "features already. Leave `features` out, or give images."
        )
    distinct = Contents(T.keys)
    overlap = overlap_labels = np.zeros(0, np.int64)
    if H is not None:
        H, overlap, overlap_labels = _without_overlap(H, distinct, settings.deduplicate)
    return AuditSets(
        S=S,
        T=T,
        H=H,
        distinct=distinct,
        overlap=overlap,
        overlap_labels=overlap_labels,
        extractors=settings.extractors if are_images else [FeaturesAsGiven()],
        k=settings.neighbors(len(distinct)),
    )


def _without_overlap(
    H: AuditSet, known: Contents, deduplicate: bool
) -> tuple[AuditSet, Indices, Labels]:
    """Sets hold-out images aside that are training images, and says which, and of which class."""
    equal = known.find(H.keys)
    overlapping = equal >= 0
    count = int(overlapping.sum())
    if count and not deduplicate:
        raise ValueError(
            f"{count} of the {len(H)} images in `holdout` are also in `train` (the first: hold-out "
            f"image {H.rows[overlapping][0]}). Give images that the generator has never seen, or "
            "set these aside with `deduplicate=True`."
        )
    if count == len(H):
        raise ValueError(
            "All images in `holdout` are also in `train`, so nothing is held out. Give "
            "images that the generator has never seen."
        )
    kept = H.select(~overlapping) if count else H
    return kept, equal[overlapping], H.labels[overlapping]
