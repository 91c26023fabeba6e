"""The page on generators of one's own: short, and what it promises."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import synthaug
from synthaug import caches
from synthaug.errors import MismatchError
from tests.checkpoints import tiny_clip, write_stable_diffusion
from tests.command_line import succeed

pytestmark = pytest.mark.usefixtures("short_audits")

PAGE = Path(__file__).parents[1] / "docs/bring_your_own.md"


@pytest.fixture(scope="module")
def digits():
    return synthaug.load_dataset("digits")


@pytest.fixture
def page_names(digits, tmp_path, monkeypatch) -> dict[str, Any]:
    """What the first code of the page defines."""
    monkeypatch.chdir(tmp_path)
    (code, *_) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    names: dict[str, Any] = {"synthaug": synthaug, "real": digits.subset(range(100)), "code": code}
    exec(code, names)
    return names


def test_a_generator_of_ones_own_takes_less_than_twenty_lines(page_names):
    (found,) = (n for n in ast.parse(page_names["code"]).body if isinstance(n, ast.ClassDef))
    assert found.end_lineno is not None
    assert found.end_lineno - found.lineno + 1 < 20


def test_it_fills_the_cache_of_its_plan_and_its_images_depend_on_their_rows_alone(page_names):
    plan, cache, blurred = (page_names[name] for name in ("plan", "cache", "blurred"))
    assert cache.done.all()
    assert len(cache) == len(plan) == 100
    order = np.random.default_rng(0).permutation(100)
    torch.testing.assert_close(blurred.draw(plan[order]), blurred.draw(plan)[order])
    means = torch.stack(
        [cache.read(np.flatnonzero(cache.labels == c)).float().mean(0) for c in range(10)]
    )
    expected = (blurred.means + 1) * 127.5
    assert (means - expected).abs().mean() < 0.2 * 127.5  # sigma, before averaging


def test_the_code_about_pipelines_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipeline = write_stable_diffusion(Path("stable-diffusion-v1-5"))
    pipeline.tokenizer.model_max_length = 32  # tokens are single letters
    pipeline.register_modules(text_encoder=tiny_clip(max_position_embeddings=32))
    pipeline.save_pretrained("stable-diffusion-v1-5")
    pixels = torch.arange(4 * 3 * 8 * 8, dtype=torch.uint8).view(4, 3, 8, 8)
    for i, image in enumerate(pixels):
        folder = Path("cifar10/train", ("cat", "dog")[i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
    real = synthaug.load_dataset("folder:cifar10/train")
    names: dict[str, Any] = {"synthaug": synthaug, "real": real}
    section = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[2]
    for language, code in re.findall(r"^```(python|sh)\n(.*?)^```", section, re.M | re.S):
        if language == "python":
            exec(code.replace("num_inference_steps=20", "num_inference_steps=3"), names)
        else:
            for line in code.splitlines():
                succeed(*shlex.split(line)[1:], "--num-inference-steps", 3, "--quiet")
    assert {path.stem for path in Path().glob("*.h5")} == {
        "dusk",
        "guided",
        "painted",
        "prompted",
        "repainted",
        "variants",
    }
    prompted = synthaug.SynthCache("prompted.h5")
    assert prompted.provenance(5)["texts"]["prompt"] == "a painting of a cat"


def test_images_made_elsewhere_are_audited_and_their_copies_are_not_served(digits, tmp_path):
    train, holdout = digits.subset(range(500)), digits.subset(range(500, 1000))
    theirs = digits.subset([*range(1000, 1100), 3, 5])  # the last two are copies
    for i in range(len(theirs)):
        image, label = theirs[i]
        folder = tmp_path / "theirs" / theirs.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{i:03}.png")
    cache = caches.import_images(f"folder:{tmp_path}/theirs", tmp_path / "theirs.h5", name="ours")
    report = synthaug.audit(f"folder:{tmp_path}/theirs", train, holdout=holdout, progress=False)
    report.to_json(tmp_path / "audit.json")
    report = synthaug.AuditReport.from_json(tmp_path / "audit.json")
    other = caches.import_images(theirs.subset(range(101)), tmp_path / "other.h5")
    with pytest.raises(MismatchError, match="The report is about a data set, and not about this"):
        synthaug.MixedDataset(train, other, audit=report, fraction=1.0)
    turned = np.arange(len(cache))[::-1]  # has the same settings, and others at the same rows
    other = synthaug.SynthCache.create(
        tmp_path / "turned.h5",
        cache.plan[turned],
        image_shape=cache.image_shape,
        manifest=cache.manifest,
    )
    other.write(range(len(cache)), cache.read(turned))
    with pytest.raises(MismatchError, match="The report is about a data set, and not about this"):
        synthaug.MixedDataset(train, other, audit=report, fraction=1.0)
    mixed = synthaug.MixedDataset(train, cache, audit=report, fraction=1.0)
    served = set()
    for epoch in range(3):
        mixed.set_epoch(epoch)
        served |= {image.numpy().tobytes() for image in mixed.read(range(len(mixed)))}
    copies = {image.numpy().tobytes() for image in train.read([3, 5])}
    given = {image.numpy().tobytes() for image in theirs.read(range(len(theirs)))}
    assert len(served) > 90
    assert served <= given - copies
    report.withdraw_from(cache)
    again = synthaug.audit(cache, train, holdout=holdout, progress=False)
    assert len(report.withheld) >= 2
    assert "could not be ranked" not in " ".join(again.reasons), "the scores are those of the cache"
