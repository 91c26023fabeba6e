"""Our exception hierarchy. One base class catches all of it:

* SynthaugError
  x DataError              a data set cannot be used: empty, a class without images, a corrupt file
    - DataMismatchError    images or classes do not fit each other, or what they are used with
  x CheckpointError        weights are missing, or not in a layout we load
    - CheckpointMismatchError  they belong to another run, method or data set
  x DivergedError          a loss, weight or image became NaN or infinite
  x CacheError
    - CacheFormatError     not a cache, or a file that could do harm: refused unread
    - CacheCorruptError    a row's bytes are not the bytes that were written
    - CacheMismatchError   the cache belongs to another plan, recipe or class list
    - CachePendingError    a row was asked for that has not been generated yet
  x EngineError            workers found no place, or died again and again
  x AuditError             a report is missing, or cannot be read
    - AuditMismatchError   the report judges another cache

Wrong arguments raise `ValueError` or `TypeError`, as everywhere in Python. Every message names the
thing, the value found and what to do next.
"""


class SynthaugError(Exception):
    """Base class of every error that is not a plain wrong argument."""


class DataError(SynthaugError):
    """A data set cannot be used as it is."""


class DataMismatchError(DataError):
    """Images or classes can be read, but do not fit each other or what they are used with."""


class CheckpointError(SynthaugError):
    """A checkpoint is missing, incomplete, or in a layout that we do not load."""


class CheckpointMismatchError(CheckpointError):
    """A checkpoint is intact, but belongs to another run, method or data set."""


class DivergedError(SynthaugError):
    """A loss, a weight or a generated image became NaN or infinite."""


class CacheError(SynthaugError):
    """Base class of what can go wrong with a cache file."""


class CacheFormatError(CacheError):
    """The file is not a synthaug cache, or has a structure that we refuse to read."""


class CacheCorruptError(CacheError):
    """Bytes of a row differ from those that were written."""


class CacheMismatchError(CacheError):
    """The cache belongs to another plan, recipe, image shape or class list."""


class CachePendingError(CacheError):
    """A row was asked for that has not been generated yet, or was withdrawn."""


class EngineError(SynthaugError):
    """Workers of a job found no place in the cluster, or died again and again."""


class AuditError(SynthaugError):
    """An audit report is missing, cannot be read, or judges another cache."""


class AuditMismatchError(AuditError):
    """The report judges another cache."""
