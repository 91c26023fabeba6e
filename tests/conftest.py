"""In tests the shapes and dtypes that the mathematics declares are checked at every call."""

import ctypes
import gc
import json
import os
import sys
import tempfile
from collections.abc import Generator, Iterator
from functools import cached_property
from multiprocessing import forkserver, set_forkserver_preload
from pathlib import Path
from subprocess import CompletedProcess, run
from typing import Any

import pytest
from jaxtyping import install_import_hook

CHECKED = ("_noise", "_pixels", "features")

# Torch and diffusers are millions of objects, through which every full collection would walk.
gc.set_threshold(20_000, 20, 20)

# Tensors come and go by the thousand: what they held is kept for the next ones. The system would
# hand out and clear the same pages again and again, which took a fifth of all processor time.
for _name, _option, _size in (
    ("MALLOC_TRIM_THRESHOLD_", -1, 2**30),
    ("MALLOC_TOP_PAD_", -2, 2**26),
    ("MALLOC_MMAP_THRESHOLD_", -3, 2**25),
):
    os.environ[_name] = str(_size)  # for processes that tests start
    if hasattr(_libc := ctypes.CDLL(None), "mallopt"):
        _libc.mallopt(_option, _size)

# Processes that tests start find compiled what was imported before, which takes them seconds less.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

_hook = install_import_hook([f"synthaug.{name}" for name in CHECKED], "beartype.beartype")

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # importing it would ask the network otherwise
# Workers and programs start fast, see `tests/processes.py`. The server that forks them imports all
# of this, so tests that need it are in the group "forkserver", which one worker runs.
set_forkserver_preload(
    [
        "torchvision.transforms.v2",
        "synthaug._datasets",
        "accelerate",
        "diffusers.models.unets.unet_2d",
        "diffusers.pipelines.pipeline_utils",
    ]
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--processor-seconds",
        metavar="FILE",
        help="append to FILE what each test costs in processor seconds, with its fixtures and the "
        "processes that it waits for; the slowest are shown by `sort -rn FILE | head -50`",
    )


FORKING = ("test_cache_faults", "test_cache_races", "test_damaged", "test_mix_synthetic")
"""Files that fork this process, which is cheap as long as it is small: they come first."""


def pytest_configure(config: pytest.Config) -> None:
    config.option.loadscopereorder = False  # of pytest-xdist: files in our order


@pytest.hookimpl(trylast=True)  # after pytest-xdist has named the tests
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `pytest -n 2` one worker runs a file, whose tests share fixtures."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=lambda item: item.path.stem not in FORKING)
    if path := getattr(config, "workerinput", {}).get("groups"):
        marks = {item.nodeid: item.get_closest_marker("xdist_group") for item in items}
        groups = {name: mark.args[0] for name, mark in marks.items() if mark}
        Path(path).write_text(json.dumps(groups), encoding="utf-8")


GROUPS = pytest.StashKey[str]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Each worker of pytest-xdist writes to this file in which group a test is."""
    if GROUPS not in node.config.stash:
        folder = tempfile.TemporaryDirectory(prefix="groups")
        node.config.add_cleanup(folder.cleanup)
        node.config.stash[GROUPS] = os.path.join(folder.name, "groups.json")
    node.workerinput["groups"] = node.config.stash[GROUPS]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """What `--dist loadgroup` means, and `pytest -n 2`: one worker runs a group.

    pytest-xdist looks for the group in the name of a test, where from pytest 9.2 on it is not
    found: tests were scattered, and each worker made the fixtures of every file.
    """
    if config.getvalue("dist") not in ("load", "loadgroup"):
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Grouped(LoadScopeScheduling):
        @cached_property
        def groups(self) -> dict[str, str]:
            groups: dict[str, str] = json.loads(Path(config.stash[GROUPS]).read_text("utf-8"))
            return groups

        def _split_scope(self, nodeid: str) -> str:
            return self.groups[nodeid]

    return Grouped(config, log)


def pytest_collection_finish() -> None:
    gc.freeze()


def processor_seconds() -> float:
    """Of this process, of its children that ended, and of the server that forks for it."""
    seconds = sum(os.times()[:4])
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    if server is not None and (path := Path(f"/proc/{server}/stat")).exists():
        ticks = path.read_text().rpartition(")")[2].split()[11:15]  # its own and its children's
        seconds += sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")
    return seconds


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    before = processor_seconds()
    result = yield
    if path := item.config.getoption("--processor-seconds"):
        with open(path, "a") as file:
            file.write(f"{processor_seconds() - before:8.2f} {item.nodeid}\n")
    return result


@pytest.fixture(autouse=True, scope="session")
def no_bfloat16() -> Iterator[None]:
    """Tests choose float32 on every machine, and do not warn that bfloat16 is emulated."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthaug._support.precision.has_bfloat16", lambda device: False)
        patch.setattr("synthaug._support.precision._slowdown", lambda kind: 1.0)
        yield


@pytest.fixture(scope="module")
def few_steps() -> Iterator[None]:
    """Samplers of which nothing is said take 4 denoising steps, not 50.

    For tests that are about other things: every checkpoint that is trained draws pictures of it.
    """
    from synthaug.synthesizers import SamplerConfig

    defaults: Any = SamplerConfig.__init__.__kwdefaults__
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(defaults, "num_inference_steps", 4)
        yield


@pytest.fixture(scope="module")
def linear_classifiers() -> Iterator[None]:
    """Classifiers of which nothing is said are linear: see `tests/classifiers.py`."""
    from tests.classifiers import make_linear

    with pytest.MonkeyPatch.context() as patch:
        make_linear(patch)
        yield


@pytest.fixture(scope="module")
def short_audits() -> Iterator[None]:
    """Audits see less: see `tests/audits.py`."""
    from tests.audits import shorten

    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        yield


@pytest.fixture(scope="module")
def compared_once() -> Iterator[None]:
    """Two images are compared once in however many audits they are: see `tests/audits.py`."""
    from tests.audits import compare_once

    with pytest.MonkeyPatch.context() as patch:
        compare_once(patch)
        yield


@pytest.fixture(scope="session")
def digits() -> Any:
    """The half of scikit-learn's digits that the data set calls its training images."""
    from synthaug import load_dataset

    return load_dataset("digits", split="train")


@pytest.fixture(scope="session")
def train(digits: Any) -> Any:
    """Sixty of them; files whose subject needs others have a fixture of their own."""
    return digits.subset(range(60))


@pytest.fixture(scope="session")
def new_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompletedProcess[str], Path]:
    """What became of `tests/new_process.py`, and the folder of what it found.

    Tests that use it are in the group "new process", which one worker runs.
    """
    from tests.new_process import ENVIRONMENT, model

    folder = tmp_path_factory.mktemp("new_process")
    model().save_pretrained(folder / "model")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **ENVIRONMENT}
    command = [sys.executable, "-m", "tests.new_process", str(folder)]
    return run(command, env=environment, capture_output=True, text=True), folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`tiny_checkpoint(family)`: a checkpoint of `tests.tiny_checkpoints.FAMILIES`, written once.

    Tests that change its files copy the directory first.
    """
    pytest.importorskip("transformers")
    from tests.tiny_checkpoints import TinyCheckpoints

    return TinyCheckpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def ray() -> Iterator[Any]:
    """A cluster of one node; tests that use it are in the group "ray", which one worker runs."""
    ray = pytest.importorskip("ray")
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder,
    ):
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # other tests would keep actors waiting
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
        settings = {
            "address": "local",
            "num_cpus": 2,  # each actor is a process that imports torch
            "object_store_memory": 80 * 2**20,
            "include_dashboard": False,
            "log_to_driver": False,
            "_temp_dir": folder,  # a short path: its sockets cannot have long ones
        }
        try:
            ray.init(**settings)
        except Exception:  # it gives itself 30 seconds, which other tests may use up
            ray.shutdown()
            ray.init(**settings)
        yield ray
        ray.shutdown()


@pytest.fixture
def computed_again(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The blocks of networks whose activations were not kept."""
    import torch

    blocks: list[Any] = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def counted(block: Any, *inputs: Any, **options: Any) -> Any:
        blocks.append(block)
        return checkpoint(block, *inputs, **options)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    return blocks
