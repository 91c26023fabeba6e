"""The conclusions of an audit: a verdict, the tier of each row, and the copies it can detect."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "fail", "inconclusive"]

NOT_JUDGED, CLEAR, EXACT, CALIBRATED, COMPETED, NAMED, ALIKE = -1, 0, 1, 2, 3, 4, 5
"""Tiers: the row has no image; nothing was found; equal or nearly equal pixels; closer than the
hold-out allows; closest to training images more often than chance has it; one of the rows at which
a test of the whole set rejects; as like a training image as near-duplicates are. Rows of the first
three of these are flagged, all five are withheld."""

FLAGGED = (EXACT, CALIBRATED, COMPETED)


@dataclass(frozen=True, kw_only=True)
class Power:
    """Power for planted copies of one kind."""

    kind: str
    """How the copies differ from their originals."""
    required: bool
    """Whether an audit that misses them must not say "pass"."""
    planted: int
    """Rows that they took the place of, for `power`."""
    power: float
    """Share of them that was flagged, on average over random draws."""
    interval: tuple[float, float]
    """Within which the power lies with a confidence of 0.95."""
    found: float
    """Share whose nearest training image was the original."""
    alike: float
    """Share that is withheld in any case, as like a training image as near-duplicates are."""
    noticed: int | None
    """Fewest such copies after which the audit would not have said "pass", in 0.85 of the draws;
    `None`: not even as many as were planted."""
    needed: int | None
    """Fewest such copies of which half would have been flagged, in 0.85 of the draws; `None` as
    above."""
