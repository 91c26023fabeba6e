"""Torch's global state changes no image and breaks no call; tensors name their dtype and device."""

import ast
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier, Event, Thread
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import synthaug
from synthaug import (
    Cascade,
    ClassConditional,
    ColdDiffusion,
    DiffusionInversion,
    LowDensity,
    MixedDataset,
    OnTheFlyDataset,
    SynthCache,
    TrainingConfig,
    features,
    generate,
    load_dataset,
    metrics,
)
from synthaug._support.torch_state import lasting_tensors, shared, shared_counter, torch_defaults
from synthaug.degradations import Animorphosis, Blur
from synthaug.density import ClassGaussians, Neighborhood
from synthaug.evaluation import AffineAugment, Arm, ClassifierConfig, CutMix
from synthaug.evaluation._classifiers import build_classifier
from synthaug.images import LabeledImages
from synthaug.samplers import _KNOWN, Trajectory, make_scheduler, sample
from synthaug.synthesizers import (
    Constant,
    FineTuningConfig,
    FromPipeline,
    InversionConfig,
    SamplerConfig,
    StageConfig,
    TokenConfig,
    streams,
)
from synthaug.transforms import ColdRestore, MixSynthetic, SyntheticVariant
from tests import processes
from tests.checkpoints import tiny_unet, write_stable_diffusion
from tests.degradations import ALL
from tests.images import to_images
from tests.tiny.low_density import few_noisy_images
from tests.variants import make_cache, real_images

pytestmark = [
    pytest.mark.xdist_group("forkserver"),  # of one test; the others share what tasks compute
    pytest.mark.usefixtures("short_audits"),
]

CLASSES = ("ant", "bee")
TWO_STEPS = SamplerConfig(num_inference_steps=2)
TINY: dict[str, Any] = {
    "config": TrainingConfig(steps=2, batch_size=4),
    "channels": 8,
    "progress": False,
}
Found = dict[str, Any]
"""What a task computed; equal in every state of torch."""


# States of torch and of the process


@contextmanager
def float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def meta() -> Iterator[None]:
    """A device whose tensors hold nothing: whatever lands there by accident fails."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATE: tuple[Callable[[], AbstractContextManager[Any]], ...] = (
    float64,
    meta,
    deterministic,
    torch.inference_mode,
)
"""All at once, since every task is slow and none of them hides another: what names no device fails,
what names no dtype is float64, and whoever leaves `inference_mode` has left `no_grad` too."""


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    yield
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device() == torch.device("cpu")
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.fixture(autouse=True)
def _fewer_noisy_images(monkeypatch: pytest.MonkeyPatch) -> None:
    few_noisy_images(monkeypatch, per_level=40)


# What is computed in each of them


def real(n: int = 12, channels: int = 1, seed: int = 0, size: int = 8) -> LabeledImages:
    shape = (n, channels, size, size)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return LabeledImages(torch.from_numpy(pixels), np.arange(n) % 2, CLASSES)


def copies(path: Path, images: LabeledImages) -> SynthCache:
    """A cache of copies of the images."""
    synthesizer = Constant(images.read(range(len(images))), images.labels, classes=CLASSES)
    plan = synthesizer.plan(per_class=len(images) // 2)
    return generate(synthesizer, plan, path, progress=False)


def class_conditional(folder: Path) -> Found:
    ClassConditional.fit(real(), folder / "model", **TINY)
    tuned, _ = ClassConditional.fine_tune(
        folder / "model", real(seed=1), folder / "tuned", config=TINY["config"], progress=False
    )
    found: Found = {"fine-tuned": tuned.recipe()}
    for name in ("ddpm", "dpmsolver++"):
        model = ClassConditional.from_pretrained(
            folder / "model", sampler={"scheduler": name, "num_inference_steps": 3}
        )
        plan = model.plan(per_class=1, guidance_scale=[1.0, 3.0])
        found[name] = [model.draw(plan), model.evaluations(plan), model.recipe()]
    started = ClassConditional.from_pretrained(folder / "model").with_sources(real())
    plan = started.plan(per_class=2, strength=0.01)
    cache = generate(started, plan, folder / "cache.h5", progress=False)
    return {**found, "cache": cache.read(np.arange(len(cache))), "plan": plan.digest}


FOUR_STEPS = Trajectory(num_inference_steps=4)


@dataclass
class Halving:
    """Stands in for a network."""

    device = torch.device("cpu")

    def __call__(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        return x / 2


def schedulers(folder: Path) -> Found:
    found: Found = {}
    for name in _KNOWN:
        scheduler = make_scheduler(name, {"beta_schedule": "squaredcos_cap_v2"})
        arguments: dict[str, Any] = {"shape": (1, 2, 2), "generators": streams([1, 2])}
        found[name] = sample(Halving(), scheduler, None, FOUR_STEPS, **arguments)
    return found


def stable_diffusion(folder: Path) -> Found:
    path = folder.parent / "stable-diffusion"
    base = ClassConditional.from_pretrained(path, classes=CLASSES, sampler=TWO_STEPS)
    plan = base.plan(per_class=1, guidance_scale=2.0)
    tuned, _ = ClassConditional.fine_tune(
        path,
        real(4, channels=3),
        folder / "tuned",
        adaptation=FineTuningConfig(lora_rank=2),
        config=TrainingConfig(steps=1, batch_size=2),
        progress=False,
    )
    decoded = synthaug.evaluation.reconstructions(real(channels=3), path, progress=False)
    return {
        "drawn": base.draw(plan),
        "recipe": base.recipe(),
        "fine-tuned": tuned.with_settings(num_inference_steps=2).draw(plan),
        "decoded": decoded.read(range(12)),
    }


def from_pipeline(folder: Path) -> Found:
    from diffusers import DDPMPipeline

    with torch_defaults():  # another's object, whose dtypes are another's choice
        pipeline = DDPMPipeline.from_pretrained(folder.parent / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    synthesizer = FromPipeline(pipeline, CLASSES[:1], num_inference_steps=2)
    plan = synthesizer.plan(per_class=2)
    return {"drawn": synthesizer.draw(plan), "recipe": synthesizer.recipe()}


def cold_diffusion(folder: Path) -> Found:
    blur = Blur(num_levels=4, kernel_size=3, exact_mean=True)
    ColdDiffusion.fit(real(), folder / "model", degradation=blur, **TINY)
    cold = ColdDiffusion.from_pretrained(folder / "model")
    one = ColdDiffusion.from_pretrained(folder / "model", classes=CLASSES[:1])
    started = cold.with_sources(real())
    torch.manual_seed(0)
    return {
        "drawn": one.draw(one.plan(per_class=2)),
        "recipe": cold.recipe(),
        "from sources": started.draw(started.plan(per_class=2, severity=0.5)),
        "restored": ColdRestore(cold, p=0.5)(real().read(range(4))),
        "one": ColdRestore(folder / "model", p=1.0)(real()[0][0]),
    }


def degraded(folder: Path) -> Found:
    images = to_images(real(1, channels=3, size=16).read([0]))
    found: Found = {}
    others = Animorphosis(others=real(channels=3, size=16), num_levels=8)
    for i, degradation in enumerate([others, *(d for d in ALL if type(d) is not Animorphosis)]):
        realization = degradation.realize(streams([1]), (3, 16, 16))
        found[f"{i} {degradation}"] = [degradation(images, s, realization) for s in (1, 3)]
    return found


def low_density(folder: Path) -> Found:
    base, _ = ClassConditional.fit(real(), folder / "base", **TINY)
    base = base.with_settings(num_inference_steps=2)
    LowDensity.fit(
        real(),
        base,
        folder / "guides",
        num_synthetic=4,
        embedding_dim=4,
        noise_levels=2,
        config=TINY["config"],
        progress=False,
    )
    steered = LowDensity.from_pretrained(folder / "guides")
    plan = steered.plan(per_class=1, alpha=0.5, beta=0.5)
    module = features.TorchModule(brightness(), name="brightness")
    estimated = LowDensity.on_estimates(base, real(40), brightness(), estimator="oas")
    return {
        "drawn": steered.draw(plan),
        "recipe": steered.recipe(),
        "estimated": estimated.draw(estimated.plan(per_class=1, alpha=0.5)),
        "features": module(real().read(range(3))),
    }


def brightness() -> nn.Module:
    """Without weights, so that it is the same in every state."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())


def inversion(folder: Path) -> Found:
    trained, _ = DiffusionInversion.fit_generator(
        real(), folder / "model", tokens=TokenConfig(num_tokens=2, token_width=8), **TINY
    )
    config = InversionConfig(updates=2, batch_size=4)
    trained.fit(real(), folder / "inverted", config=config, progress=False)
    model = DiffusionInversion.from_pretrained(folder / "inverted", sampler=TWO_STEPS)
    plan = model.plan(per_class=2, noise=0.1, interpolation=0.2)
    assert trained.cost(real(), config=config) is not None
    return {"drawn": model.draw(plan), "recipe": model.recipe()}


def cascade(folder: Path) -> Found:
    found: Found = {}
    ClassConditional.fit(real(size=4), folder / "base", **TINY)
    for augmentation in ("gaussian", "blur"):
        Cascade.fit_stage(
            real(),
            folder / augmentation,
            StageConfig(low_size=4, conditioning_augmentation=augmentation),
            **TINY,
        )
        model = Cascade.from_pretrained(
            folder / "base", stages=[folder / augmentation], sampler=TWO_STEPS
        )
        found[augmentation] = [model.draw(model.plan(per_class=2)), model.recipe()]
    return found


def datasets(folder: Path) -> Found:
    digits = load_dataset("digits", split="train").subset(range(40))
    cache = copies(folder / "cache.h5", real(n=12))
    mixed = MixedDataset(real(), cache, audit=None, fraction=0.5, seed=0)
    smooth = np.full((12, 2), 0.5, np.float32)
    soft = MixedDataset(
        real(),
        cache,
        audit=None,
        fraction=0.5,
        items=synthaug.mixing.ItemFormat(soft_labels=smooth),
    )
    synthesizer = Constant(real().read(range(12)), real().labels, classes=CLASSES)
    live = OnTheFlyDataset(
        synthesizer, synthesizer.plan(per_class=8), size=8, background=False, output_type="pt"
    )
    found: Found = {"digits": [digits.read(range(40)), digits.labels]}
    for data in (mixed, live):
        data.set_epoch(1)
    items = [mixed[i] for i in range(len(mixed))]
    found["mixed"] = [[np.asarray(image), int(label)] for image, label in items]
    found["soft"] = [np.asarray(soft[i][1]) for i in range(len(soft))]
    found["live"] = live.__getitems__(range(8))
    torch.manual_seed(0)
    batch = real().read(range(12)), torch.from_numpy(real().labels)
    found["batch"] = MixSynthetic(cache, audit=None)(*batch)
    images = real_images()
    variant = SyntheticVariant(make_cache(made(folder / "variants"), images), audit=None)
    found["variants"] = [np.asarray(variant(images[i][0])) for i in range(len(images))]
    return found


def audit(folder: Path) -> Found:
    cache, train = copies(folder / "cache.h5", real(30)), real(60)
    small: dict[str, Any] = {"features": features.Pixel(2), "progress": False}
    report = synthaug.audit(cache, train, holdout=real(60, seed=1), **small)
    return {
        "verdict": report.verdict,
        "passed": report.passed,
        "report": str(report),
        "hardness": synthaug.evaluation.score_hardness(cache, train, **small).hardness,
        "quality": str(synthaug.evaluation.score_quality(cache, train, **small)),
    }


def evaluation(folder: Path) -> Found:
    train, test, validation = real(40), real(20, seed=1), real(20, seed=2)
    arms: dict[str, Any] = {
        "plain": train,
        "turned": Arm(train, augment=AffineAugment(horizontal_flip=True)),
        "cut": Arm(train, augment=CutMix(alpha=0.5)),
    }
    short: dict[str, Any] = {"config": ClassifierConfig(steps=3, batch_size=8), "progress": False}
    report = synthaug.evaluate(arms, test=test, validation=validation, seeds=1, **short)
    cache = copies(folder / "cache.h5", train)
    check = synthaug.evaluation.check_labels(cache, train, threshold=0.1, seeds=(0,), **short)
    runs = [{**asdict(run), "seconds": 0} for run in report.runs]
    return {"runs": runs, "check": check.scores}


def numbers(folder: Path) -> Found:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)).astype(np.float32), np.arange(40) % 2
    gaussians = ClassGaussians.fit(x, y)
    pixels = real(channels=3).read(range(12))
    extractors = ("pixels:4", "spectrum")
    return {
        "hardness": gaussians.all_hardness(x),
        "of a tensor": gaussians.hardness(torch.from_numpy(x), torch.from_numpy(y)),
        "neighbors": Neighborhood(x, 5).scores(),
        "features": [features.named(name)(pixels) for name in extractors],
        "distances": [
            metrics.frechet_distance(x, x[::-1] + 1),
            metrics.kernel_distance(x, x + 1),
            metrics.inception_score(x),
        ],
    }


TASKS = (
    class_conditional,
    schedulers,
    stable_diffusion,
    from_pipeline,
    cold_diffusion,
    degraded,
    low_density,
    inversion,
    cascade,
    datasets,
    audit,
    evaluation,
    numbers,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints that others wrote; each task works in a folder beside them."""
    from diffusers import DDPMPipeline, DDPMScheduler

    folder = tmp_path_factory.mktemp("checkpoints")
    write_stable_diffusion(folder / "stable-diffusion")
    DDPMPipeline(tiny_unet(num_classes=None), DDPMScheduler()).save_pretrained(folder / "pipeline")
    return folder


@pytest.fixture(scope="module")
def expected(folder: Path) -> Callable[[Callable[[Path], Found]], Found]:
    """What a task computes when nobody changed anything."""
    known: dict[str, Found] = {}

    def of(task: Callable[[Path], Found]) -> Found:
        if task.__name__ not in known:
            known[task.__name__] = arrays(task(made(folder / f"{task.__name__}")))
        return known[task.__name__]

    return of


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def arrays(found: Any) -> Any:
    """Tensors as arrays, also inside of mappings and sequences."""
    if isinstance(found, Tensor):
        return found.numpy(force=True)
    if isinstance(found, dict):
        return {key: arrays(value) for key, value in found.items()}
    if isinstance(found, list | tuple):
        return [arrays(value) for value in found]
    return found


def assert_equal(found: Any, wanted: Any) -> None:
    """To the bit, and of the same dtype."""
    assert type(found) is type(wanted)
    if isinstance(wanted, np.ndarray):
        assert found.dtype == wanted.dtype
        np.testing.assert_array_equal(found, wanted)
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_equal(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for a, b in zip(found, wanted, strict=True):
            assert_equal(a, b)
    else:
        assert found == wanted


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_every_task_gives_the_same_in_another_state(task, folder, expected):
    wanted = expected(task)
    with ExitStack() as stack:
        for context in STATE:
            stack.enter_context(context())
        found = arrays(task(made(folder / f"{task.__name__} again")))
    assert_equal(found, wanted)


@pytest.mark.parametrize("task", [class_conditional, datasets, audit], ids=lambda t: t.__name__)
def test_relative_paths_give_the_same_in_another_directory(task, expected, tmp_path, monkeypatch):
    wanted = expected(task)
    monkeypatch.chdir(tmp_path)
    assert_equal(arrays(task(made(Path("here")))), wanted)


def test_what_was_opened_by_a_relative_path_stays_open_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cache = copies(Path("cache.h5"), real())
    mixed = MixedDataset(real(), "cache.h5", audit=None, mode="append", ratio=1.0)
    images = cache.read(np.arange(12))
    pickled = pickle.dumps((SynthCache("cache.h5"), mixed))
    monkeypatch.chdir(made(tmp_path / "elsewhere"))
    cache, mixed = pickle.loads(pickled)
    assert torch.equal(cache.read(np.arange(12)), images)
    assert len([mixed[i] for i in range(24)]) == 24


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_loader_serves_the_same_batches_in_every_state(num_workers, tmp_path):
    """Torch's own loaders fail on "meta", where its random numbers hold nothing."""
    cache = copies(tmp_path / "cache.h5", real())

    def batches() -> Any:
        mixed = MixedDataset(real(), cache, audit=None, fraction=0.5, transform=np.array)
        loader = DataLoader(mixed, batch_size=4, num_workers=num_workers)
        return [arrays(batch) for batch in loader]

    wanted = batches()
    for context in (float64, deterministic, torch.inference_mode):
        with context():
            assert_equal(batches(), wanted)


def test_what_is_made_in_inference_mode_can_be_changed_and_trained_outside(tmp_path):
    with torch.inference_mode():
        cache = copies(tmp_path / "cache.h5", real())
        mixed = MixedDataset(real(), cache, audit=None, fraction=0.5)
        plan = Constant(real().read(range(12)), real().labels).plan(per_class=2)
        live = OnTheFlyDataset(Constant(real().read(range(12)), real().labels), plan)
        ClassConditional.fit(real(), tmp_path / "model", **TINY)
        model = ClassConditional.from_pretrained(tmp_path / "model")
    for data in (mixed, live):
        data.set_epoch(2)
        assert data.epoch == 2
    network = model.model.network.requires_grad_(True)
    t = torch.zeros(1, dtype=torch.int64)
    network(torch.zeros(1, 1, 8, 8), t, class_labels=t).sample.sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if "conv" in name)


def test_networks_are_float32_on_the_cpu_whatever_the_defaults(tmp_path):
    with float64(), meta():
        model, _ = ClassConditional.fit(real(), tmp_path / "model", **TINY)
        network = build_classifier("resnet18", 2, (3, 32, 32))
    for module in (model.model.network, network):
        for tensor in (*module.parameters(), *module.buffers()):
            assert tensor.device.type == "cpu"
            assert tensor.dtype in (torch.float32, torch.int64)


# The context itself


@pytest.mark.parametrize("context", [torch_defaults, lasting_tensors])
def test_the_defaults_are_the_callers_again_after_an_error(context):
    def fail() -> None:
        with context():
            assert torch.tensor(0.5).dtype == torch.float32
            assert torch.zeros(1).device.type == "cpu"
            raise KeyError

    with float64(), meta():
        with pytest.raises(KeyError):
            fail()
        assert torch.tensor(0.5).dtype == torch.float64
        assert torch.zeros(1).device.type == "meta"


def test_threads_inside_at_the_same_time_end_with_the_callers_defaults():
    inside, leaving = Barrier(2), Barrier(2)
    seen: list[torch.dtype] = []

    def work(waits: bool) -> None:
        with torch_defaults():
            inside.wait()
            if waits:  # until the other thread has left
                leaving.wait()
            seen.append(torch.tensor(0.5).dtype)
        if not waits:
            leaving.wait()

    with float64():
        threads = [Thread(target=work, args=(waits,)) for waits in (False, True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert seen == [torch.float32] * 2
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_forked_while_another_thread_is_inside_has_the_callers_defaults():
    inside, leave = Event(), Event()

    def work() -> None:
        with torch_defaults():
            inside.set()
            leave.wait()

    with float64():
        thread = Thread(target=work)
        thread.start()
        inside.wait()
        process = get_context("fork").Process(target=_check_float64)
        process.start()
        process.join(30)
        leave.set()
        thread.join()
    assert process.exitcode == 0


def _check_float64() -> None:
    assert torch.get_default_dtype() == torch.float64
    with torch_defaults():
        assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_dtype() == torch.float64


# No call in the package leaves dtype or device to torch

PACKAGE = Path(synthaug.__file__).parent
FACTORIES = {
    *("arange", "as_tensor", "asarray", "empty", "eye", "full", "hann_window", "linspace"),
    *("logspace", "ones", "rand", "randint", "randn", "randperm", "scalar_tensor", "tensor"),
    *("tril_indices", "triu_indices", "zeros"),
}


def unnamed(source: str) -> list[str]:
    """The calls of `torch.zeros` and its like that do not name both dtype and device, and others
    whose result follows from the defaults."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        module, _, name = ast.unparse(call.func).partition(".")
        given = {keyword.arg for keyword in call.keywords}
        if module == "torch" and (
            (name in FACTORIES and not given >= {"dtype", "device"})
            or (name == "Generator" and not call.args and "device" not in given)
            or name in ("Tensor", "FloatTensor", "get_default_dtype")
        ):
            found.append(ast.unparse(call))
    return found


def test_a_call_that_leaves_its_dtype_or_device_to_torch_is_found():
    source = """
torch.zeros(1, dtype=torch.int64, device=x.device)
torch.zeros(1, dtype=torch.int64)
torch.zeros_like(x), x.new_zeros(3)
torch.rand(2, device="cpu")
torch.Generator("cpu")
torch.Generator()
"""
    assert unnamed(source) == [
        "torch.zeros(1, dtype=torch.int64)",
        "torch.rand(2, device='cpu')",
        "torch.Generator()",
    ]


def test_every_tensor_is_made_with_dtype_and_device():
    paths = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}
    calls = {name: unnamed(path.read_text()) for name, path in paths.items()}
    # Where the defaults themselves are seen to.
    assert calls.pop("_support/torch_state.py") == ["torch.get_default_dtype()"]
    assert {name: found for name, found in calls.items() if found} == {}


@pytest.mark.parametrize("error", [RuntimeError("unable to open shared memory"), OSError("full")])
def test_without_shared_memory_forked_workers_still_see_the_epoch(monkeypatch, error):
    def refuse(self: Tensor) -> None:
        raise error

    monkeypatch.setattr(Tensor, "share_memory_", refuse)
    counter = shared_counter()
    assert (counter.dtype, counter.shape, int(counter)) == (torch.int64, (), 0)
    counter.fill_(3)
    again = shared(counter)
    assert int(again) == 3
    child = os.fork()
    if child == 0:
        again.fill_(7)
        os._exit(0)
    os.waitpid(child, 0)
    assert int(again) == 7


IN_A_FORK = """
import os, signal, numpy as np, torch
from synthaug import audit
from synthaug._support import torch_state
torch_state._forked = False  # this program itself stands for one that was started anew
torch.set_num_threads(2)
S, T, H = np.random.default_rng(0).random((3, 200, 64), np.float32)
def judge():
    audit(S, T, holdout=H, progress=False)
    with torch_state.torch_defaults():
        return torch.rand(1000, 1000).exp().sum()  # of several threads, if there are
judge()
child = os.fork()
if not child:
    signal.alarm(20)
    judge()
    os._exit(torch.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_one_thread_since_waiting_for_its_parents_never_ends():
    done = processes.run(IN_A_FORK, environment={"OMP_NUM_THREADS": 2})
    assert done.stdout == "1 2\n", done.stderr
    assert "so torch uses one thread from now on" in done.stderr


def test_a_default_device_that_was_taken_back_is_the_cpu(monkeypatch):
    def unknown() -> torch.device:  # what torch 2.6 does after `set_default_device(None)`
        raise AttributeError("'NoneType' object has no attribute 'device'")

    monkeypatch.setattr(torch, "get_default_device", unknown)
    with torch_defaults():
        assert torch.zeros(1).device.type == "cpu"
