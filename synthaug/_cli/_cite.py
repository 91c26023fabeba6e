"""The command that names the papers behind a cache."""


def cite(cache: str, *, bibtex: bool = False) -> None:
    """Name the papers behind the images of a cache.

    synthaug cite cifar10.h5 --bibtex

    Args:
        cache: The HDF5 file.
        bibtex: Print BibTeX entries instead of lines of text.
    """
    from synthaug._cache import SynthCache
    from synthaug._cite import cite as text

    print(text(SynthCache(cache), bibtex=bibtex))
