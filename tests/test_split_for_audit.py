import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthaug import audit, split_for_audit
from synthaug._audit.split import near_duplicates

SPLIT = "synthaug._audit.split.near_duplicates"


def fields(n: int, *, seed: int = 0, size: int = 12) -> Tensor:
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.uniform(0, 255, (n, 1, 5, 5)))
    return F.interpolate(coarse, (size, size), mode="bilinear").round().to(torch.uint8)


def test_every_image_goes_to_exactly_one_side_and_the_share_is_kept() -> None:
    train, holdout = split_for_audit(fields(200), holdout=0.25, progress=False)
    np.testing.assert_array_equal(np.sort(np.r_[train, holdout]), np.arange(200))
    assert len(holdout) == 50
    assert (np.diff(train) > 0).all()
    assert (np.diff(holdout) > 0).all()


def test_near_duplicates_go_to_the_same_side(monkeypatch: pytest.MonkeyPatch) -> None:
    originals = fields(60)
    brighter = (originals.float() * 0.8 + 40).round().to(torch.uint8)
    moved = F.pad(originals.float(), (1, 0, 0, 0), mode="replicate")[..., :12].to(torch.uint8)
    kinds = [originals, originals.clone(), originals.flip(-1), brighter, moved]
    groups = near_duplicates(torch.cat(kinds)).reshape(len(kinds), 60)
    assert (groups == groups[0]).all()
    assert len(np.unique(groups)) == 60, "different images stay apart"
    monkeypatch.setattr(SPLIT, lambda pixels: groups.ravel())  # which depend on no seed
    for seed in range(5):
        _, holdout = split_for_audit(torch.cat(kinds), holdout=0.3, seed=seed, progress=False)
        originals_held = np.unique(holdout % 60)
        assert len(holdout) == len(kinds) * len(originals_held)
        assert abs(len(holdout) - 0.3 * 300) <= len(kinds)


def test_a_split_repeats_exactly_and_changes_with_the_seed() -> None:
    pixels = fields(100)
    a, b, c = (split_for_audit(pixels, seed=s, progress=False)[1] for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_every_image_is_held_out_about_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = fields(40)
    groups = near_duplicates(pixels)
    monkeypatch.setattr(SPLIT, lambda pixels: groups)  # which depend on no seed
    counts = np.zeros(40)
    for seed in range(60):
        counts[split_for_audit(pixels, holdout=0.5, seed=seed, progress=False)[1]] += 1
    assert counts.sum() == 60 * 20
    assert np.abs(counts - 30).max() < 5 * (60 * 0.25) ** 0.5


def test_a_split_can_be_audited_with() -> None:
    pixels = fields(300)
    train, holdout = split_for_audit(pixels, holdout=0.5, progress=False)
    report = audit(fields(25, seed=1), pixels[train], holdout=pixels[holdout], progress=False)
    assert report.settings["holdout_near_equal"] == 0


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="`holdout` must lie between 0 and 1"):
        split_for_audit(fields(10), holdout=1)
    with pytest.raises(ValueError, match="3 images that are all alike"):
        split_for_audit(fields(1).expand(3, -1, -1, -1), progress=False)
    with pytest.raises(TypeError, match="`dataset` is a int"):
        split_for_audit(7)
