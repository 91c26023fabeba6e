import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import synthaug
from tests import processes
from tests.variants import make_cache, real_images

EXAMPLES = Path(__file__).parents[1] / "examples"
GUIDE = EXAMPLES.parent / "docs/training.md"


PRINTED = {
    "audit_folder.py": "inconclusive [0",  # one copy: to be looked at
    "quickstart.py": "AuditReport(",
    "transform.py": "torch.Size([1, 8, 8]) torch.float32",
}


_ALL_EXAMPLES = """
import contextlib, io, json, os, runpy, sys, tempfile, traceback
import pytest
from synthaug.synthesizers import SamplerConfig
from tests.audits import shorten

shorten(pytest.MonkeyPatch())
SamplerConfig.__init__.__kwdefaults__["num_inference_steps"] = 4  # of 50
outcomes = {}
for path in sys.argv[1:]:
    name = os.path.basename(path)
    os.mkdir(name)
    tempfile.tempdir = os.path.abspath(name)
    sys.argv, printed, error = [path], io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        try:
            runpy.run_path(path, run_name="__main__")
        except BaseException:
            error = traceback.format_exc()
    outcomes[name] = [printed.getvalue(), error]
json.dump(outcomes, open("outcomes.json", "w"))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What each example printed, and its error; all ran in one process, which imports much."""
    folder = tmp_path_factory.mktemp("examples")
    done = processes.run(_ALL_EXAMPLES, *sorted(EXAMPLES.glob("*.py")), cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "outcomes.json").read_text())


@pytest.mark.xdist_group("forkserver")
@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_the_example_runs(name, outcomes):
    printed, error = outcomes[name]
    assert not error, error
    assert printed.startswith(PRINTED[name])


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create .* worker processes", "ignore:'set_vital' is deprecated"
)
def test_the_code_of_the_training_guide_runs(tmp_path, monkeypatch):
    real = real_images(8, 8)
    real.transform = v2.ToImage()
    cache = make_cache(tmp_path, real)
    report = SimpleNamespace(identity=cache.identity, passed=np.ones(18, bool), verdict="pass")
    config = synthaug.ClassifierConfig(steps=2, device="cpu")

    def quick(arms: Any, **arguments: Any) -> Any:
        return synthaug.evaluation.evaluate(
            arms, **{**arguments, "config": config, "progress": False}
        )

    monkeypatch.setattr(synthaug, "evaluate", quick, raising=False)
    monkeypatch.chdir(tmp_path)
    scores = np.linspace(0.5, 1, 18)
    names: dict[str, Any] = {
        "synthaug": synthaug,
        "torch": torch,
        "check": SimpleNamespace(identity=cache.identity, row_scores=scores, score_name="check"),
        "hardness": SimpleNamespace(
            identity=cache.identity, row_scores=scores, score_name="hardness"
        ),
        "sharpness": scores,
        "DataLoader": DataLoader,
        "v2": v2,
        "cache": cache,
        "real": real,
        "report": report,
        "test": real_images(8, 8, seed=1),
    }
    loading, *blocks = re.findall(
        r"(?<!-->\n)^```python\n(.*?)^```", GUIDE.read_text(), re.M | re.S
    )
    assert "SynthCache(" in loading  # names files that are not here
    assert len(blocks) == 12
    for block in blocks:
        exec(block, names)
    assert names["table"].arm_names[-1] == "synthetic only"
