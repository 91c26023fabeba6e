"""Papers behind the methods: whom to thank, as text and as BibTeX."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True)
class Paper:
    """One entry of a bibliography."""

    key: str
    title: str
    authors: str
    """In BibTeX's form: "Surname, First and Surname, First"."""
    year: int
    venue: str
    arxiv: str

    def text(self) -> str:
        """One line: the surnames of up to three authors, year, title, venue, address."""
        names = [name.partition(",")[0] for name in self.authors.split(" and ")]
        who = f"{names[0]} et al." if len(names) > 3 else _enumerated(names)
        return f"{who} {self.year}. {self.title}. {self.venue}. https://arxiv.org/abs/{self.arxiv}"

    def bibtex(self) -> str:
        """The entry; titles keep their capitals."""
        return bibtex_entry(
            "misc",
            self.key,
            title=f"{{{self.title}}}",
            author=self.authors,
            year=str(self.year),
            howpublished=self.venue,
            eprint=self.arxiv,
            archiveprefix="arXiv",
        )


def bibtex_entry(kind: str, key: str, **fields: str) -> str:
    """An entry of a BibTeX file."""
    lines = [f"  {name} = {{{value}}}," for name, value in fields.items()]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


def _enumerated(names: Sequence[str]) -> str:
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else last
