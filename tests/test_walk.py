"""A foreign data set is opened at the door: few modules ever hold it, and one package knows it."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import synthaug
from synthaug.features import Pixel

pytestmark = pytest.mark.usefixtures("short_audits")

ROOT = Path(synthaug.__file__).parent


SHORT: dict[str, Any] = {"steps": 1, "batch_size": 4, "device": "cpu", "progress": False}


def modules_that_hold(thing: object, call: Callable[[], object]) -> set[str]:
    """Modules of which a function is called with `thing` as an argument while `call` runs."""
    modules = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        path = Path(code.co_filename)
        if event == "call" and ROOT in path.parents and not code.co_name.startswith("<"):
            names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            if any(frame.f_locals.get(name) is thing for name in names):
                modules.add(str(path.relative_to(ROOT)))

    call()  # once without looking: what it imports takes minutes under a profiler
    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return modules


def images(n: int, seed: int) -> TensorDataset:
    rng = np.random.default_rng(seed)
    pixels = torch.from_numpy(rng.integers(0, 256, (n, 1, 8, 8)).astype(np.uint8))
    return TensorDataset(pixels, torch.arange(n) % 2)


def test_the_audit_opens_training_images_at_the_door():
    train = images(20, seed=0)
    seen = modules_that_hold(
        train,
        lambda: synthaug.audit(
            images(4, seed=1), train, holdout=images(4, seed=2), features=Pixel(4), progress=False
        ),
    )
    assert "_audit/run.py" in seen
    assert len(seen) <= 5
    assert {name for name in seen if not name.startswith("_images/")} == {
        "_audit/run.py",
        "_audit/inputs.py",
    }


def test_an_evaluation_opens_real_images_at_the_door():
    real = images(40, seed=0)
    seen = modules_that_hold(
        real,
        lambda: synthaug.evaluate(
            {"real": real},
            test=images(20, seed=1),
            seeds=1,
            progress=False,
            config=synthaug.ClassifierConfig(steps=1, batch_size=4, device="cpu"),
        ),
    )
    assert any(name.startswith("_images/") for name in seen)
    assert len(seen) <= 5


def test_a_module_that_holds_a_thing_is_seen():
    x = np.random.default_rng(0).normal(size=(50, 2))

    def call() -> None:
        synthaug.metrics.frechet_distance(x, x + 1)

    assert "metrics.py" in modules_that_hold(x, call)
    assert modules_that_hold(object(), call) == set()


def test_the_stations_that_the_concepts_page_names_exist():
    text = (ROOT.parent / "docs" / "concepts.md").read_text(encoding="utf-8")
    walks = text[text.index("## Two walks") : text.index("## Layers")]
    stations = re.findall(r"\w+(?:/\w+)*\.py", walks)
    assert len(stations) > 15
    assert all((ROOT / station).exists() for station in stations)
