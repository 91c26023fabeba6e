"""The command that names the papers behind a cache."""

from synthaug._cli.arguments import next_line
from synthaug._cli.call import Result


def cite(cache: str, *, bibtex: bool = False) -> Result:
    """Name the papers behind the images of a cache.

    synthaug cite cifar10.h5 --bibtex

    Args:
        cache: The HDF5 file.
        bibtex: Print BibTeX entries instead of lines of text.
    """
    from synthaug._cache import SynthCache
    from synthaug._cache.citations import cite as cited

    text = cited(SynthCache(cache), bibtex=bibtex)
    line = next_line("cite", cache, "--bibtex")
    if bibtex:  # a comment, so that all of it can go into a file
        line = f"\n% {line} >> references.bib"
    return Result(record={"cache": cache, "text": text}, text=f"{text.rstrip()}\n{line}")
