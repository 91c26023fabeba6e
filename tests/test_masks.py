"""Masks and boxes of real images, beside variants of them: in files, resized, and exported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from synthaug import Plan, SynthCache, albumentations, load_dataset
from synthaug._pixels import digest
from synthaug.caches import SourceMasks, export
from synthaug.errors import CacheError, DataError, MismatchError
from synthaug.images import LabeledImages
from synthaug.transforms import Fit, SyntheticVariant
from tests.command_line import fail, run
from tests.drawing import Shaped

SHAPE = (3, 16, 16)
SIZES = [(24, 20), (20, 24), (16, 16), (33, 21)]  # width, height


def scene(width: int, height: int, number: int) -> tuple[Any, Any]:
    """A photo, and its mask: a bright rectangle is class 7 + number."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2 + number, width // 4 : width // 2 + number] = 7 + number
    return np.where(mask[..., None] > 0, 220, 30).repeat(3, 2).astype(np.uint8), mask


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Photos of several sizes in class folders, one that a camera held sideways, and masks."""
    photos, masks = tmp_path / "photos", tmp_path / "masks"
    for number, size in enumerate(SIZES):
        image, mask = scene(*size, number)
        inner = Path("cat" if number < 2 else "dog", f"{number}.jpg")
        for root in (photos, masks):
            (root / inner).parent.mkdir(parents=True, exist_ok=True)
        photo, exif = Image.fromarray(image), Image.Exif()
        if number == 1:
            exif[0x0112] = 6
            photo = photo.transpose(Image.Transpose.ROTATE_90)  # as it is seen, it is upright
        photo.save(photos / inner, quality=100, exif=exif)
        Image.fromarray(mask).save(masks / inner.with_suffix(".PNG" if number else ".png"))
    return photos, masks


def variants(path: Path, real: LabeledImages) -> SynthCache:
    """Two variants of each image: one with other contrast, and one that moved."""
    plan = Plan.build(
        [4, 4],
        classes=real.classes,
        settings={},
        seed=0,
        sources=[np.repeat(np.flatnonzero(real.labels == c), 2) for c in (0, 1)],
        source_keys=np.array([digest(image) for image in real.read(range(len(real)))], np.uint64),
    )
    recipe = {"recipe": Shaped().recipe()}
    cache = SynthCache.create(path, plan, image_shape=real.image_shape, manifest=recipe)
    drawn = real.read(plan["source"]) // 2 + 40
    drawn[1::2] = drawn[1::2].roll(4, dims=3)
    cache.write(range(8), drawn)
    return cache


def of_source(real: LabeledImages, masks: Path, source: int) -> Any:
    """The mask of an image in another way: scaled up, so that blurred edges round to classes."""
    path = next(masks.glob(f"*/{source}.*"))
    whole = tv_tensors.Mask(torch.from_numpy(np.array(Image.open(path))))
    height, width = whole.shape
    scale = max(16 / height, 16 / width)
    rows = (np.arange(16) + 0.5 + (height * scale - 16) / 2) / scale
    columns = (np.arange(16) + 0.5 + (width * scale - 16) / 2) / scale
    return whole.numpy()[np.ix_(rows.astype(int), columns.astype(int))]


def test_masks_in_a_folder_follow_their_images_into_an_export(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, masks = folders
    real = load_dataset(f"folder:{photos}", image_shape=SHAPE)
    cache = variants(tmp_path / "c.h5", real)
    sources = SourceMasks(real, masks)
    agreement = sources.agreement(cache)
    assert (agreement[0::2] > 0.95).all()
    assert (agreement[1::2] < 0.5).all()
    out = export(cache, tmp_path / "out", format="folder", masks=sources)
    records = [json.loads(line) for line in (out / "provenance.jsonl").read_text().splitlines()]
    assert [record["row"] for record in records] == [0, 2, 4, 6]
    for record in records:
        mask = np.asarray(Image.open(out / record["mask_file_name"]))
        assert np.array_equal(mask, of_source(real, masks, record["source"]))
        assert set(np.unique(mask)) == {0, 7 + record["source"]}
        bright = np.asarray(Image.open(out / record["file_name"]))[..., 0] > 90
        assert ((mask > 0) == bright).mean() > 0.9
    unread = SourceMasks(real, masks)
    with monkeypatch.context() as patch:  # a name that is taken is said before any comparison
        patch.setattr(SourceMasks, "agreement", None)
        with pytest.raises(CacheError, match="out exists already"):
            export(cache, out, format="folder", masks=unread)
    # What was exported is a folder of images and a folder of masks again.
    again = load_dataset(f"folder:{out / 'images'}")
    assert len(again) == 4
    assert SourceMasks(again, str(out / "masks")).has_masks
    boxes = export(cache, tmp_path / "boxes", format="huggingface", masks=SourceMasks(real))
    assert len(list(boxes.rglob("*.png"))) == 4
    assert not list(boxes.rglob("*mask*"))


def test_the_shell_exports_masks_and_counts_what_it_leaves_out(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    photos, masks = folders
    cache = variants(tmp_path / "c.h5", load_dataset(f"folder:{photos}", image_shape=SHAPE))
    command = ("cache", "export", cache.path, tmp_path / "out", "--format", "folder")
    asked = ("--real", f"folder:{photos}", "--masks", masks, "--json")
    record = json.loads(run(*command, *asked).out)["result"]
    assert record["images"] == 4
    assert record["left_out"] == {"without_source": 0, "edges_moved": 4}
    assert len(record["edge_agreement"]) == 3
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == 4
    other = (*command[:3], tmp_path / "all", *command[4:])
    assert "`--real` is missing" in fail(2, *other, "--masks", masks)
    outcome = run(*other, *asked[:2])
    assert "4 images" in outcome.out
    assert "Left out of 8 rows: 0 without a source, 4 whose edges moved." in outcome.out


def test_masks_in_a_folder_that_do_not_fit_are_refused_before_any_work(
    folders: tuple[Path, Path],
) -> None:
    photos, masks = folders
    real = load_dataset(f"folder:{photos}", image_shape=SHAPE)
    mask = masks / "cat" / "0.png"
    good = mask.read_bytes()

    def refused(kind: type[Exception], text: str, folder: Path = masks, of: Any = real) -> None:
        with pytest.raises(kind, match=text):
            SourceMasks(of, folder)

    memory = LabeledImages(real.read(range(4)), real.labels, real.classes)
    refused(ValueError, "was not read from files by `load_dataset`", of=memory)
    refused(DataError, "is no folder", masks / "none")
    mask.unlink()
    refused(DataError, r"0\.png, the mask of .*0\.jpg, does not exist")
    Image.fromarray(scene(24, 20, 0)[0]).save(mask)
    refused(MismatchError, "has mode RGB, expected one class number per pixel")
    Image.fromarray(scene(20, 24, 0)[1]).save(mask)
    refused(MismatchError, r"0\.png is 20x24, and its image .*0\.jpg 24x20, upright")
    mask.write_bytes(good[:20])
    refused(DataError, r"0\.png cannot be decoded")
    mask.write_bytes(good)
    (masks / "cat" / "0.bmp").write_bytes(good)
    refused(DataError, r"is not the only mask of its name: 0\.bmp, 0\.png")
    (masks / "cat" / "0.bmp").unlink()
    Image.fromarray(scene(24, 20, 0)[0]).save(photos / "cat" / "0.png")
    twice = load_dataset(f"folder:{photos}", image_shape=SHAPE)
    refused(DataError, r"0\.png would be the mask of .*0\.png and of .*0\.jpg", of=twice)


def test_masks_and_boxes_are_resized_as_their_image() -> None:
    image, mask = scene(33, 21, 3)
    box = torch.tensor([[8, 5, 19, 13], [0, 0, 3, 21]])
    fit = Fit(SHAPE)
    for kind in (torch.uint8, torch.int64, torch.bool):
        given = tv_tensors.Mask(torch.from_numpy(mask).to(kind))
        shown, same = fit(Image.fromarray(image), given)
        assert isinstance(same, tv_tensors.Mask)
        assert same.dtype == kind
        assert set(same.unique().tolist()) == set(given.unique().tolist())
        assert ((same > 0).numpy() == (np.asarray(shown)[..., 0] > 125)).mean() > 0.95
    many = tv_tensors.Mask(torch.from_numpy(mask)[None].expand(5, -1, -1))
    assert fit(many).shape == (5, 16, 16)
    for form in ("XYXY", "XYWH", "CXCYWH"):
        corners = tv_tensors.BoundingBoxes(box.float(), format="XYXY", canvas_size=(21, 33))
        given = v2.functional.convert_bounding_box_format(corners, new_format=form)
        _, moved = fit(Image.fromarray(image), given)
        assert moved.format.value == form
        assert moved.canvas_size == (16, 16)
        found = v2.functional.convert_bounding_box_format(moved, new_format="XYXY")
        scale, right = 16 / 21, (33 * 16 / 21 - 16) / 2
        expected = torch.tensor([8 * scale - right, 5 * scale, 19 * scale - right, 13 * scale])
        torch.testing.assert_close(found[0].as_subclass(torch.Tensor), expected)
        assert found[1, 0] == found[1, 2] == 0  # cut away: an empty box
    whole = tv_tensors.BoundingBoxes(box, format="XYXY", canvas_size=(21, 33))
    assert fit(Image.fromarray(image), whole)[1].dtype == torch.int64
    wrong: list[tuple[Any, str]] = [(tv_tensors.Video(torch.zeros(1, 3, 4, 4)), "a Video")]
    if hasattr(tv_tensors, "KeyPoints"):  # and turned boxes, since torchvision 0.23
        corner = torch.zeros(1, 5)
        turned = tv_tensors.BoundingBoxes(corner, format="XYWHR", canvas_size=(21, 33))
        points = tv_tensors.KeyPoints(torch.zeros(1, 2), canvas_size=(21, 33))
        wrong += [(turned, "upright boxes"), (points, "a KeyPoints. Leave it out")]
    for value, text in wrong:
        with pytest.raises(TypeError, match=text):
            fit(Image.fromarray(image), value)


def test_albumentations_resizes_masks_as_their_image() -> None:
    image, mask = scene(33, 21, 3)
    fit = albumentations.Fit(SHAPE)
    ours = Fit(SHAPE)(tv_tensors.Mask(torch.from_numpy(mask))).numpy()
    assert np.array_equal(fit(image=image, mask=mask)["mask"], ours)
    assert np.array_equal(fit(image=image, masks=[mask, mask])["masks"], [ours, ours])
    deep = fit(image=image, mask=mask[..., None].repeat(2, 2))["mask"]
    assert np.array_equal(deep, ours[..., None].repeat(2, 2))
    with pytest.raises(TypeError, match="`bboxes` cannot follow"):
        fit(image=image, bboxes=np.zeros((1, 4)))


def test_a_loader_gives_variants_with_the_masks_of_photos_of_any_size(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    photos, masks = folders
    real = load_dataset(f"folder:{photos}", image_shape=SHAPE)
    cache = variants(tmp_path / "c.h5", real)
    variant = SyntheticVariant(cache, audit=None, p=1.0, min_edge_agreement=0.8, on_missing="raise")
    together = v2.Compose([Fit(SHAPE), variant, v2.ToImage()])
    for source, path in enumerate(sorted(photos.rglob("*.jpg"))):
        photo = Image.open(path)  # whose EXIF `Fit` reads, as `load_dataset` does
        mask = np.array(Image.open(next(masks.glob(f"*/{source}.*"))))
        shown, kept = together(photo, tv_tensors.Mask(torch.from_numpy(mask)))
        assert torch.equal(shown.as_subclass(torch.Tensor), cache.read([2 * source])[0])
        assert np.array_equal(kept.numpy(), of_source(real, masks, source))
