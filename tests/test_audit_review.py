"""What happens to an audit's rows afterwards: they are withdrawn, or found harmless by a person."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug import AuditReport, SynthCache, audit, caches
from synthaug._audit.disturbances import disturbances
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
    for name in ("tier", "p_values", "q_values", "scores", "neighbours", "rmse"):
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
