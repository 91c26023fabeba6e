"""Which synthetic images may be served: those that are done, and that the audit passed.

Shared by everything that hands synthetic images to a training loop.
"""

import logging
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from synthaug._errors import AuditError
from synthaug._types import JSON, Labels, Pixels

log = logging.getLogger(__name__)


@runtime_checkable
class SyntheticImages(Protocol):
    """What serving needs of a cache."""

    @property
    def labels(self) -> Labels:
        """Class index of every row, int64 (N,)."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        ...

    @property
    def done(self) -> NDArray[np.bool_]:
        """Which rows can be read, bool (N,)."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        ...

    @property
    def identity(self) -> dict[str, JSON]:
        """What a report about these images names."""
        ...

    def read(self, indices: ArrayLike) -> Pixels:
        """uint8 (n, C, H, W)."""
        ...


@runtime_checkable
class Verdicts(Protocol):
    """What serving needs of an audit's report."""

    @property
    def identity(self) -> dict[str, JSON]:
        """The identity of the images that were judged."""
        ...

    @property
    def passed(self) -> NDArray[np.bool_]:
        """Which rows may be served, bool (N,)."""
        ...


def servable(synthetic: Any, audit: Any) -> NDArray[np.bool_]:
    """Which rows may be served, bool (N,).

    Args:
        synthetic: A cache.
        audit: A report about it, or `None` to serve whatever is done.

    Raises:
        TypeError: For something that is not a cache, or not a report.
        AuditError: For a report about another cache.
    """
    if not isinstance(synthetic, SyntheticImages):
        raise TypeError(
            f"`synthetic` is a {type(synthetic).__name__}, expected a cache: "
            '`synthaug.SynthCache("PATH.h5")`.'
        )
    done = np.asarray(synthetic.done, bool)
    if audit is None:
        log.info("Synthetic images: %d of %d rows are served, unaudited.", done.sum(), len(done))
        return done
    if not isinstance(audit, Verdicts):
        raise TypeError(
            f"`audit` is a {type(audit).__name__}, expected a report or None. Make one with "
            '`synthaug.audit(...)`, or read one with `synthaug.AuditReport.from_json("PATH.json")`.'
        )
    ours, theirs = synthetic.identity, audit.identity
    if ours != theirs:
        lines = [
            f"  {key}: {ours.get(key)!r} in the cache, {theirs.get(key)!r} in the report"
            for key in sorted({*ours, *theirs})
            if ours.get(key) != theirs.get(key)
        ]
        raise AuditError(
            "The report judges another cache:\n" + "\n".join(lines) + "\n"
            "Audit this cache, or pass `audit=None` to use it unaudited."
        )
    passed = np.asarray(audit.passed, bool)
    if passed.shape != done.shape:
        raise AuditError(
            f"The report has {len(passed)} verdicts for {len(done)} rows. Audit the cache again."
        )
    log.info(
        "Synthetic images: %d of %d rows are served, %d are withheld by the audit, %d not done.",
        (done & passed).sum(),
        len(done),
        (done & ~passed).sum(),
        (~done).sum(),
    )
    if getattr(audit, "verdict", None) == "inconclusive":
        log.warning("The audit was inconclusive: copies of training images may have gone unseen.")
    return done & passed
