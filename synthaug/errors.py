"""The errors that synthaug raises, one class per remedy. One base class catches all of them:

* SynthaugError
  x DataError            a data set cannot be used: empty, a class without images, a corrupt file
  x CheckpointError      weights are missing, or not in a layout that we load
  x CacheError           a cache file is missing, damaged, not a cache, or could do harm
    - CachePendingError  a row was asked for that has not been generated yet, or was withdrawn
  x AuditError           a report is missing, or cannot be read
  x MismatchError        two things are intact, but do not belong together
  x DivergedError        a loss, weight or image became NaN or infinite
  x EngineError          workers found no place, or died again and again

Wrong arguments raise `ValueError` or `TypeError`, as everywhere in Python. Every message names the
thing, the value found and what to do next.
"""

from synthaug._printable import printable


class SynthaugError(Exception):
    """Base class of every error that is not a plain wrong argument."""

    def __str__(self) -> str:
        return printable(super().__str__())  # names in it may come from a stranger's file


class DataError(SynthaugError):
    """A data set cannot be used as it is. Repair or remove what the message names."""


class CheckpointError(SynthaugError):
    """A checkpoint is missing, incomplete, or in a layout that we do not load."""


class CacheError(SynthaugError):
    """A cache file is missing or damaged, is no cache, or has a structure that we refuse to read.

    Restore it from a copy, or generate it again.
    """


class CachePendingError(CacheError):
    """A row was asked for that has not been generated yet, or was withdrawn."""


class AuditError(SynthaugError):
    """An audit report is missing or cannot be read. Audit again."""


class MismatchError(SynthaugError):
    """Two things are intact but do not belong together: images, classes, caches, plans, reports."""


class DivergedError(SynthaugError):
    """A loss, a weight or a generated image became NaN or infinite."""


class EngineError(SynthaugError):
    """Workers of a job found no place in the cluster, or died again and again."""


__all__ = [
    "AuditError",
    "CacheError",
    "CachePendingError",
    "CheckpointError",
    "DataError",
    "DivergedError",
    "EngineError",
    "MismatchError",
    "SynthaugError",
]
