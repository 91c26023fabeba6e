"""The audit's report: a record that is its own file, as JSON for programs and HTML for people."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthaug._support.files import write_text
from synthaug._types import JSON
from synthaug.errors import AuditError

FORMAT = "synthaug-audit"
FORMAT_VERSION = 1

Verdict = Literal["pass", "fail", "inconclusive"]
EXIT_CODES: dict[str, int] = {"pass": 0, "fail": 1, "inconclusive": 3}

NOT_JUDGED, CLEAR, EXACT, CALIBRATED, COMPETED = -1, 0, 1, 2, 3
"""Tiers: the row has no image; nothing was found; equal or nearly equal pixels; closer than the
hold-out allows; closest to training images more often than chance has it."""

_REAL = ("image", "train_image", "difference", "holdout_image")
"""Of a pair: real images, what resembles them, and the difference, which shows outlines."""

_ROW_COLUMNS: dict[str, type] = {
    "tier": np.int8,
    "p_value": np.float64,
    "q_value": np.float64,
    "q_decoy": np.float64,
    "decided_by": np.int64,
    "neighbour": np.int64,
    "neighbour_flipped": np.bool_,
    "rmse": np.float64,
    "label": np.int64,
}


@dataclass(frozen=True, kw_only=True)
class Power:
    """What became of planted copies of one kind."""

    kind: str
    """How the copies differ from their originals."""
    required: bool
    """Whether an audit that misses them must not say "pass"."""
    planted: int
    """Rows that they took the place of."""
    power: float
    """Share of them that was flagged."""
    found: float
    """Share whose nearest training image was the original."""
    needed: int | None
    """Fewest such copies that would have been seen; `None`: not even if all rows were copies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AuditReport:
    """What an audit found; made by `synthaug.audit`.

        report.verdict, report.reasons     # "pass", "fail" or "inconclusive", and why
        report.flagged                     # row numbers that are too close to a training image
        report.to_html("audit.html")       # to look at
        report.to_json("audit.json"), AuditReport.from_json("audit.json")

    Arrays have one entry per row of the cache, N in all.
    """

    verdict: Verdict
    """`fail`: copies were found. `pass`: nothing was flagged, and copies would have been seen.
    `inconclusive`: copies might have gone unseen, or what was flagged may have another reason."""
    reasons: tuple[str, ...]
    """Sentences that explain the verdict, the first one alone suffices."""
    identity: dict[str, JSON]
    """Which cache was judged: its plan digest, weights and number of rows."""
    tier: NDArray[np.int8]
    """-1 not judged, 0 clear, 1 equal or nearly equal pixels, as they are or aligned, 2 closer than
    the hold-out allows, 3 found by target-decoy competition alone."""
    p_values: NDArray[np.float64]
    """Chance that a fresh real image comes as close; NaN for rows that were not compared with the
    hold-out: those not judged, those of tier 1, and all if there was no hold-out."""
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
    neighbours: NDArray[np.int64]
    """Index of the training image that the row comes closest to; -1 if not judged."""
    neighbour_flipped: NDArray[np.bool_]
    """Whether it is the mirrored row that comes so close."""
    rmse: NDArray[np.float64]
    """Root mean square difference to that training image, in grey levels of 0 to 255; NaN if only
    features were given."""
    labels: NDArray[np.int64]
    """Class of each row; -1 if unknown."""
    classes: tuple[str, ...]
    """Names of the classes; empty if unknown."""
    holdout_scores: NDArray[np.float64]
    """Scores of the hold-out images, (n, s); n is 0 without a hold-out."""
    holdout_distances: NDArray[np.float64]
    """Distances of the hold-out images to their nearest training images, (n, s)."""
    power: tuple[Power, ...]
    """What became of planted copies, kind by kind."""
    self_test: dict[str, JSON]
    """One half of the hold-out audited against the other, over many random halvings."""
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

    def __len__(self) -> int:
        return len(self.tier)

    @property
    def flagged(self) -> NDArray[np.int64]:
        """Row numbers that are too close to a training image, ascending."""
        return np.flatnonzero(self.tier > CLEAR)

    def copies_of(self, train_rows: ArrayLike) -> NDArray[np.int64]:
        """Row numbers that were flagged as too close to any of the given training images.

        With `cache.withdraw(report.copies_of(rows))` a cache forgets them. What was merely made
        from those images is found by the plan's `source` column.

        Args:
            train_rows: Indices of training images, int (n,).
        """
        return self.flagged[np.isin(self.neighbours[self.flagged], np.asarray(train_rows))]

    @property
    def passed(self) -> NDArray[np.bool_]:
        """Rows that may be served: judged, and not flagged."""
        return self.tier == CLEAR

    @property
    def smallest_effect(self) -> int | None:
        """Fewest copies that would have been seen, of whichever kind a pass requires; `None`: there
        is a kind of which not even rows full of copies would have been."""
        needed = [p.needed for p in self.power if p.required]
        return None if None in needed else max((n for n in needed if n is not None), default=None)

    @property
    def exit_code(self) -> int:
        """For scripts: 0 pass, 1 fail, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    def __repr__(self) -> str:
        judged = int((self.tier != NOT_JUDGED).sum())
        return (
            f"AuditReport({self.verdict}: {len(self.flagged):,} of {judged:,} images flagged)\n"
            + "\n".join(f"    {reason}" for reason in self.reasons)
        )

    def _repr_html_(self) -> str:
        """For notebooks: the verdict, its reasons, and up to eight of the closest pairs."""
        from synthaug._audit.page import small

        return small(self)

    def to_json(self, path: str | os.PathLike[str], *, redact: bool = False) -> None:
        """Writes the whole report. The file appears at once or not at all, readable by its owner.

        Args:
            path: File to write; an existing one is replaced.
            redact: For a report that leaves the house: real images are left out, and flagged
                synthetic ones, which look like real ones.
        """
        if redact:
            return self._redacted().to_json(path)
        record = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "reasons": list(self.reasons),
            "smallest_effect": self.smallest_effect,
            "identity": self.identity,
            "settings": self.settings,
            "environment": self.environment,
            "classes": list(self.classes),
            "statistics": list(self.statistics),
            "rows": {
                "tier": _listed(self.tier),
                "p_value": _listed(self.p_values),
                "q_value": _listed(self.q_values),
                "q_decoy": _listed(self.q_decoy),
                "decided_by": _listed(self.decided_by),
                "neighbour": _listed(self.neighbours),
                "neighbour_flipped": _listed(self.neighbour_flipped),
                "rmse": _listed(self.rmse),
                "label": _listed(self.labels),
            },
            # One list per statistic, in the order of `statistics`.
            "scores": [_listed(column) for column in self.scores.T],
            "distances": [_listed(column) for column in self.distances.T],
            "holdout_scores": [_listed(column) for column in self.holdout_scores.T],
            "holdout_distances": [_listed(column) for column in self.holdout_distances.T],
            "power": [asdict(p) for p in self.power],
            "self_test": self.self_test,
            "competition": self.competition,
            "shift": self.shift,
            "descriptive": list(self.descriptive),
            "pairs": list(self.pairs),
            "holdout_pairs": list(self.holdout_pairs),
        }
        write_text(path, json.dumps(record, allow_nan=False, indent=1), private=True)

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> "AuditReport":
        """Reads a report that `to_json` wrote.

        Raises:
            AuditError: There is no such file, or it is not a whole report of a known version.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise AuditError(
                f"{path} does not exist. Check the name, or audit the cache first."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise AuditError(f"{path} cannot be read: {error}.") from error
        try:
            record = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise AuditError(
                f"{path} is not valid JSON: {error}. Audit the cache again."
            ) from error
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise AuditError(f"{path} is not an audit report: it lacks `format: {FORMAT}`.")
        if record.get("format_version") != FORMAT_VERSION:
            raise AuditError(
                f"{path} has format version {record.get('format_version')!r}, this version of "
                f"synthaug reads {FORMAT_VERSION}. Audit the cache again."
            )
        try:
            return _parsed(record)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise AuditError(
                f"{path} is damaged: {type(error).__name__}: {error}. Audit the cache again."
            ) from error

    def to_html(self, path: str | os.PathLike[str], *, redact: bool = False) -> None:
        """Writes one self-contained page that opens from disk, offline; arguments as `to_json`.

        Raises:
            AuditError: The report was read from a file that lacks what the page shows.
        """
        from jinja2 import TemplateError

        from synthaug._audit.page import render

        try:
            text = render(self._redacted() if redact else self)
        except (TemplateError, KeyError, TypeError, ValueError) as error:
            # Only a report that was read from a file which somebody changed has such gaps.
            raise AuditError(
                f"The report cannot be shown: {type(error).__name__}: {error}. Audit again."
            ) from error
        write_text(path, text, private=True)

    def _redacted(self) -> "AuditReport":
        def withheld(pair: dict[str, JSON]) -> dict[str, JSON]:
            return pair | {key: None for key in _REAL if key in pair}

        return replace(
            self,
            pairs=tuple(
                withheld(pair) | {"image": None if pair.get("tier") else pair.get("image")}
                for pair in self.pairs
            ),
            holdout_pairs=tuple(withheld(pair) for pair in self.holdout_pairs),
        )


def _listed(array: NDArray[Any]) -> list[JSON]:
    """An array as a list in which NaN, which JSON does not have, is null."""
    if array.dtype.kind != "f":
        return array.tolist()
    return [
        x if finite else None for x, finite in zip(array.tolist(), np.isfinite(array), strict=True)
    ]


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _floats(values: Any, what: str) -> NDArray[np.float64]:
    for value in _typed(values, list, what):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{what} holds {value!r}, expected numbers or null")
    array = np.array([np.nan if v is None else v for v in values], np.float64)
    if np.isinf(array).any():
        raise ValueError(f"{what} holds a number that is too large")
    return array


def _column(values: Any, dtype: type, what: str) -> NDArray[Any]:
    if dtype is np.float64:
        return _floats(values, what)
    wanted: type = bool if dtype is np.bool_ else int
    for value in _typed(values, list, what):
        if type(value) is not wanted:
            raise ValueError(f"{what} holds {value!r}, expected {wanted.__name__}")
    return np.array(values, dtype)


def _columns(values: Any, count: int, what: str) -> NDArray[np.float64]:
    columns = [_floats(column, what) for column in _typed(values, list, what)]
    if len(columns) != count or len({len(column) for column in columns}) != 1:
        raise ValueError(f"{what} does not hold {count} columns of one length")
    return np.stack(columns, axis=1)


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{what} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _texts(values: Any, what: str) -> tuple[str, ...]:
    return tuple(_typed(v, str, what) for v in _typed(values, list, what))


def _records(values: Any, what: str) -> tuple[dict[str, JSON], ...]:
    return tuple(_typed(v, dict, what) for v in _typed(values, list, what))


def _power(record: dict[str, Any]) -> Power:
    shares = _floats([record["power"], record["found"]], "power")
    needed = record["needed"]
    if needed is not None:
        needed = int(_column([needed], np.int64, "power.needed")[0])
    return Power(
        kind=_typed(record["kind"], str, "power.kind"),
        required=_typed(record["required"], bool, "power.required"),
        planted=int(_column([record["planted"]], np.int64, "power.planted")[0]),
        power=float(shares[0]),
        found=float(shares[1]),
        needed=needed,
    )


def _parsed(record: dict[str, Any]) -> AuditReport:
    table = _typed(record["rows"], dict, "rows")
    rows = {
        name: _column(table[name], dtype, f"rows.{name}") for name, dtype in _ROW_COLUMNS.items()
    }
    lengths = {name: len(column) for name, column in rows.items()}
    if len(set(lengths.values())) != 1:
        raise ValueError(f"columns of rows differ in length: {lengths}")
    if not np.isin(rows["tier"], (NOT_JUDGED, CLEAR, EXACT, CALIBRATED, COMPETED)).all():
        raise ValueError("rows.tier holds an unknown tier")
    classes = _texts(record["classes"], "classes")
    if len(classes) and len(rows["label"]) and not rows["label"].max() < len(classes):
        raise ValueError(
            f"rows.label holds {rows['label'].max()}, there are {len(classes)} classes"
        )
    if record["verdict"] not in EXIT_CODES:
        raise ValueError(f"verdict is {record['verdict']!r}")
    flagged = bool((rows["tier"] > CLEAR).any())
    if record["verdict"] == ("pass" if flagged else "fail"):
        raise ValueError(f"verdict {record['verdict']!r} does not fit the flagged rows")
    statistics = _texts(record["statistics"], "statistics")
    scores, distances, holdout_scores, holdout_distances = (
        _columns(record[name], len(statistics), name)
        for name in ("scores", "distances", "holdout_scores", "holdout_distances")
    )
    if len(scores) != len(rows["tier"]) or distances.shape != scores.shape:
        raise ValueError("scores, distances and rows differ in length")
    if not (rows["decided_by"] < len(statistics)).all():
        raise ValueError("rows.decided_by names an unknown statistic")
    return AuditReport(
        verdict=record["verdict"],
        reasons=_texts(record["reasons"], "reasons"),
        identity=_typed(record["identity"], dict, "identity"),
        tier=rows["tier"],
        p_values=rows["p_value"],
        q_values=rows["q_value"],
        q_decoy=rows["q_decoy"],
        statistics=statistics,
        scores=scores,
        distances=distances,
        decided_by=rows["decided_by"],
        rmse=rows["rmse"],
        neighbours=rows["neighbour"],
        neighbour_flipped=rows["neighbour_flipped"],
        labels=rows["label"],
        classes=classes,
        holdout_scores=holdout_scores,
        holdout_distances=holdout_distances,
        power=tuple(_power(p) for p in _records(record["power"], "power")),
        self_test=_typed(record["self_test"], dict, "self_test"),
        competition=_typed(record["competition"], dict, "competition"),
        shift=_typed(record["shift"], dict, "shift"),
        descriptive=_records(record["descriptive"], "descriptive"),
        settings=_typed(record["settings"], dict, "settings"),
        environment=_typed(record["environment"], dict, "environment"),
        pairs=_records(record["pairs"], "pairs"),
        holdout_pairs=_records(record["holdout_pairs"], "holdout_pairs"),
    )
