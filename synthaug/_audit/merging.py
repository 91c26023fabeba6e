"""Merging caches: their rows, and what reviewers said about them."""

import os
from collections.abc import Sequence

from synthaug._audit.notes import carry_accepted
from synthaug._cache import SynthCache, merge_rows


def merge(
    paths: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    encoding: str | None = None,
    progress: bool = False,
) -> SynthCache:
    """Copies several caches of one job into one; every image is checked on the way.

        merge(["part-0.h5", "part-1.h5"], "cifar.h5")

    Rows are appended in the order of `paths`: if those are slices of one plan in their order,
    the result has that plan's digest. Rows pending or withdrawn stay so, and what one of the
    caches has forgotten is withdrawn in all of them. Pairs that a reviewer accepted as harmless
    beside one of them are accepted beside the new one; reports of the parts do not hold for it.
    Of a single, compressed copy, or of a cache of an earlier format version, it makes a plain
    one of today. Killed and run again, it continues.

    Args:
        paths: Caches of equal recipe, classes, source data and image shape.
        out: The new cache.
        encoding: How it stores the images: "raw", "png", "webp" or "jpeg:95". By default as the
            caches do, which must then agree.
        progress: Show a bar.

    Raises:
        ValueError: `paths` is empty, a file is named twice, or images that lost detail already
            would lose more by another `encoding`.
        MismatchError: The caches differ in what decides the images, or hold the same row.
        CacheError: An image is not the one that was written; `out` then lacks it.
        CacheError: A file cannot be read or written, or another job fills `out`.
        AuditError: A file of accepted pairs cannot be read or written.
    """
    merged = merge_rows(paths, out, encoding=encoding, progress=progress)
    carry_accepted(paths, out)
    return merged
