"""Work over several processes, and over more data than memory holds, equals that of one process."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import audit, degradations
from synthaug._audit.cluster import Crew, Hand
from synthaug._cache import SynthCache
from synthaug._neighbors import Index, nearest_first
from synthaug._plan import Plan
from synthaug._training.loop import TrainingConfig, TrainingResult, _among
from synthaug.caches import RayEngine, estimate_cost, evaluations_per_second
from synthaug.features import ExtractionConfig, TorchModule
from synthaug.synthesizers import ClassConditional
from synthaug.synthesizers._fit import FitJob
from synthaug.synthesizers.cascade._fit import StageFitJob
from synthaug.synthesizers.cold._fit import ColdFitJob
from synthaug.synthesizers.inversion._tokens import TokenConfig, TokenFitJob
from synthaug.synthesizers.low_density._fit import Guides, HardnessFitJob
from synthaug.synthesizers.low_density._hardness import NoisyEncoder
from tests.checkpoints import write_stable_diffusion
from tests.test_cascade import job as cascade_job
from tests.test_class_conditional import tiny
from tests.test_diffusion_inversion import Real, fitted
from tests.test_fine_tuning import Real as Images
from tests.test_fine_tuning import job_of as fine_tune_job
from tests.test_low_density import Bright

# Audits


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
    """Ray and its actors, in this process: calls end in another order than they began."""

    size = 2

    def __init__(self, networks: Any) -> None:
        hand = Hand()
        hand.extractors = networks
        self.features, self.search = (
            SimpleNamespace(remote=f) for f in (hand.features, hand.search)
        )

    def put(self, value: Any) -> Any:
        return value

    def map(self, items: Any, call: Any, *, tries: int) -> Any:
        del tries
        return ((item, call(self, item)) for item in reversed(items))


@pytest.mark.parametrize("images", [True, False], ids=["images", "features in a file"])
def test_an_audit_in_shards_is_that_of_one_process(tmp_path, monkeypatch, images):
    @contextmanager
    def crew_of(engine: Any, extractors: Any) -> Any:
        networks = [e for e in extractors if hasattr(e, "weights")]
        here: Any = Here(networks)
        yield Crew(here, here, networks, engine.tries)

    alone = audited(tmp_path, images)
    monkeypatch.setattr("synthaug._audit.run.crew_of", crew_of)
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
    with pytest.raises(ValueError, match="`engine` must be 'local', 'ray' or a RayEngine"):
        ExtractionConfig(engine=unknown)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        ExtractionConfig(batch_size=0)


# Training


def trained(out: Path, steps: int, batch_size: int = 4) -> TrainingResult:
    device = None if "RANK" in os.environ else "cpu"  # ranks find out by themselves
    settings = TrainingConfig(
        steps=steps, batch_size=batch_size, warmup_steps=2, device=device, checkpoint_seconds=1e9
    )
    small: dict[str, Any] = {"channels": 8, "label_dropout": 0.3, "horizontal_flip": True}
    return ClassConditional.fit(Real(10), out, config=settings, progress=False, **small)[1]


def rank_main(out: Path) -> None:
    """What each of two processes does."""
    curve = trained(out / "shared", 6).loss_curve
    embeddings = fitted(out / "inverted", Real(), block_size=1).digest
    with pytest.raises(ValueError, match="multiple") as refused:
        trained(out / "odd", 2, batch_size=3)
    seen = {"curve": curve, "embeddings": embeddings, "refused": str(refused.value)}
    (out / f"rank{os.environ['RANK']}.json").write_text(json.dumps(seen))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> tuple[Path, list[Any]]:
    """A folder in which two processes took up what one had begun, and what each of them saw."""
    out = tmp_path_factory.mktemp("ranks")
    trained(out / "shared", 3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CUDA_VISIBLE_DEVICES": "",
    }
    code = f"from tests.test_scaling import *; rank_main(Path({str(out)!r}))"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**environment, "RANK": str(r), "LOCAL_RANK": str(r)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    errors = [process.communicate(timeout=600)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    return out, [json.loads((out / f"rank{r}.json").read_text()) for r in range(2)]


def test_training_does_not_depend_on_the_number_of_processes_which_may_change_on_the_way(
    two_ranks, tmp_path
):
    out, (first, second) = two_ranks
    assert first["curve"] == second["curve"]
    alone = trained(tmp_path, 6).loss_curve
    assert dict(first["curve"]) == pytest.approx(dict(alone), rel=1e-5)
    expected, again = (dict(trained(p, 8).loss_curve) for p in (tmp_path, out / "shared"))
    assert again == pytest.approx(expected, rel=1e-5)


def test_processes_share_the_images_to_invert_and_all_have_the_embeddings_of_one(
    two_ranks, tmp_path
):
    out, ranks = two_ranks
    alone = fitted(tmp_path, Real(), block_size=1).digest
    assert [rank["embeddings"] for rank in ranks] == [alone, alone]
    assert (out / "inverted" / "inversion.json").exists()


def test_a_batch_that_processes_cannot_split_is_refused_in_all_of_them(two_ranks):
    for rank in two_ranks[1]:
        assert "`batch_size` 3 is the batch of all processes together" in rank["refused"]


SMALL: dict[str, Any] = {"channels": 8, "num_layers": 1, "horizontal_flip": True}
LABELLED: dict[str, Any] = {**SMALL, "prediction_type": "epsilon", "label_dropout": 0.3}


def stage(augmentation: str) -> StageFitJob:
    return cascade_job(augmentation, Real(10), **LABELLED)


def cold() -> ColdFitJob:
    degradation = degradations.GaussianNoise(num_levels=5)
    return ColdFitJob(Real(10), degradation, **SMALL, colour_components=1, seed=0)


def tokens() -> TokenFitJob:
    config = TokenConfig(num_tokens=2, token_width=8, token_noise=0.5, token_dropout=0.3)
    return TokenFitJob(Real(10), config, **SMALL, prediction_type="v_prediction")


JOBS: dict[str, Callable[[], Any]] = {
    "labels": lambda: FitJob(Real(10), None, **LABELLED),
    "stage with noise": lambda: stage("gaussian"),
    "stage with blur": lambda: stage("blur"),
    "tokens": tokens,
    "cold": cold,
}


@pytest.mark.parametrize("kind", JOBS)
def test_the_loss_of_a_batch_is_the_mean_of_what_two_processes_find_for_their_halves(kind):
    job, indices = JOBS[kind](), np.array([3, 1, 4, 1, 5, 9])
    torch.manual_seed(0)
    module = job._build()
    assert_halves_make_a_whole(job, module, indices)


def assert_halves_make_a_whole(job: Any, module: Any, indices: Any) -> None:
    def loss(rank: int, processes: int) -> float:
        n = len(indices) // processes
        torch.manual_seed(1)
        with _among(rank, processes), torch.no_grad():
            return float(job._loss(module, indices[rank * n : (rank + 1) * n]))

    whole = loss(0, 1)
    first, second = loss(0, 2), loss(1, 2)
    assert (first + second) / 2 == pytest.approx(whole, rel=1e-5)
    assert first != pytest.approx(second, rel=1e-3)


def test_so_is_the_loss_of_what_steers_towards_rare_images():
    settings: dict[str, Any] = {"num_synthetic": None, "embedding_dim": 4, "noise_levels": 2}
    base: Any = tiny()
    job = HardnessFitJob(base, Bright(), Bright(per_class=5), horizontal_flip=True, **settings)
    job._draw_synthetic(Path(), 0, False)  # takes those that are given
    torch.manual_seed(0)
    shape = job.model.latent_shape
    encoders = [
        NoisyEncoder(NoisyEncoder.config_for(job.model.denoiser, shape), n, 4) for n in (4, 2)
    ]
    assert_halves_make_a_whole(job, Guides(*encoders), np.array([3, 1, 14, 15, 9, 26]))


def test_so_is_the_loss_of_a_pretrained_model_and_its_autoencoder(tmp_path):
    write_stable_diffusion(tmp_path)
    job = fine_tune_job(tmp_path, Images(3), horizontal_flip=True, label_dropout=0.3)
    assert_halves_make_a_whole(job, job._build(), np.array([3, 1, 4, 1, 5, 2]))


# Costs


def test_a_cost_follows_from_the_rate_and_the_number_of_devices():
    cost = estimate_cost(
        10, (3, 4, 5), evaluations_per_image=6, evaluations_per_second=2, devices=4, parameters=1
    )
    # The slowest device draws 3 of the 10 images.
    assert (cost.seconds, cost.network_evaluations) == (9.0, 60)
    assert cost.device_hours == pytest.approx(4 * 9 / 3600)
    assert str(cost).endswith("under a minute on 4 devices, 0.01 device hours")
    assert estimate_cost(10, (3, 4, 5)).seconds is None
    with pytest.raises(ValueError, match="`devices` must be positive, got 0"):
        estimate_cost(10, (3, 4, 5), devices=0)


def test_the_predicted_bytes_are_those_of_the_cache_but_for_its_description(tmp_path):
    plan, shape = Plan.build([2000], classes=("a",), settings={}, seed=0), (3, 32, 32)
    manifest: dict[str, Any] = {"recipe": {"settings": {}}}
    SynthCache.open_for_writing(tmp_path / "a.h5", plan, image_shape=shape, manifest=manifest)
    described = (tmp_path / "a.h5").stat().st_size - estimate_cost(len(plan), shape).bytes
    assert 0 < described < 100_000


class Clocked:
    """Takes two ticks of a clock per image that it draws, and evaluates its network as often."""

    now = 0.0

    def draw(self, rows: Plan) -> torch.Tensor:
        self.now += 2 * len(rows)
        return torch.zeros(len(rows), 1, 2, 2)

    def evaluations(self, rows: Plan) -> Any:
        return np.full(len(rows), 6)


@pytest.mark.parametrize("rows", [3, 8, 100])
def test_a_rate_is_that_of_whole_batches_after_the_first(monkeypatch, rows):
    clocked = Clocked()
    monkeypatch.setattr("time.perf_counter", lambda: clocked.now)
    plan = Plan.build([rows], classes=("a",), settings={}, seed=0)
    assert evaluations_per_second(clocked, plan, batch_size=8, seconds=40) == 3.0
