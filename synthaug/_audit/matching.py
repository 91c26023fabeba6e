"""The path that every image takes, synthetic, held out or planted: how close is it to training?

Several spaces propose training images. The given ones also judge, by the ratio of their distances,
and so do three distances to what all of them propose: under the best alignment (`alignment`), and,
to the best proposals, where images fit best (`partial`) and registered (`registration`). Each
judgment is a *statistic*, small if suspicious; which values are too small is for the hold-out to
say.

Where no images are given but their features, these are the only space, and nothing is aligned.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial as partially
from itertools import islice, repeat
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from synthaug._audit import partial
from synthaug._audit.alignment import Aligner, small
from synthaug._audit.cluster import Crew, Shards
from synthaug._audit.differences import NEAR_RMSE, near_rmse
from synthaug._audit.inputs import Contents, Samples, keys, take
from synthaug._audit.kept import Records, basis_of, can_be_told, place, read_records, write_records
from synthaug._audit.matches import Aligned, Matches, Near, concatenated, matches, without_repeats
from synthaug._audit.rectangles import HALVES, WHOLE, Rectangle
from synthaug._audit.registration import register
from synthaug._audit.spaces import (
    PROPOSED,
    PROPOSERS,
    PROPOSERS_OF_HALVES,
    PROPOSERS_OF_SMALL_IMAGES,
)
from synthaug._neighbors import Index, merge
from synthaug._types import JSON, Features, Indices, Pixels
from synthaug.features import ExtractionConfig, Extractor, extract

NEAR_RATIO = 1e-4
"""Up to this share of the usual distance, two vectors of features are equal but for rounding: in
float32, and in other batches, a network repeats itself within about 1e-6."""

ALIGNED, PARTIAL, REGISTERED = "aligned", "partial", "registered"
"""Names of the statistics that allow for shifts, crops, brightness and contrast (`alignment`), for
changes of any part (`partial`), and for all affine maps, colors and light (`registration`)."""

_CHUNK = 4096
"""Images of a set searched at a time: bounds the memory, and is enough for FAISS to be fast."""

_CHECKED = 5
"""Nearest neighbors in each space whose pixels are compared one by one."""

_PROPOSED_BY_HALVES = 2
"""Nearest neighbors of each half that are compared in part."""

_REGISTERED = 2
"""Best aligned proposals that are registered, besides the nearest of each space."""

_REGISTERED_AT_ONCE = 2**17
"""Pixels of the queries that are registered together, of small images more than of large ones: each
step has a cost of its own, and its results should not leave the caches of a processor."""

_COUNTED = 64
"""Fewest images that are judged before they are counted as done: of large images these take about a
second."""


@dataclass(frozen=True)
class Question:
    """Images to be looked for, and what is to be made of what is found."""

    samples: "Samples | _Chosen"
    judge: Callable[[Samples, list[Near], list[Near]], Records]
    """Takes some of the images, with what was found in each space, and among `decoys`."""
    told: Callable[[list[Any]], Any]
    """Takes what `judge` returns, of all images, and returns the answer."""
    decoys: "Matcher | None" = None
    """Other real images to search."""
    plainly: bool = False
    """Whether to search in the first space alone, and not for the mirrored images, and to have
    `Near` judged and not `Matches`."""


@dataclass
class _Part:
    """Some of the images of a question."""

    samples: Samples
    rows: slice
    """Their numbers in the chunk that was searched."""
    path: Path | None
    """Where the judgment is kept."""
    found: Records | None


_Known: TypeAlias = dict[tuple[Any, int, int, bool], float]
"""Distances of pairs: how they are compared, the number of the image, the training image, and
whether the image is mirrored."""


class _Chosen:
    """Some rows of a set, which are taken when they are asked for."""

    def __init__(self, samples: Samples, rows: Indices) -> None:
        self._samples, self._rows = samples, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, part: slice) -> Samples:
        return take(self._samples, self._rows[part])


class Matcher:
    """Searches a set of real images.

    Args:
        train: The images, or their features.
        extractors: The spaces in which distances are taken, at least one.
        k: Neighbors that a space's ratio looks at, from 2 to the number of different images.
        extraction: How features are computed, and where they are kept; its engine is `crew`.
        index: One of `_neighbors.INDEXES`.
        contents: Contents of `train`, if they are known.
        crew: Processes that compute features and search; this one by default.
        tick: Is told how many images are done, each time some are, and whether by an earlier run.
    """

    def __init__(
        self,
        train: Samples,
        extractors: Sequence[Extractor],
        *,
        k: int,
        extraction: ExtractionConfig | None = None,
        index: str = "exact",
        contents: Contents | None = None,
        crew: Crew | None = None,
        tick: Callable[[int, bool], object] = lambda count, before: None,
    ) -> None:
        # Repeated training images would make a copy of one look ordinary: its second neighbor
        # would be as close as its first. So each image is searched once.
        self._contents = Contents(keys(train)) if contents is None else contents
        self.distinct = self._contents.distinct
        self._crew = crew
        self.k = k
        self._images = isinstance(train, Tensor)
        names = [extractor.name for extractor in extractors]
        self._in_part = (
            isinstance(train, Tensor) and min(small(train[:1]).shape[-2:]) >= partial.SMALLEST
        )
        aligned: tuple[str, ...] = (ALIGNED, REGISTERED) if self._images else ()
        if self._in_part:
            aligned = ALIGNED, PARTIAL, REGISTERED
        self.statistics = (*names, *aligned)
        self.train = train
        self._extraction = extraction or ExtractionConfig()
        self._tick = tick
        self._judges = len(names)
        self._aligner = Aligner(train) if isinstance(train, Tensor) else None
        spaces = [(extractor, WHOLE) for extractor in extractors]
        spaces += PROPOSERS if self._in_part else PROPOSERS_OF_SMALL_IMAGES if self._images else ()
        self._of_images = len(spaces)
        """So many spaces, the first ones, propose by whole images, and those behind by halves."""
        spaces += PROPOSERS_OF_HALVES if self._in_part else ()
        self._spaces = [
            (extractor, part, self._index(extractor, part if part in HALVES else WHOLE, index))
            for extractor, part in spaces
        ]
        self._basis: str | None = None  # nothing is kept
        if self._extraction.folder is not None and can_be_told(extractors):
            self._basis = basis_of(train, self._contents, extractors, k, index)
        tick(len(self.distinct), False)

    def __len__(self) -> int:
        """Number of different images."""
        return len(self.distinct)

    def equal(self, samples: Samples) -> Indices:
        """Index of the equal training image of each image, int64 (n,); -1 if there is none."""
        return self._contents.find(keys(samples))

    def recall(self, samples: Samples) -> dict[str, float]:
        """Share of the exact k nearest training images that each space finds, by its name."""
        return {
            f"{extractor.name}{part.suffix}": index.recall(
                self._features(extractor, samples, part), self.k
            )
            for extractor, part, index in self._spaces
        }

    def difference(self, pixels: Pixels, row: int) -> Pixels:
        """Works like `Aligner.difference`."""
        assert self._aligner is not None
        return self._aligner.difference(pixels, row)

    def match(self, samples: Samples) -> Matches:
        """The answer to `compare`."""
        compared: Matches = self.ask(self.compare(samples))[0]
        return compared

    def ask(self, *questions: Question) -> list[Any]:
        """Answers questions together.

        Every search reads all features of the training images, perhaps from a file. So there is
        one for `_CHUNK` images of every question. What an earlier run has kept is read.
        """
        answers: list[list[Any]] = [[] for _ in questions]
        for start in range(0, max(len(q.samples) for q in questions), _CHUNK):
            chunks = [q.samples[start : start + _CHUNK] for q in questions]
            cut = [self._parts(q, chunk) for q, chunk in zip(questions, chunks, strict=True)]
            missing = [i for i, parts in enumerate(cut) if any(p.found is None for p in parts)]
            asked = [(chunks[i], questions[i].plainly) for i in missing]
            near = dict(zip(missing, self._kept_search(asked), strict=True))
            for i, (question, parts) in enumerate(zip(questions, cut, strict=True)):
                answers[i] += self._judged(question, chunks[i], parts, near.get(i, []))
            self._forget_search([(c, q.plainly) for c, q in zip(chunks, questions, strict=True)])
        return [
            question.told([concatenated(same) for same in zip(*answer, strict=True)])
            for question, answer in zip(questions, answers, strict=True)
        ]

    def _parts(self, question: Question, chunk: Samples) -> list[_Part]:
        """Cuts images into parts that a second suffices for, and reads what is kept of them.

        Of features no part takes as long as their search does.
        """
        size = max(1, len(chunk))
        if isinstance(chunk, Tensor) and not question.plainly:
            size = max(_COUNTED, _REGISTERED_AT_ONCE // small(chunk[:1]).shape[-2:].numel())
        kind = Near if question.plainly else Matches
        others = None if question.decoys is None else question.decoys._basis
        parts = []
        for start in range(0, len(chunk), size):
            rows = slice(start, start + size)
            path = self._place(chunk[rows], "judged", question.plainly, others)
            parts.append(_Part(chunk[rows], rows, path, read_records(path, kind)))
        return parts

    def _judged(
        self, question: Question, chunk: Samples, parts: Sequence[_Part], near: list[Near]
    ) -> list[Records]:
        """Judges the parts of a chunk that are missing, and returns the results of all."""
        others: list[Near] = []
        asked = [(chunk, False)]
        if near and question.decoys is not None:
            others = question.decoys._kept_search(asked, self.k)[0]
        found = []
        for part in parts:
            records, kept = part.found, part.found is not None
            if records is None:
                of_part = ([space.part(part.rows) for space in spaces] for spaces in (near, others))
                records = question.judge(part.samples, *of_part)
                write_records(part.path, records)
            found.append(records)
            if not question.plainly:
                self._tick(len(part.samples), kept)
        if question.decoys is not None:
            question.decoys._forget_search(asked, self.k)
        return found

    def _place(self, samples: Samples, *of: JSON) -> Path | None:
        """The file for something about these images, if it is to be kept."""
        folder, basis = self._extraction.folder, self._basis
        return None if folder is None or basis is None else place(folder, samples, basis, *of)

    def _kept_search(
        self, asked: Sequence[tuple[Samples, bool]], limit: int | None = None
    ) -> list[list[Near]]:
        """Works like `_search`; what is found for images is kept, as judging them takes long."""
        paths = self._of_search(asked, limit)
        kept: list[Any] = [read_records(path, Near) for path in paths]
        new = [a for a, near in zip(asked, kept, strict=True) if near is None]
        found = iter(self._search(new, limit))
        for i, path in enumerate(paths):
            if kept[i] is None:
                kept[i] = next(found)
                write_records(path, kept[i])
        return kept

    def _forget_search(
        self, asked: Sequence[tuple[Samples, bool]], limit: int | None = None
    ) -> None:
        """Deletes what `_kept_search` kept: it is large, and what was made of it is kept."""
        for path in self._of_search(asked, limit):
            if path is not None:
                path.unlink(missing_ok=True)

    def _of_search(
        self, asked: Sequence[tuple[Samples, bool]], limit: int | None
    ) -> list[Path | None]:
        return [
            self._place(samples, "near", plainly, limit) if self._images else None
            for samples, plainly in asked
        ]

    def compare(self, samples: Samples) -> Question:
        """Compares images, uint8 (n, C, H, W), and their mirror images with the training images.

        Returns:
            A question whose answer is `Matches`.
        """

        def judge(part: Samples, near: list[Near], others: list[Near]) -> list[Matches]:
            del others
            return [self._judge(part, near, self._align(part, near, {}))]

        return Question(samples, judge, lambda found: found[0])

    def compare_pooled(self, decoys: "Matcher", samples: Samples) -> Question:
        """Compares images with the training images alone, and together with other real images.

        Args:
            decoys: Holds the others, none of them equal to a training image.
            samples: The images to compare.

        Returns:
            A question whose answer is two `Matches`: that of `compare`; and what it would be were
            `decoys` appended to the training images, row numbers included.
        """

        def judge(part: Samples, near: list[Near], others: list[Near]) -> list[Matches]:
            known: _Known = {}
            aligned = self._align(part, near, known)
            return [
                self._judge(part, near, aligned),
                self._judge_pooled(decoys, part, near, others, aligned, known),
            ]

        return Question(samples, judge, tuple, decoys)

    def isolation(self, rows: Indices) -> Question:
        """How far training images are from the nearest other one, in the first space.

        Args:
            rows: Row numbers of training images, int64 (n,).

        Returns:
            A question whose answer is float64 (n,).
        """
        unique, inverse = np.unique(rows, return_inverse=True)

        def judge(part: Samples, near: list[Near], others: list[Near]) -> list[Near]:
            del part, others
            return [Near(near[0].D[:, :2], near[0].ids[:, :2], near[0].flipped[:, :2])]

        def told(found: list[Near]) -> NDArray[np.float64]:
            first, second = found[0].D.T
            # Excluded by number and not by distance 0: the features may not tell images apart.
            return np.where(found[0].ids[:, 0] == unique, second, first)[inverse]

        return Question(_Chosen(self.train, unique), judge, told, plainly=True)

    def _index(self, extractor: Extractor, part: Rectangle, kind: str) -> "Index | Shards":
        rows = None if len(self.distinct) == len(self.train) else self.distinct
        xb = self.train
        if isinstance(xb, Tensor):
            xb = self._features(extractor, xb if rows is None else take(xb, rows), part)
            rows = None
        return Index(xb, kind, rows=rows) if self._crew is None else self._crew.index(xb, rows)

    def _features(
        self, extractor: Extractor, samples: Samples, part: Rectangle = WHOLE
    ) -> Features:
        if not isinstance(samples, Tensor):
            return samples
        run = extract if self._crew is None else self._crew.extract
        return run(
            extractor,
            part.of(samples),
            batch_size=self._extraction.batch_size,
            features_dir=self._extraction.folder,
        )

    def _views(self, samples: Samples) -> list[Samples]:
        """The images as they are and mirrored."""
        return [samples, samples.flip(-1)] if isinstance(samples, Tensor) else [samples]

    def _search(
        self, asked: Sequence[tuple[Samples, bool]], limit: int | None = None
    ) -> list[list[Near]]:
        """For some sets of images the nearest training images in each space; up to k if there are.

        Args:
            asked: Images, and whether to look for them plainly, as in `Question`.
            limit: In place of k.
        """
        k = min(limit or self.k, len(self.distinct))
        near: list[list[Near]] = [[] for _ in asked]
        for extractor, part, index in self._spaces:
            looking = [
                (nearest, [samples] if plainly else self._views(samples))
                for nearest, (samples, plainly) in zip(near, asked, strict=True)
                if not (plainly and nearest)
            ]
            if not looking:
                break
            queries = [
                self._features(extractor, view, part) for _, views in looking for view in views
            ]
            stops = np.cumsum([len(query) for query in queries])[:-1]
            D, ids = index.search(np.concatenate(queries), k)
            of_queries = zip(np.split(D, stops), np.split(ids, stops), strict=True)
            for nearest, views in looking:
                of_views = list(islice(of_queries, len(views)))
                D, ids, column = merge(
                    np.hstack([D for D, _ in of_views]), np.hstack([ids for _, ids in of_views]), k
                )
                nearest.append(Near(D, self.distinct[ids], column >= k))
        return near

    def _align(self, samples: Samples, near: Sequence[Near], known: _Known) -> list[Aligned]:
        """The proposals correlated, and some of them fitted in part and registered.

        Empty for features.
        """
        if self._aligner is None:
            return []
        assert isinstance(samples, Tensor)
        candidates = self._proposed(near)
        aligned = Aligned(candidates, *self._aligner.distances(samples, candidates))
        registered = self._register(samples, near, aligned, known)
        if not self._in_part:
            return [aligned, registered]
        return [aligned, self._fit_in_part(samples, near, registered, known), registered]

    def _proposed(self, near: Sequence[Near]) -> Indices:
        """Returns the training images to align with, out of the matches of each space, (n, K)."""
        spaces = near[: self._of_images]
        return without_repeats(np.hstack([space.ids[:, :PROPOSED] for space in spaces]))

    def _register(
        self,
        samples: Tensor,
        near: Sequence[Near],
        aligned: Aligned,
        known: _Known,
        decoys: "Matcher | None" = None,
    ) -> Aligned:
        """Registers the best proposals and the nearest ones of each space.

        Args:
            samples: The images.
            near: The matches in each space.
            aligned: All proposals. Rows beyond the training images are those of `decoys`.
            known: Pairs that were compared before, and from here on.
            decoys: Other real images.
        """
        nearest = np.stack([space.ids[:, 0] for space in near[: self._of_images]], axis=1)
        chosen = (aligned.candidates[:, :, None] == nearest[:, None, :]).any(axis=2)
        best = np.argsort(aligned.D, axis=1, kind="stable")[:, :_REGISTERED]
        np.put_along_axis(chosen, best, True, axis=1)
        chosen &= aligned.candidates >= 0
        D = np.full(chosen.shape, np.inf)
        query, column = np.nonzero(chosen)
        rows, flipped = aligned.candidates[query, column], aligned.flipped[query, column]
        D[query, column] = self._laid_over(
            register, small, samples, query, rows, flipped, known, decoys
        )
        return Aligned(np.where(chosen, aligned.candidates, -1), D, aligned.flipped)

    def _fit_in_part(
        self,
        samples: Tensor,
        near: Sequence[Near],
        registered: Aligned,
        known: _Known,
        decoys: "Matcher | None" = None,
    ) -> Aligned:
        """Compares in part what was registered, and what is nearest to one half.

        Those that fit best as they lie are laid over the images; of the others it is known only how
        they fit as they lie. A candidate may be there twice, as it is and mirrored.
        """
        halves = near[self._of_images :]
        candidates = [half.ids[:, :_PROPOSED_BY_HALVES] for half in halves]
        mirrored = [half.flipped[:, :_PROPOSED_BY_HALVES] for half in halves]
        rows = np.hstack([*candidates, registered.candidates])
        flipped = np.hstack([*mirrored, registered.flipped])
        once = without_repeats(np.where(rows < 0, -1, 2 * rows + flipped))
        rows = np.where(once < 0, -1, rows)
        D = np.full(rows.shape, np.inf)
        chosen = rows >= 0
        for compared in (partial.glance, partial.fit):
            query, column = np.nonzero(chosen)
            D[query, column] = self._laid_over(
                compared,
                partial.cleaned,
                samples,
                query,
                rows[query, column],
                flipped[query, column],
                known,
                decoys,
            )
            best = np.argsort(D, axis=1, kind="stable")[:, : partial.FOLLOWED]
            chosen = np.zeros(D.shape, bool)
            np.put_along_axis(chosen, best, True, axis=1)
            chosen &= rows >= 0
        return Aligned(rows, D, flipped)

    def _laid_over(
        self,
        compared: Callable[[Tensor, Tensor], Tensor],
        prepared: Callable[[Pixels], Tensor],
        samples: Tensor,
        query: Indices,
        rows: Indices,
        flipped: NDArray[np.bool_],
        known: _Known,
        decoys: "Matcher | None",
    ) -> NDArray[np.float64]:
        """The distances of images, by their numbers, to training images, some at a time, (n,).

        Both are `prepared`, each image once, and then `compared`, each pair once.
        """
        pairs = list(zip(repeat(compared), query.tolist(), rows.tolist(), flipped.tolist()))
        new = np.flatnonzero([pair not in known for pair in pairs])
        if len(new):
            at_once = _REGISTERED_AT_ONCE // small(samples[:1]).shape[-2:].numel()
            laid = partially(_once_each, prepared=prepared, at_once=at_once)
            images, image = laid(query[new], lambda i: samples[torch.from_numpy(i)])
            references, reference = laid(rows[new], lambda i: self._at(i, decoys))
            mirror = torch.from_numpy(flipped[new])[:, None, None, None]
            for i in range(0, len(new), at_once):
                part = slice(i, i + at_once)
                shown = images[image[part]]
                shown = torch.where(mirror[part], shown.flip(-1), shown)
                D = compared(shown, references[reference[part]]).double().tolist()
                known.update(zip([pairs[j] for j in new[part].tolist()], D, strict=True))
        return np.array([known[pair] for pair in pairs], np.float64)

    def _at(self, rows: Indices, decoys: "Matcher | None") -> Pixels:
        """Training images, and `decoys` behind the last one."""
        assert isinstance(self.train, Tensor)
        if decoys is None:
            return self.train[torch.from_numpy(rows)]
        assert isinstance(decoys.train, Tensor)
        n = len(self.train)
        own = self.train[torch.from_numpy(rows.clip(max=n - 1))]
        other = decoys.train[torch.from_numpy((rows - n).clip(min=0))]
        return torch.where(torch.from_numpy(rows < n)[:, None, None, None], own, other)

    def _judge(self, samples: Samples, near: list[Near], aligned: list[Aligned]) -> Matches:
        return matches(near[: self._judges], aligned, *self._twins(samples, near))

    def _judge_pooled(
        self,
        decoys: "Matcher",
        samples: Samples,
        near: list[Near],
        other: list[Near],
        aligned: list[Aligned],
        known: _Known,
    ) -> Matches:
        first = len(self.train)  # the row number of the first decoy
        pooled = []
        for a, b in zip(near, other, strict=True):
            ids, flipped = np.hstack([a.ids, b.ids + first]), np.hstack([a.flipped, b.flipped])
            D, ids, column = merge(np.hstack([a.D, b.D]), ids, self.k)
            pooled.append(Near(D, ids, np.take_along_axis(flipped, column, 1)))
        pooled_aligned = []
        if aligned and decoys._aligner is not None:
            assert isinstance(samples, Tensor)
            correlated = aligned[0]
            # The nearest of both together, lest the fewer decoys be proposed from farther away.
            # Those that are training images have been aligned already.
            proposed = self._proposed(pooled)
            kept = (correlated.candidates[:, :, None] == proposed[:, None, :]).any(axis=2)
            rest = np.where(proposed >= first, proposed - first, -1)
            D, flipped = decoys._aligner.distances(samples, rest)
            both = Aligned(
                np.where(
                    np.hstack([kept, rest >= 0]), np.hstack([correlated.candidates, proposed]), -1
                ),
                np.hstack([np.where(kept, correlated.D, np.inf), D]),
                np.hstack([correlated.flipped, flipped]),
            )
            laid_over = self._register(samples, pooled, both, known, decoys)
            pooled_aligned = [both, laid_over]
            if self._in_part:
                in_part = self._fit_in_part(samples, pooled, laid_over, known, decoys)
                pooled_aligned = [both, in_part, laid_over]
        twins, flips = self._twins(samples, near)
        others, other_flips = decoys._twins(samples, other)
        twins = np.where(twins >= 0, twins, np.where(others >= 0, others + first, -1))
        flips = np.where(twins < first, flips, other_flips)
        return matches(pooled[: self._judges], pooled_aligned, twins, flips)

    def _twins(self, samples: Samples, near: Sequence[Near]) -> tuple[Indices, NDArray[np.bool_]]:
        """Training images with the same pixels but for rounding, and whether mirrored."""
        twins: Indices = np.full(len(samples), -1, np.int64)
        twin_flipped = np.zeros(len(samples), bool)
        if not (isinstance(samples, Tensor) and isinstance(self.train, Tensor)):
            D, ids = near[0].D, near[0].ids
            equal = D[:, 0] <= NEAR_RATIO * D[:, -1]
            twins[equal] = ids[equal, 0]
            return twins, twin_flipped
        pixels = samples
        closest = np.full(len(pixels), NEAR_RMSE)
        for space in near[: self._of_images]:
            for row, flip in zip(space.ids.T[:_CHECKED], space.flipped.T[:_CHECKED], strict=True):
                difference = near_rmse(pixels, self.train, row, flip)
                closer = difference <= closest
                twins[closer], twin_flipped[closer] = row[closer], flip[closer]
                closest[closer] = difference[closer]
        # Equal pixels are found by content, whatever the features make of them.
        for shown, is_mirrored in ((pixels.flip(-1), True), (pixels, False)):
            equal = self.equal(shown)
            twins[equal >= 0], twin_flipped[equal >= 0] = equal[equal >= 0], is_mirrored
        return twins, twin_flipped


def _once_each(
    numbers: Indices,
    images: Callable[[Indices], Pixels],
    *,
    prepared: Callable[[Pixels], Tensor],
    at_once: int,
) -> tuple[Tensor, Tensor]:
    """Prepares the images of these numbers, each once, some at a time.

    Returns:
        Different images, and which of them each number has, int64 (n,).
    """
    unique, which = np.unique(numbers, return_inverse=True)
    parts = [prepared(images(unique[i : i + at_once])) for i in range(0, len(unique), at_once)]
    return torch.cat(parts), torch.from_numpy(which)


def linked(
    samples: Samples,
    extractor: Extractor,
    limits: NDArray[np.float64],
    extraction: ExtractionConfig,
) -> Indices:
    """Pairs of images that are closer to each other than the limits of both.

    Args:
        samples: Images, uint8 (n, C, H, W), or their features.
        extractor: The space in which distances are taken.
        limits: Distances in that space, (n,).
        extraction: How features are computed, and where they are kept.

    Returns:
        int64 (l, 2); the five nearest of each image are looked at.
    """
    if len(samples) < 2:
        return np.zeros((0, 2), np.int64)
    features = (
        extract(
            extractor,
            samples,
            batch_size=extraction.batch_size,
            features_dir=extraction.folder,
        )
        if isinstance(samples, Tensor)
        else samples
    )
    index, k = Index(features), min(6, len(samples))
    parts = [index.search(features[i : i + _CHUNK], k) for i in range(0, len(samples), _CHUNK)]
    D, ids = (np.concatenate(part) for part in zip(*parts, strict=True))
    left = np.repeat(np.arange(len(samples)), k)
    right, distance = ids.ravel(), D.ravel()
    near = (left != right) & (distance < np.minimum(limits[left], limits[right]))
    return np.stack([left[near], right[near]], axis=1)
