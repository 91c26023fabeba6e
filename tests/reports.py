"""One small report of every kind, with a class or an arm whose name is code."""

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from PIL import Image

import synthaug
from synthaug._support.html import data_uri
from synthaug.evaluation import EvaluationReport, HardnessReport, LabelCheck, QualityReport, Run
from synthaug.evaluation._hardness import HardnessScores
from synthaug.evaluation._quality import QualityScores
from synthaug.sweeps import SweepReport, SweepRow
from tests.audits import shorten

NASTY = '<script>alert("x")</script>'
PICTURE = data_uri(Image.new("L", (2, 2)))


def audited() -> Any:
    """Eight digits, the first of which is a training image, and a class name that is code."""
    digits = synthaug.load_dataset("digits").read(range(80))
    digits[0] = digits[20]
    names = (NASTY, "dog")
    parts = (digits[:8], digits[8:50], digits[50:])
    sets = [synthaug.images.LabeledImages(p, np.arange(len(p)) % 2, names) for p in parts]
    with pytest.MonkeyPatch.context() as patch:
        shorten(patch)
        return synthaug.audit(sets[0], sets[1], holdout=sets[2], progress=False)


def membership() -> Any:
    """Twenty digits of each set, and losses that know nothing."""
    digits = synthaug.load_dataset("digits").read(range(40))
    labels, names = np.arange(20) % 2, (NASTY, "dog")
    sets = [synthaug.images.LabeledImages(p, labels, names) for p in digits.split(20)]
    return synthaug.membership(Uninterested(), *sets, random_split=True, progress=False)


class Uninterested(synthaug.AbstractSynthesizer):
    """Restores an image as badly as its first row is bright."""

    draw: Any = None

    def recipe(self) -> Any:
        return {"synthesizer": NASTY}

    def restoration_losses(self, pixels: Any, labels: Any, grid: Any) -> Any:
        return 1.0 + pixels[:, 0, 0].double().numpy()


def quality() -> Any:
    scores = QualityScores(
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
        scores=QualityScores(**{**vars(quality().floor), "frechet_distance": 3.25}),
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
    scores = HardnessScores(np.array([0, 1, 0]), values, values, values)
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
        runs=[run],
        classes=["a"],
        settings={},
        arms={NASTY: {"images": 8, "augment": "none"}},
        baseline=NASTY,
    )


def checked() -> Any:
    return LabelCheck(
        identity={"plan_digest": "abc"},
        classes=(NASTY, "dog"),
        labels=np.array([0, 1, 0], np.int64),
        scores=np.array([0.125, 0.75, np.nan], np.float32),
        withheld=np.array([True, False, False]),
        settings={"threshold": 0.5},
    )


REPORTS = {
    "AuditReport": audited,
    "EvaluationReport": evaluated,
    "HardnessReport": hardness,
    "LabelCheck": checked,
    "MembershipReport": membership,
    "QualityReport": quality,
    "SweepReport": swept,
}
"""How a report of every kind is made, by the name of its class."""


class Marks(HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def of(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


def check_accessible(text: str) -> None:
    """What a page owes to people who see no screen, or use no pointer."""
    marks = Marks(text)
    assert marks.of("html")[0]["lang"] == "en"
    assert next(tag for tag, _ in marks.tags if re.fullmatch("h[1-6]", tag)) == "h1"
    assert all(image.get("alt") for image in marks.of("img"))
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in marks.of("svg"))
    assert all(cell.get("scope") in ("row", "col") for cell in marks.of("th"))
    assert not re.search(r"<th[^>]*></th>", text), "an empty head, which names nothing"
    wide = [one for one in marks.of("div") if one.get("class") == "wide"]
    assert len(wide) == len(marks.of("table"))
    assert all(one["tabindex"] == "0" and one["role"] == "group" for one in wide)
    assert all(str(one["aria-label"]).startswith("Table: ") for one in wide)
