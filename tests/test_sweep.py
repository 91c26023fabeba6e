"""The search of sampling parameters: what it tries, keeps, chooses and refuses."""

import re
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from synthaug import ClassifierConfig, Plan
from synthaug.errors import DataError, MismatchError
from synthaug.evaluation import trained_classifier
from synthaug.features import Pixel
from synthaug.images import LabeledImages
from synthaug.sweeps import SweepReport, _run, sweep
from synthaug.sweeps._config import SweepConfig
from synthaug.sweeps._settings import Trial, combinations
from synthaug.synthesizers import AbstractSynthesizer, FromPipeline, SamplerConfig, streams
from tests.command_line import check_answer, fail, succeed
from tests.images import randn, to_images, to_pil
from tests.tiny.cascades import tiny_cascade
from tests.tiny.class_conditional import tiny

CLASSES = ("dark", "light")


def real(n: int, seed: int) -> LabeledImages:
    """Dark and light images of noise, in turn."""
    labels = np.arange(n) % 2
    noise = torch.randint(0, 60, (n, 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    pixels = (noise + torch.from_numpy(labels * 160).view(-1, 1, 1, 1)).to(torch.uint8)
    return LabeledImages(pixels, labels, CLASSES, name=f"images {seed}")


TRAIN, VALIDATION, TEST = real(60, 0), real(40, 1), real(40, 2)


@dataclass(frozen=True)
class Fading(AbstractSynthesizer):
    """Images like the real ones, with noise that fewer steps and other guidance than 1.5 add; with
    much guidance the two classes look alike."""

    num_inference_steps: int = 1
    scheduler: str = "ddim"
    trained_on: Any = None
    classes = CLASSES
    image_shape = (1, 4, 4)
    can_be_guided = True

    drawn = 0

    def draw(self, rows: Plan) -> Any:
        type(self).drawn += len(rows)
        distance = np.abs(rows["guidance_scale"] - 1.5)
        level = np.where(rows["label"] == 0, 30, 190 - 100 * distance)
        noise = randn(streams(rows["seed"]), self.image_shape)
        spread = 18 + 60 * distance + 30 / self.num_inference_steps
        levels = torch.from_numpy(level).view(-1, 1, 1, 1) + noise * torch.from_numpy(spread).view(
            -1, 1, 1, 1
        )
        return to_images(levels.clamp(0, 255).to(torch.uint8))

    def recipe(self) -> dict[str, Any]:
        steps = {"num_inference_steps": self.num_inference_steps, "scheduler": self.scheduler}
        return {"synthesizer": "Fading", "settings": steps}


@pytest.fixture(autouse=True)
def none_drawn() -> None:
    Fading.drawn = 0


def linear(num_classes: int, image_shape: Any) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, num_classes))


GRID = {"num_inference_steps": [1, 10], "guidance_scale": [1.5, 2.5]}


def search(folder: Any, **changes: Any) -> SweepReport:
    options: dict[str, Any] = {
        "real": TRAIN,
        "validation": VALIDATION,
        "output_dir": folder,
        "features": Pixel(2),
        "grid": GRID,
        "guidance": [1.5, 2.0],
        "per_class": 10,
        "model": linear,
        "steps": 5,
        "seeds": 2,
        "device": "cpu",
        "progress": False,
        **changes,
    }
    training = {name: options.pop(name) for name in ("model", "steps", "device")}
    names = {field.name for field in fields(SweepConfig)}
    chosen = {name: options.pop(name) for name in names & options.keys()}
    config = SweepConfig(classifiers=ClassifierConfig(**training), **chosen)
    return sweep(options.pop("synthesizer", Fading()), config=config, **options)


def test_the_best_setting_of_the_grid_goes_on_to_the_second_stage_and_is_chosen(tmp_path):
    report: Any = search(tmp_path, per_class=20, test=TEST)
    best = min(report.coarse, key=lambda row: row.frechet_distance)
    assert best.setting == {"num_inference_steps": 10, "guidance_scale": 1.5}
    assert report.chosen == best.setting
    assert [row.setting["guidance_scale"] for row in report.fine] == [1.5, 2.0]
    assert len(report.coarse) == 4
    assert report.floors["coarse"].n == best.scores.n == 30  # half of the real images
    assert report.floors["coarse"].frechet_distance < best.frechet_distance
    assert all(len(row.cas) == 2 for row in report.fine)
    assert len(report.real_accuracy) == 2
    assert report.fine[0].scores.inception_score > report.fine[1].scores.inception_score
    by_distance = search(tmp_path, per_class=20, select="frechet", guidance=[2.0, 1.5])
    assert by_distance.chosen == best.setting
    assert "shares no image with the test split" in str(report)
    assert "must not be the split" in str(by_distance)


class Noting:
    """Features that note the images they were asked about."""

    name, dim, weights = "noting", 4, None
    seen: ClassVar[set[bytes]] = set()

    def __call__(self, pixels: Any) -> Any:
        self.seen.update(x.numpy().tobytes() for x in pixels)
        return Pixel(2)(pixels)


def test_the_floor_is_of_images_that_the_features_never_saw(tmp_path, monkeypatch):
    learned: set[bytes] = set()

    def noted(data: Any, **how: Any) -> nn.Module:
        learned.update(x.numpy().tobytes() for x in data.dataset.read(data.indices))
        return trained_classifier(data, **how)

    monkeypatch.setattr(_run, "trained_classifier", noted)
    Noting.seen.clear()
    report = search(tmp_path, features=Noting(), guidance=[])
    real = {x.numpy().tobytes() for x in TRAIN.read(range(60))}
    assert report.floors["coarse"].n == 20
    assert len(learned & real) == 40  # the other 20 of the 60 real images are held out
    assert Noting.seen & real == real - learned


def test_a_second_call_draws_only_what_is_missing(tmp_path):
    first = search(tmp_path)
    # The first guidance of the second stage is a setting of the grid, with as many images.
    assert Fading.drawn == (4 + 1) * 20
    assert str(search(tmp_path)) == str(first)
    assert Fading.drawn == (4 + 1) * 20
    more = search(tmp_path, grid={**GRID, "num_inference_steps": [1, 10, 20]}, guidance=[])
    assert Fading.drawn == (4 + 1 + 2) * 20
    assert more.coarse[:4] == first.coarse
    assert more.fine == []
    assert more.chosen == min(more.coarse, key=lambda row: row.frechet_distance).setting


def test_a_kill_loses_no_image_and_changes_no_number(tmp_path, monkeypatch):
    whole = search(tmp_path / "whole")
    total, Fading.drawn = Fading.drawn, 0
    draw, calls = Fading.draw, iter(range(1000))

    def killed(self: Fading, rows: Plan) -> Any:
        if next(calls) % 4 == 3:
            raise KeyboardInterrupt
        return draw(self, rows)

    monkeypatch.setattr(Fading, "draw", killed)
    said: list[str] = []
    for _ in range(30):
        try:
            report = search(tmp_path / "killed", batch_size=8)
            break
        except KeyboardInterrupt as stop:
            said.append(str(stop))
    assert str(report) == str(whole)
    assert Fading.drawn == total
    assert any(f"settings are measured: {tmp_path / 'killed'}." in text for text in said)


def test_splits_that_are_one_or_share_images_are_refused_before_any_work(tmp_path):
    mixed = LabeledImages(
        torch.cat([VALIDATION.read(range(40)), TEST.read([3])]),
        [*VALIDATION.targets, TEST.targets[3]],
        CLASSES,
    )
    for changes, message in [
        ({"test": VALIDATION}, "`validation` is `test`"),
        ({"validation": TRAIN}, "`validation` is `real`"),
        ({"validation": mixed, "test": TEST}, "1 of 40 images of `test` are in `validation`"),
    ]:
        with pytest.raises(MismatchError, match=re.escape(message)):
            search(tmp_path, **changes)
    trained = Fading(trained_on={"base": {"fingerprint": VALIDATION.fingerprint}})
    with pytest.raises(MismatchError, match="The generator was trained on `validation`"):
        search(tmp_path, synthesizer=trained)
    assert Fading.drawn == 0
    search(tmp_path, validation=mixed, test=TEST, allow_overlap=True, guidance=[])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": {"eta": [0.5]}}, "Unknown setting 'eta'; known: num_inference_steps, scheduler"),
        ({"grid": {"num_inference_steps": []}}, "`grid` needs a list of values"),
        ({"grid": {"scheduler": "ddim"}}, "`grid` needs a list of values for 'scheduler'"),
        ({"per_class": 3}, "Each set of the coarse stage has 6 images for 4 features"),
        ({"per_class": 4, "k": 8}, "more than `k`=8"),
        ({"select": "kid"}, "`select` must be 'cas' or 'frechet'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_work(changes, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        search(tmp_path / "sweep", **changes)
    assert Fading.drawn == 0
    assert not (tmp_path / "sweep").exists()


def test_without_features_they_are_those_of_a_classifier_trained_on_the_real_images(tmp_path):
    def hidden(num_classes: int, image_shape: Any) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.ReLU(), nn.Linear(3, num_classes))

    report = search(tmp_path, features=None, model=hidden, guidance=[], steps=20)
    assert report.extractor["dim"] == 3
    assert "trained on images 0" in str(report.extractor["name"])
    assert len(list(tmp_path.glob("classifier-*.safetensors"))) == 1
    again = search(tmp_path, features=None, model=hidden, guidance=[], steps=20)
    assert str(again) == str(report)


def test_settings_that_a_scheduler_ignores_are_not_multiplied():
    grid: dict[str, Any] = {
        "scheduler": ["ddpm", "ddim"],
        "log_variance_mix": [0.0, 0.5, 1.0],
        "guidance_scale": [1.0, 2.0],
    }
    found = combinations(grid)
    assert len(found) == 3 * 2 + 2
    assert all(
        ("log_variance_mix" in setting) == (setting["scheduler"] == "ddpm") for setting in found
    )


def test_sampler_settings_reach_every_model_and_do_not_outlive_their_scheduler():
    setting: Any = {"scheduler": "ddpm", "log_variance_mix": 0.3, "num_inference_steps": 7}
    wanted = SamplerConfig(**setting)

    def tried(synthesizer: Any, setting: Any) -> Any:
        return Trial.of(synthesizer, setting, per_class=1, seed=0).synthesizer

    mixed = tried(tiny(), setting)
    assert mixed.sampler == wanted
    assert tried(mixed, {"scheduler": "ddim"}).sampler.log_variance_mix is None
    cascade = tried(tiny_cascade(), setting)
    for chain in (cascade.base, *cascade.stages):
        assert chain.sampler == wanted


def test_a_report_survives_its_file_and_its_page_loads_nothing(tmp_path):
    report = search(tmp_path)
    report.to_json(tmp_path / "sweep.json")
    again = SweepReport.from_json(tmp_path / "sweep.json")
    assert str(again) == str(report)
    assert again.fine == report.fine
    text = report.to_html(tmp_path / "sweep.html").read_text()
    assert "pixels 2x2" in text
    assert not re.findall(r"(?:src|href)=\"(?!data:)", text)
    assert report.plot(tmp_path / "sweep.png").stat().st_size > 1000
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(DataError, match="is not the report of a sweep"):
        SweepReport.from_json(tmp_path / "sweep.json")


def test_a_sweep_from_the_command_line(tmp_path, capsys):
    synthesizer = tiny()
    synthesizer.save_pretrained(tmp_path / "model")
    for name, n in {"train": 24, "validation": 16}.items():
        levels = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8)
        for i in range(n):
            folder = tmp_path / name / synthesizer.classes[i % 4]
            folder.mkdir(parents=True, exist_ok=True)
            to_pil(levels[i]).save(folder / f"{i}.png")
    train, validation = (f"folder:{tmp_path / name}" for name in ("train", "validation"))
    arguments = ["sweep", str(tmp_path / "model"), train, "--out", str(tmp_path / "out")]
    for text in (
        f"--validation {validation} --scheduler ddpm,ddim --num-inference-steps 2 --per-class 3",
        "--guidance-scale 1.0 --log-variance-mix [0.0,1.0] --guidance [1.0,2.0]",
        "--features pixels:2 --steps 2 --seeds 1 --device cpu",
    ):
        arguments += text.split()
    out = succeed(*arguments)
    assert "Chosen by CAS" in out
    assert "Next: synthaug generate" in out
    assert "too few to compare anything" in out
    report = SweepReport.from_json(tmp_path / "out.json")
    assert len(report.coarse) == 3
    assert len(report.fine) == 2
    assert (tmp_path / "out.html").exists()
    assert str(report.settings["command"]).startswith("synthaug sweep ")
    check_answer(*arguments)
    assert "`--validation` is missing" in fail(2, "sweep", tmp_path / "model", train)


def test_prompts_are_swept_beside_the_arguments_of_a_pipeline(tiny_checkpoint):
    synthesizer = FromPipeline(tiny_checkpoint("stable_diffusion").pipeline, ("a", "b"))
    texts = ["{}", ["the {}", "x" * 3 + " {}"]]
    grid = combinations({"prompts": texts, "guidance_scale": [1.0, 2.0]})
    trials = [Trial.of(synthesizer, one, per_class=2, seed=0) for one in grid]
    assert [trial.synthesizer.prompts for trial in trials[1:3]] == [
        ("a", "b"),
        ("the a", "xxx a", "the b", "xxx b"),
    ]
    assert [set(trial.plan["guidance_scale"]) for trial in trials] == [{1.0}, {2.0}] * 2
    assert len({trial.stem for trial in trials}) == 4
    long = Trial.of(synthesizer, {"prompts": [f"{i} {{}}" for i in range(60)]}, per_class=1, seed=0)
    assert len(long.stem) < 130
