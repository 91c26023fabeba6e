"""The path that every image takes, synthetic, held out or planted: how close is it to training?

Several spaces propose training images; every space also judges, by the ratio of its distances, and
the aligned distance (`_alignment`) judges the proposals of all of them. Each judgement is a
*statistic*, small if suspicious; which values are too small is for the hold-out to say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from synthaug._audit._alignment import Aligner
from synthaug._audit._inputs import keys
from synthaug._audit._neighbours import Index, merge
from synthaug._types import Features, Indices, Pixels
from synthaug.features import Extractor, Pixel, Spectrum, extract

NEAR_RMSE = 2.0
"""Up to this root mean square difference, in grey levels of 0 to 255, two images are equal but for
rounding and mild compression: nobody sees a difference, and none is meant."""

ALIGNED = "aligned"
"""Name of the statistic that allows for shifts, crops, brightness and contrast."""

_CHUNK = 4096
"""Images searched at a time: bounds the memory, and is enough for FAISS to be fast."""

_PROPOSERS: tuple[Extractor, ...] = (Pixel(8, standardize=True), Spectrum())
"""Spaces that propose but do not judge. The few large pixels of one forgive a crop, the other
forgives a shift; both forgive brightness. Among 50,000 CIFAR-10 images the original of a copy is
one of 10 proposals of the first for 0.96 of crops to 80 %, but for 0.08 of shifts by 4 pixels; of
the second for 0.84 and 0.95."""

_CHECKED = 5
"""Nearest neighbours in each space whose pixels are compared one by one."""

_PROPOSED = 10
"""Nearest neighbours in each space that are aligned."""


@dataclass(frozen=True, kw_only=True)
class Matches:
    """How close each of n images is to the training images, by each of s statistics."""

    scores: NDArray[np.float64]
    """The statistics, (n, s). Of a space: d_1 / mean(d_2 ... d_k), well below 1 if one training
    image is much closer than all others are, and 0 if d_1 is. Aligned: the distance itself."""
    distances: NDArray[np.float64]
    """d_1 of each space, and the aligned distance, (n, s)."""
    neighbours: Indices
    """The training image that each statistic is about, (n, s)."""
    flipped: NDArray[np.bool_]
    """Whether it is the mirrored image that comes so close, (n, s)."""
    twins: Indices
    """A training image with the same pixels but for rounding, (n,); -1 if there is none."""
    twin_flipped: NDArray[np.bool_]
    """Whether it is the mirrored image that has them, (n,)."""

    @property
    def near_equal(self) -> NDArray[np.bool_]:
        """Images whose pixels are those of a training image but for rounding, (n,)."""
        return self.twins >= 0


class Matcher:
    """Searches a set of training images.

    Args:
        train: uint8 (n, C, H, W).
        extractors: The spaces in which distances are taken, at least one.
        k: Neighbours that a space's ratio looks at, from 2 to the number of different images.
        batch_size: Images per call of an extractor.
        tick: Is told how many images are done, each time some are.
    """

    def __init__(
        self,
        train: Pixels,
        extractors: Sequence[Extractor],
        *,
        k: int,
        batch_size: int,
        tick: Callable[[int], object] = lambda count: None,
    ) -> None:
        # Repeated training images would make a copy of one look ordinary: its second neighbour
        # would be as close as its first. So each image is searched once.
        self._first: dict[bytes, int] = {}
        for i, key in enumerate(keys(train)):
            self._first.setdefault(key, i)
        self.distinct: Indices = np.array(list(self._first.values()), np.int64)
        if not 2 <= k <= len(self.distinct):
            raise ValueError(
                f"`k` is {k}, but must lie between 2 and {len(self.distinct)}, the number of "
                "different training images."
            )
        self.k = k
        self.statistics = (*(extractor.name for extractor in extractors), ALIGNED)
        self._train = train
        self._batch_size = batch_size
        self._tick = tick
        self._spaces = [(e, self._index(e)) for e in (*extractors, *_PROPOSERS)]
        self._aligner = Aligner(train)
        tick(len(self.distinct))

    def equal(self, pixels: Pixels) -> Indices:
        """Index of the equal training image of each image, int64 (n,); -1 if there is none."""
        return np.array([self._first.get(key, -1) for key in keys(pixels)], np.int64)

    def isolation(self, rows: Indices) -> NDArray[np.float64]:
        """Distance of training images to the nearest other one, in the first space, (n,).

        Args:
            rows: Row numbers of training images, int64 (n,).
        """
        extractor, index = self._spaces[0]
        unique, place = np.unique(rows, return_inverse=True)
        nearest = []
        for start in range(0, len(unique), _CHUNK):
            some = unique[start : start + _CHUNK]
            D, ids = index.search(self._features(extractor, self._train[torch.from_numpy(some)]), 2)
            # Excluded by number and not by distance 0: the features may not tell images apart.
            itself = self.distinct[ids[:, 0]] == some
            nearest.append(np.where(itself, D[:, 1], D[:, 0]))
        return np.concatenate(nearest)[place]

    def match(self, pixels: Pixels) -> Matches:
        """Compares images, uint8 (n, C, H, W), and their mirror images with all training images."""
        parts = []
        for start in range(0, len(pixels), _CHUNK):
            chunk = pixels[start : start + _CHUNK]
            parts.append(self._match(chunk))
            self._tick(len(chunk))
        return Matches(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Matches)}
        )

    def _index(self, extractor: Extractor) -> Index:
        parts = []
        for start in range(0, len(self.distinct), _CHUNK):
            rows = torch.from_numpy(self.distinct[start : start + _CHUNK])
            parts.append(self._features(extractor, self._train[rows]))
        return Index(np.concatenate(parts))

    def _features(self, extractor: Extractor, pixels: Pixels) -> Features:
        return extract(extractor, pixels, batch_size=self._batch_size)

    def _match(self, pixels: Pixels) -> Matches:
        mirrored = pixels.flip(-1)
        scores: list[NDArray[np.float64]] = []
        distances: list[NDArray[np.float64]] = []
        neighbours: list[Indices] = []
        flipped: list[NDArray[np.bool_]] = []
        proposed: list[Indices] = []
        checked: list[tuple[Indices, NDArray[np.bool_]]] = []
        for extractor, index in self._spaces:
            found = [index.search(self._features(extractor, p), self.k) for p in (pixels, mirrored)]
            D, ids, column = merge(
                np.hstack([D for D, _ in found]), np.hstack([ids for _, ids in found]), self.k
            )
            ids, flips = self.distinct[ids], column >= self.k
            proposed.append(ids[:, :_PROPOSED])
            checked.append((ids[:, :_CHECKED], flips[:, :_CHECKED]))
            if len(scores) == len(self.statistics) - 1:
                continue  # this space and the next only propose
            others = D[:, 1:].mean(axis=1)
            # Where the others are at distance 0 as well, so is the first: a copy, not 0 / 0.
            scores.append(np.divide(D[:, 0], others, out=np.zeros(len(D)), where=others > 0))
            distances.append(D[:, 0])
            neighbours.append(ids[:, 0])
            flipped.append(flips[:, 0])

        candidates = _once(np.hstack(proposed))
        aligned, aligned_flips = self._aligner.distances(pixels, candidates)
        every, best = np.arange(len(pixels)), aligned.argmin(axis=1)
        scores.append(aligned[every, best])
        distances.append(aligned[every, best])
        neighbours.append(candidates[every, best])
        flipped.append(aligned_flips[every, best])

        twins, twin_flipped = self._twins(pixels, mirrored, checked)
        return Matches(
            scores=np.stack(scores, axis=1),
            distances=np.stack(distances, axis=1),
            neighbours=np.stack(neighbours, axis=1),
            flipped=np.stack(flipped, axis=1),
            twins=twins,
            twin_flipped=twin_flipped,
        )

    def _twins(
        self,
        pixels: Pixels,
        mirrored: Pixels,
        checked: Sequence[tuple[Indices, NDArray[np.bool_]]],
    ) -> tuple[Indices, NDArray[np.bool_]]:
        """Training images with the same pixels but for rounding, and whether mirrored."""
        twins: Indices = np.full(len(pixels), -1, np.int64)
        twin_flipped = np.zeros(len(pixels), bool)
        closest = np.full(len(pixels), NEAR_RMSE)
        for ids, flips in checked:
            for row, flip in zip(ids.T, flips.T, strict=True):
                difference = rmse(pixels, self._train, row, flip)
                closer = difference <= closest
                twins[closer], twin_flipped[closer] = row[closer], flip[closer]
                closest[closer] = difference[closer]
        # Equal pixels are found by content, whatever the features make of them.
        for shown, is_mirrored in ((mirrored, True), (pixels, False)):
            equal = self.equal(shown)
            twins[equal >= 0], twin_flipped[equal >= 0] = equal[equal >= 0], is_mirrored
        return twins, twin_flipped


def proposals(pixels: Pixels, *, batch_size: int = 512) -> Indices:
    """For every image others, and itself, that may be near-duplicates of it: int64 (n, K).

    Looks at each image and its mirror image; -1 fills up where a proposal would be repeated.
    """
    k = min(_PROPOSED, len(pixels))
    lists = []
    for extractor in _PROPOSERS:
        index = Index(extract(extractor, pixels, batch_size=batch_size))
        for shown in (pixels, pixels.flip(-1)):
            features = extract(extractor, shown, batch_size=batch_size)
            parts = [
                index.search(features[i : i + _CHUNK], k)[1]
                for i in range(0, len(features), _CHUNK)
            ]
            lists.append(np.concatenate(parts))
    return _once(np.hstack(lists))


def resembling(
    pixels: Pixels, extractor: Extractor, nearest: NDArray[np.float64], *, batch_size: int
) -> Indices:
    """Pairs of images that are less than half as far from each other as from any real one.

    Args:
        pixels: uint8 (n, C, H, W).
        extractor: The space in which distances are taken.
        nearest: Distance of each image to the nearest real image in that space, (n,).
        batch_size: Images per call of the extractor.

    Returns:
        int64 (l, 2); the five nearest of each image are looked at.
    """
    if len(pixels) < 2:
        return np.zeros((0, 2), np.int64)
    features = extract(extractor, pixels, batch_size=batch_size)
    D, ids = Index(features).search(features, min(6, len(pixels)))
    left = np.repeat(np.arange(len(pixels)), D.shape[1])
    right, distance = ids.ravel(), D.ravel()
    near = (left != right) & (distance < 0.5 * np.minimum(nearest[left], nearest[right]))
    return np.stack([left[near], right[near]], axis=1)


def _once(candidates: Indices) -> Indices:
    """Each row with every repetition replaced by -1."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ordered = np.take_along_axis(candidates, order, 1)
    ordered[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = -1
    once = np.empty_like(candidates)
    np.put_along_axis(once, order, ordered, 1)
    return once


def rmse(
    pixels: Pixels, train: Pixels, rows: Indices, flipped: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Root mean square difference of images, mirrored where `flipped`, to rows of `train`, (n,)."""
    parts = []
    for start in range(0, len(pixels), _CHUNK):
        part = slice(start, start + _CHUNK)
        images = pixels[part]
        mirror = torch.from_numpy(flipped[part])[:, None, None, None]
        shown = torch.where(mirror, images.flip(-1), images).float()
        difference = shown - train[torch.from_numpy(rows[part])]
        parts.append(difference.flatten(1).square().mean(1).sqrt().double().numpy())
    return np.concatenate(parts)
