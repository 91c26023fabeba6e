"""Many audits of draws from the same images, at the cost of the first one.

What an audit finds for one image depends on that image, the training and the hold-out images alone,
so that draws from one pool need no second search or alignment. Inside `remembered()` every audit is
the public one from end to end; only what it would compute again for equal pixels is kept.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from synthaug._audit.alignment import Aligner
from synthaug._audit.disturbances import disturbances
from synthaug._audit.matches import Aligned, Near
from synthaug._audit.matching import Matcher

Memory = dict[Any, Any]


@contextmanager
def unplanted() -> Iterator[None]:
    """Audits plant unchanged copies alone: they then say nothing of their power, and cost half.

    What is planted changes no score, no flag and no test of the audited images.
    """
    with patch("synthaug._audit.comparison.disturbances", lambda size: disturbances(size)[:1]):
        yield


@contextmanager
def remembered() -> Iterator[Memory]:
    """Yields what is kept; clear it when other training or hold-out images follow."""
    memory: Memory = {}
    search, index, distances = Matcher._search, Matcher._index, Aligner.distances
    register: Any = Matcher._register
    fit_in_part: Any = Matcher._fit_in_part

    def known_index(matcher: Matcher, extractor: Any, part: Any, kind: str) -> Any:
        place = (_whole(matcher), extractor.name, part, kind)
        if place not in memory:
            memory[place] = index(matcher, extractor, part, kind)
        return memory[place]

    def known_search(matcher: Matcher, asked: Any, limit: int | None = None) -> list[list[Near]]:
        real = (_whole(matcher), limit or matcher.k)
        answers = []
        for samples, plainly in asked:
            places = [(*real, plainly, row) for row in _each(samples)]
            missing = _missing(places, memory)
            if missing:
                near = search(matcher, [(samples[missing], plainly)], limit)[0]
                for i, row in enumerate(missing):
                    memory[places[row]] = [(n.D[i], n.ids[i], n.flipped[i]) for n in near]
            spaces = zip(*(memory[place] for place in places), strict=True)
            answers.append(
                [Near(*(np.stack(x) for x in zip(*rows, strict=True))) for rows in spaces]
            )
        return answers

    def known_distances(aligner: Aligner, pixels: Any, candidates: Any) -> Any:
        if "_each" not in vars(aligner):
            vars(aligner)["_each"] = [*_each(aligner._train), b"none"]
            # What is kept of training images goes on to the next audit.
            prepared = aligner._inverse_norms, aligner._compressed
            place = ("prepared", b"".join(vars(aligner)["_each"]))
            aligner._inverse_norms, aligner._compressed = memory.setdefault(place, prepared)
        of_train = vars(aligner)["_each"]
        places = [
            (image, b"".join(of_train[row] for row in rows))
            for image, rows in zip(_each(pixels), candidates, strict=True)
        ]
        missing = _missing(places, memory)
        if missing:
            D, flipped = distances(aligner, pixels[missing], candidates[missing])
            for i, row in enumerate(missing):
                memory[places[row]] = D[i], flipped[i]
        kept = [memory[place] for place in places]
        return np.stack([D for D, _ in kept]), np.stack([flipped for _, flipped in kept])

    def known_register(
        matcher: Matcher,
        samples: Any,
        near: Any,
        aligned: Aligned,
        known: Any,
        decoys: Matcher | None = None,
    ) -> Aligned:
        del known  # by the numbers of all images, and some are asked about
        others = b"" if decoys is None else _whole(decoys)
        real = ("register", _whole(matcher), others)
        places = [(*real, row) for row in _each(samples)]
        missing = _missing(places, memory)
        if missing:
            some = [Near(n.D[missing], n.ids[missing], n.flipped[missing]) for n in near]
            rows = Aligned(*(values[missing] for values in vars(aligned).values()))
            made = register(matcher, samples[missing], some, rows, {}, decoys)
            for i, row in enumerate(missing):
                memory[places[row]] = made.candidates[i], made.D[i], made.flipped[i]
        kept = zip(*(memory[place] for place in places), strict=True)
        return Aligned(*(np.stack(values) for values in kept))

    def known_fit(
        matcher: Matcher,
        samples: Any,
        near: Any,
        registered: Aligned,
        known: Any,
        decoys: Matcher | None = None,
    ) -> Aligned:
        del known
        others = b"" if decoys is None else _whole(decoys)
        real = ("in part", _whole(matcher), others)
        places = [(*real, row) for row in _each(samples)]
        missing = _missing(places, memory)
        if missing:
            some = [Near(n.D[missing], n.ids[missing], n.flipped[missing]) for n in near]
            rows = Aligned(*(values[missing] for values in vars(registered).values()))
            made = fit_in_part(matcher, samples[missing], some, rows, {}, decoys)
            for i, row in enumerate(missing):
                memory[places[row]] = made.candidates[i], made.D[i], made.flipped[i]
        kept = zip(*(memory[place] for place in places), strict=True)
        return Aligned(*(np.stack(values) for values in kept))

    with (
        patch.object(Matcher, "_register", known_register),
        patch.object(Matcher, "_fit_in_part", known_fit),
        patch.object(Matcher, "_index", known_index),
        patch.object(Matcher, "_search", known_search),
        patch.object(Aligner, "distances", known_distances),
    ):
        yield memory


def _missing(places: list[Any], memory: Memory) -> list[int]:
    """The first row of each place that is not known yet."""
    first = {place: row for row, place in reversed(list(enumerate(places))) if place not in memory}
    return sorted(first.values())


def _whole(matcher: Matcher) -> bytes:
    if "_whole" not in vars(matcher):
        pixels = torch.as_tensor(matcher.train).numpy()
        vars(matcher)["_whole"] = hashlib.sha1(pixels.tobytes()).digest()
    digest: bytes = vars(matcher)["_whole"]
    return digest


def _each(samples: Any) -> list[bytes]:
    return [hashlib.sha1(row.tobytes()).digest() for row in torch.as_tensor(samples).numpy()]
