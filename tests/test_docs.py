"""Every code block of README and the pages runs, at toy size, in a folder of stand-ins.

The blocks of a page run in its order: Python in one namespace, and the lines of shell blocks that
begin with `synthaug` as the command would. Other shell lines install, run benchmarks or examples;
these have tests of their own. What a page takes for granted (data sets, a cache, checkpoints) is
there as a few images of 8 x 8 pixels and networks of two optimizer steps, and whatever would take
long is made short behind the page's back: see `small`. A block that cannot run at all has a comment
in front of it that says why:

    <!-- not run: needs weights to download -->
"""

import contextlib
import functools
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset
from torchvision.transforms import v2

import synthaug
from synthaug import _audit, improvement, sweeps, synthesizers
from synthaug import evaluation as _evaluation
from synthaug.synthesizers import _base
from tests.audits import measure_no_audit
from tests.certificates import write_certificates
from tests.checkpoints import write_stable_diffusion
from tests.classifiers import make_linear
from tests.command_line import run
from tests.tiny.low_density import few_noisy_images
from tests.tiny.networks import of_8_channels

pytestmark = [
    pytest.mark.xdist_group("docs"),  # pages share a world
    pytest.mark.usefixtures("short_audits"),
]

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^\n]+) -->\n+)?"
    r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```",
    re.MULTILINE | re.DOTALL,
)
ELSEWHERE = {  # pages whose blocks another test runs
    "docs/bring_your_own.md": "test_bring_your_own.py",
    "docs/command_line.md": "test_cli_conventions.py",
    "docs/frameworks.md": "test_frameworks.py",
    "docs/training.md": "test_examples.py",
}
PAGES = [
    page
    for page in [
        "README.md",
        *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))),
        "examples/cifar10.md",
    ]
    if page not in ELSEWHERE
]
SMALLER = {  # sizes and weights that the stand-ins do not have
    "README.md": {"--image-size 64": "--image-size 8"},
    "docs/audit.md": {
        "pairs=5": "pairs=1, doses=(1, 2)",
        "--canaries 5": "--canaries 1 --canary-doses 1,2",
    },
    "docs/cascades.md": {"image_size=16": "image_size=4", "low_size=16": "low_size=4"}
    | {"--image-size 16": "--image-size 4", "--low-size 16": "--low-size 4"},
    "docs/diffusion_inversion.md": {"--snapshots 30": "--snapshots 1"},
    "docs/few_steps.md": {"evaluations=3": "evaluations=2", "--evaluations 3": "--evaluations 2"},
    "docs/fine_tuning.md": {"[1000, 2000, 5000]": "[1, 2]", "00002000": "00000002"}
    | {"1000,2000,5000": "1,2"}
    | {"image_size=512": "image_size=8", "--image-size 512": "--image-size 8"}
    | {"features torchvision:resnet50": "features torchscript:encoder.pt --trust-torchscript"}
    | {"torchvision:resnet50": "torchscript:encoder.pt", ', device="cuda"': ", trusted=True"},
    "docs/metrics_and_sweeps.md": {"[0, 1, 2, 3]": "[0, 0.5]", "0,1,2,3": "0,0.5"},
    "docs/tutorials/classifier.md": {
        "range(600)": "range(60)",
        "range(600, len(half))": "range(60, 90)",
    },
    "docs/selection.md": {'rules = ["label", "support", "distinct", "k-center"]': "rules = []"},
    "docs/low_density.md": {"components=64": "components=2"},
    "docs/masks.md": {  # networks of two steps keep no outlines
        "[4, 8, 30, 60]": "[1, 2, 6, 7]",
        "min_edge_agreement=0.8": "min_edge_agreement=0.01",
        "--min-edge-agreement 0.8": "--min-edge-agreement 0.01",
        "image_size=64": "image_size=8",
    },
    "docs/tutorials/image_folder.md": {
        "image_size=64": "image_size=8",
        "--image-size 64": "--image-size 8",
    },
}
MOST_NOT_RUN = 8
AUDITED = (0, 1, 3)  # the verdict on eight images is not what a page is about
CLASSES = ("cat", "dog")


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language, its text, and why it is not run if it is not."""

    place: str
    language: str
    code: str
    why: str | None


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    for written, smaller in SMALLER.get(page, {}).items():
        assert written in text, f"{page} does not hold {written} any more: see SMALLER"
        text = text.replace(written, smaller)
    return [
        Block(
            f"{page}:{text[: found.start('code')].count(chr(10)) + 1}",
            found["language"],
            found["code"],
            found["why"],
        )
        for found in BLOCK.finditer(text)
    ]


def runnable(page: str) -> bool:
    """Says whether a page has a block of Python, or of commands of ours."""
    return any(
        b.why is None and (b.language == "python" or (b.language == "sh" and commands(b.code)))
        for b in blocks(page)
    )


def commands(code: str) -> list[str]:
    lines = code.replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("synthaug ")]


# Stand-ins


class Encoder(nn.Module):
    """Images in [-1, 1] or [0, 255] to four features."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images.float(), 2).mean(1).flatten(1)


class Judge(nn.Module):
    """Images in [-1, 1] to two logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        level = images.mean((1, 2, 3))
        return torch.stack([-level, level], 1)


def write_images(folder: Path, per_class: int, size: int = 8) -> None:
    """One folder of PNG files per class; no two images are alike."""
    rng = np.random.default_rng(list(str(folder.relative_to(folder.parents[1])).encode()))
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
        for i in range(per_class):
            pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, under the names that they use."""
    folder = tmp_path_factory.mktemp("world")
    for name in ("cifar10", "birds"):
        for part in ("train", "test", "validation"):
            write_images(folder / name / part, 12)
    write_images(folder / "photos", 14, size=10)  # so that 12 synthetic ones are enough
    for name in ("many-images", "theirs", "withdrawn-consent"):
        write_images(folder / name, 4)
    for part in ("images", "masks"):
        write_images(folder / "scenes" / part, 12)
    for path in (folder / "scenes/masks").rglob("*.png"):
        Image.open(path).convert("L").save(path)
    photos = sorted((folder / "scenes/images").rglob("*.png"))
    entries = [
        {"id": i, "file_name": path.relative_to(folder / "scenes/images").as_posix()}
        | dict(zip(("width", "height"), Image.open(path).size, strict=True))
        for i, path in enumerate(photos)
    ]
    boxes = [{"image_id": i, "category_id": 1, "bbox": [1, 1, 5, 4]} for i in range(len(photos))]
    coco = {"images": entries, "annotations": boxes, "categories": [{"id": 1, "name": "paw"}]}
    (folder / "scenes/instances.json").write_text(json.dumps(coco))
    torch.jit.save(torch.jit.script(Encoder()), folder / "encoder.pt")
    torch.jit.save(torch.jit.script(Judge().eval()), folder / "classifier.pt")
    write_stable_diffusion(folder / "stable-diffusion-v1-5", longest_prompt=32)
    (folder / "stable-diffusion-v1-4").symlink_to("stable-diffusion-v1-5")
    real = synthaug.load_dataset(f"folder:{folder}/cifar10/train")
    test = synthaug.load_dataset(f"folder:{folder}/cifar10/test")
    with short():
        model, _ = synthaug.ClassConditional.fit(real, folder / "runs/cifar10", channels=8)
        blur = synthaug.degradations.Blur(num_levels=4)
        synthaug.ColdDiffusion.fit(real, folder / "runs/restorer", degradation=blur, channels=8)
        synthaug.DiffusionInversion.fit_generator(real, folder / "runs/tokens", channels=8)
        variants = model.with_sources(real)
        plan = variants.plan(ratio=1.0, strength=1.0, seed=0)
        paths = [folder / f"{name}.h5" for name in ("cifar10", "part-0", "part-1")]
        for path, rows in zip(paths, (plan, plan[:9], plan[9:]), strict=True):
            synthaug.generate(variants, rows, path, source=real, progress=False)
    for name in ("cifar.h5", "variants.h5"):
        shutil.copy(paths[0], folder / name)
    cache = synthaug.SynthCache(paths[0])
    report = synthaug.audit(cache, real, holdout=test, progress=False)
    for name in ("audit.json", "variants.json"):
        report.to_json(folder / name)
    write_certificates(folder)
    return folder


@contextlib.contextmanager
def short() -> Iterator[None]:
    """Trainings of two steps, plans of twelve images per class, evaluations of two steps."""
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        yield


def small(patch: pytest.MonkeyPatch) -> None:
    """Makes short what would take long, whatever the page says."""

    def shortened(place: Any, name: str, **values: Any) -> None:
        function = getattr(place, name)

        @functools.wraps(function)
        def called(*arguments: Any, **given: Any) -> Any:
            return function(*arguments, **{**given, **values})

        patch.setattr(place, name, called)

    steps = {"steps": 2, "batch_size": 4, "warmup_steps": 0, "decay_steps": 0, "compile": False}
    shortened(synthaug.TrainingConfig, "__init__", **steps)
    shortened(synthaug.synthesizers.InversionConfig, "__init__", updates=2)
    shortened(synthesizers.SamplerConfig, "__init__", num_inference_steps=2)
    shortened(_evaluation.ClassifierConfig, "__init__", steps=2, batch_size=4, device="cpu")
    shortened(_evaluation, "evaluate", seeds=1)
    shortened(synthaug.ColdDiffusion, "__init__", num_steps=2)
    for place in (synthaug, _audit):
        shortened(place, "audit", max_pairs=3)
    grid = {"scheduler": ["ddim"], "num_inference_steps": [2], "guidance_scale": [1.0, 2.0]}
    shortened(sweeps, "sweep", grid=grid, guidance=[1.0])
    shortened(sweeps.SweepConfig, "__init__", per_class=8, force=True, seeds=1)
    few: dict[str, Any] = {"rounds": 1, "screening_seeds": 2, "final_seeds": 2, "shares": (0.5,)}
    few |= {"targets": ("random",), "augmentations": ()}
    shortened(improvement.ImproveConfig, "__init__", images_per_round=0.5, channels=8, **few)
    measure_no_audit(patch)
    make_linear(patch)
    of_8_channels(patch)
    few_noisy_images(patch, per_level=40)
    patch.setattr(
        _base,
        "balanced_quota",
        lambda classes, *, per_class: np.full(classes, min(per_class, 12)),
    )

    def by_ratio(labels: Any, classes: int, *, ratio: float) -> Any:
        exact = np.bincount(labels, minlength=classes) * ratio
        return np.minimum(np.ceil(exact).astype(np.int64), 12)

    patch.setattr(_base, "matching_quota", by_ratio)


class Logits:
    """A classifier that tells cats from dogs by their brightness."""

    name, dim, weights = "brightness", 2, None

    def __call__(self, pixels: torch.Tensor) -> np.ndarray:
        level = pixels.float().mean((1, 2, 3)).numpy() / 255
        return np.stack([1 - level, level], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def models(world: Path) -> dict[str, Any]:
    """The generator, restorer and encoder that pages name."""
    restorer = world / "runs/restorer"
    return {
        "synthesizer": synthaug.ClassConditional.from_pretrained(world / "runs/cifar10"),
        "cold": synthaug.ColdDiffusion.from_pretrained(restorer, num_steps=2),
        "encoder": synthaug.features.named(f"torchscript:{world}/encoder.pt", trusted=True),
    }


def names(page: str, models: dict[str, Any]) -> dict[str, Any]:
    """What readers have at hand by the time they see a block."""
    rng = np.random.default_rng(0)
    generator = models["synthesizer"]
    steered = {"base": generator, "encoder": Encoder()} if "low_density" in page else {}
    return {
        "synthaug": synthaug,
        "torch": torch,
        "np": np,
        "v2": v2,
        "DataLoader": DataLoader,
        "Subset": Subset,
        "BatchSampler": BatchSampler,
        "RandomSampler": RandomSampler,
        "cache": synthaug.SynthCache("cifar10.h5"),
        "report": synthaug.AuditReport.from_json("audit.json"),
        "real": synthaug.load_dataset("folder:cifar10/train"),
        "train": synthaug.load_dataset("folder:cifar10/train"),
        "test": synthaug.load_dataset("folder:cifar10/test"),
        "validation": synthaug.load_dataset("folder:cifar10/validation"),
        "images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8),
        "logits": Logits(),
        "audit": synthaug.AuditReport.from_json("audit.json"),
        "features": rng.normal(size=(24, 4)),
        "labels": np.arange(24) % 2,
        "others": rng.normal(size=(6, 4)),
        "other_labels": np.arange(6) % 2,
        **models,
        **steered,
    }


OUT = {
    "improve": 1,
    "split": 1,
    "train": 1,
    "invert": 2,
    "generate": 1,
    "cascade": 0,
}  # which argument is the output
OUTPUT = re.compile(r"\b(?:fit\w*|fine_tune|generate)\([^)]*\"((?:runs/|[\w-]+\.h5)[^\"]*)\"")


def clear(output: str, made: set[str]) -> None:
    """A stand-in goes before the page makes the thing itself."""
    if output not in made:
        made.add(output)
        path = Path(output)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def run_command(line: str, made: set[str]) -> None:
    arguments = shlex.split(line, comments=True)[1:]
    if (place := OUT.get(arguments[0])) is not None:
        clear(arguments[1 + place], made)
    outcome = run(*arguments)
    judged = arguments[0] == "audit" or arguments[1] in ("canaries", "membership")
    assert outcome.code in (AUDITED if judged else (0,)), (line, outcome.err)


def test_blocks_that_are_not_run_say_why_and_are_few():
    skipped = [block for page in PAGES for block in blocks(page) if block.why is not None]
    assert len(skipped) <= MOST_NOT_RUN
    assert all(len(str(block.why).split()) > 2 for block in skipped)


@pytest.mark.parametrize("page", [page for page in ELSEWHERE if (ROOT / page).exists()])
def test_pages_that_are_run_elsewhere_are(page):
    assert Path(page).stem in (ROOT / "tests" / ELSEWHERE[page]).read_text()


@pytest.mark.filterwarnings("ignore")  # of toy sizes
@pytest.mark.usefixtures("short_audits")
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)])
def test_the_code_of_a_page_runs(page, world, models, tmp_path, monkeypatch):
    small(monkeypatch)
    # Guides say the same in both languages; README and tutorials go from one to the other.
    places = dict.fromkeys(("python", "sh"), tmp_path / "both")
    if not page.startswith(("README", "docs/tutorials/")):
        places = {language: tmp_path / language for language in places}
    for folder in set(places.values()):
        shutil.copytree(world, folder, symlinks=True)
    monkeypatch.chdir(places["python"])
    known = names(page, models)
    made: dict[str, set[str]] = {language: set() for language in places}
    for block in blocks(page):
        if block.why is not None or block.language not in places:
            continue
        monkeypatch.chdir(places[block.language])
        if block.language == "python":
            for output in OUTPUT.findall(block.code):
                clear(output, made["python"])
            exec(compile(block.code, block.place, "exec"), known)
        for line in commands(block.code) if block.language == "sh" else []:
            run_command(line, made["sh"])
