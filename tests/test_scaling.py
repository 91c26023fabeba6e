"""Training over several processes equals that of one; what a cache costs is known before."""

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import Plan, SynthCache, degradations, generate
from synthaug._training.loop import _among
from synthaug._training.network_config import DenoiserConfig, LabeledConfig
from synthaug.caches import estimate_cost, evaluations_per_second
from synthaug.synthesizers._fit import FitJob
from synthaug.synthesizers.cascade._fit import StageFitJob
from synthaug.synthesizers.cold._config import RestorerConfig
from synthaug.synthesizers.cold._fit import ColdFitJob
from synthaug.synthesizers.inversion._config import TokenConfig
from synthaug.synthesizers.inversion._tokens import TokenFitJob
from synthaug.synthesizers.low_density._config import GuideConfig
from synthaug.synthesizers.low_density._fit import HardnessFitJob
from tests import processes
from tests.checkpoints import write_stable_diffusion
from tests.ranks import trained
from tests.tiny.cascades import job as cascade_job
from tests.tiny.class_conditional import tiny
from tests.tiny.fine_tuning import Real as Images
from tests.tiny.fine_tuning import job_of as fine_tune_job
from tests.tiny.inversions import Real, fitted
from tests.tiny.low_density import Bright

pytestmark = pytest.mark.usefixtures("few_steps")

# Training


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory) -> tuple[Path, list[Any]]:
    """A folder in which two processes took up what one had begun, and what each of them saw."""
    out = tmp_path_factory.mktemp("ranks")
    trained(out / "shared", 3)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = {
        "WORLD_SIZE": 2,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "CUDA_VISIBLE_DEVICES": "",
    }
    program = "import sys\nfrom tests.ranks import rank_main\nrank_main(sys.argv[1])"
    ranks = [
        processes.start(program, out, environment={**environment, "RANK": r, "LOCAL_RANK": r})
        for r in range(2)
    ]
    ended = [rank.wait() for rank in ranks]
    assert [rank.returncode for rank in ended] == [0, 0], ended
    return out, [json.loads((out / f"rank{r}.json").read_text()) for r in range(2)]


@pytest.mark.xdist_group("forkserver")
def test_training_does_not_depend_on_the_number_of_processes_which_may_change_on_the_way(
    two_ranks, tmp_path
):
    out, (first, second) = two_ranks
    assert first["curve"] == second["curve"]
    alone = trained(tmp_path, 6).loss_curve
    assert dict(first["curve"]) == pytest.approx(dict(alone), rel=1e-5)
    expected, again = (dict(trained(p, 8).loss_curve) for p in (tmp_path, out / "shared"))
    assert again == pytest.approx(expected, rel=1e-5)


@pytest.mark.xdist_group("forkserver")
def test_processes_share_the_images_to_invert_and_all_have_the_embeddings_of_one(
    two_ranks, tmp_path
):
    out, ranks = two_ranks
    alone = fitted(tmp_path, Real(), block_size=1).digest
    assert [rank["embeddings"] for rank in ranks] == [alone, alone]
    assert (out / "inverted" / "inversion.json").exists()


@pytest.mark.xdist_group("forkserver")
def test_a_batch_that_processes_cannot_split_is_refused_in_all_of_them(two_ranks):
    for rank in two_ranks[1]:
        assert "`batch_size` 3 is the batch of all processes together" in rank["refused"]


SMALL: dict[str, Any] = {"channels": 8, "num_layers": 1, "horizontal_flip": True}
LABELED: dict[str, Any] = {**SMALL, "prediction_type": "epsilon", "label_dropout": 0.3}


def stage(augmentation: str) -> StageFitJob:
    return cascade_job(augmentation, Real(10), **LABELED)


def cold() -> ColdFitJob:
    degradation = degradations.GaussianNoise(num_levels=5)
    return ColdFitJob(Real(10), degradation, RestorerConfig(**SMALL), seed=0)


def tokens() -> TokenFitJob:
    config = TokenConfig(num_tokens=2, token_width=8, token_noise=0.5, token_dropout=0.3)
    return TokenFitJob(Real(10), config, DenoiserConfig(**SMALL))


JOBS: dict[str, Callable[[], Any]] = {
    "labels": lambda: FitJob(Real(10), None, LabeledConfig(**LABELED)),
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
    base: Any = tiny()
    config = GuideConfig(embedding_dim=4, noise_levels=2, horizontal_flip=True)
    job = HardnessFitJob(base, Bright(), Bright(per_class=5), config)
    job._draw_synthetic(Path(), 0, False)  # takes those that are given
    torch.manual_seed(0)
    assert_halves_make_a_whole(job, job._build(), np.array([3, 1, 14, 15, 9, 26]))


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
    """Takes ticks of a clock for each batch that it draws, and for each image as its row says; the
    first batch of every size takes 50 more."""

    image_shape = (1, 2, 2)

    def __init__(self, batch_cost: float = 0.0) -> None:
        self.now, self.batch_cost = 0.0, batch_cost
        self.sizes: set[int] = set()

    def draw(self, rows: Plan) -> torch.Tensor:
        new = len(rows) not in self.sizes
        self.sizes.add(len(rows))
        self.now += 50 * new + self.batch_cost + 2 * int(self.evaluations(rows).sum())
        return torch.zeros(len(rows), 1, 2, 2)

    def evaluations(self, rows: Plan) -> Any:
        return rows["steps"] if "steps" in rows.columns else np.ones(len(rows), np.int64)

    def recipe(self) -> dict[str, Any]:
        return {"settings": {}}


@pytest.fixture
def clocked(monkeypatch) -> Clocked:
    """One whose clock every measurement reads, and writing an image takes a tick of it."""
    made, write = Clocked(batch_cost=20), SynthCache.write

    def slow_write(cache, rows, *args, **options):
        made.now += len(rows)
        return write(cache, rows, *args, **options)

    monkeypatch.setattr(SynthCache, "write", slow_write)
    monkeypatch.setattr("time.perf_counter", lambda: made.now)
    return made


@pytest.mark.parametrize("per_class", [16, 480])
def test_an_estimate_is_what_the_whole_job_takes(clocked, tmp_path, per_class):
    # Settings alternate, as guidance scales do, and batches of the job have both of them.
    quota, parameters = [per_class] * 2, {"steps": [1, 9]}
    plan = Plan.build(quota, classes=("a", "b"), settings={}, parameters=parameters, seed=0)
    rate = evaluations_per_second(clocked, plan, batch_size=16, seconds=10_000)
    mean = float(clocked.evaluations(plan).mean())
    cost = estimate_cost(
        len(plan), (1, 2, 2), evaluations_per_image=mean, evaluations_per_second=rate
    )
    begun = clocked.now
    generate(clocked, plan, tmp_path / "a.h5", batch_size=16, progress=False)
    taken = clocked.now - begun
    assert taken == len(plan) * (2 * 5 + 1) + len(plan) // 16 * 20
    assert cost.seconds == pytest.approx(taken, rel=0.05)


def test_to_measure_the_rate_of_a_slow_device_takes_no_whole_batch(clocked):
    plan = Plan.build([1000], classes=("a",), settings={}, seed=0)
    assert evaluations_per_second(clocked, plan, batch_size=64, seconds=3) == 1 / 23
    assert clocked.sizes == {1}
    assert clocked.now == 50 + 22 + 23  # a row that warms up, and one that is measured
