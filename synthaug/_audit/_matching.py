"""The path that every image takes, synthetic, held out or planted: how close is it to training?"""

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray

from synthaug._audit._inputs import keys
from synthaug._audit._neighbours import Index, merge
from synthaug._types import Features, Indices, Pixels
from synthaug.features import Extractor, extract

NEAR_RMSE = 2.0
"""Up to this root mean square difference, in grey levels of 0 to 255, two images are equal but for
rounding and mild compression: nobody sees a difference, and none is meant."""

_CHUNK = 4096
"""Images searched at a time: bounds the memory, and is enough for FAISS to be fast."""

_CHECKED = 5
"""Nearest neighbours whose pixels are compared one by one."""


@dataclass(frozen=True, kw_only=True)
class Matches:
    """How close each of n images is to the training images."""

    scores: NDArray[np.float64]
    """d_1 / mean(d_2 ... d_k), (n,): well below 1 if one training image is much closer than all
    others are. 0 if d_1 is."""
    distances: NDArray[np.float64]
    """d_1, (n,)."""
    neighbours: Indices
    """The nearest training image, (n,); the one with equal pixels if there is one."""
    flipped: NDArray[np.bool_]
    """Whether it is the mirrored image that comes so close, (n,)."""
    rmse: NDArray[np.float64]
    """Root mean square pixel difference to that training image, grey levels of 0 to 255, (n,)."""

    @property
    def near_equal(self) -> NDArray[np.bool_]:
        """Images whose pixels are those of a training image but for rounding, (n,)."""
        return self.rmse <= NEAR_RMSE

    def select(self, rows: NDArray[np.int64] | NDArray[np.bool_]) -> "Matches":
        """Some of the images."""
        return Matches(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


class Matcher:
    """Searches a set of training images.

    Args:
        train: uint8 (n, C, H, W).
        extractor: The space in which distances are taken.
        k: Neighbours that the score looks at, from 2 to the number of different images.
        batch_size: Images per call of the extractor.
        tick: Is told how many images are done, each time some are.
    """

    def __init__(
        self,
        train: Pixels,
        extractor: Extractor,
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
        self._train = train
        self._extractor = extractor
        self._batch_size = batch_size
        self._tick = tick
        parts = []
        for start in range(0, len(self.distinct), _CHUNK):
            rows = self.distinct[start : start + _CHUNK]
            parts.append(self._features(train[torch.from_numpy(rows)]))
            tick(len(rows))
        self._index = Index(np.concatenate(parts))

    def equal(self, pixels: Pixels) -> Indices:
        """Index of the equal training image of each image, int64 (n,); -1 if there is none."""
        return np.array([self._first.get(key, -1) for key in keys(pixels)], np.int64)

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

    def _features(self, pixels: Pixels) -> Features:
        return extract(self._extractor, pixels, batch_size=self._batch_size)

    def _match(self, pixels: Pixels) -> Matches:
        mirrored = pixels.flip(-1)
        found = [self._index.search(self._features(p), self.k) for p in (pixels, mirrored)]
        D, ids, column = merge(
            np.hstack([D for D, _ in found]), np.hstack([ids for _, ids in found]), self.k
        )
        distances, neighbours = D[:, 0], self.distinct[ids]
        others = D[:, 1:].mean(axis=1)
        # Where the others are at distance 0 as well, so is the first: that is a copy, not 0 / 0.
        scores = np.divide(distances, others, out=np.zeros(len(D)), where=others > 0)

        every = np.arange(len(pixels))
        candidates = neighbours[:, :_CHECKED]
        flips = column[:, :_CHECKED] >= self.k
        rmse = np.stack(
            [
                self._rmse(pixels, mirrored, candidates[:, j], flips[:, j])
                for j in range(candidates.shape[1])
            ],
            axis=1,
        )
        best = rmse.argmin(axis=1)
        best[rmse[every, best] > NEAR_RMSE] = 0
        neighbour, flipped, rmse = candidates[every, best], flips[every, best], rmse[every, best]
        # Equal pixels are found by content, whatever the features make of them.
        for source, is_flipped in ((mirrored, True), (pixels, False)):
            equal = self.equal(source)
            hit = equal >= 0
            neighbour[hit], flipped[hit], rmse[hit] = equal[hit], is_flipped, 0
        return Matches(
            scores=scores, distances=distances, neighbours=neighbour, flipped=flipped, rmse=rmse
        )

    def _rmse(
        self, pixels: Pixels, mirrored: Pixels, rows: Indices, flipped: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        shown = torch.where(torch.from_numpy(flipped)[:, None, None, None], mirrored, pixels)
        difference = shown.float() - self._train[torch.from_numpy(rows)]
        return difference.flatten(1).square().mean(1).sqrt().double().numpy()
