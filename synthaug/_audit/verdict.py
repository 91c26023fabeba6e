"""The verdict of an audit, and the sentences that explain it.

A verdict of "pass" is a statement about what the audit could have seen, so it needs three things:
no row flagged, no sign of copies among all rows together, and planted copies that were noticed. It
covers the rows that are not withheld, and never says that data are private or anonymous.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import hypergeom

from synthaug._audit.bound import CONFIDENCE
from synthaug._audit.decisions import ROWS_SHARE, levels
from synthaug._audit.power import SURE, visible
from synthaug._audit.tiers import Power, Verdict
from synthaug._printable import amount

_NAMED = 20
"""Rows that a sentence names at most."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """How many images an audit has seen."""

    synthetic_rows: int
    """Rows of what was audited."""
    synthetic_judged: int
    """Rows that had an image."""
    withdrawn: int
    """Rows among the judged ones that were withdrawn: ranked by scores that were kept."""
    withdrawn_unranked: int
    """Rows that were withdrawn, and could not be ranked."""
    withdrawn_incomparable: bool
    """Whether scores of some of these were kept, but with other images or settings."""
    forgotten: int
    """Rows that were erased since they were made of images that were forgotten."""
    train: int
    train_distinct: int
    """Different images among them."""
    holdout: int
    holdout_dropped: int
    """Images set aside since they are also in train."""
    holdout_near_equal: int
    """Hold-out images with nearly the pixels of a training image."""
    holdout_resembling: int
    """Hold-out images that resemble a training image as near-duplicates do."""
    holdout_distinct: int
    """Groups of hold-out images, none of which resembles a training image or another group."""
    resolution: int | None
    """Fewest rows that could be flagged by the hold-out's p-values; `None` without a hold-out."""
    competition_resolution: int | None
    """Fewest clusters that competition could find; `None` if there was none."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Findings of an audit: numbers of rows, and where the synthetic images lie as a whole."""

    exact: int
    """Rows with equal or nearly equal pixels, for which the hold-out gives no reason."""
    identical: int
    """Rows among these whose pixels equal those of a training image, mirrored or not; 0 where only
    features are given."""
    copied: bool
    """Whether more rows have such pixels than the hold-out explains."""
    calibrated: int
    """Rows flagged for coming closer than the hold-out allows."""
    competed: int
    """Rows found by target-decoy competition."""
    alike: int
    """Rows that are withheld as like a training image as near-duplicates are, and not flagged."""
    alike_p: float
    """Chance that so many of all rows resemble a training image as near-duplicates do; 1 where the
    hold-out does not decide."""
    named: tuple[int, ...]
    """Numbers of the rows that a test of all rows together names, and that are not flagged."""
    excess: tuple[int, int, float] | None
    """How many synthetic images are among how many of the closest, and how many were expected, by
    the test that rejects; `None` if none does."""
    contested: bool
    """Whether it is the test of training against hold-out images that rejects, which holds whatever
    made the synthetic images."""
    shifted: bool
    """Whether synthetic images as a whole are closer to training images than real ones are. If so,
    competition decides; if not, the hold-out does."""
    leaning: bool
    """Whether synthetic images are closest to training images more often than chance and a few
    copies explain."""

    withheld: int
    """Rows that are withheld, for whatever reason."""
    fewest_copies: int | None
    """How many of them are copies at least; `None` if that is not known."""

    @property
    def decisive(self) -> int:
        """Rows found by the comparison that decides."""
        return self.competed if self.shifted else self.calibrated


def judge(
    findings: Findings,
    counts: Counts,
    *,
    power: Sequence[Power],
    missing: Sequence[str],
    fdr: float,
    level: float,
) -> tuple[Verdict, list[str]]:
    """Reaches the verdict and explains it.

    Args:
        findings: How many rows were flagged, and why.
        counts: How many images were seen.
        power: The power for planted copies.
        missing: Classes of synthetic images that are not held out.
        fdr: False discovery rate.
        level: Level of the tests of all rows together.

    Returns:
        The verdict, and sentences of which the first one alone suffices.
    """
    m = counts.synthetic_judged
    doubts = _doubts(findings, counts, [p for p in power if p.required], missing, level)
    look = _rows_to_look_at(findings, counts, level)
    verdict: Verdict = "inconclusive"
    if findings.decisive or findings.copied:
        verdict, reasons = "fail", [*_copies(findings, m, fdr), *look, *doubts]
    elif look:
        reasons = [*look, *doubts]
    elif findings.calibrated:
        reasons = [
            _withheld(_close(findings, m), findings.calibrated),
            "But the synthetic images as a whole come closer, too. That is a shift, such as "
            "smoother or more typical images, and need not be copying. Look at the pairs.",
            *doubts,
        ]
    elif doubts:
        nothing = f"No copies were found among {m:,} images, but the audit could have missed some."
        reasons = [nothing, *doubts]
    else:
        verdict, reasons = "pass", _no_copies(findings, m, power)
        return verdict, [*reasons, *_notes(findings, counts, level)]
    # The planted copies come on top of what the tests have found: that helps them reject.
    found = findings.excess is not None or findings.calibrated or findings.exact
    name = "Power, beside what was found" if found else "Power"
    said = [f"{name}: {text}" if i == 0 else text for i, text in enumerate(_power(power, m))]
    reasons += [*_number_of_copies(findings), *said]
    return verdict, [*reasons, *_notes(findings, counts, level)]


def _copies(findings: Findings, num_judged: int, fdr: float) -> list[str]:
    """Says how many images are too close, and how many of these may be no copies."""
    told = [_equal(findings, num_judged)] if findings.exact else []
    if findings.shifted and findings.competed:
        told.append(
            f"{findings.competed:,} of {num_judged:,} images were found too close to a training "
            "image by target-decoy competition."
        )
    elif findings.calibrated:
        told.append(_close(findings, num_judged))
    many = 2 if len(told) > 1 else findings.exact or findings.decisive
    reasons = [_withheld(" ".join(told), many)]
    if findings.decisive and findings.shifted:
        reasons.append(
            f"On average, at most {fdr:.0%} of the images found by competition match a training "
            "image by chance, whatever the synthetic images look like."
        )
    elif findings.decisive:
        reasons.append(
            "If the generator copied nothing and its images were like the held-out ones, at most "
            f"{fdr:.0%} of audits would flag any image."
        )
    return reasons


def _equal(findings: Findings, num_judged: int) -> str:
    """Says how many images have the pixels of a training image."""
    nearly = "" if findings.identical == findings.exact else ", or nearly so once aligned"
    verb = "equals" if findings.exact == 1 else "equal"
    return (
        f"{findings.exact:,} of {num_judged:,} images {verb} a training image pixel by "
        f"pixel{nearly}."
    )


def _close(findings: Findings, num_judged: int) -> str:
    """Says how many images come closer than held-out ones."""
    verb = "comes" if findings.calibrated == 1 else "come"
    return (
        f"{findings.calibrated:,} of {num_judged:,} images {verb} closer to a training image than "
        "held-out real images do."
    )


def _withheld(told: str, count: int) -> str:
    """Says of the images that were told of that they are withheld."""
    return f"{told} {'It is' if count == 1 else 'They are'} withheld."


def _rows_to_look_at(findings: Findings, counts: Counts, level: float) -> list[str]:
    """Returns sentences about the rows that a person must look at."""
    reasons = []
    if findings.exact and not findings.copied:
        reasons += [
            _withheld(_equal(findings, counts.synthetic_judged), findings.exact),
            f"Real images repeat, too: with {amount(counts.holdout, 'held-out image')}, this "
            "number could be chance. Look at the pairs, which are shown first.",
        ]
    if findings.excess is not None:
        count, depth, expected = findings.excess
        among = (
            f"Among the {depth:,} groups of images that are closest to a real image, {count:,} "
            f"match a training image rather than a held-out one; {expected:.1f} are expected"
            if findings.contested
            else f"Among the {depth:,} real and synthetic images that are closest to a training "
            f"image, {count:,} are synthetic; {expected:.1f} are expected"
        )
        reasons.append(
            f"{among}. Without copies, at most {level:.0%} of audits find so many. So some of "
            "these images are probably copies, but the audit cannot say which." + _named(findings)
        )
    if findings.alike and findings.alike_p <= levels(level)["alike"]:
        reasons.append(
            f"{_alike(findings, counts)}. Without copies, at most {level:.0%} of audits find so "
            "many more. So some of these images are probably copies. They are withheld: look at "
            "their pairs."
        )
    return reasons


def _alike(findings: Findings, counts: Counts) -> str:
    """Says how many images resemble a training image, and how many held-out ones do."""
    told = (
        f"{findings.alike:,} of {counts.synthetic_judged:,} images "
        f"({findings.alike / counts.synthetic_judged:.1%}) resemble a training image as "
        "near-duplicates do"
    )
    if not counts.holdout:
        return told
    share = counts.holdout_resembling / counts.holdout
    return f"{told}; of the held-out real images, {share:.1%} do"


def _named(findings: Findings) -> str:
    """Returns a sentence about the rows that a test of all rows together names."""
    if not findings.named:
        return ""
    rows = ", ".join(map(str, findings.named[:_NAMED]))
    if len(findings.named) > _NAMED:
        rows += f" and {len(findings.named) - _NAMED:,} more"
    which = f"{'row' if len(findings.named) == 1 else 'rows'} {rows}"
    theirs = "It is" if len(findings.named) == 1 else "They are"
    if findings.exact or findings.calibrated or (findings.shifted and findings.competed):
        return (
            f" Beside the flagged rows, look at {which}. {theirs} withheld, and shown after them."
        )
    return f" Look at {which}. {theirs} withheld, and shown first."


def _number_of_copies(findings: Findings) -> list[str]:
    """Says how many copies there are at least among the rows that are withheld."""
    if not findings.fewest_copies:
        return []
    are = "is a copy" if findings.fewest_copies == 1 else "are copies"
    few = findings.fewest_copies < findings.exact
    others = " The pairs show what the others are." if few else ""
    return [
        f"{'By the hold-out alone, at' if few else 'At'} least {findings.fewest_copies:,} of the "
        f"{amount(findings.withheld, 'withheld row')} {are} (confidence {CONFIDENCE:.0%}). This "
        "assumes that synthetic images that copy nothing come as close to training images as "
        f"held-out ones do.{others}"
    ]


def _no_copies(findings: Findings, num_judged: int, power: Sequence[Power]) -> list[str]:
    """Returns sentences about the copies that would have been noticed, and those that might not."""
    served = num_judged - findings.alike
    seen, *unseen = _power(power, num_judged)
    return [f"No sign of copies among {served:,} images. Power: {seen}", *unseen]


def _power(power: Sequence[Power], num_judged: int) -> list[str]:
    """Says how many copies would have been noticed, and of which kinds not even many."""
    required = [p for p in power if p.required]
    if not required:
        return []
    worst = max(required, key=lambda p: p.noticed or math.inf)
    if worst.noticed is None:
        seen = (
            f"this audit cannot reliably detect copies of kind '{worst.kind}': with "
            f"{worst.planted:,} planted, fewer than {SURE:.0%} of trials noticed them."
        )
    else:
        copies = "1 copy" if worst.noticed == 1 else f"{worst.noticed:,} copies or more"
        seen = (
            f"this audit detects {copies} of training images in at least {SURE:.0%} of trials, "
            + (
                "of each required kind."
                if all(p.noticed == worst.noticed for p in required)
                else f"even of the required kind that is hardest to detect ({worst.kind})."
            )
        )
    most = visible(num_judged)
    unseen = [p.kind for p in power if not p.required and (p.noticed is None or p.noticed > most)]
    changed = f"It may miss copies that are changed more: {', '.join(unseen)}."
    return [seen, changed] if unseen else [seen]


def _notes(findings: Findings, counts: Counts, level: float) -> list[str]:
    """Returns notes for the reader of any verdict."""
    notes = []
    if findings.alike and findings.alike_p > levels(level)["alike"]:
        chance = "" if findings.alike_p >= 0.1 else f" (p = {findings.alike_p:.2g})"
        notes.append(
            f"{_alike(findings, counts)}{chance}. They are withheld, and this verdict does not "
            "cover them: look at their pairs."
        )
    resolution = counts.resolution or 1
    if not findings.fewest_copies and resolution > counts.synthetic_judged:
        notes.append("This hold-out is too small to flag images one by one.")
    elif not findings.fewest_copies and resolution > 1:
        notes.append(
            "With this hold-out, the audit can flag images one by one only if at least "
            f"{counts.resolution:,} are suspicious; fewer are noticed only as a group."
        )
    if counts.holdout_near_equal:
        notes.append(
            f"{counts.holdout_near_equal:,} of {counts.holdout:,} held-out real images also have "
            "nearly the pixels of a training image: the data repeat themselves."
        )
    if counts.withdrawn:
        notes.append(
            f"{counts.withdrawn:,} of the {counts.synthetic_judged:,} images were withdrawn after "
            "an earlier audit. Their kept scores are ranked as well, so the verdict covers all "
            "that was generated."
        )
    if counts.forgotten:
        notes.append(
            f"{counts.forgotten:,} of {counts.synthetic_rows:,} rows were made of real images that "
            "were forgotten. They are erased, and this verdict does not cover them."
        )
    missing = counts.synthetic_rows - counts.synthetic_judged
    missing -= counts.withdrawn_unranked + counts.forgotten
    if missing:
        notes.append(
            f"{missing:,} of {counts.synthetic_rows:,} rows have no image yet, or none any more. "
            "They were not judged and will not be served."
        )
    return notes


def _doubts(
    findings: Findings,
    counts: Counts,
    required: Sequence[Power],
    missing: Sequence[str],
    level: float,
) -> list[str]:
    """Why a copy might have gone unseen, and what to do about it."""
    if not counts.holdout:
        return [
            *_unranked(findings, counts),
            "Without a hold-out, the audit cannot know how close real images come by chance. So it "
            "looked only for equal and nearly equal pixels. Give a hold-out: real images from the "
            "same source that the generator has never seen.",
        ]
    doubts = _unranked(findings, counts)
    if missing:
        doubts.append(_without_holdout(missing))
    if findings.leaning:
        doubts.append(
            "The closest real image of a synthetic one is a training image, not a held-out one, "
            "more often than chance and a few copies explain. Look at the pairs."
        )
    m = counts.synthetic_judged
    limit = visible(m)
    weak = [p for p in required if p.noticed is None or p.noticed > limit]
    if weak:
        doubts.append(_too_weak(weak, limit))
    together = chance_of_all_closest(limit, m, counts.holdout_distinct)
    blind = (counts.resolution or m) > limit and together > levels(level)["rest"]
    if blind:
        doubts.append(
            f"With so few held-out images, it could be chance if {amount(limit, 'copy')} came "
            "closer than all other images. To pass, the audit must be able to tell copies from "
            "chance."
        )
    if weak or blind:
        doubts.append(
            f"{counts.holdout_distinct:,} distinct held-out images are few for {m:,} synthetic "
            "ones, or come as close to training images as such copies do. "
            + _hold_out(counts, level)
        )
    if findings.shifted and (counts.competition_resolution or m) > limit:
        doubts.append(
            "The synthetic images as a whole are closer to training images than real ones are. So "
            "competition decides. With these numbers of training and hold-out images, it can "
            f"detect copies only if they form at least {counts.competition_resolution or m:,} "
            f"clusters. To pass, it must detect {limit:,}. Hold out more images."
        )
    return doubts


def _too_weak(weak: Sequence[Power], limit: int) -> str:
    """Says how many copies it takes of each kind that is noticed too late for a pass."""
    kinds: dict[tuple[bool, int], list[str]] = {}  # those with one number share a sentence
    for p in weak:
        many = (True, p.planted) if p.noticed is None else (False, p.noticed)
        kinds.setdefault(many, []).append(p.kind)
    told = [
        f"Even {copies:,} copies of these kinds would go unseen too often: {', '.join(names)}."
        if unseen
        else f"It takes at least {copies:,} copies of one of these kinds: {', '.join(names)}."
        for (unseen, copies), names in sorted(kinds.items())
    ]
    must = (
        f"To pass, the audit must be able to detect {amount(limit, 'copy')} of every required kind."
    )
    return " ".join([f"{must} It cannot.", *told])


def _hold_out(counts: Counts, level: float) -> str:
    """Says how many images to hold out so that few copies could be told from chance."""
    m, found = counts.synthetic_judged, counts.holdout_distinct
    needed = holdout_needed(m, level)
    more = f"at least {needed:,} distinct images" if needed > found else "more images"
    return f"Hold out {more}, or audit fewer at a time."


def _without_holdout(missing: Sequence[str]) -> str:
    """Names the synthetic classes of which nothing is held out."""
    named = f"'{missing[0]}'" + (", for example" if len(missing) > 1 else "")
    return (
        f"{amount(len(missing), 'synthetic class')} {'has' if len(missing) == 1 else 'have'} "
        f"no held-out images: {named}. So classes were not told apart. Hold out images of "
        "every class, or give folders that are no classes the same name."
    )


def chance_of_all_closest(num_copies: int, num_rows: int, num_holdout: int) -> float:
    """Chance that the closest of all images are all synthetic if nothing is copied.

    >>> round(chance_of_all_closest(2, 3, 2), 3)
    0.3
    """
    return float(hypergeom.pmf(num_copies, num_rows + num_holdout, num_rows, num_copies))


def holdout_needed(num_rows: int, level: float) -> int:
    """Least number of distinct held-out images beside which as many copies as an audit must notice
    are no chance if they come closest of all.

    >>> holdout_needed(60, 0.01)
    94
    """
    limit, allowed = visible(num_rows), levels(level)["rest"]

    def too_few(num_holdout: int) -> bool:
        return chance_of_all_closest(limit, num_rows, num_holdout) > allowed

    enough = 1
    while too_few(enough):
        enough *= 2
    return bisect_left(range(enough), True, key=lambda n: not too_few(n))


def _unranked(findings: Findings, counts: Counts) -> list[str]:
    """Returns sentences about withdrawn rows that the verdict does not cover, and their remedy."""
    if counts.withdrawn_unranked:
        why = (
            "their scores were kept by an audit with other images, settings or another version"
            if counts.withdrawn_incomparable
            else "no scores of them were kept"
        )
        return [
            f"{counts.withdrawn_unranked:,} withdrawn rows could not be ranked: {why}. Read the "
            "report of an audit that judged them, with the same training and hold-out images and "
            "settings, and call its `withdraw_from(cache)`, which keeps their scores also "
            "afterwards; or draw the plan anew into another cache, and audit that."
        ]
    if counts.withdrawn and findings.shifted:
        return [
            f"{counts.withdrawn:,} withdrawn rows could take no part in the competition that "
            "decides here, since their images are erased. Draw the plan anew into another cache, "
            "and audit that."
        ]
    return []


def resolution(num_rows: int, num_holdout: int, fdr: float) -> int:
    """Fewest rows that can be flagged by p-values when all have the smallest possible one.

    With p = 1 / (n + 1) for j of m rows they are flagged if 1 / (n + 1) <= share fdr j / m, where
    share is the part of the false discovery rate that each of two tests has.

    >>> resolution(4500, 10_000, 0.05)
    20
    """
    return max(1, math.ceil(num_rows / (ROWS_SHARE * fdr * (num_holdout + 1)) - 1e-9))
