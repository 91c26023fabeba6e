"""Pairs that a person has looked at and found harmless.

Accepting a pair changes no p-value, no tier and no verdict: it says who looked, when, and why. Only
if the reviewer says so are such rows served. A pair is known by the contents of both of its images,
so a changed image is not accepted.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from synthaug._support.reading import MAX_JSON
from synthaug._support.report import DAMAGE, damage_of, read_as
from synthaug.errors import AuditError

FORMAT, FORMAT_VERSION = "synthaug-accepted-pairs", 1

_LISTED = 10


@dataclass(frozen=True, kw_only=True)
class AcceptedPair:
    """A synthetic image and the training image that it comes closest to."""

    row: int
    """Row number of the synthetic image."""
    train_row: int
    """Of the training image."""
    image: str
    """Digest of the content of the synthetic image, 32 hexadecimal digits."""
    train_image: str
    """Of the training image."""


@dataclass(frozen=True, kw_only=True)
class Acceptance:
    """Pairs that one person accepted for one reason."""

    reviewer: str
    """Who looked at them."""
    reason: str
    """Why they are harmless."""
    created: str
    """When, in ISO format."""
    serve: bool
    """Whether the rows may be served, which are withheld otherwise."""
    pairs: tuple[AcceptedPair, ...]
    """In a report those that are withheld, and have the images that were accepted."""
    elsewhere: int = 0
    """How many more were accepted that are not withheld, or have other images now."""

    def __post_init__(self) -> None:
        for name in ("reviewer", "reason"):
            if not vars(self)[name].strip():
                raise ValueError(f"`{name}` is empty. Say who found the pairs harmless, and why.")

    @property
    def rows(self) -> list[int]:
        """Row numbers of the synthetic images, ascending."""
        return [pair.row for pair in self.pairs]

    @property
    def sentence(self) -> str:
        """The sentence about it in a report."""
        n, when = len(self.pairs), self.created[:10]
        if not n:
            return (
                f"None of the {self.elsewhere:,} pairs that {self.reviewer} accepted on {when} is "
                "withheld now with the images that were accepted."
            )
        rows = ", ".join(map(str, self.rows[:_LISTED])) + (", ..." if n > _LISTED else "")
        named, these, stay = (
            ("row", "this row", "stays") if n == 1 else ("rows", "these rows", "stay")
        )
        return (
            f"{n:,} {'pair was' if n == 1 else 'pairs were'} accepted as harmless by "
            f"{self.reviewer} on {when}, because: {self.reason.rstrip('.')} ({named} {rows}). "
            "That changes neither the verdict nor a p-value, and other sentences still count them; "
            f"{these} {'may be served' if self.serve else f'{stay} withheld'}."
            + (
                f" {self.elsewhere:,} more that were accepted are not withheld now, or have other "
                "images."
                if self.elsewhere
                else ""
            )
        )

    def among(self, withheld: Mapping[tuple[str, str], Iterable[tuple[int, int]]]) -> "Acceptance":
        """The same, of those pairs that are withheld.

        Args:
            withheld: Row numbers of synthetic and training image by the digests of both.
        """
        accepted = {(pair.image, pair.train_image) for pair in self.pairs}
        pairs = [
            AcceptedPair(row=row, train_row=train_row, image=digests[0], train_image=digests[1])
            for digests in accepted
            for row, train_row in withheld.get(digests, ())
        ]
        missing = sum(digests not in withheld for digests in accepted)
        return replace(
            self, pairs=tuple(sorted(pairs, key=lambda pair: pair.row)), elsewhere=missing
        )


def read_acceptance(path: str | os.PathLike[str]) -> Acceptance:
    """Reads the file of accepted pairs that the report's page writes.

    Raises:
        AuditError: There is no such file, or it holds something else.
    """
    try:
        acceptance: Acceptance = read_as(Acceptance, path, (FORMAT, FORMAT_VERSION), MAX_JSON)
        return acceptance
    except (OSError, *DAMAGE) as error:
        raise AuditError(
            f"{os.fspath(path)} holds no accepted pairs ({damage_of(error)}). Write "
            "it with the button of the report's page."
        ) from error


def with_accepted(reasons: Sequence[str], accepted: Sequence[Acceptance]) -> tuple[str, ...]:
    """The sentences of a report, with what was accepted behind the first."""
    return (*reasons[:1], *(acceptance.sentence for acceptance in accepted), *reasons[1:])
