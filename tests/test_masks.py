"""Masks and boxes of real images, beside variants of them: in files, resized, and exported."""

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import albumentations as A
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset
from torchvision import tv_tensors
from torchvision.transforms import v2

from synthaug import Plan, SynthCache, albumentations, load_dataset
from synthaug._images.masks import MaskFiles
from synthaug._images.source import ImageSource
from synthaug._pixels import digest
from synthaug.caches import SourceMasks, export, forget
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


def coco(photos: Path, path: Path) -> Path:
    """A COCO file with the bright rectangle of each photo, and a box that is cut away."""
    images, annotations = [], list[dict[str, Any]]()
    for number, (width, height) in enumerate(SIZES):
        name = f"{number}.jpg" if number else "cat/0.jpg"  # bare, or with the folder
        images.append({"id": 70 + number, "file_name": name, "width": width, "height": height})
        left, top = width // 4, height // 4
        box = [left, top, width // 2 + number - left, height // 2 + number - top]
        for bbox in (box, [0, 0, 0.5, 0.5]):
            owner = {"image_id": 70 + number, "category_id": 7 + number, "iscrowd": number % 2}
            annotations.append({"id": len(annotations), "bbox": bbox, **owner})
    names = [{"id": 7 + number, "name": f"thing {number}"} for number in range(4)]
    record = {"images": images, "annotations": annotations, "categories": names}
    path.write_text(json.dumps(record))
    return path


class Detections:
    """As torchvision's `CocoDetection`, which needs pycocotools: images and their boxes."""

    def __init__(self, root: Path) -> None:
        self.root, self.coco = root, json.loads((root / "annotations.json").read_text())

    def __len__(self) -> int:
        return len(self.coco["images"])

    def __iter__(self) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
        for about in self.coco["images"]:
            boxes = [one for one in self.coco["annotations"] if one["image_id"] == about["id"]]
            with Image.open(self.root / about["file_name"]) as image:
                yield np.asarray(image), boxes


def test_boxes_in_a_coco_file_follow_their_images_into_an_export(
    folders: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    photos, masks = folders
    real = load_dataset(f"folder:{photos}", image_shape=SHAPE)
    cache = variants(tmp_path / "c.h5", real)
    sources = SourceMasks(real, masks, boxes=coco(photos, tmp_path / "instances.json"))
    assert "4 of 8 boxes are left out" in caplog.text
    out = export(cache, tmp_path / "out", format="folder", masks=sources)
    written = Detections(out)
    assert len(written) == 4
    for image, (box,) in written:
        left, top, width, height = box["bbox"]
        across, down = np.arange(16) + 0.5 - left, np.arange(16) + 0.5 - top
        within = ((down > 0) & (down < height))[:, None] & ((across > 0) & (across < width))
        assert ((image[..., 0] > 90) == within).mean() > 0.9
        assert box["iscrowd"] == (box["category_id"] - 7) % 2
        assert box["area"] == pytest.approx(width * height, abs=0.01)
    assert [one["name"] for one in written.coco["categories"]] == [f"thing {i}" for i in range(4)]
    tars = export(cache, tmp_path / "tars", format="webdataset", masks=sources)
    with tarfile.open(tars / "000000.tar") as archive:
        names = archive.getnames()
        files = [archive.extractfile(name) for name in names if name.endswith(".json")]
        packed = [json.load(file)["objects"] for file in files if file is not None]
    assert [one["category"] for (one,) in packed] == [f"thing {i}" for i in range(4)]
    assert [one["bbox"] for (one,) in packed] == [box["bbox"] for _, (box,) in written]
    assert sum(name.endswith(".mask.png") for name in names) == 4

    good = (out / "annotations.json").read_text()
    (out / "annotations.json").write_text(good[:-9])
    with pytest.raises(CacheError, match=r"annotations\.json is damaged"):  # before one is deleted
        forget([out], real.read([2]))
    (out / "annotations.json").write_text(good)
    assert len(list(out.rglob("*.png"))) == 8
    assert forget([out], real.read([2]))[out] == 1  # images and boxes go together
    left_over = Detections(out)
    assert [box["category_id"] for _, (box,) in left_over] == [7, 8, 10]
    described = json.loads((out / "croissant.json").read_text())["distribution"]
    stated = {one["@id"]: one.get("sha256") for one in described}["annotations.json"]
    assert stated == hashlib.sha256((out / "annotations.json").read_bytes()).hexdigest()


def test_boxes_in_a_list_are_those_of_the_export_and_the_shell_takes_a_file(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    photos, _ = folders
    real = load_dataset(f"folder:{photos}", image_shape=SHAPE)
    cache = variants(tmp_path / "c.h5", real)
    corners = tv_tensors.BoundingBoxes([[1, 2, 5, 9]], format="XYXY", canvas_size=(16, 16))
    listed: list[Any] = [{"boxes": corners, "labels": torch.tensor([3])}] * 3
    listed.append({"boxes": [], "labels": []})
    sources = SourceMasks(real, boxes=listed)
    out = export(cache, tmp_path / "out", format="folder", masks=sources)
    boxes = [found for _, found in Detections(out)]
    assert [len(found) for found in boxes] == [1, 1, 1, 0]
    assert boxes[0][0]["bbox"] == [1, 2, 4, 7]
    assert not (out / "masks").exists()
    file = coco(photos, tmp_path / "instances.json")
    command = ("cache", "export", cache.path, tmp_path / "shell", "--format", "folder")
    assert "`--real` is missing" in fail(2, *command, "--boxes", file)
    run(*command, "--real", f"folder:{photos}", "--boxes", file)
    assert len(Detections(tmp_path / "shell")) == 4


def test_boxes_that_do_not_fit_are_refused_before_any_work(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    photos, _ = folders
    real = load_dataset(f"folder:{photos}", image_shape=SHAPE)
    good = json.loads(coco(photos, tmp_path / "instances.json").read_text())

    def refused(kind: type[Exception], text: str, boxes: Any, of: Any = real) -> None:
        with pytest.raises(kind, match=text):
            SourceMasks(of, boxes=boxes)

    def file(**change: Any) -> Path:
        (tmp_path / "changed.json").write_text(json.dumps({**good, **change}))
        return tmp_path / "changed.json"

    def listed(boxes: Any = ((1, 2, 5, 9),), labels: Any = (0,)) -> list[dict[str, Any]]:
        return [{"boxes": boxes, "labels": labels}] * 4

    memory = LabeledImages(real.read(range(4)), real.labels, real.classes)
    refused(ValueError, "was not read from files by `load_dataset`", file(), memory)
    refused(ValueError, "`boxes` is for 3 images, and `real` has 4", listed()[:3])
    refused(DataError, "`boxes` 0 is no dict with", [[[1, 2, 5, 9]]] * 4)
    refused(DataError, r"has boxes \(1, 4\) and labels int64 \(2,\)", listed(labels=[0, 1]))
    refused(DataError, "expected left, top, right and bottom", listed([[9, 9, 3, 3]]))
    refused(DataError, "of an image of 16x16", listed([[0, 0, 20, 20]]))
    wide = tv_tensors.BoundingBoxes([[1, 2, 5, 9]], format="XYWH", canvas_size=(16, 16))
    refused(DataError, "has the format XYWH. Convert it to XYXY", listed(wide))
    refused(DataError, r"none\.json' cannot be read: No such file", tmp_path / "none.json")
    refused(DataError, "is no COCO file of boxes .*`annotations`", file(annotations=None))
    unnamed = file(categories=good["categories"][:1])
    refused(DataError, r"is no COCO file of boxes \(KeyError: 8\)", unnamed)
    fewer = file(images=good["images"][:3])
    refused(DataError, r"does not name .*3\.jpg, neither as 'dog/3\.jpg' nor as '3\.jpg'", fewer)
    twice = [*good["images"], {**good["images"][1], "id": 99}]
    refused(DataError, "several of its `images` one `file_name`", file(images=twice))
    turned = [{**entry, "width": entry["height"]} for entry in good["images"]]
    refused(MismatchError, r"0\.jpg is 20x20, and it is 24x20, upright", file(images=turned))
    cache = variants(tmp_path / "c.h5", real)
    sources = SourceMasks(real, boxes=listed())
    with pytest.raises(ValueError, match=r"takes no `masks` or boxes\. Use 'folder'"):
        export(cache, tmp_path / "out", format="huggingface", masks=sources)


def test_masks_in_a_folder_are_found_for_parts_of_data_sets(folders: tuple[Path, Path]) -> None:
    photos, masks = folders
    real = load_dataset(f"folder:{photos}", image_shape=SHAPE)
    whole = MaskFiles(masks, ImageSource.open(real))
    part: Any = ConcatDataset([Subset(real, [3, 1]), Subset(real, [2])])
    chosen = MaskFiles(masks, ImageSource.open(part))
    assert len(chosen) == 3
    for place, row in enumerate((3, 1, 2)):
        assert np.array_equal(chosen[place], whole[row])
    assert SourceMasks(part, masks).has_masks
    memory = LabeledImages(real.read(range(4)), real.labels, real.classes)
    with pytest.raises(ValueError, match="was not read from files"):
        SourceMasks(ConcatDataset([real, memory]), masks)


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
    with pytest.raises(TypeError, match=r"`keypoints` cannot be resized by `Fit`\. Leave"):
        fit(image=image, keypoints=np.zeros((1, 2)))


@pytest.mark.parametrize("form", ["pascal_voc", "coco", "yolo"])
def test_albumentations_moves_boxes_as_torchvision_does(form: Any) -> None:
    corners = torch.tensor([[8.0, 5, 19, 13], [0, 0, 3, 21], [20, 2, 33, 20]])
    forms = {"pascal_voc": "XYXY", "coco": "XYWH", "yolo": "CXCYWH"}

    def boxes(of: Any, size: tuple[int, int]) -> Any:
        given = tv_tensors.BoundingBoxes(of, format="XYXY", canvas_size=size)
        as_asked = v2.functional.convert_bounding_box_format(given, new_format=forms[form])
        scale = np.array([*size[::-1], *size[::-1]] if form == "yolo" else [1] * 4)
        return as_asked.as_subclass(torch.Tensor).numpy() / scale

    params = A.BboxParams(format=form, label_fields=["labels"])
    pipeline = A.Compose([albumentations.Fit(SHAPE)], bbox_params=params)
    image = scene(33, 21, 3)[0]
    found = pipeline(image=image, bboxes=boxes(corners, (21, 33)), labels=[1, 2, 3])
    whole = tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(21, 33))
    kept = Fit(SHAPE)(whole).as_subclass(torch.Tensor)[[0, 2]]  # the second is cut away
    np.testing.assert_allclose(found["bboxes"], boxes(kept, (16, 16)), rtol=1e-5)
    assert found["labels"] == [1, 3]
    assert pipeline(image=image, bboxes=np.zeros((0, 4)), labels=[])["bboxes"].shape == (0, 4)
    assert len(pipeline(image=image, bboxes=[], labels=[])["bboxes"]) == 0


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
