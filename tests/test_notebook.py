"""What a notebook shows of our objects: well-formed, escaped, with pictures where there are any."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import synthaug
from synthaug._support.html import data_uri, notebook, thumbnails
from synthaug._sweep.report import SweepReport, SweepRow
from synthaug.evaluation._hardness.report import HardnessReport
from synthaug.evaluation._hardness.report import Scores as Hardness
from synthaug.evaluation._quality import QualityReport, Scores
from synthaug.evaluation._report import EvaluationReport, Run

NASTY = '<script>alert("x")</script>'
PICTURE = data_uri(Image.new("L", (2, 2)))
VOID = {"img", "br"}


class Outline(HTMLParser):
    """Fails where tags do not match; keeps the text and the addresses of images."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.images: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert tag != "script"
        if tag not in VOID:
            self.open.append(tag)
        if tag == "img":
            self.images.append(dict(attrs)["src"])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def plan() -> Any:
    return synthaug.Plan.build(
        [2, 1], classes=[NASTY, "dog"], settings={}, seed=0, parameters={"strength": [0.25, 0.5]}
    )


def cache(folder: Path) -> Any:
    manifest = {"recipe": {"synthesizer": NASTY}}
    made = synthaug.SynthCache.create(
        folder / "c.h5", plan(), image_shape=(1, 4, 4), manifest=manifest
    )
    made.write([0, 2], torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    return made


def audited() -> Any:
    """Eight digits, the first of which is a training image, and a class name that is code."""
    digits = synthaug.load_dataset("digits").read(range(80))
    digits[0] = digits[20]
    names = (NASTY, "dog")
    parts = (digits[:8], digits[8:50], digits[50:])
    sets = [synthaug.images.LabeledImages(p, np.arange(len(p)) % 2, names) for p in parts]
    return synthaug.audit(sets[0], sets[1], holdout=sets[2], progress=False)


def quality() -> Any:
    scores = Scores(
        n=8,
        frechet_distance=None,
        kernel_distance=0.5,
        kernel_distance_std=0.1,
        precision=1.0,
        recall=1.0,
        density=1.0,
        coverage=1.0,
    )
    return QualityReport(
        identity={},
        synthetic=scores,
        floor=scores,
        by_class={},
        reference={"name": NASTY},
        floor_from="hold-out",
        extractor={"name": NASTY, "dim": 4},
        classifier=None,
        settings={"force": False},
    )


def swept() -> Any:
    row = SweepRow(
        setting={"scheduler": NASTY, "guidance_scale": 1.5},
        images=8,
        evaluations=4,
        scores=Scores(**{**vars(quality().floor), "frechet_distance": 3.25}),
        cas=[0.75],
    )
    return SweepReport(
        coarse=[row],
        fine=[row],
        floors={"coarse": row.scores, "fine": row.scores},
        real_accuracy=[0.5],
        chosen=row.setting,
        select="cas",
        validation={"name": NASTY, "compared_with_test": True},
        extractor={"name": "pixels", "dim": 4},
        classifier={"name": NASTY, "model": "small-cnn", "steps": 3},
    )


def hardness() -> Any:
    values = np.array([1.0, 2.5, np.nan])
    scores = Hardness(np.array([0, 1, 0]), values, values, values)
    return HardnessReport(
        identity={},
        classes=(NASTY, "dog"),
        synthetic=scores,
        train=scores,
        holdout=None,
        extractor={"name": NASTY},
        settings={},
        pictures={"hardest": ({"row": 1, "image": PICTURE}, {"row": 0, "image": "x.png"})},
    )


def evaluated() -> Any:
    run = Run(
        arm=NASTY,
        seed=0,
        steps=3,
        selected_step=3,
        test_accuracy=0.875,
        class_accuracies=[None],
        validation_accuracy=None,
        images_seen=8,
        unique_real=4,
        unique_synthetic=0,
        seconds=0.1,
        loss_curve=[],
        validation_curve=[],
    )
    return EvaluationReport(
        runs=[run], classes=["a"], settings={}, arms={NASTY: {}}, baseline=NASTY
    )


SHOWN: dict[str, tuple[Any, str, int]] = {  # how it is made, what it says, how many images
    "Plan": (plan, "Plan(3 rows, 2 classes, parameters: strength", 0),
    "AuditReport": (audited, "fail: 1 of 8 images flagged", 16),
    "QualityReport": (quality, "Fréchet distance", 0),
    "SweepReport": (swept, "3.25", 0),
    "HardnessReport": (hardness, "1.75", 1),
    "EvaluationReport": (evaluated, "87.50", 0),
}


@pytest.mark.parametrize("kind", SHOWN)
def test_a_notebook_shows_an_object_with_its_numbers_and_pictures_and_runs_no_code(kind):
    make, said, images = SHOWN[kind]
    shown = make()._repr_html_()
    outline = Outline(shown)
    assert said in outline.text
    assert len(outline.images) == images
    assert len(shown) < 200_000
    assert "alert" not in shown or "&lt;script&gt;alert(" in shown


def test_a_notebook_shows_the_images_of_a_cache(tmp_path):
    outline = Outline(cache(tmp_path)._repr_html_())
    assert "2 done, 1 pending" in outline.text
    assert len(outline.images) == 2


def test_a_long_list_of_classes_is_cut():
    names = [f"class {i}" for i in range(40)]
    plan = synthaug.Plan.build([1] * 40, classes=names, settings={}, seed=0)
    text = Outline(plan._repr_html_()).text
    assert "class 11" in text
    assert "class 12" not in text
    assert "and 28 more classes" in text


def test_addresses_that_are_none_of_ours_are_left_out():
    foreign = ("https://example.org/x.png", 'data:image/png;base64,AA" onerror="x', None, 3)
    html = notebook("pictures", thumbnails([(PICTURE, NASTY), *((a, "foreign") for a in foreign)]))
    assert Outline(html).images == [PICTURE]
