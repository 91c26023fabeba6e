"""The audit over Ray: actors compute the features of networks, and search shards of the database.

Every shard gives its k nearest rows, measured in float64, and of these the k nearest are kept: what
one search of everything gives. Shards of a file are read where they are needed; those of an array
are put into Ray's object store, which moves to disk what does not fit into memory. An actor keeps
nothing but its networks, so any other can take over from one that is lost.
"""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from synthaug._cluster import ActorPool, RayEngine, actor_pool, pickled
from synthaug._neighbors import Index, float32, nearest_first, threads
from synthaug._types import Features, Indices, Pixels
from synthaug.errors import EngineError
from synthaug.features import Extractor, TorchModule, describe, extract

_SHARD_VALUES = 64_000_000
"""Numbers in a shard: 256 MB in float32. What an actor has in memory at a time."""


class Hand:
    """An actor."""

    def load(self, parcel: bytes) -> None:
        """Unpacks the networks."""
        import ray

        self.extractors: list[Extractor] = ray.cloudpickle.loads(parcel)

    def features(self, number: int, pixels: NDArray[np.uint8]) -> Features:
        """Extracts the features of a batch of images, uint8 (n, C, H, W)."""
        return self.extractors[number](torch.from_numpy(np.array(pixels)))

    def search(
        self, shard: "Stored | Features", first: int, xq: Features, k: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """The k nearest rows of a shard whose first row has that number."""
        xb = shard.read() if isinstance(shard, Stored) else shard
        with threads():
            D, ids = Index(xb).search(xq, min(k, len(xb)))
        return D, ids + first


class Stored:
    """Rows of a .npy file that all nodes can read."""

    def __init__(self, path: str, rows: Any) -> None:
        self.path, self.rows = path, rows

    def read(self) -> Features:
        """float32 (n, d)."""
        try:
            return float32(np.load(self.path, mmap_mode="r", allow_pickle=False)[self.rows])
        except OSError as error:
            raise EngineError(
                f"{self.path} cannot be read on {platform.node()} ({error}). Features must be "
                "in a folder that every node of the cluster shares."
            ) from None


class Shards:
    """A database that is searched by the actors; as `Index`."""

    kind = "exact"

    def __init__(self, crew: "Crew", xb: Features, rows: Indices | None) -> None:
        self._crew = crew
        self._length = len(xb) if rows is None else len(rows)
        size = max(1, min(_SHARD_VALUES // xb.shape[1], -(-self._length // crew.pool.size)))
        path = _path_of(xb)
        self._shards = []
        for first in range(0, self._length, size):
            part: Any = slice(first, min(first + size, self._length))
            part = part if rows is None else rows[part]
            shard = crew.pool.ray.put(Stored(path, part) if path else float32(xb[part]))
            self._shards.append((first, shard))

    def __len__(self) -> int:
        return self._length

    def search(self, xq: Features, k: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Works like `Index.search`."""
        queries = self._crew.pool.ray.put(float32(xq))
        nearest = self._crew.map(
            self._shards, lambda hand, shard: hand.search.remote(shard[1], shard[0], queries, k)
        )
        D, ids = (np.hstack(part) for part in zip(*nearest, strict=True))
        return nearest_first(D, ids, k)

    def recall(self, xq: Features, k: int) -> float:
        """1: the search is exact."""
        del xq, k
        return 1.0


class Crew:
    """Actors at work for one audit.

    Args:
        pool: Actors of the class `Hand`.
        extractors: The extractors they loaded, in order.
        tries: How many actors a piece of work may end before it is given up.
    """

    def __init__(self, pool: ActorPool, extractors: Sequence[Extractor], tries: int) -> None:
        self.pool, self._extractors, self._tries = pool, extractors, tries

    def index(self, xb: Features, rows: Indices | None = None) -> Shards:
        """A database; arguments as for `Index`."""
        return Shards(self, xb, rows)

    def extract(
        self,
        extractor: Extractor,
        pixels: Pixels,
        *,
        batch_size: int,
        features_dir: Path | None = None,
    ) -> Features:
        """Works like `features.extract`; networks run on the actors, in the same batches."""
        if extractor not in self._extractors:  # computed sooner than sent
            return extract(extractor, pixels, batch_size=batch_size, features_dir=features_dir)
        spread = _Spread(self, extractor, self._extractors.index(extractor), batch_size)
        size = 4 * batch_size * self.pool.size
        return extract(spread, pixels, batch_size=size, features_dir=features_dir)

    def map(self, items: Sequence[Any], call: Callable[[Any, Any], Any]) -> list[Any]:
        """Returns the result of `call` for each item, in order; errors are those of
        `ActorPool.map`.
        """
        return self.pool.map(items, call, tries=self._tries)


class _Spread:
    """An extractor that has a large batch computed in smaller ones by the actors."""

    def __init__(self, crew: Crew, extractor: Extractor, number: int, batch_size: int) -> None:
        self._crew, self._number, self._batch_size = crew, number, batch_size
        self.name, self.weights = extractor.name, describe(extractor)["weights"]

    def __call__(self, pixels: Pixels) -> Features:
        """uint8 (n, C, H, W) to float32 (n, d)."""
        batches = [part.numpy() for part in pixels.split(self._batch_size)]
        features = self._crew.map(
            batches, lambda hand, batch: hand.features.remote(self._number, batch)
        )
        return np.concatenate(features)


@contextmanager
def crew_of(engine: str | RayEngine, extractors: Sequence[Extractor]) -> Iterator[Crew | None]:
    """The actors of an audit; `None` for the engine "local".

    Raises:
        ValueError: An extractor cannot be pickled.
        ImportError, EngineError: Under the same conditions as `RayEngine`.
    """
    if engine == "local":
        yield None
        return
    engine = engine if isinstance(engine, RayEngine) else RayEngine()
    if engine.load is not None:
        raise ValueError("`RayEngine.load` makes a synthesizer; an audit has none. Leave it out.")
    networks = [e for e in extractors if describe(e)["weights"] is not None]
    parcel = pickled(
        networks, name="`features`", remedy="Compute them first, or leave `engine` out."
    )
    # Foreign extractors need not say where they compute, and an actor's search runs on the CPU
    # unless its FAISS has GPUs: `num_gpus` asks for one.
    on_gpu = any(isinstance(e, TorchModule) and e.device.type != "cpu" for e in networks)
    with actor_pool(engine, Hand, parcel, on_gpu=on_gpu) as pool:
        yield Crew(pool, networks, engine.tries)


def _path_of(xb: Features) -> str | None:
    """The .npy file that holds just these rows, if there is one."""
    if not isinstance(xb, np.memmap) or not str(xb.filename).endswith(".npy"):
        return None
    path = os.path.abspath(str(xb.filename))
    whole = np.load(path, mmap_mode="r", allow_pickle=False)
    return path if (whole.shape, whole.dtype) == (xb.shape, xb.dtype) else None
