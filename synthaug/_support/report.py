"""The base of every report: a record that is its own file, as JSON for programs, HTML for people.

A report is a frozen dataclass. Its fields are all it knows, and their type hints say how they are
read back from JSON: strictly, since a report decides which images are served.
"""

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args, get_origin

import numpy as np
from jaxtyping import AbstractArray
from markupsafe import Markup
from numpy.typing import ArrayLike, DTypeLike

from synthaug._printable import printable, printable_line, shortened
from synthaug._support.files import write_text
from synthaug._support.html import Part, blocks, facts, heading, notebook, page
from synthaug._support.reading import parse_json, read_text
from synthaug._types import JSON, Array, StrPath
from synthaug.errors import DataError, SynthaugError

if TYPE_CHECKING:
    from pandas import DataFrame

R = TypeVar("R", bound="Report")
_MAX_BYTES = 2**34  # of a report's file: an audit of a hundred million images has some


@dataclass(frozen=True, eq=False, repr=False)
class Report(ABC):
    """A result that can be written, read back, shown and tabulated.

        print(report); report.to_html(path); report.to_frame()
        report.to_json(path); type(report).from_json(path)

    A subclass is a frozen dataclass. It says what it is called, what comes first (`_summary`), what
    its page shows (`_sections`, `_made_with`), and what its table holds (`_columns`).
    """

    _FORMAT: ClassVar[str]
    """Names the kind of report in its file."""
    _FORMAT_VERSION: ClassVar[int | None] = None
    """Version of the file's layout; `None` for a first version that the files do not mention."""
    _NOUN: ClassVar[str]
    """The report in messages: "an audit report"."""
    _REMEDY: ClassVar[str]
    """What to do about a file that cannot be used."""
    _ERROR: ClassVar[type[SynthaugError]] = DataError
    """Raised for such a file."""
    _TITLE: ClassVar[str]
    """Heading of the page and of what a notebook shows."""
    STYLE: ClassVar[str] = ""
    """CSS that `html_sections` needs beyond that of all pages."""
    SCRIPT: ClassVar[str] = ""
    """JavaScript of the page; `html_sections` must be readable without it."""
    _INDENT: ClassVar[int | None] = 1
    """Spaces per level of the JSON file; `None` writes one line."""
    _PRIVATE: ClassVar[bool] = False
    """Whether the files are for their owner only, where others could see real images in them."""

    @abstractmethod
    def _summary(self) -> list[Part]:
        """Returns the summary for a reader: tables, header first, and sentences."""

    @abstractmethod
    def _columns(self) -> Mapping[str, Any]:
        """Returns the columns of `to_frame`, of equal length, by name."""

    def _sections(self) -> list[Part]:
        """Returns the sections of the page before those on how the report was made."""
        return self._summary()

    def _made_with(self) -> Mapping[str, Mapping[str, Any] | None]:
        """Returns all settings that the page lists at its end, in groups; see `facts`."""
        return {"": vars(self)["settings"]}

    def html_sections(self) -> Markup:
        """The whole page without its frame and heading, to go into a larger page."""
        return blocks(*self._sections(), heading("How it was done"), facts(self._made_with()))

    @property
    def title(self) -> str:
        """Heading of the page."""
        return self._TITLE

    def _pictures(self) -> list[Part]:
        """Returns the pictures for a notebook, below the summary."""
        return []

    def _fields(self) -> dict[str, Any]:
        return {field.name: vars(self)[field.name] for field in fields(self)}

    def changed(self: R, **changes: Any) -> R:
        """The same report with other values of some fields."""
        return type(self)(**{**self._fields(), **changes})

    def _record(self) -> dict[str, Any]:
        """Returns the contents of the JSON file."""
        return self._fields()

    @classmethod
    def _from_record(cls: type[R], record: dict[str, Any]) -> R:
        """Makes a report of the contents of its file, whose kind and version are right."""
        return decode(cls, record)

    def _text(self) -> str:
        """Returns the report in a few lines."""
        parts = (text_table(p) if isinstance(p, list) else str(p) for p in self._summary())
        return "\n\n".join(parts)

    def __str__(self) -> str:
        return printable(self._text())

    def _repr_html_(self) -> str:
        """For notebooks: the summary, and pictures where there are any."""
        return notebook(self.title, *self._summary(), *self._pictures())

    def to_frame(self) -> "DataFrame":
        """Makes a pandas table of the report, for everything that the report does not show itself.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError("`to_frame` needs pandas. Run `pip install pandas`.") from error
        return DataFrame(dict(self._columns()))

    def to_html(self, path: StrPath, *, shared: bool = False) -> Path:
        """Writes one self-contained page that opens from disk, offline.

        Args:
            path: File to write; an existing one is replaced.
            shared: Let others read a page that shows real images; such a page is otherwise for the
                eyes of its owner only.
        """
        body = Markup("<h1>{}</h1>\n{}").format(self.title, self.html_sections())
        text = page(self.title, body, style=self.STYLE, script=self.SCRIPT)
        return write_text(path, text, private=self._PRIVATE and not shared)

    def to_json(self, path: StrPath, *, shared: bool = False) -> Path:
        """Writes the whole report. The file appears at once or not at all.

        Args:
            path: File to write; an existing one is replaced.
            shared: Same as in `to_html`.
        """
        record: dict[str, Any] = {"format": self._FORMAT}
        if self._FORMAT_VERSION is not None:
            record["format_version"] = self._FORMAT_VERSION
        text = encode({**record, **self._record()}, indent=self._INDENT)
        return write_text(path, text, private=self._PRIVATE and not shared)

    @classmethod
    def from_json(cls: type[R], path: StrPath) -> R:
        """Reads a report that `to_json` wrote.

        Raises:
            SynthaugError: If there is no such file, or it is not a whole report of this kind and
                version. Audit reports, scores of hardness and label checks raise `AuditError`,
                the others `DataError`.
        """
        try:
            text = read_text(path, _MAX_BYTES)
        except FileNotFoundError:
            raise cls._ERROR(f"{os.fspath(path)} does not exist. {cls._REMEDY}") from None
        except (OSError, UnicodeDecodeError) as error:
            raise cls._refused(path, f"it cannot be read: {error}") from error
        try:
            record = parse_json(text, parse_constant=_refuse_constant)
        except ValueError as error:
            raise cls._refused(path, f"it cannot be read as JSON: {error}") from error
        if not isinstance(record, dict):
            raise cls._refused(path, f"it holds a {type(record).__name__}, expected an object")
        name, version = record.pop("format", None), record.pop("format_version", None)
        if name != cls._FORMAT:
            raise cls._refused(path, f"its format is {name!r}, expected {cls._FORMAT!r}")
        if version != cls._FORMAT_VERSION:
            problem = f"it has format version {version!r}, this version of synthaug reads "
            raise cls._refused(path, problem + repr(cls._FORMAT_VERSION or 1))
        try:
            report = cls._from_record(record)
            report._check()
            return report
        except DAMAGE as error:
            problem = f"it is damaged: {damage_of(error)}"
            raise cls._refused(path, problem) from error

    def _check(self) -> None:
        """Finds parts of a report that do not fit each other, by showing all of it.

        Raises:
            LookupError, TypeError, ValueError, ArithmeticError, AttributeError: It cannot be shown.
        """
        self._summary(), self._pictures(), self._columns(), self.html_sections()

    @classmethod
    def _refused(cls, path: StrPath, problem: str) -> SynthaugError:
        told = f"{os.fspath(path)} is not {cls._NOUN} ({shortened(problem)}). {cls._REMEDY}"
        return cls._ERROR(told)


def encode(value: Any, *, indent: int | None = None) -> str:
    """Writes dataclasses, arrays and what JSON knows as strict JSON that ends in a line break.

    NaN in an array, which JSON does not have, becomes null.

    Raises:
        ValueError: If a number outside of an array is not finite.
    """
    return json.dumps(value, default=_plain, indent=indent, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        items = value.tolist()
        if value.dtype.kind != "f":
            return items
        return [x if finite else None for x, finite in zip(items, np.isfinite(value), strict=True)]
    if is_dataclass(value):
        return vars(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON.")


def decode(kind: Any, value: Any, name: str = "") -> Any:
    """Checks and converts a value that `encode` wrote, strictly: True is no number.

    Args:
        kind: A type hint made of dataclasses, NumPy arrays of one dimension, tuples, lists, dicts,
            literals, plain types and unions with `None`. `Any` and `JSON` take everything.
        value: The value as `json.loads` returned it.
        name: Where the value stands in its file, for messages.

    Raises:
        ValueError: If a value does not fit, or a dataclass lacks a field, or has no such field.
        OverflowError: If a number is too large.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any or kind == JSON:
        return value
    if origin is UnionType:
        (kind,) = (argument for argument in arguments if argument is not NoneType)
        return None if value is None else decode(kind, value, name)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(arguments)}")
        return value
    if origin is np.ndarray:
        return decode_array(get_args(arguments[1])[0], value, name)
    if isinstance(kind, type) and issubclass(kind, AbstractArray):
        return decode_array(kind.dtypes[0], value, name)
    if is_dataclass(kind):
        return made_of(kind, decode_fields(kind, value, name), name)
    if origin is dict:
        items = _typed(dict, value, name).items()
        return {k: decode(arguments[1], v, f"{name}.{k}") for k, v in items}
    if origin is tuple and arguments[-1] is not ...:
        items = zip(arguments, _typed(list, value, name), strict=True)
        return tuple(decode(argument, v, name) for argument, v in items)
    if origin in (list, tuple):
        return origin(decode(arguments[0], v, name) for v in _typed(list, value, name))
    if kind is float:
        _typed(float if isinstance(value, float) else int, value, name)
        if not math.isfinite(value):
            raise ValueError(f"{name} is too large")
        return value
    return _typed(kind, value, name)


DAMAGE = (LookupError, TypeError, ValueError, ArithmeticError, AttributeError)
"""What decoding raises for a file that somebody changed."""


def damage_of(error: Exception) -> str:
    """Says in words what `DAMAGE`, or the system, found: Python's about types help no reader."""
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    if isinstance(error, AttributeError | IndexError | TypeError) and "`" not in str(error):
        return "a value in it is of another kind than it should be"
    if str(error).startswith("invalid literal"):
        return "a value in it is no number, and should be one"
    return str(error)


def read_kept(kind: Any, path: StrPath) -> Any:
    """Reads what an earlier run of the same job kept in a file; see `decode`.

    Raises:
        DataError: It is damaged, or cannot be read.
    """
    try:
        return decode(kind, parse_json(read_text(path)))
    except (OSError, *DAMAGE) as error:
        raise DataError(
            f"{path} is damaged: {damage_of(error)}. Delete it and run again."
        ) from error


def read_as(kind: Any, path: StrPath, format_and_version: tuple[str, int], limit: int) -> Any:
    """Reads a dataclass that a file holds beside its format and version; see `decode`.

    Raises:
        OSError: It cannot be read, or has more bytes than the limit.
        LookupError, TypeError, ValueError, ArithmeticError, AttributeError: It holds something
            else; these are `DAMAGE`.
    """
    record = parse_json(read_text(path, limit))
    head = record.pop("format"), record.pop("format_version")
    if head != format_and_version:
        raise ValueError(f"its format is {head}")
    return decode(kind, record)


def decode_fields(kind: Any, record: Any, name: str = "") -> dict[str, Any]:
    """Checks and converts values for fields of a dataclass, by name; see `decode`."""
    hints = {field.name: field.type for field in fields(kind)}
    items = _typed(dict, record, name).items()
    return {k: decode(hints.get(k, Any), v, f"{name}.{k}".lstrip(".")) for k, v in items}


def made_of(kind: Any, values: Mapping[str, Any], name: str = "") -> Any:
    """Makes a dataclass; a ValueError says which field `values` lacks, or has too many."""
    known = {field.name: field for field in fields(kind) if field.init}
    if unknown := values.keys() - known:
        raise ValueError(f"{name or 'it'} has {min(unknown)!r}, which is no part of it")
    needed = {n for n, f in known.items() if f.default is f.default_factory is MISSING}
    if lacking := needed - values.keys():
        raise ValueError(f"{name or 'it'} lacks {min(lacking)!r}")
    return kind(**values)


def decode_array(dtype: DTypeLike, values: Any, name: str) -> Array:
    """Makes an array of a JSON list of numbers, in which null is NaN.

    Args:
        dtype: Type of the array: floating point, integer or bool.
        values: The list as `json.loads` returned it.
        name: Where the list stands in its file, for messages.

    Raises:
        ValueError: If the list holds something else.
        OverflowError: If a number is too large.
    """
    dtype = np.dtype(dtype)
    kinds: dict[str, set[type]] = {"f": {float, int, NoneType}, "b": {bool}}
    allowed = kinds.get(dtype.kind, {int})
    wrong = set(map(type, _typed(list, values, name))) - allowed
    if wrong:
        value = next(value for value in values if type(value) in wrong)
        raise ValueError(f"{name} holds {value!r}, expected {dtype.name}")
    array = np.array([np.nan if value is None else value for value in values], dtype)
    if dtype.kind == "f" and np.isinf(array).any():
        raise ValueError(f"{name} holds a number that is too large")
    return array


def _typed(kind: type, value: Any, name: str) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{name} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def text_table(rows: Sequence[Sequence[str]], *, rule: bool = False) -> str:
    """Sets text cells in columns of equal width, the first column to the left, the others right.

    Args:
        rows: Cells of every row, header first.
        rule: Draw a line below the header.
    """
    rows = [[printable_line(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    if rule:
        lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join(lines)


def percent(fractions: ArrayLike | None) -> str:
    """Formats the mean in percent and, of two or more, the sample standard deviation."""
    values = 100 * np.asarray([] if fractions is None else fractions, np.float64)
    if not len(values):
        return "-"
    text = f"{values.mean():.2f}"
    return text if len(values) == 1 else f"{text} ± {values.std(ddof=1):.2f}"
