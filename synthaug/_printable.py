"""Text for terminals and pages: names of classes and files from outside, settings, amounts.

Such a name may hold what a terminal obeys (an escape sequence can rewrite what stands above it),
what turns the order of letters around, or what has no place in UTF-8 at all. All of it is shown
as Python would write it, `\\x1b` for the escape character, and everything else as it is.
"""

import re

_LONGEST = 500
"""Characters of a message that is not ours; diffusers' may name every weight."""
_CONTROLS = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_IN_TEXT = re.compile(f"[{_CONTROLS}]")
_IN_LINE = re.compile(f"[\\n\\t{_CONTROLS}]")


def printable(text: str) -> str:
    """Escapes control characters in a text, all but its line breaks and tabs."""
    return _IN_TEXT.sub(_escaped, text)


def printable_line(name: str) -> str:
    """Escapes control characters in a name, line breaks among them, which could forge a line."""
    return _IN_LINE.sub(_escaped, name)


def shortened(text: object) -> str:
    """A text out of a file or a library for an error message, or the beginning of a long one."""
    words = str(text)
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]} ..."


def amount(count: int, noun: str) -> str:
    """A number of things in words.

    >>> amount(1, "file"), amount(1200, "class"), amount(0, "copy")
    ('1 file', '1,200 classes', '0 copies')
    """
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else noun + ("es" if noun[-1] == "s" else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
