"""What happens to an audit's rows afterwards: they are withdrawn, or found harmless by a person."""

import json
import re
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug import AuditReport, SynthCache, audit, caches
from synthaug._audit.acceptance import read_acceptance
from synthaug._audit.disturbances import disturbances
from synthaug._audit.notes import notes_path, read_notes
from synthaug._plan import Plan
from synthaug.errors import AuditError, MismatchError

COPIES = 6


def images(n: int, seed: int) -> Tensor:
    """Smooth random images, uint8 (n, 1, 8, 8)."""
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(0, 255, (n, 1, 4, 4)))
    return torch.nn.functional.interpolate(coarse, (8, 8), mode="bilinear").round().byte()


KINDS = disturbances(8)[:2]
TRAIN, HOLDOUT, FRESH = images(50, 1), images(90, 2), images(40, 3)


def cache_of(path: Path, pixels: Tensor, keys: Any = None) -> SynthCache:
    sources = {} if keys is None else {"sources": [range(len(keys))], "source_keys": keys}
    plan = Plan.build([len(pixels)], classes=("one",), settings={}, seed=0, **sources)
    manifest = {"recipe": {"synthesizer": "test"}}
    cache = SynthCache.create(path, plan, image_shape=pixels.shape[1:], manifest=manifest)
    cache.write(np.arange(len(pixels)), pixels)
    return cache


def audited(cache: Any, **options: Any) -> AuditReport:
    return audit(cache, TRAIN, holdout=HOLDOUT, progress=False, max_pairs=9, **options)


pytestmark = pytest.mark.usefixtures("compared_once")


@pytest.fixture(scope="module", autouse=True)
def few_planted() -> Iterator[None]:
    """Two planted copies of two kinds: what becomes of them is not asked here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("synthaug._audit.comparison.PLANTED", 2)
        patch.setattr("synthaug._audit.comparison.disturbances", lambda side: KINDS)
        patch.setattr("synthaug._audit.precedence.ASSIGNMENTS", 1000)
        yield


def parts(report: AuditReport) -> list[list[int]]:
    """The groups of the report's rows and hold-out images."""
    number = np.concatenate([report.group, report.holdout_group])
    return sorted(np.flatnonzero(number == group).tolist() for group in np.unique(number))


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, AuditReport]:
    """A cache of which the first rows are training images, and its report.

    The next one equals the first of the others, and the one after it a hold-out image.
    """
    path = tmp_path_factory.mktemp("copied") / "c.h5"
    pixels = torch.cat([TRAIN[:COPIES], FRESH[:1], HOLDOUT[:1], FRESH])
    return path, audited(cache_of(path, pixels))


@pytest.fixture
def again(copied: tuple[Path, AuditReport], tmp_path: Path) -> tuple[SynthCache, AuditReport]:
    """The same, to be changed."""
    path, report = copied
    copy = tmp_path / "c.h5"
    copy.write_bytes(path.read_bytes())
    return SynthCache(copy), report


def test_withdrawing_what_was_flagged_buys_no_pass(
    again: tuple[SynthCache, AuditReport], tmp_path: Path
) -> None:
    cache, first = again
    assert first.verdict == "fail"
    assert first.flagged.tolist() == list(range(COPIES))
    first.to_json(tmp_path / "audit.json")
    # Without their scores the withdrawn rows are named, and no pass is given.
    rows = np.arange(COPIES + 2)
    cache.withdraw(rows)
    report = audited(cache)
    assert report.verdict == "inconclusive"
    text = " ".join(report.reasons)
    assert f"{COPIES + 2} withdrawn rows could not be ranked: no scores of them were kept" in text
    assert "withdraw_from" in text
    assert (report.tier[rows] == -1).all()
    # With them, kept afterwards from the file, the audit is as it was before.
    AuditReport.from_json(tmp_path / "audit.json").withdraw_from(cache, rows)
    second = audited(cache)
    assert second.verdict == "fail"
    for name in ("tier", "p_values", "q_values", "scores", "neighbors", "rmse"):
        np.testing.assert_array_equal(getattr(second, name), getattr(first, name), name)
    assert parts(second) == parts(first), "what belonged together still counts once"
    assert [COPIES, COPIES + 2] in parts(first)
    assert [COPIES + 1, len(cache)] in parts(first)
    assert second.set_test["all"] == first.set_test["all"]
    assert f"{COPIES + 2} of the {len(cache)} images were withdrawn" in " ".join(second.reasons)
    assert all(pair["row"] > rows[-1] for pair in second.pairs), "their images are erased"
    # Other settings: the scores say nothing there.
    other = audited(cache, k=5)
    assert other.verdict == "inconclusive"
    assert "kept by an audit with other images, settings" in " ".join(other.reasons)


def test_rows_of_forgotten_images_are_not_spoken_of_and_scores_are_kept_of_judged_rows_only(
    tmp_path: Path, copied: tuple[Path, AuditReport]
) -> None:
    cache = cache_of(tmp_path / "c.h5", FRESH, keys=[99, 98])
    caches.forget([cache.path], [99])
    report = audited(cache)
    assert (report.tier == -1).sum() == 20
    assert "20 of 40 rows were made of real images that were forgotten" in " ".join(report.reasons)
    assert "could not be ranked" not in " ".join(report.reasons)
    erased = int(np.flatnonzero(report.tier == -1)[0])
    with pytest.raises(ValueError, match=f"Row {erased} was not judged"):
        report.withdraw_from(cache, [erased])
    with pytest.raises(MismatchError, match="another cache"):
        copied[1].withdraw_from(cache)


def test_damaged_notes_are_refused(again: tuple[SynthCache, AuditReport]) -> None:
    cache, _ = again
    cache.withdraw([9])
    cache.path.with_name("c.h5.audit.json").write_text("{}")
    with pytest.raises(AuditError, match="does not hold the notes of audits"):
        audited(cache)


def test_accepting_pairs_changes_no_number_and_names_the_reviewer(
    again: tuple[SynthCache, AuditReport], tmp_path: Path
) -> None:
    cache, report = again
    accepted = report.accept([1, 3], reviewer="A. Ng", reason="blank frames", beside=cache)
    assert accepted.reasons[1].startswith("2 pairs were accepted as harmless by A. Ng on ")
    assert "because: blank frames (rows 1, 3)" in accepted.reasons[1]
    assert "fail: 6 of 48 images flagged, 6 withheld, 2 accepted by A. Ng" in repr(accepted)
    for name in ("verdict", "tier", "p_values", "q_values", "withheld", "passed", "flagged"):
        np.testing.assert_array_equal(getattr(accepted, name), getattr(report, name))
    served = accepted.accept([1], reviewer="B. Ode", reason="the same scan", serve=True)
    assert served.verdict == "fail"
    assert served.flagged.tolist() == report.flagged.tolist()
    assert sorted({*report.withheld.tolist()} - {*served.withheld.tolist()}) == [1]
    served.to_json(tmp_path / "audit.json")
    again_read = AuditReport.from_json(tmp_path / "audit.json")
    assert again_read.accepted == served.accepted
    assert again_read.passed[1]
    # A later audit names it, but not for an image that has changed since.
    cache.invalidate([3])
    cache.write([3], TRAIN[7:8])
    later = audited(cache)
    assert later.accepted[0].rows == [1]
    assert "1 more that were accepted are not withheld now, or have other" in later.reasons[1]
    assert later.tier[3] > 0
    page = later.to_html(tmp_path / "later.html").read_text()
    assert "Accepted by A. Ng: blank frames" in page
    assert "A. Ng" in later.to_html(tmp_path / "redacted.html", redact=True).read_text()
    later.to_json(tmp_path / "redacted.json", redact=True)
    assert str(later.pairs[0]["digest"]) not in (tmp_path / "redacted.json").read_text()


def test_a_merged_cache_has_the_accepted_pairs_of_its_parts(
    again: tuple[SynthCache, AuditReport], tmp_path: Path
) -> None:
    cache, report = again
    report.accept([1, 3], reviewer="A. Ng", reason="blank frames", beside=cache)
    report.accept([2], reviewer="B. Ode", reason="the same scan", beside=cache)
    whole = tmp_path / "whole.h5"
    for _ in range(2):  # the second time finds everything there
        caches.merge([cache.path], whole)
        accepted = read_notes(notes_path(str(whole))).accepted
        assert [one.reviewer for one in accepted] == ["A. Ng", "B. Ode"]
    other = tmp_path / "other.h5"
    other.write_bytes(cache.path.read_bytes())  # without notes
    caches.merge([other], tmp_path / "none.h5")
    assert not read_notes(notes_path(str(tmp_path / "none.h5"))).accepted


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rows": [20]}, "names 20, expected rows that are withheld"),
        ({"rows": []}, "names no row"),
        ({"reviewer": " "}, "`reviewer` is empty"),
        ({"reason": ""}, "`reason` is empty"),
        ({"beside": "digits"}, "is not a cache, file or folder"),
    ],
)
def test_only_withheld_pairs_are_accepted_and_only_with_a_name_and_a_reason(
    copied: tuple[Path, AuditReport], change: dict[str, Any], problem: str
) -> None:
    arguments: dict[str, Any] = {"rows": [1], "reviewer": "A. Ng", "reason": "blank"}
    with pytest.raises(ValueError, match=problem):
        copied[1].accept(**arguments | change)


def test_the_page_writes_a_file_that_is_read(
    copied: tuple[Path, AuditReport], tmp_path: Path
) -> None:
    """The script is not run here: the file is put together from what stands in the page."""
    text = copied[1].to_html(tmp_path / "a.html").read_text()
    pairs = [json.loads(unescape(p)) for p in re.findall(r'data-pair="([^"]*)"', text)]
    assert [pair["row"] for pair in pairs] == [pair["row"] for pair in copied[1].pairs[:COPIES]]
    head = {"format": "synthaug-accepted-pairs", "format_version": 1}
    given = {"reviewer": "A. Ng", "reason": "blank", "created": "2026-01-02T03:04:05Z"}
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({**head, **given, "serve": False, "pairs": pairs[:2]}))
    acceptance = read_acceptance(path)
    rows = [pair["row"] for pair in pairs[:2]]
    report = copied[1].accept(rows, reviewer="A. Ng", reason="blank")
    assert acceptance.pairs == report.accepted[0].pairs
    damaged: list[Any] = [head, {**head, **given, "serve": 1, "pairs": []}, given, []]
    for wrong in damaged:
        path.write_text(json.dumps(wrong))
        with pytest.raises(AuditError, match="holds no accepted pairs"):
            read_acceptance(path)
