import re
from pathlib import Path

import numpy as np
import pytest

from synthaug import AuditReport, SynthCache, load_dataset
from synthaug._demo import DemoSettings, classifier_seeds, demo, split_digits
from synthaug.caches import export
from synthaug.evaluation import EvaluationReport
from tests.killing import DEMO

pytestmark = pytest.mark.usefixtures("short_audits", "linear_classifiers")

TOY = DemoSettings(**DEMO)


def test_the_split_takes_every_image_of_the_training_half_once():
    half = load_dataset("digits", split="train")
    split = split_digits(half.targets, DemoSettings(), seed=0)
    parts = [split.labeled, split.holdout, split.pool]
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(half)))
    labels = np.asarray(half.targets)
    assert (np.bincount(labels[split.labeled]) == DemoSettings().per_class).all()
    other = split_digits(half.targets, DemoSettings(), seed=1)
    assert set(other.labeled) != set(split.labeled)


def test_with_more_labels_the_generator_learns_from_the_same_images():
    labels = load_dataset("digits", split="train").targets
    few, many = (split_digits(labels, DemoSettings(per_class=n), seed=0) for n in (3, 10))
    assert set(few.labeled) < set(many.labeled)
    np.testing.assert_array_equal(few.seen, many.seen)
    np.testing.assert_array_equal(few.holdout, many.holdout)


def test_one_label_per_class_leaves_nothing_to_interpolate_with():
    with pytest.raises(ValueError, match="must be from 2 to"):
        DemoSettings(per_class=1)


def test_the_test_half_is_other_images_than_the_training_half():
    half, test = (load_dataset("digits", split=name) for name in ("train", "test"))
    assert len(half) + len(test) == len(load_dataset("digits"))
    known = {image.numpy().tobytes() for image in half.read(range(len(half)))}
    fresh = [image.numpy().tobytes() not in known for image in test.read(range(len(test)))]
    assert all(fresh)


@pytest.mark.filterwarnings("ignore:::mlcroissant")
def test_the_demo_runs_all_stages_and_again_without_drawing_anew(tmp_path, capsys):
    path = demo(tmp_path, seed=3, settings=TOY, progress=False)
    printed = capsys.readouterr().out
    folder = tmp_path / "3-per-class"
    cache = SynthCache(folder / "digits.h5")
    assert cache.done.all()
    assert len(cache) == 30
    assert (cache.plan["partner_label"] == cache.labels).all()
    half = load_dataset("digits", split="train")
    real = half.subset(split_digits(half.targets, TOY, seed=3).labeled)
    few = SynthCache(folder / "few.h5")
    assert few.manifest["source"] == {"fingerprint": real.fingerprint, "images": 30}
    report = AuditReport.from_json(folder / "audit.json")
    assert report.identity == cache.identity
    evaluation = EvaluationReport.from_json(folder / "evaluation.json")
    assert {run.seed for run in evaluation.runs} == {6, 7} == set(classifier_seeds(3, TOY))
    assert report.settings["seed"] == 3
    assert len(evaluation.arm_names) == 5
    for arm in evaluation.arm_names:
        assert f"{100 * evaluation.mean(arm):.2f}"[:4] in printed
    html = path.read_text()
    assert len(re.findall("<img src=.data:image/png", html)) > 10
    assert html.count("<svg") >= 4
    shown = export(cache, tmp_path / "shown", format="huggingface", audit=report)
    assert f'ended with "{report.verdict}"' in (shown / "README.md").read_text()
    page = (Path(__file__).parents[1] / "docs" / "sharing.md").read_text()
    for name, block in zip(
        ("README.md", "croissant.json"),
        re.findall(r"^```text\n(.*?)^```", page, re.M | re.S),
        strict=True,
    ):  # other processors may draw other images
        text = re.sub(r"\d+", "N", (shown / name).read_text())
        for line in re.sub(r"\d+", "N", block).splitlines():
            assert line.strip() == "..." or line in text.splitlines(), line
    croissant = pytest.importorskip("mlcroissant", reason="the extra `frameworks`")
    data = croissant.Dataset(jsonld=shown / "croissant.json")
    assert not data.metadata.ctx.issues.errors
    rows = {record["records/row"] for record in data.records("records")}
    assert rows == set(np.flatnonzero(report.passed).tolist())
    for heading in ("The images", "Do they help?", "Are they copies?", "The closest pairs"):
        assert f"<h2>{heading}</h2>" in html
    assert "http" not in re.sub(r"http-equiv|http://www.w3.org/2000/svg", "", html)

    written = (folder / "digits.h5").stat().st_mtime_ns
    demo(tmp_path, seed=3, settings=TOY, progress=False)
    assert (folder / "digits.h5").stat().st_mtime_ns == written
    assert capsys.readouterr().out.splitlines()[-1].startswith("Report: ")
