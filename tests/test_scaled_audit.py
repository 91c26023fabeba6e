"""An audit over several processes, and over files of features, equals that in memory."""

import json
import sys
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import audit
from synthaug._audit.cluster import Crew, Hand, crew_of
from synthaug._neighbors import Index, nearest_first
from synthaug.caches import RayEngine
from synthaug.features import ExtractionConfig, TorchModule
from tests.fake_ray import Actor, FakeRay

pytestmark = pytest.mark.usefixtures("short_audits")


def clusters(n: int, seed: int) -> Any:
    """Vectors that float16 holds exactly, so that many distances are equal."""
    return np.random.default_rng(seed).integers(-3, 4, (n, 6)).astype(np.float32)


def brute_force(xb: Any, xq: Any, k: int) -> tuple[Any, Any]:
    D = np.sqrt(np.square(xq[:, None].astype(np.float64) - xb).sum(2))
    ids = np.argsort(D, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(D, ids, 1), ids


@pytest.mark.parametrize("cuts", [(100,), (1, 7, 300), (250, 251)], ids=str)
def test_the_nearest_of_the_nearest_of_each_shard_are_those_of_the_whole(cuts):
    xb, xq = clusters(400, 1), clusters(50, 2)
    found = []
    for start, stop in pairwise((0, *cuts, 400)):
        D, ids = Index(xb[start:stop]).search(xq, min(4, stop - start))
        found.append((D, ids + start))
    D, ids = (np.hstack(part) for part in zip(*found, strict=True))
    merged = nearest_first(D, ids, 4)
    for got, wanted in zip(merged, brute_force(xb, xq, 4), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_file_is_searched_block_by_block_as_an_array_is_at_once(tmp_path, monkeypatch, dtype):
    xb, xq, rows = clusters(400, 1), clusters(50, 2), np.arange(3, 400, 3)
    np.save(tmp_path / "xb.npy", xb.astype(dtype))
    mapped = np.load(tmp_path / "xb.npy", mmap_mode="r")
    monkeypatch.setattr("synthaug._neighbors._BLOCK_VALUES", 6 * 37)
    for got, wanted in zip(Index(mapped).search(xq, 4), brute_force(xb, xq, 4), strict=True):
        np.testing.assert_array_equal(got, wanted)
    some = Index(mapped, rows=rows).search(xq, 4)
    for got, wanted in zip(some, brute_force(xb[rows], xq, 4), strict=True):
        np.testing.assert_array_equal(got, wanted)


def audited(tmp_path: Path, images: bool, engine: Any = "local") -> dict[str, Any]:
    """The report about 40 samples, of which five are copies; training samples repeat."""
    rng = np.random.default_rng(0)
    shape = (1, 8, 8) if images else (12,)
    train, fresh, holdout = (rng.integers(0, 256, (n, *shape)) for n in (300, 40, 60))
    train[200:210], fresh[:5] = train[:10], train[20:25]
    arrays: list[Any] = [
        a.astype(np.uint8 if images else np.float16) for a in (fresh, train, holdout)
    ]
    if not images:
        np.save(tmp_path / "train.npy", arrays[1])
        arrays[1] = tmp_path / "train.npy"
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())
    features: Any = {"features": TorchModule(network, name="random")} if images else {}
    synthetic, real, held = arrays
    report = audit(
        synthetic,
        real,
        holdout=held,
        k=5,
        extraction=ExtractionConfig(batch_size=16, engine=engine),
        progress=False,
        **features,
    )
    report.to_json(tmp_path / "report.json")
    found: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    assert (report.tier[:5] > 0).all()
    del found["environment"]["created"]
    return found


class Counted(np.memmap):
    """A mapped file that counts the rows which are read one after another."""

    rows = 0

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            Counted.rows += len(range(*key.indices(len(self))))
        return super().__getitem__(key)


def test_an_audit_reads_a_file_of_features_three_times(tmp_path):
    """Once for what it holds, once for all that is compared with it, once for planted copies."""
    np.save(tmp_path / "train.npy", np.random.default_rng(0).standard_normal((500, 4), np.float32))
    train = np.load(tmp_path / "train.npy", mmap_mode="r").view(Counted)
    fresh, holdout = np.random.default_rng(1).standard_normal((2, 60, 4))
    audit(fresh, train, holdout=holdout, progress=False)
    assert Counted.rows == 3 * len(train)


class Here:
    """A pool, its actors and Ray, in this process."""

    size = 2

    def __init__(self, networks: Any) -> None:
        hand = Hand()
        hand.extractors = networks
        self.features, self.search = (
            SimpleNamespace(remote=f) for f in (hand.features, hand.search)
        )

    @property
    def ray(self) -> "Here":
        return self

    def put(self, value: Any) -> Any:
        return value

    def map(self, items: Any, call: Any, *, tries: int) -> Any:
        del tries
        return [call(self, item) for item in items]


@pytest.mark.parametrize("images", [True, False], ids=["images", "features in a file"])
def test_an_audit_in_shards_is_that_of_one_process(tmp_path, monkeypatch, images):
    @contextmanager
    def crew_of(engine: Any, extractors: Any) -> Any:
        networks = [e for e in extractors if hasattr(e, "weights")]
        here: Any = Here(networks)
        yield Crew(here, networks, engine.tries)

    alone = audited(tmp_path, images)
    monkeypatch.setattr("synthaug._audit.comparison.crew_of", crew_of)
    monkeypatch.setattr("synthaug._audit.cluster._SHARD_VALUES", 12 * 70)
    assert audited(tmp_path, images, engine=RayEngine()) == alone


@pytest.mark.xdist_group("ray")
def test_an_audit_over_ray_is_that_of_one_process(ray, tmp_path):
    alone = audited(tmp_path, images=True)
    assert audited(tmp_path, images=True, engine=RayEngine(actors=2)) == alone


def test_over_ray_the_search_is_exact_and_other_engines_are_unknown():
    pixels = np.zeros((4, 1, 8, 8), np.uint8)
    with pytest.raises(ValueError, match="`index` is 'sq', but over Ray the search is exact"):
        audit(pixels, pixels, index="sq", extraction=ExtractionConfig(engine="ray"))
    unknown: Any = "spark"
    with pytest.raises(ValueError, match="`engine` must be one of 'local', 'ray', got 'spark'"):
        ExtractionConfig(engine=unknown)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        ExtractionConfig(batch_size=0)


@pytest.mark.parametrize(("place", "gpus"), [("cpu", 0), ("cuda", 1)])
def test_actors_reserve_a_gpu_if_features_are_computed_on_one(monkeypatch, place, gpus):
    ray, options = FakeRay(), []
    ray.resources = {"CPU": 3, "GPU": 2}

    def remote(kind: Any) -> Any:
        def chosen(**arguments: Any) -> Any:
            options.append(arguments)
            return SimpleNamespace(remote=lambda: Actor(kind()))

        return SimpleNamespace(options=chosen)

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setitem(sys.modules, "ray", ray)
    network = TorchModule(torch.nn.Flatten(), name="flat")
    network.device = torch.device(place)
    with crew_of(RayEngine(), [network]):
        pass
    assert [chosen["num_gpus"] for chosen in options] == [gpus]
