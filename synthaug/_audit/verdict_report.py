"""The common base of the three reports on kept training images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from markupsafe import Markup

from synthaug._audit import page
from synthaug._audit.scope import Way, scope_table
from synthaug._support.html import Part, blocks, heading, table
from synthaug._support.report import Report
from synthaug._types import JSON
from synthaug.errors import AuditError


def told(verdict: str, reasons: Sequence[str]) -> str:
    """Returns the verdict and what was found, then the other reasons, a line for each.

    >>> print(told("pass", ["No sign of copies.", "The hold-out is large."]))
    Verdict: pass. No sign of copies.
    The hold-out is large.
    """
    return "\n".join([f"Verdict: {verdict}. {reasons[0]}", *reasons[1:]])


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class VerdictReport(Report):
    """A report that begins with a verdict, and ends with what was looked at and what was not."""

    _ERROR = AuditError
    STYLE = page.STYLE
    _MEANINGS: ClassVar[Mapping[str, str]]
    """What each verdict means, in a few words."""
    _WAY: ClassVar[Way]
    """The way in which it asks."""
    _LOOKED_AT: ClassVar[str] = "looked at"
    """What the page calls `identity`."""

    verdict: str
    reasons: tuple[str, ...]
    """Sentences that explain the verdict, the first one alone suffices."""

    @property
    def exit_code(self) -> int:
        """For scripts: 0 pass, 1 fail, 3 if it can be neither."""
        return {"pass": 0, "fail": 1}.get(self.verdict, 3)

    @property
    def title(self) -> str:
        """Returns the verdict, and what it means, in a few words."""
        return f"{self._TITLE}: {self.verdict}. {self._MEANINGS[self.verdict]}"

    def _said(self) -> list[Part]:
        """Returns the verdict and its reasons as text."""
        return [*told(self.verdict, self.reasons).splitlines()]

    def _verdict_box(self) -> Markup:
        """Returns the reasons, marked by the color of the verdict."""
        box = Markup('<div class="verdict {}">{}</div>')
        return box.format(self.verdict.replace(" ", "-"), blocks(*self.reasons))

    def _scope(self) -> list[Part]:
        """Returns a section on what a pass means, beside the other tests."""
        header, *rows = scope_table(self._WAY)
        return [
            heading("What was looked at, and what was not"),
            table(header, rows, text_columns=4),
        ]

    def _made_with(self) -> dict[str, dict[str, JSON]]:
        record: dict[str, Any] = vars(self)
        return {
            "": record["settings"],
            self._LOOKED_AT: record["identity"],
            "with": record["environment"],
        }
