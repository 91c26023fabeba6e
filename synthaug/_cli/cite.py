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
    # Entries go into a file of their own, where a line to run would be in the way.
    line = "" if bibtex else f"\n{next_line('cite', cache, '--bibtex')}"
    return Result(record={"cache": cache, "text": text}, text=f"{text.rstrip()}{line}")
