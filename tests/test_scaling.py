"""Work over several processes, and over more data than memory holds, equals that of one process."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import degradations
from synthaug._training import TrainingConfig, TrainingResult, _among
from synthaug.synthesizers import ClassConditional
from synthaug.synthesizers._cascade_fit import StageFitJob
from synthaug.synthesizers._cold_fit import ColdFitJob
from synthaug.synthesizers._fit import FitJob
from synthaug.synthesizers._hardness import NoisyEncoder
from synthaug.synthesizers._hardness_fit import Guides, HardnessFitJob
from synthaug.synthesizers._tokens import TokenFitJob
from tests.checkpoints import write_stable_diffusion
from tests.test_cascade import job as cascade_job
from tests.test_class_conditional import tiny
from tests.test_diffusion_inversion import Real, fitted
from tests.test_fine_tuning import Real as Images
from tests.test_fine_tuning import job_of as fine_tune_job
from tests.test_low_density import Bright

# Training


def trained(out: Path, steps: int, batch_size: int = 4) -> TrainingResult:
    settings = TrainingConfig(
        steps=steps, batch_size=batch_size, warmup_steps=2, device="cpu", checkpoint_seconds=1e9
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
        "ACCELERATE_USE_CPU": "1",
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
    token: dict[str, Any] = {"num_tokens": 2, "token_width": 8, "token_noise": 0.5}
    return TokenFitJob(
        Real(10), **token, token_dropout=0.3, **SMALL, prediction_type="v_prediction"
    )


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
    job._read_synthetic = job._read_given
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
