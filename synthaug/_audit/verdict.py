"""What the numbers amount to: the verdict, and the sentences that explain it.

A verdict of "pass" is a statement about what the audit could have seen, so it needs two things:
nothing flagged, and planted copies that were. It never says that data are private or anonymous.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from synthaug._audit.report import Power, Verdict
from synthaug._types import JSON

SMALLEST_COUNT = 25
SMALLEST_SHARE = 0.02
LARGEST_SHARE = 0.25
"""An audit may say "pass" only if it would have seen so many copies, or the smallest share of the
rows if that is more; of few rows never more than the largest share. A hold-out of 50 / fdr images
can resolve the smallest share: 1,000 at an fdr of 0.05."""

_DISTRUST_LEVEL = 0.001
"""Halves of one hold-out are exchangeable whatever the data, so each halving flags anything with a
chance of at most fdr, independently of the others. A number of such halvings that has less than
this chance means that the p-values are wrong."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many images an audit has seen."""

    synthetic_rows: int
    """Rows of what was audited."""
    synthetic_judged: int
    """Rows that had an image."""
    train: int
    train_distinct: int
    """Different images among them."""
    holdout: int
    holdout_dropped: int
    """Images set aside since they are also in train."""
    holdout_near_equal: int
    """Hold-out images with nearly the pixels of a training image."""
    resolution: int | None
    """Fewest rows that could be flagged by the hold-out's p-values; `None` without a hold-out."""
    competition_resolution: int | None
    """Fewest clusters that competition could find; `None` if there was none."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What an audit found: numbers of rows, and how the synthetic images lie as a whole."""

    flagged: int
    """Rows flagged for any reason."""
    exact: int
    """Rows flagged for equal or nearly equal pixels."""
    calibrated: int
    """Rows flagged for coming closer than the hold-out allows."""
    competed: int
    """Rows found by target-decoy competition."""
    shifted: bool
    """Whether synthetic images as a whole are closer to training images than real ones are. If so,
    competition decides; if not, the hold-out does."""
    leaning: bool
    """Whether synthetic images are closest to training images more often than chance and a few
    copies explain."""

    @property
    def decisive(self) -> int:
        """Rows found by the comparison that decides."""
        return self.competed if self.shifted else self.calibrated


def smallest_visible(num_rows: int) -> int:
    """Number of copies that a passing audit of so many rows must have been able to see."""
    few = min(SMALLEST_COUNT, math.ceil(LARGEST_SHARE * num_rows))
    return max(few, math.ceil(SMALLEST_SHARE * num_rows))


def judge(
    findings: Findings,
    counts: Counts,
    *,
    power: Sequence[Power],
    self_test: dict[str, JSON],
    fdr: float,
) -> tuple[Verdict, list[str]]:
    """Reaches the verdict and explains it.

    Args:
        findings: How many rows were flagged, and why.
        counts: How many images were seen.
        power: What became of the planted copies.
        self_test: What became of the halved hold-out.
        fdr: False discovery rate.

    Returns:
        The verdict, and sentences of which the first one alone suffices.
    """
    m = counts.synthetic_judged
    doubts = _doubts(findings, counts, [p for p in power if p.required], self_test, fdr)
    verdict: Verdict = "inconclusive"
    if findings.exact or findings.decisive:
        verdict, reasons = "fail", [*_copies(findings, m, fdr), *doubts]
    elif findings.calibrated:
        close = (
            f"{findings.calibrated:,} of {m:,} images come closer to a training image than "
            "held-out real images do, but so do the synthetic images as a whole: that may be their "
            "smoothness, or it may be copying. They are withheld; look at the pairs."
        )
        reasons = [close, *doubts]
    elif doubts:
        nothing = f"Nothing was flagged among {m:,} images, but copies might have gone unseen."
        reasons = [nothing, *doubts]
    else:
        verdict, reasons = "pass", _no_copies(m, power)
    return verdict, [*reasons, *_notes(counts)]


def _copies(findings: Findings, num_judged: int, fdr: float) -> list[str]:
    """Says how many images are too close, and how many of these may be no copies."""
    decided = (
        f"{findings.competed:,} found by target-decoy competition"
        if findings.shifted
        else f"{findings.calibrated:,} closer than held-out real images"
    )
    reasons = [
        f"{findings.flagged:,} of {num_judged:,} images are too close to a training image: "
        f"{findings.exact:,} with equal or nearly equal pixels, {decided}."
    ]
    if findings.flagged > findings.exact:
        reasons.append(
            f"Of the others, on average {fdr:.0%} may be no copies; an audit of images that copy "
            f"nothing flags something in at most {fdr:.0%} of all cases."
        )
    return reasons


def _no_copies(num_judged: int, power: Sequence[Power]) -> list[str]:
    """Says which copies would have been seen, and which might not."""
    required = [p for p in power if p.required]
    needed = max(p.needed or num_judged for p in required)
    reasons = [
        f"No copies found among {num_judged:,} images, at this power: had there been at least "
        f"{needed:,} {'copy' if needed == 1 else 'copies'} of training images "
        f"({', '.join(p.kind for p in required)}), they would have been seen."
    ]
    visible = smallest_visible(num_judged)
    unseen = [p.kind for p in power if p.needed is None or p.needed > visible]
    if unseen:
        reasons.append(f"Copies changed more than that may go unseen: {', '.join(unseen)}.")
    return reasons


def _notes(counts: Counts) -> list[str]:
    """Says what else a reader of any verdict should know."""
    notes = []
    if counts.holdout_near_equal:
        notes.append(
            f"{counts.holdout_near_equal:,} of {counts.holdout:,} held-out real images also have "
            "nearly the pixels of a training image: the data repeat themselves."
        )
    if counts.synthetic_judged < counts.synthetic_rows:
        missing = counts.synthetic_rows - counts.synthetic_judged
        notes.append(
            f"{missing:,} of {counts.synthetic_rows:,} rows have no image yet, or none any more. "
            "They were not judged and will not be served."
        )
    return notes


def _doubts(
    findings: Findings,
    counts: Counts,
    required: Sequence[Power],
    self_test: dict[str, JSON],
    fdr: float,
) -> list[str]:
    """Why a copy might have gone unseen, and what to do about it."""
    if not counts.holdout:
        return [
            "Without a hold-out nothing says how close real images come by chance, so only equal "
            "and nearly equal pixels were looked for. Give a hold-out: real images from the same "
            "source that the generator has never seen."
        ]
    doubts = []
    if findings.leaning:
        doubts.append(
            "The synthetic images lean to the training images: these are their closest real images "
            "more often than their number and a few copies explain. Look at the pairs."
        )
    m = counts.synthetic_judged
    limit = smallest_visible(m)
    weak = [p for p in required if p.needed is None or p.needed > limit]
    for p in weak:
        least = "not even if all were" if p.needed is None else f"from {p.needed:,} on"
        doubts.append(
            f"Copies of the kind '{p.kind}' would have been seen {least}; that must be possible "
            f"from {limit:,} on."
        )
    if weak and counts.resolution is not None and counts.resolution > limit:
        enough = math.ceil(m / (fdr * limit)) - 1
        doubts.append(
            f"{counts.holdout:,} held-out images are too few to judge {m:,}: "
            f"hold out at least {enough:,}, or audit fewer images."
        )
    elif weak:
        doubts.append(
            "Some held-out images come as close to a training image as such copies do. If the "
            "closest hold-out pairs show the same scenes, remove them from the hold-out."
        )
    if findings.shifted and (counts.competition_resolution or m) > limit:
        doubts.append(
            "The synthetic images as a whole are closer to training images than real ones are, so "
            "that competition decides. With so many training and hold-out images it finds copies "
            f"from {counts.competition_resolution or m:,} clusters on; that must be possible from "
            f"{limit:,} on. Hold out more images."
        )
    flagged, halvings = self_test.get("any_flagged"), self_test.get("halvings")
    if (
        isinstance(flagged, int)  # absent from a tiny hold-out
        and isinstance(halvings, int)
        and binomtest(flagged, halvings, fdr, alternative="greater").pvalue < _DISTRUST_LEVEL
    ):
        doubts.append(
            f"The hold-out audited against itself was flagged in {flagged} of {halvings} halvings, "
            f"where at most about {fdr * halvings:.0f} are expected: do not trust these p-values."
        )
    return doubts
