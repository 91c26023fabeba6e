from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from synthaug import audit, split_for_audit
from synthaug._audit.split import near_duplicates
from tests.command_line import check_answer, fail, succeed
from tests.images import to_pil

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


@pytest.mark.usefixtures("short_audits")
def test_a_split_can_be_audited_with() -> None:
    pixels = fields(300)
    train, holdout = split_for_audit(pixels, holdout=0.5, progress=False)
    report = audit(fields(25, seed=1), pixels[train], holdout=pixels[holdout], progress=False)
    assert report.settings["holdout_near_equal"] == 0


def test_wrong_arguments_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="`holdout` must lie between 0 and 1"):
        split_for_audit(fields(10), holdout=1)
    with pytest.raises(ValueError, match="All 3 images of `dataset` are alike"):
        split_for_audit(fields(1).expand(3, -1, -1, -1), progress=False)
    with pytest.raises(TypeError, match="`dataset` is a int"):
        split_for_audit(7)


def test_the_share_is_held_out_of_every_class() -> None:
    pixels, labels = fields(90), np.repeat([0, 1, 2], [60, 29, 1])
    train, holdout = split_for_audit(pixels, holdout=0.2, labels=labels, progress=False)
    assert np.bincount(labels[holdout], minlength=3).tolist() == [12, 6, 0]
    np.testing.assert_array_equal(np.sort(np.r_[train, holdout]), np.arange(90))
    with pytest.raises(ValueError, match=r"`labels` has shape \(3,\), expected \(90,\)"):
        split_for_audit(pixels, labels=[0, 1, 1], progress=False)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images of each of two classes, and in a folder below the first two a copy of each."""
    for i, image in enumerate(fields(20, size=32)):
        for place in ("", "again") if i < 10 else ("",):
            folder = tmp_path / "photos" / ("cat" if i < 10 else "my dog") / place
            folder.mkdir(parents=True, exist_ok=True)
            to_pil(image).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("link", [False, True])
def test_a_folder_is_divided_by_class_with_names_kept(photos: Path, link: bool) -> None:
    out = photos.with_name("out")
    words = [f"folder:{photos}", out, "--test", 0.2, *["--link"] * link]
    check_answer("split", *words)
    parts = {}
    for side in ("train", "test"):
        parts[side] = {p.relative_to(out / side) for p in (out / side).rglob("*.png")}
        for path in parts[side]:
            assert (out / side / path).read_bytes() == (photos / path).read_bytes()
            assert (out / side / path).is_symlink() == link
    assert not parts["train"] & parts["test"]
    assert parts["train"] | parts["test"] == {p.relative_to(photos) for p in photos.rglob("*.png")}
    assert sum(path.parts[0] == "my dog" for path in parts["test"]) == 2
    cats = {path for path in parts["test"] if path.parts[0] == "cat"}
    assert {path.name for path in cats if len(path.parts) == 2} == {
        path.name for path in cats if len(path.parts) == 3
    }
    assert len(cats) == 4
    assert "out exists already, and nothing is overwritten" in fail(2, "split", *words)


def test_what_a_split_decided_and_what_comes_next_is_said(photos: Path) -> None:
    out = photos.with_name("two parts")
    text = succeed("split", f"folder:{photos}", out)
    assert "24 images to train with" in text
    assert f"6 images to test with, near-duplicates together: {out / 'test'}" in text
    assert text.endswith(f"Next: synthaug train 'folder:{out}/train' 'runs/two parts'\n")


def test_a_split_refuses_what_it_cannot_do(photos: Path) -> None:
    out = photos.with_name("never")
    for words, message in [
        ((f"folder:{photos}", photos / "out"), "would be taken for images of it"),
        (("digits", out), "expected `folder:PATH`"),
        (("hdf5:photos.h5", out), "one folder of image files per class, and neither lists nor"),
        (("photos.csv", out), "folder:PATH"),
        ((f"folder:{photos}", out, "--test", 1), "`--test` must lie between"),
    ]:
        assert message in fail(2, "split", *words)
    assert not out.exists()
