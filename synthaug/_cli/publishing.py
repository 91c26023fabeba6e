"""Writes the report of a command."""

from collections.abc import Mapping
from typing import Any

from synthaug._cli.call import Call, Result


def published(
    report: Any,
    call: Call,
    out: str,
    record: Mapping[str, Any],
    *,
    text: str | None = None,
    next: str = "",
    code: int = 0,
    **redaction: bool,
) -> Result:
    """Writes a report, which keeps the command that made it, as OUT.html and OUT.json.

    Args:
        report: Any `Report` with `settings`.
        call: The command.
        out: Files to write, without their endings.
        record: Further facts for programs besides the names of the files.
        text: Text for people, before those names; by default the report.
        next: The line to run now, after them.
        code: Exit code.
        redaction: Arguments of `to_html` and `to_json`.
    """
    report = report.changed(settings={**report.settings, "command": call.line})
    report.to_html(f"{out}.html", **redaction)
    report.to_json(f"{out}.json", **redaction)
    return Result(
        record={**record, "html": f"{out}.html", "json": f"{out}.json"},
        text="\n".join(
            [str(report if text is None else text), f"Report: {out}.html, {out}.json", next]
        ).rstrip(),
        code=code,
    )


def published_verdict(
    report: Any, call: Call, out: str, record: Mapping[str, Any], **how: Any
) -> Result:
    """Works like `published`, for a `VerdictReport`: its verdict is told first, and is the exit
    code.
    """
    told = {"verdict": report.verdict, "reasons": list(report.reasons), **record}
    return published(report, call, out, told, code=report.exit_code, **how)
