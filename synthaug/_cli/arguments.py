"""Helpers for the arguments of several commands."""

import json
import re
import shlex
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from synthaug.errors import SynthaugError

_NAMED = r"`(\w+)(?=[=`])"
"""An argument in a message: `per_class`, or `per_class=3`."""


@contextmanager
def spoken_of(**options: str) -> Iterator[None]:
    """Names in errors the options that gave arguments of other names.

        with spoken_of(names="balance"):
            balanced_arms(real, ways)  # an error about `names` becomes one about `balance`

    `main` then writes `--balance`. Arguments and options of one name need none of this.

    Args:
        options: The option's name, for the name of the argument in Python.
    """
    try:
        yield
    except (SynthaugError, ValueError, TypeError, ImportError) as error:
        if is_ours(error) and len(error.args) == 1 and isinstance(error.args[0], str):
            text = re.sub(
                _NAMED, lambda named: f"`{options.get(named[1], named[1])}", error.args[0]
            )
            error.args = (text,)
        raise


def is_ours(error: BaseException) -> bool:
    """Whether an error was raised in this package; a library's names arguments of its own."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("synthaug.")


def names(given: str | Sequence[str]) -> list[str]:
    """The names in "a,b", in '["a", "b"]', or in a list."""
    if isinstance(given, str) and given.startswith("["):
        given = json.loads(given)
    parts = given.split(",") if isinstance(given, str) else given
    return [str(part).strip() for part in parts]


def contents(cache: Any) -> dict[str, Any]:
    """A cache in a few numbers, for programs."""
    from synthaug._cache import info

    facts = info(cache)
    return {"cache": str(cache.path), "rows": facts["rows"], **facts["states"]}


def next_line(*words: str) -> str:
    """The line that a command ends with: what to run now. Words in capitals are for the user."""
    return f"Next: {shlex.join(['synthaug', *words])}"


def next_audit(cache: str, train: str | None = None) -> str:
    """The line that comes after a cache was made."""
    return next_line("audit", cache, train or "TRAIN", "--holdout", "HOLDOUT")


def verdicts(
    cache: Any, *, audit: str | None, labels: str | None = None, selection: str | None = None
) -> Any:
    """Returns the verdicts on a cache from the files that were written about it.

    Args:
        cache: The cache.
        audit: An audit's report.
        labels: The file that `evaluate labels` wrote.
        selection: The file that `select` wrote.

    Returns:
        A report that joins them, or `None` if there is none.
    """
    from synthaug._audit import AuditReport
    from synthaug._cache.serving import check_identity
    from synthaug.evaluation import LabelCheck
    from synthaug.selection import ImageSelection

    joined: Any = None if audit is None else AuditReport.from_json(audit)
    for path, kind in ((labels, LabelCheck), (selection, ImageSelection)):
        if path is not None:
            report: Any = kind.from_json(path)
            remedy = "Make it anew for this cache, or leave it out."
            check_identity(cache, report, path, remedy)
            joined = report if joined is None else report.with_audit(joined)
    return joined
