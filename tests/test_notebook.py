"""What a notebook shows of our objects: well-formed, escaped, with pictures where there are any."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import synthaug
from synthaug._support.html import notebook, thumbnails
from tests.reports import NASTY, PICTURE, REPORTS

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


SHOWN: dict[str, tuple[Any, str, int]] = {  # how it is made, what it says, how many images
    "Plan": (plan, "Plan(3 rows, 2 classes, parameters: strength", 0),
    "AuditReport": (REPORTS["AuditReport"], "inconclusive: 1 of 8 images flagged", 16),
    "QualityReport": (REPORTS["QualityReport"], "Fréchet distance", 0),
    "SweepReport": (REPORTS["SweepReport"], "3.25", 0),
    "HardnessReport": (REPORTS["HardnessReport"], "1.75", 1),
    "EvaluationReport": (REPORTS["EvaluationReport"], "87.50", 0),
    "LabelCheck": (REPORTS["LabelCheck"], "1 of 2 images withheld", 0),
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
