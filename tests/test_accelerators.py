"""Accelerators that are not here: which one is chosen, what it lacks, and what survives."""

import contextlib
import importlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor

from synthaug import OnTheFlyDataset, TrainingConfig
from synthaug._cluster.ray import ActorPool
from synthaug._support.devices import choose_device
from synthaug._support.memory import is_device_lost, is_out_of_memory
from synthaug._support.torch_state import full_precision
from synthaug.errors import CheckpointError
from synthaug.synthesizers import ClassConditional
from synthaug.synthesizers.inversion._fit import InversionJob, run_pass
from tests.drawing import Noise, plan_of
from tests.fake_ray import FakeRay
from tests.tiny import class_conditional, inversions

NO_MEMORY = (
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory"
    ),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 8 GB, other allocations: 1 GB)"),
    RuntimeError("Invalid buffer size: 12.00 GB"),
    RuntimeError("XPU out of memory, please use `empty_cache` to release all unoccupied memory."),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
)
BROKEN = RuntimeError("CUDA error: an illegal memory access was encountered")


def test_errors_that_say_that_memory_did_not_suffice_are_told_from_others():
    for error in NO_MEMORY:
        assert is_out_of_memory(error)
        assert not is_device_lost(error)
        wrapped = ValueError("a part failed")
        wrapped.__cause__ = error
        assert is_out_of_memory(wrapped)
    for other in (BROKEN, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None):
        assert not is_out_of_memory(other)
    assert is_device_lost(BROKEN)


def test_an_inversion_whose_batch_does_not_fit_learns_the_same_embeddings(monkeypatch):
    learned, sizes = [], []
    for small in (False, True):
        synthesizer = inversions.generator()
        job = InversionJob(
            synthesizer.model, None, inversions.Real(), inversions.config(batch_size=4)
        )
        block, network = job._block(np.arange(3)), synthesizer.model.network
        if small:
            plain = network.forward

            def limited(x: Tensor, *args: Any, plain: Any = plain, **kwargs: Any) -> Any:
                sizes.append(len(x))
                if len(x) > 1:
                    raise NO_MEMORY[3]
                return plain(x, *args, **kwargs)

            monkeypatch.setattr(network, "forward", limited)
        for _ in range(2):
            run_pass(job.model.denoiser, job.scheduler, block, job.config)
        learned.append(block.embeddings)
    assert sizes == [3, 1, 1, 1, 1, 1, 1]
    torch.testing.assert_close(*learned, atol=1e-4, rtol=0)


def test_checkpointing_gradients_changes_no_embedding(tmp_path, computed_again):
    digests = []
    for on in (False, True):
        config = {"gradient_checkpointing": on}
        digests.append(inversions.fitted(tmp_path / str(on), inversions.Real(), **config).digest)
        assert bool(computed_again) is on
    assert digests[0] == digests[1]


@pytest.mark.parametrize("error", [NO_MEMORY[3], NO_MEMORY[5]])
def test_images_drawn_on_the_fly_shrink_their_batches_too(error):
    class Limited(Noise):
        def draw(self, rows: Any) -> Tensor:
            if len(rows) > 2:
                raise error
            return super().draw(rows)

    live = OnTheFlyDataset(Limited(), plan_of(), size=6, batch_size=6, background=False)
    assert len(live.read(range(6))) == 6


def test_a_network_without_memory_is_not_said_to_be_damaged():
    denoiser = class_conditional.tiny().model.denoiser
    kinds = ((NO_MEMORY[3], RuntimeError), (BROKEN, RuntimeError), (KeyError(), CheckpointError))
    for error, kind in kinds:

        def fail(*_: Any, error: Exception = error, **__: Any) -> Any:
            raise error

        denoiser.network.forward = fail
        with pytest.raises(kind) as raised:
            denoiser(torch.zeros(1, 1, 8, 8), torch.tensor(3), torch.tensor([0]))
        assert (raised.value is error) == (kind is RuntimeError)


def accelerator(monkeypatch: pytest.MonkeyPatch, kind: str | None, count: int = 4) -> None:
    """Pretends that this machine has `count` devices of a kind, of which no tensor is made."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: kind == "cuda")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device(str(kind)))
    counted = SimpleNamespace(device_count=lambda: count)
    monkeypatch.setattr(torch, "get_device_module", lambda device: counted)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("kind", "name", "rank", "chosen"),
    [
        (None, None, None, "cpu"),
        ("cuda", None, None, "cuda"),
        ("cuda", "auto", None, "cuda"),
        ("cuda", None, "6", "cuda:2"),
        ("cuda", "cuda", "1", "cuda:1"),
        ("cuda", "cuda:3", "1", "cuda:3"),
        ("cuda", "cpu", "1", "cpu"),
        ("mps", None, "1", "mps"),
        ("xpu", "auto", "1", "xpu:1"),
        ("hpu", None, None, "cpu"),
    ],
)
def test_the_accelerator_that_is_there_is_chosen_and_ranks_share_its_devices(
    monkeypatch, kind, name, rank, chosen
):
    accelerator(monkeypatch, kind)
    if rank is None:
        monkeypatch.delenv("LOCAL_RANK", raising=False)
    else:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert choose_device(name) == torch.device(chosen)


def test_what_accelerate_launch_sets_changes_no_weight(tmp_path, monkeypatch):
    config = TrainingConfig(
        steps=2, batch_size=4, device="cpu", precision="float32", max_grad_norm=0.01
    )
    digests = []
    for launched in (False, True):
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        if launched:
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
            monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
            assert Accelerator(cpu=True).native_amp  # it does obey them
        trained, _ = ClassConditional.fit(
            inversions.Real(), tmp_path / str(launched), config=config, progress=False, channels=8
        )
        assert "forward" not in vars(trained.model.network)
        digests.append(trained.model.weights)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    assert digests[0] == digests[1]


def arithmetic() -> tuple[bool, str]:
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture
def reduced():
    """A caller who allows TF32 everywhere."""
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("high")
    yield
    torch.backends.cudnn.allow_tf32 = True
    torch.set_float32_matmul_precision("highest")


def test_draws_multiply_in_float32_and_leave_the_callers_settings(reduced, monkeypatch):
    synthesizer, seen = class_conditional.tiny(num_inference_steps=1), []
    network = synthesizer.model.network
    plain = network.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append(arithmetic())
        return plain(*args, **kwargs)

    monkeypatch.setattr(network, "forward", watched)
    synthesizer.draw(synthesizer.plan(per_class=1)[:1])
    assert set(seen) == {(False, "highest")}
    assert arithmetic() == (True, "high")
    with contextlib.suppress(KeyError), full_precision(), full_precision():
        raise KeyError
    assert arithmetic() == (True, "high")


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="torch before 2.9")
def test_a_caller_who_allows_tf32_on_a_gpu_alone_still_does_so_afterwards(reduced):
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = True
    backends: Any = torch.backends
    parts = backends.cuda.matmul, backends.mkldnn.matmul
    before = [part.fp32_precision for part in parts]
    with full_precision():
        assert arithmetic() == (False, "highest")
    assert [part.fp32_precision for part in parts] == before


def test_an_actor_whose_device_is_lost_is_replaced():
    made = []

    class Fragile:
        def __init__(self) -> None:
            made.append(self)
            self.broken = len(made) == 1

        def load(self) -> None:
            pass

        def negate(self, number: int) -> int:
            if self.broken:
                raise BROKEN
            return -number

    ray = FakeRay()
    pool = ActorPool(ray, ray.remote(Fragile).options().remote, 1)
    with pool:
        found = pool.map([1, 2, 3], lambda actor, number: actor.negate.remote(number))
    assert found == [-1, -2, -3]
    assert len(made) == 2


def test_the_gpu_script_goes_on_and_says_what_it_skipped(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    gpu = importlib.import_module("gpu")
    runs = []

    def failing(place: Any) -> dict[str, Any]:
        runs.append(place)
        raise ValueError("no")

    def without(place: Any) -> dict[str, Any]:
        raise ModuleNotFoundError("No module named 'diffusers'", name="diffusers")

    monkeypatch.setattr(
        gpu, "PARTS", {"search": gpu.search, "waits": gpu.waits, "a": failing, "b": without}
    )
    place = gpu.Place(torch.device("cpu"), tiny=True, ends=0.0)
    path = tmp_path / "gpu.json"
    for _ in range(2):
        assert gpu.run(place, list(gpu.PARTS), path, again=False) == 1
    parts = json.loads(path.read_text())["parts"]
    assert parts["search"]["same_nearest"] == 1
    assert "needs a CUDA device" in parts["waits"]["why"]
    assert parts["b"]["why"] == "diffusers is not installed"
    assert parts["a"]["error"] == "ValueError: no"
    assert len(runs) == 2  # what failed is run again
