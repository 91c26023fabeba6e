"""The audit's report: the verdict, what it rests on, and the closest pairs."""

import os
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from markupsafe import Markup
from numpy.typing import ArrayLike, NDArray

from synthaug._audit import page
from synthaug._audit.acceptance import Acceptance, AcceptedPair, with_accepted
from synthaug._audit.notes import Notes, add_notes
from synthaug._audit.scope import scope_sentence
from synthaug._audit.spread import Spread, spreading, whole
from synthaug._audit.tiers import (
    ALIKE,
    CLEAR,
    FLAGGED,
    NAMED,
    NOT_JUDGED,
    Power,
    Verdict,
)
from synthaug._audit.verdict_report import VerdictReport
from synthaug._support.html import Part, checked_uri, thumbnails
from synthaug._support.report import Report, decode, decode_array, decode_fields, made_of
from synthaug._support.rows import whole_numbers
from synthaug._types import JSON
from synthaug.errors import AuditError

if TYPE_CHECKING:
    from synthaug._cache import SynthCache

_REAL = ("image", "train_image", "difference", "holdout_image")
"""Of a pair: real images, what resembles them, and the difference, which shows outlines."""

_DIGESTS = ("digest", "train_digest")

_FILES = ("file", "train_file")
"""Names of files, in which there may be names of people."""

_ROWS = {
    "tier": "tier",
    "p_value": "p_values",
    "q_value": "q_values",
    "q_decoy": "q_decoy",
    "decided_by": "decided_by",
    "neighbor": "neighbors",
    "neighbor_flipped": "neighbor_flipped",
    "rmse": "rmse",
    "near_equal": "near_equal",
    "group": "group",
    "label": "labels",
}
"""Columns with one entry per row, as files and data frames name them, and their fields."""

_SCORES = ("scores", "distances")
_STATISTICS = (*_SCORES, "holdout_scores", "holdout_distances")
"""Fields with a column per statistic: files have a list for each."""


_SPREAD = (*_ROWS.values(), *_SCORES)
"""Fields with an entry per row."""

_MISSING = {
    "tier": NOT_JUDGED,
    "decided_by": -1,
    "neighbors": -1,
    "neighbor_flipped": False,
    "near_equal": False,
    "group": -1,
    "labels": -1,
}
"""What these hold for rows that were not judged, and are not kept; all others NaN."""

_MAX_ROWS = 2**31


@spreading(*_SPREAD)
@dataclass(frozen=True, kw_only=True, eq=False)
class AuditReport(VerdictReport):
    """Report of an audit; made by `synthaug.audit`.

        report.verdict, report.reasons     # "pass", "fail" or "inconclusive", and why
        report.flagged                     # row numbers that are too close to a training image
        report.withheld                    # these, and rows to look at: `MixedDataset` leaves out
        report.to_html("audit.html")       # to look at
        report.to_json("audit.json"), AuditReport.from_json("audit.json")

    Arrays have one entry per row of the cache, N in all. Of a cache of more than a million rows
    the report keeps, and writes, those of the judged rows alone, with their numbers (`rows.row`)
    and N (`rows.total`); the arrays are then made when they are asked for.
    """

    _FORMAT = "synthaug-audit"
    _FORMAT_VERSION = 1
    _NOUN = "an audit report"
    _REMEDY = "Check the name, or audit the cache again."
    _TITLE = "Audit"
    _MEANINGS: ClassVar[dict[str, str]] = {
        "pass": "No copies found, at the power below",
        "fail": "Images too close to training images",
        "inconclusive": "Look at the pairs, or give more images",
    }
    _WAY = "distances"
    SCRIPT = page.SCRIPT
    _PRIVATE = True
    score_name = "p-value"

    verdict: Verdict
    """`fail`: copies were found. `pass`: among the rows that are not withheld there was no sign of
    copies, and there would have been. `inconclusive`: some rows are to be looked at, or copies
    might have gone unseen, or what was flagged may have another reason."""
    accepted: tuple[Acceptance, ...]
    """Pairs that persons looked at and found harmless. That changes nothing above."""
    identity: dict[str, JSON]
    """Which cache was judged: its plan digest, weights and number of rows."""
    tier: NDArray[np.int8]
    """-1 not judged, 0 clear, 1 equal or nearly equal pixels, as they are or aligned, 2 closer than
    the hold-out allows, 3 found by target-decoy competition alone, 4 named by a test of all rows
    together, 5 as like a training image as near-duplicates are. Rows whose training image held-out
    images resemble as often are clear."""
    p_values: NDArray[np.float64]
    """Chance that a fresh real image comes as close; for rows that resemble no training image,
    among held-out images that resemble none either. NaN for rows that were not judged, and for all
    if there was no hold-out."""
    q_values: NDArray[np.float64]
    """Smallest false discovery rate at which the row would be flagged; NaN as above."""
    q_decoy: NDArray[np.float64]
    """The same by target-decoy competition, 1 for rows that are not the closest of their cluster;
    NaN for rows that did not compete."""
    statistics: tuple[str, ...]
    """Names of the s ways in which closeness was measured: the feature spaces, then `aligned` if
    images were compared."""
    scores: NDArray[np.float64]
    """How close each row comes by each statistic, (N, s); small is suspicious. In a feature space
    the distance to the nearest training image over the mean distance to the next ones; aligned,
    over the median distance to the others that were aligned. NaN for rows that were not judged, as
    are the distances."""
    distances: NDArray[np.float64]
    """Distance to the nearest training image by each statistic, (N, s)."""
    decided_by: NDArray[np.int64]
    """The statistic in which the row ranks lowest among the hold-out; -1 if not judged."""
    neighbors: NDArray[np.int64]
    """Index of the training image that the row comes closest to; -1 if not judged."""
    neighbor_flipped: NDArray[np.bool_]
    """Whether it is the mirrored row that comes so close."""
    rmse: NDArray[np.float64]
    """Root mean square difference to that training image, in gray levels of 0 to 255; NaN if only
    features were given."""
    near_equal: NDArray[np.bool_]
    """Whether a training image has equal or nearly equal pixels."""
    group: NDArray[np.int64]
    """Number of the group of images that resemble each other, and count once; -1 if not judged or
    if there was no hold-out."""
    labels: NDArray[np.int64]
    """Class of each row; -1 if unknown."""
    classes: tuple[str, ...]
    """Names of the classes; empty if unknown."""
    holdout_scores: NDArray[np.float64]
    """Scores of the hold-out images, (n, s); n is 0 without a hold-out."""
    holdout_distances: NDArray[np.float64]
    """Distances of the hold-out images to their nearest training images, (n, s)."""
    holdout_group: NDArray[np.int64]
    """Number of the group of each hold-out image, (n,); groups may hold images of both kinds."""
    power: tuple[Power, ...]
    """What became of planted copies, kind by kind."""
    set_test: dict[str, JSON]
    """Tests of all rows together: for all images (`all`), for those that resemble no training image
    (`rest`), and of training against hold-out images (`contest`) the p-value, and how many of the
    closest images are synthetic and how many were to be expected; empty without a hold-out."""
    fewest_copies: dict[str, JSON]
    """How many `copies` there are at least among the `rows` that are withheld, with a `confidence`
    of 0.95; empty without a hold-out, and where synthetic images as a whole are closer to training
    images than real ones are."""
    competition: dict[str, JSON]
    """Of target-decoy competition: clusters, how many matched training images, the share expected
    by chance, and the fewest that can be found; empty without a hold-out."""
    shift: dict[str, JSON]
    """Whether synthetic images as a whole are closer to training images than real ones are."""
    descriptive: tuple[dict[str, JSON], ...]
    """Numbers from the literature beside the hold-out's own: `name`, `meaning`, `synthetic` and
    `holdout`. They decide nothing."""
    settings: dict[str, JSON]
    """All arguments and counts."""
    environment: dict[str, JSON]
    """Versions of Python and of the libraries, and the time in UTC."""
    pairs: tuple[dict[str, JSON], ...]
    """The closest pairs, flagged ones first: the synthetic image, the training image, their
    difference once aligned, and the closest hold-out image, as PNG in `data:` addresses."""
    holdout_pairs: tuple[dict[str, JSON], ...]
    """The closest pairs of hold-out and training images, for scale."""
    withheld_files: tuple[dict[str, JSON], ...]
    """For each row with a tier above 0: `row`, `file`, `train_row` and `train_file`, the files
    relative to the folders that were given, `None` where there is none; empty if there are none at
    all. Pairs name the files as well. A redacted report names none."""

    def __len__(self) -> int:
        return len(vars(self)["tier"])

    @property
    def judged(self) -> NDArray[np.int64]:
        """Row numbers that were judged, ascending."""
        tier = vars(self)["tier"]
        return tier.rows if isinstance(tier, Spread) else np.flatnonzero(tier != NOT_JUDGED)

    def of_judged(self, name: str) -> NDArray[Any]:
        """The entries of an array for the judged rows alone, whose numbers are `judged`."""
        value = vars(self)[name]
        return value.values if isinstance(value, Spread) else value[self.judged]

    def at(self, name: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The entries of an array for some rows."""
        value = vars(self)[name]
        return value.at(rows) if isinstance(value, Spread) else value[rows]

    @property
    def flagged(self) -> NDArray[np.int64]:
        """Row numbers that are too close to a training image, ascending."""
        return self.judged[np.isin(self.of_judged("tier"), FLAGGED)]

    @property
    def withheld(self) -> NDArray[np.int64]:
        """Row numbers that may not be served: flagged, to be looked at, or near-duplicates.

        Those that a reviewer accepted and gave free (`accept(..., serve=True)`) are not among them.
        """
        return self.judged[~self._may_be_served]

    @property
    def _may_be_served(self) -> NDArray[np.bool_]:
        """Mask of the judged rows that are clear or were released."""
        free = [row for acceptance in self.accepted if acceptance.serve for row in acceptance.rows]
        return (self.of_judged("tier") == CLEAR) | np.isin(self.judged, free)

    def accept(
        self,
        rows: ArrayLike,
        *,
        reviewer: str,
        reason: str,
        serve: bool = False,
        beside: Any = None,
    ) -> "AuditReport":
        """Says that a person looked at pairs and found them harmless.

        No p-value, tier or verdict changes; the report names the reviewer and the reason.

        Args:
            rows: Row numbers of the synthetic images, among the pairs that the report shows.
            reviewer: Who looked at them.
            reason: Why they are harmless.
            serve: Whether they may be served. By default they stay withheld.
            beside: The cache that was audited, or its file or folder ("folder:PATH"): the
                acceptance is kept beside it, in NAME.audit.json, and every later report names it.

        Returns:
            A report that says so.

        Raises:
            ValueError: A row is not among the pairs shown, or not withheld; `reviewer` or `reason`
                is empty; or `beside` is no place.
            AuditError: The acceptance cannot be kept.
        """
        acceptance = Acceptance(
            reviewer=reviewer,
            reason=reason,
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            serve=serve,
            pairs=self._shown_pairs(np.unique(np.asarray(rows, np.int64)).tolist()),
        )
        if beside is not None:
            add_notes(beside, Notes(accepted=(acceptance,)))
        reasons = with_accepted(self.reasons, [acceptance])
        return self.changed(accepted=(*self.accepted, acceptance), reasons=reasons)

    def _shown_pairs(self, rows: list[int]) -> tuple[AcceptedPair, ...]:
        """The pairs of some rows, for `accept`."""
        shown = {pair["row"]: pair for pair in self.pairs if pair.get("digest")}
        suspicious = set(self.judged[self.of_judged("tier") > CLEAR].tolist())
        wrong = [row for row in rows if row not in shown or row not in suspicious]
        if wrong or not rows:
            raise ValueError(
                f"`rows` names {wrong[0] if wrong else 'no row'}, expected rows that are withheld "
                "and among the pairs that the report shows. Audit with a larger `max_pairs` to "
                "see more of them."
            )
        names = {"row": "row", "train_row": "train_row", "image": "digest"}
        names["train_image"] = "train_digest"
        records = [{key: shown[row][name] for key, name in names.items()} for row in rows]
        return tuple(decode(AcceptedPair, record) for record in records)

    def withdraw_from(self, cache: "SynthCache", rows: ArrayLike | None = None) -> None:
        """Withdraws rows from the cache that was audited, and keeps their scores beside it.

        Later audits rank them by these scores, in FILE.audit.json, so that withdrawing what was
        flagged does not turn a "fail" into a "pass": a verdict speaks of all that was drawn. Rows
        may have been withdrawn before; then their scores alone are kept.

        Args:
            cache: The cache.
            rows: Row numbers, int (n,); by default all that are withheld.

        Raises:
            MismatchError: It is another cache.
            ValueError: A row was not judged, so that it has no scores.
            AuditError: The scores cannot be written.
            CacheError: The cache cannot be written.
        """
        from synthaug._audit.withdrawn import kept_scores
        from synthaug._cache.serving import check_identity

        check_identity(cache, self, "The report")
        chosen = self.withheld if rows is None else np.unique(np.asarray(rows, np.int64))
        unknown = np.setdiff1d(chosen, self.judged)
        if len(unknown):
            raise ValueError(
                f"Row {unknown[0]} was not judged, so it has no scores that could be kept. Leave "
                "it out, or withdraw it with `cache.withdraw`."
            )
        if not len(chosen):
            return
        # First the scores: after a kill in between, calling this again completes it.
        kept = kept_scores(self, cache.plan, chosen)
        add_notes(cache, Notes(withdrawn=(kept,)))
        cache.withdraw(chosen)

    def copies_of(self, train_rows: ArrayLike) -> NDArray[np.int64]:
        """Row numbers that are withheld as too close to any of the given training images.

        With `report.withdraw_from(cache, report.copies_of(rows))` a cache forgets them. What was
        merely made from those images is found by the plan's `source` column.

        Args:
            train_rows: Indices of training images, int (n,).
        """
        rows, withheld = whole_numbers(train_rows, "train_rows"), self.withheld
        return withheld[np.isin(self.at("neighbors", withheld), rows)]

    @property
    def passed(self) -> NDArray[np.bool_]:
        """Rows that may be served: judged, and not withheld."""
        passed = np.zeros(len(self), bool)
        passed[self.judged[self._may_be_served]] = True
        return passed

    @property
    def row_scores(self) -> NDArray[np.float64]:
        """The p-value of every row, which filters and weights go by."""
        return self.p_values

    @property
    def smallest_effect(self) -> int | None:
        """Fewest copies that would have been noticed, of whichever kind a pass requires; `None`:
        there is a kind of which not even as many as were planted would have been."""
        needed = [p.noticed for p in self.power if p.required]
        return None if None in needed else max((n for n in needed if n is not None), default=None)

    def _headline(self) -> str:
        judged = len(self.judged)
        accepted = (f", {len(x.pairs):,} accepted by {x.reviewer}" for x in self.accepted)
        return (
            f"{self.verdict}: {len(self.flagged):,} of {judged:,} images flagged, "
            f"{len(self.withheld):,} withheld{''.join(accepted)}"
        )

    def _text(self) -> str:
        reasons = "\n".join(f"    {reason}" for reason in self.reasons)
        return f"AuditReport({self._headline()})\n{reasons}\n    {scope_sentence('distances')}"

    def __repr__(self) -> str:
        return str(self)

    def _summary(self) -> list[Part]:
        return [f"{self._headline()}.", *self.reasons, scope_sentence(self._WAY)]

    def _pictures(self) -> list[Part]:
        """Returns up to eight of the closest pairs."""
        kinds = (("image", "synthetic", "row"), ("train_image", "training", "train_row"))
        shown = [p for p in self.pairs if all(checked_uri(p.get(key)) for key, *_ in kinds)][:8]
        return (
            [
                "The closest pairs: synthetic images, below them their training images.",
                *(
                    thumbnails((pair[key], f"{name} {pair[row]}") for pair in shown)
                    for key, name, row in kinds
                ),
            ]
            if shown
            else []
        )

    def _columns(self) -> dict[str, Any]:
        """Returns a row per synthetic image, with the columns of the JSON file."""
        columns = {name: whole(vars(self)[field]) for name, field in _ROWS.items()}
        for j, statistic in enumerate(self.statistics):
            columns[f"score, {statistic}"] = self.scores[:, j]
            columns[f"distance, {statistic}"] = self.distances[:, j]
        return columns

    def html_sections(self) -> Markup:
        """Returns verdict, pairs, charts and tables, to go into a larger page."""
        return page.sections(self)

    def to_json(
        self, path: str | os.PathLike[str], *, redact: bool = False, shared: bool = False
    ) -> Path:
        """Writes the whole report. The file appears at once or not at all, readable by its owner.

        Args:
            path: File to write; an existing one is replaced.
            redact: For a report that leaves the house: real images are left out, flagged
                synthetic ones, which look like real ones, and names of files.
            shared: Let others on this machine read it.
        """
        report = self._redacted() if redact else self
        return Report.to_json(report, path, shared=shared)

    def to_html(
        self, path: str | os.PathLike[str], *, redact: bool = False, shared: bool = False
    ) -> Path:
        """Writes one self-contained page that opens from disk, offline; arguments as `to_json`.

        Raises:
            AuditError: The report was read from a file that lacks what the page shows.
        """
        from jinja2 import TemplateError

        try:
            report = self._redacted() if redact else self
            return Report.to_html(report, path, shared=shared)
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            # Only a report that was read from a file which somebody changed has such gaps.
            raise AuditError(
                f"The report cannot be shown: {type(error).__name__}: {error}. Audit again."
            ) from error

    def _record(self) -> dict[str, Any]:
        fields = super()._record()
        tier = fields["tier"]
        kept = {}
        if isinstance(tier, Spread):
            fields |= {name: self.of_judged(name) for name in _SPREAD}
            kept = {"row": tier.rows, "total": len(self)}
        rows = {column: fields.pop(name) for column, name in _ROWS.items()} | kept
        statistics = {name: list(fields.pop(name).T) for name in _STATISTICS}
        head = ("identity", "settings", "environment", "classes", "statistics")
        return {
            "verdict": fields.pop("verdict"),
            "exit_code": self.exit_code,
            "reasons": fields.pop("reasons"),
            "smallest_effect": self.smallest_effect,
            **{name: fields.pop(name) for name in head},
            "rows": rows,
            **statistics,
            **fields,
        }

    @classmethod
    def _from_record(cls, record: dict[str, Any]) -> "AuditReport":
        del record["exit_code"], record["smallest_effect"]  # follow from the rest
        rows = record.pop("rows")
        record |= {name: rows[column] for column, name in _ROWS.items()}
        statistics: dict[str, Any] = {
            name: np.stack([decode_array(np.float64, x, name) for x in record.pop(name)], axis=1)
            for name in _STATISTICS
        }
        values: dict[str, Any] = {**decode_fields(cls, record), **statistics}
        if "row" in rows:
            kept = _kept_rows(rows)
            for name in _SPREAD:
                if len(values[name]) != len(kept):
                    raise ValueError(f"{name} and rows.row differ in length")
                missing = _MISSING.get(name, np.nan)
                values[name] = Spread(values[name], kept, rows["total"], missing)
        report: AuditReport = made_of(cls, values)
        return report

    def _check(self) -> None:
        """Refuses a report that no audit can have made.

        Raises:
            ValueError: If the parts of the report do not fit each other.
        """
        lengths = {column: len(vars(self)[name]) for column, name in _ROWS.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"columns of rows differ in length: {lengths}")
        kept = {k: v.values if isinstance(v, Spread) else v for k, v in vars(self).items()}
        tier, labels = kept["tier"], kept["labels"]
        if not np.isin(tier, range(NOT_JUDGED, ALIKE + 1)).all():
            raise ValueError("rows.tier holds an unknown tier")
        if self.classes and len(labels) and not labels.max() < len(self.classes):
            raise ValueError(
                f"rows.label holds {labels.max()}, there are {len(self.classes)} classes"
            )
        named = np.isin(tier, (*FLAGGED, NAMED)).any()
        if self.verdict == ("pass" if named else "fail"):
            raise ValueError(f"verdict {self.verdict!r} does not fit the flagged rows")
        for name in _STATISTICS:
            if kept[name].shape[1] != len(self.statistics):
                raise ValueError(f"{name} does not hold {len(self.statistics)} columns")
        if not len(kept["scores"]) == len(kept["distances"]) == len(tier):
            raise ValueError("scores, distances and rows differ in length")
        if not (kept["decided_by"] < len(self.statistics)).all():
            raise ValueError("rows.decided_by names an unknown statistic")

    def _redacted(self) -> "AuditReport":
        def withheld(pair: dict[str, JSON]) -> dict[str, JSON]:
            # Who has an image could tell by its digest that it was among these.
            return pair | {key: None for key in (*_REAL, *_DIGESTS, *_FILES) if key in pair}

        def without_digests(acceptance: Acceptance) -> Acceptance:
            pairs = (replace(pair, image="", train_image="") for pair in acceptance.pairs)
            return replace(acceptance, pairs=tuple(pairs))

        return self.changed(
            accepted=tuple(map(without_digests, self.accepted)),
            pairs=tuple(
                withheld(pair) | {"image": None if pair.get("tier") else pair.get("image")}
                for pair in self.pairs
            ),
            holdout_pairs=tuple(withheld(pair) for pair in self.holdout_pairs),
            withheld_files=(),
        )


def _kept_rows(rows: dict[str, Any]) -> NDArray[np.int64]:
    """The numbers of the rows that a file has values of.

    Raises:
        ValueError: They are no rows of the report.
    """
    kept, total = decode_array(np.int64, rows["row"], "rows.row"), rows["total"]
    if type(total) is not int or not 0 < total <= _MAX_ROWS:
        raise ValueError(f"rows.total is {total!r}, expected 1 to {_MAX_ROWS:,}")
    ascending = (np.diff(kept) > 0).all()
    if len(kept) and not (ascending and kept[0] >= 0 and kept[-1] < total):
        raise ValueError("rows.row does not hold ascending numbers of rows")
    return kept
