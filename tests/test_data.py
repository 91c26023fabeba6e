"""Loading labeled images, and converting images and labels between the common types."""

import fcntl
import logging
import pickle
import shutil
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_digits
from torch.utils.data import ConcatDataset, DataLoader, Subset
from torchvision import datasets, tv_tensors
from torchvision.transforms import v2

from synthaug import load_dataset
from synthaug._images.convert import label_like, like, pixels_of
from synthaug._images.fields import Fields
from synthaug._images.folders import IMAGE_EXTENSIONS
from synthaug._images.source import ImageSource
from synthaug.errors import DataError, MismatchError
from synthaug.images import LabeledImages


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of three RGB images, 6 pixels high and 5 wide."""
    for c, name in enumerate(["cat", "dog", "eel"]):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            image = Image.fromarray(noise(6, 5, 3, seed=3 * c + i))
            image.save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


# Class folders


def test_a_folder_loads_as_torchvision_loads_it(folder):
    ours, theirs = load_dataset(f"folder:{folder}"), datasets.ImageFolder(folder)
    assert list(ours.classes) == theirs.classes
    assert ours.class_to_idx == theirs.class_to_idx
    assert ours.targets == theirs.targets
    assert ours.paths == [path for path, _ in theirs.samples]
    assert ours.image_shape == (3, 6, 5)
    for i in range(len(theirs)):
        (image, label), (their_image, their_label) = ours[i], theirs[i]
        assert image.mode == "RGB"
        assert np.array_equal(np.asarray(image), np.asarray(their_image))
        assert (type(label), label) == (int, their_label)


def test_images_in_subfolders_and_with_capital_extensions_are_found(folder):
    (folder / "cat" / "more").mkdir()
    Image.fromarray(noise(6, 5, 3)).save(folder / "cat" / "more" / "X.JPEG")
    assert load_dataset(f"folder:{folder}").targets.count(0) == 4


def test_a_split_is_a_subfolder(folder):
    whole = load_dataset(f"folder:{folder.parent}", split="set")
    assert whole.fingerprint == load_dataset(f"folder:{folder}").fingerprint
    with pytest.raises(DataError, match=r"no subfolder 'train'. It has: set"):
        load_dataset(f"folder:{folder.parent}", split="train")


def test_images_decoded_on_demand_equal_images_decoded_at_loading(folder):
    eager = load_dataset(f"folder:{folder}")
    lazy = load_dataset(f"folder:{folder}", memory_limit=0)
    assert torch.equal(eager.read([4, 0, 4]), lazy.read([4, 0, 4]))
    assert eager.fingerprint == lazy.fingerprint
    assert torch.equal(pickle.loads(pickle.dumps(lazy)).read([8]), eager.read([8]))


@pytest.mark.parametrize(("height", "width"), [(20, 60), (61, 20), (9, 13)])
def test_resizing_is_torchvisions_of_the_shorter_side_and_then_the_center(tmp_path, height, width):
    (tmp_path / "a").mkdir()
    image = Image.fromarray(noise(4, 4, 3)).resize((width, height), Image.Resampling.BILINEAR)
    image.save(tmp_path / "a" / "x.png")
    pixels = load_dataset(f"folder:{tmp_path}", image_size=10).read([0])[0]
    resize = v2.Resize(10, v2.InterpolationMode.BICUBIC)
    expected = pixels_of(v2.CenterCrop(10)(resize(image)))
    assert pixels.shape == (3, 10, 10)
    # torchvision rounds the longer side to whole pixels and its cut as well, we do neither
    assert (pixels.float() - expected.float()).abs().mean() < 4


def test_images_are_brought_to_the_shape_of_a_cache_and_stay_as_they_are_if_they_have_it(folder):
    found = load_dataset(f"folder:{folder}")
    same = load_dataset(f"folder:{folder}", image_shape=(3, 6, 5))
    assert same.fingerprint == found.fingerprint
    Image.fromarray(noise(12, 10)).save(folder / "cat" / "twice.png")
    for shape in ((3, 6, 5), (1, 6, 5), (1, 4, 8)):
        for memory_limit in (0, 1 << 20):
            loaded = load_dataset(f"folder:{folder}", image_shape=shape, memory_limit=memory_limit)
            assert loaded.image_shape == tuple(loaded.read([3]).shape[1:]) == shape
    assert torch.equal(
        load_dataset(f"folder:{folder}", image_shape=(3, 6, 5)).read([0]), found.read([0])
    )


def test_shrinking_averages_instead_of_skipping_pixels(tmp_path):
    (tmp_path / "a").mkdir()
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "a" / "x.png")
    inside = load_dataset(f"folder:{tmp_path}", image_size=8).read([0])[..., 1:-1, 1:-1]
    assert (inside.float() - 127.5).abs().max() < 3


def test_channels_converts_all_images_to_gray_or_color(folder):
    Image.fromarray(noise(6, 5)).save(folder / "cat" / "gray.png")
    with pytest.raises(MismatchError, match=r"mode RGB, .*gray\.png has mode L.*`channels=3`"):
        load_dataset(f"folder:{folder}")
    assert load_dataset(f"folder:{folder}", channels=3).image_shape == (3, 6, 5)
    gray = load_dataset(f"folder:{folder}", channels=1)
    assert gray.image_shape == (1, 6, 5)
    assert gray[0][0].mode == "L"


def test_class_names_that_are_given_set_the_order(folder):
    found = load_dataset(f"folder:{folder}")
    given = load_dataset(f"folder:{folder}", classes=["eel", "cat", "dog"])
    assert given.classes == ("eel", "cat", "dog")
    for c, name in enumerate(given.classes):
        same = found.labels == found.class_to_idx[name]
        assert torch.equal(
            given.read(np.flatnonzero(given.labels == c)), found.read(np.flatnonzero(same))
        )


def test_files_that_are_not_images_are_counted_aloud_once(folder, caplog):
    (folder / "cat" / "notes.txt").write_text("x")
    (folder / "dog" / ".DS_Store").write_text("x")
    (folder / ".ipynb_checkpoints").mkdir()
    with caplog.at_level(logging.WARNING):
        assert load_dataset(f"folder:{folder}").classes == ("cat", "dog", "eel")
    (record,) = caplog.records
    assert "not an image in a class folder: 1 file, e.g." in record.getMessage()
    assert "listed already: 2 entries, e.g." in record.getMessage()


def test_every_unusable_folder_is_one_error_that_says_what_to_do(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.fromarray(noise(6, 5)).save(tmp_path / "flat" / "x.png")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    for name in ("train", "test"):
        (tmp_path / "splits" / name / "cat").mkdir(parents=True)
    for path, message in {
        "nowhere": "does not exist; expected a folder",
        "flat/x.png": "is a file; expected a folder",
        "empty": "no subfolders. Images must lie in one folder per class",
        "flat": r"no subfolders.* one folder per class.* Images without classes.*flat/all/1\.png",
        "hollow": "holds no image",
        "splits": "are splits and not classes: test, train. Choose one",
    }.items():
        error = MismatchError if path == "splits" else DataError
        with pytest.raises(error, match=message):
            load_dataset(f"folder:{tmp_path / path}")
    with pytest.raises(ValueError, match=f"Did you mean folder:{folder}"):
        load_dataset(str(folder))
    alone = load_dataset(f"folder:{tmp_path / 'flat'}", classes=["all"])
    assert (alone.classes, alone.labels.tolist()) == (("all",), [0]), "a class without a folder"
    (folder / "fox").mkdir()
    with pytest.raises(DataError, match=r"Class 'fox' has no image .* Add images, or delete"):
        load_dataset(f"folder:{folder}")
    with pytest.raises(MismatchError, match="folder 'fox', which is not among the 3 classes"):
        load_dataset(f"folder:{folder}", classes=["cat", "dog", "eel"])


def truncated(path: Path) -> None:
    Image.fromarray(noise(6, 5, 3)).save(path)
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("x.png", lambda p: p.write_text("hello"), r"cannot be decoded .* replace it or delete it"),
        ("x.png", lambda p: p.write_bytes(b""), r"cannot be decoded"),
        (
            "x.jpg",
            truncated,
            r"x\.jpg cannot be decoded .*truncated",
        ),
        (
            "x.png",
            truncated,
            r"x\.png cannot be decoded",
        ),
        ("x.png", lambda p: p.mkdir(), None),  # a folder: searched, and without images
        ("x.png", lambda p: p.symlink_to("nowhere.png"), r"cannot be opened: No such file"),
        (
            "x.png",
            lambda p: Image.fromarray(noise(7, 5, 3)).save(p),
            r"differ in size: .*0\.png is 5x6, .*x\.png is 5x7.*`image_size=5`",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named(folder, name, write, message):
    write(folder / "dog" / name)
    if message is None:
        assert len(load_dataset(f"folder:{folder}")) == 9
        return
    error = MismatchError if "differ in size" in message else DataError
    with pytest.raises(error, match=message):
        load_dataset(f"folder:{folder}")


def test_all_files_that_cannot_be_used_are_named_at_once_or_left_out(folder, caplog):
    whole = load_dataset(f"folder:{folder}")
    (folder / "cat" / "odd.png").write_text("hello")
    Image.fromarray(noise(6, 5).astype(np.uint16) * 256).save(folder / "dog" / "deep.png")
    for name in ("cut.jpg", "cut2.jpg"):
        truncated(folder / "eel" / name)
    with pytest.raises(DataError, match="4 of 13 files cannot be used") as error:
        load_dataset(f"folder:{folder}")  # two by their headers, two only when they are decoded
    assert str(error.value).count("truncated") == 2
    for said in ("odd.png cannot be decoded", "deep.png has more than 8 bits", "`skip_bad=True`"):
        assert said in str(error.value)
    for name in ("cat/odd.png", "dog/deep.png"):
        (folder / name).unlink()
    with pytest.raises(DataError, match="2 of 11 files cannot be used") as error:
        load_dataset(f"folder:{folder}")
    assert str(error.value).count("truncated") == 2
    (folder / "cat" / "odd.png").write_text("hello")
    kept = load_dataset(f"folder:{folder}", skip_bad=True)
    assert kept.fingerprint == whole.fingerprint
    assert kept.paths == whole.paths
    assert ["odd.png" in said for said in kept.skipped] == [True, False, False]
    assert "1 of 12 files cannot be used, and are left out" in caplog.text
    for path in (folder / "eel").glob("?.png"):
        path.unlink()
    with pytest.raises(DataError, match="Class 'eel' has no image"):
        load_dataset(f"folder:{folder}", skip_bad=True)


def test_an_error_names_twenty_files_and_counts_the_rest(folder):
    for i in range(23):
        (folder / "eel" / f"x{i}.png").write_text("hello")
    with pytest.raises(DataError, match="23 of 32 files") as error:
        load_dataset(f"folder:{folder}")
    assert str(error.value).count("cannot be decoded") == 20
    assert "... and 3 more." in str(error.value)


@pytest.mark.parametrize("target", [".", "..", "../..", "../dog", "../../elsewhere/cat"])
def test_no_link_to_a_folder_adds_an_image_twice(folder, target, caplog):
    """Links that lead to the folder itself, above it, or to a class are passed over."""
    shutil.copytree(folder, folder.parent / "elsewhere")
    (folder / "cat" / "link").symlink_to(target, target_is_directory=True)
    images = load_dataset(f"folder:{folder}")
    elsewhere = "elsewhere" in target
    assert np.bincount(images.labels).tolist() == [3 + 3 * elsewhere, 3, 3]
    assert ("listed already: 1 entry, e.g." in caplog.text) == (not elsewhere)
    (folder / "self").symlink_to(".", target_is_directory=True)
    assert load_dataset(f"folder:{folder}").classes == ("cat", "dog", "eel")


def test_what_tools_leave_behind_is_no_image(folder, caplog):
    for place in ("cat/.ipynb_checkpoints", "dog/@eaDir", "__MACOSX/cat", ".git"):
        (folder / place).mkdir(parents=True)
        Image.fromarray(noise(6, 5, 3)).save(folder / place / "0-checkpoint.png")
    for place in ("cat/._0.png", "dog/.hidden.png"):
        (folder / place).write_text("resource fork")
    images = load_dataset(f"folder:{folder}")
    assert len(images) == 9
    assert images.classes == ("cat", "dog", "eel")
    assert caplog.text.count("Skipped hidden or system files") == 1
    assert "listed already: 6 entries, e.g." in caplog.text


@pytest.mark.parametrize("memory_limit", [0, 1 << 30])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_photos_are_turned_as_their_exif_orientation_says(tmp_path, suffix, memory_limit):
    (tmp_path / "cat").mkdir()
    picture = Image.fromarray(np.kron(noise(4, 6, 3), np.ones((8, 8, 1), np.uint8)))
    expected = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        # What a camera held so would have stored of an upright scene: Pillow's own inverse.
        path = tmp_path / "cat" / f"{orientation}.{suffix}"
        stored = picture if orientation < 5 else picture.transpose(Image.Transpose.ROTATE_90)
        stored.save(path, exif=exif, lossless=True)  # which WebP alone heeds
        with Image.open(path) as image:
            expected.append(np.asarray(ImageOps.exif_transpose(image).convert("RGB")))
    images = load_dataset(f"folder:{tmp_path}", memory_limit=memory_limit)
    assert images.image_shape == (3, 32, 48)
    for pixels, array in zip(images.read(range(8)), expected, strict=True):
        assert (pixels.permute(1, 2, 0).numpy() == array).all()
    if suffix != "tif":  # Pillow turns TIFF whether it is asked to or not
        with pytest.raises(MismatchError, match="differ in size"):
            load_dataset(f"folder:{tmp_path}", upright=False)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("tags", [b"no tags", b"II*\0\x08\0\0\0\x03\0\x0f\x01"])
def test_photos_whose_exif_cannot_be_read_are_named_once(tmp_path, caplog, suffix, tags):
    (tmp_path / "cat").mkdir()
    for i in range(4):
        exif = Image.Exif() if i < 2 else b"Exif\0\0" + tags
        Image.new("RGB", (6, 4)).save(tmp_path / "cat" / f"{i}.{suffix}", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, which names no file
        load_dataset(f"folder:{tmp_path}")
        assert caplog.text.count(f"2.{suffix} cannot be read (nor that of 1 more)") == 1
        load_dataset(f"folder:{tmp_path}", upright=False)
    assert len(caplog.records) == 1


def test_exif_whose_prefix_is_written_twice_is_read(tmp_path, caplog):
    (tmp_path / "cat").mkdir()
    exif = Image.Exif()
    exif[0x010F] = "a camera"  # and no orientation
    data = b"Exif\0\0" + exif.tobytes()
    assert data.startswith(2 * b"Exif\0\0")
    Image.new("RGB", (6, 4)).save(tmp_path / "cat" / "0.jpg", exif=data)
    load_dataset(f"folder:{tmp_path}")
    assert not caplog.records


@pytest.mark.parametrize("turns", [False, True])
def test_photos_that_torchvision_leaves_on_their_side_are_warned_of_once(tmp_path, caplog, turns):
    (tmp_path / "cat").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(3):
        Image.fromarray(noise(6, 6, 3)).save(tmp_path / "cat" / f"{i}.jpg", exif=exif)
    loader = {"loader": lambda path: ImageOps.exif_transpose(Image.open(path))} if turns else {}
    source = ImageSource.open(datasets.ImageFolder(str(tmp_path), **loader))
    for _ in range(2):
        source.pixels([0, 1])
    assert caplog.text.count("3 of 3 files of ImageFolder") == (not turns)


@pytest.mark.parametrize("kind", ["folder", "hdf5"])
def test_images_that_are_decoded_late_are_found_from_any_folder(
    folder, tmp_path, monkeypatch, kind
):
    monkeypatch.chdir(tmp_path)
    with h5py.File("x.h5", "w") as file:
        file["images"], file["labels"] = noise(2, 3, 4, 4), np.arange(2)
    spec = {"folder": f"folder:{folder.relative_to(tmp_path)}", "hdf5": "hdf5:x.h5"}[kind]
    images = load_dataset(spec, memory_limit=0)
    expected = images.read([0, 1])
    again = pickle.loads(pickle.dumps(images))  # as a worker gets it
    monkeypatch.chdir("/")
    for one in (images, again):
        assert torch.equal(one.read([0, 1]), expected)


@pytest.mark.parametrize("code", [37, 95, 524, 5, 11])
def test_an_hdf5_file_is_read_where_it_cannot_be_locked(tmp_path, caplog, monkeypatch, code):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = noise(2, 3, 4, 4), np.arange(2)
    opened = h5py.File

    def unlocked_only(*args: Any, locking: bool = True, **settings: Any) -> Any:
        if locking:
            raise OSError(code, f"Unable to open file (unable to lock file, errno = {code})")
        return opened(*args, locking=locking, **settings)

    monkeypatch.setattr(h5py, "File", unlocked_only)
    assert len(load_dataset(f"hdf5:{path}", memory_limit=0).read([1])) == 1
    assert caplog.text.count("is read without a lock") == 1


def test_an_hdf5_file_that_somebody_has_locked_is_read(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = noise(2, 3, 4, 4), np.arange(2)
    with open(path, "r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)  # what a network file system may leave behind
        assert len(load_dataset(f"hdf5:{path}")) == 2


def test_images_of_formats_that_are_not_read_are_named(folder, caplog):
    for name in ("a.heic", "b.HEIC", "c.avif"):
        (folder / "cat" / name).write_bytes(b"ftypheic")
    shutil.copy(folder / "cat" / "0.png", folder / "cat" / "camera.JFIF")
    assert len(load_dataset(f"folder:{folder}")) == 10
    assert "1 .avif, 2 .heic are images of formats that we do not read" in caplog.text


def png_16_bit_rgb() -> bytes:
    """Pillow cannot write one, and reads it as if it had 8 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + noise(5 * 3 * 2, seed=i).tobytes() for i in range(6))
    header = struct.pack(">IIBBBBB", 5, 6, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def rgba(alpha: int) -> Image.Image:
    image = Image.fromarray(noise(6, 5, 3)).convert("RGBA")
    image.putalpha(alpha)
    return image


def palette(transparent: bool) -> Image.Image:
    image = Image.fromarray(noise(6, 5, 3)).quantize(4)
    if transparent:
        image.info["transparency"] = int(np.asarray(image)[0, 0])
    return image


@pytest.mark.parametrize(
    ("name", "write", "plain", "converted"),
    [
        (
            "x.png",
            lambda p: rgba(255).save(p),
            r"mode RGBA \(an alpha channel\).*`channels=3`",
            None,
        ),
        ("x.png", lambda p: rgba(9).save(p), "alpha channel", "transparent pixels. Lay it on"),
        ("x.png", lambda p: palette(False).save(p), r"mode P \(a palette\)", None),
        ("x.png", lambda p: palette(True).save(p), "mode P", "transparent pixels"),
        (
            "x.png",
            lambda p: Image.fromarray(noise(6, 5) > 9).save(p),
            r"mode 1 \(two levels\)",
            None,
        ),
        (
            "x.jpg",
            lambda p: Image.fromarray(noise(6, 5, 3)).convert("CMYK").save(p),
            r"mode CMYK \(printing inks\)",
            None,
        ),
        (
            "x.png",
            lambda p: Image.fromarray(noise(6, 5).astype(np.uint16) * 200).save(p),
            "more than 8 bits .* Convert it to 8 bits first",
            "more than 8 bits",
        ),
        (
            "x.tiff",
            lambda p: Image.fromarray(noise(6, 5).astype(np.float32)).save(p),
            "more than 8 bits",
            "more than 8 bits",
        ),
        (
            "x.png",
            lambda p: p.write_bytes(png_16_bit_rgb()),
            "more than 8 bits",
            "more than 8 bits",
        ),
        (
            "x.gif",
            lambda p: palette(False).save(
                p, append_images=[Image.new("P", (5, 6), 1)], save_all=True
            ),
            r"x\.gif has 2 frames. Save the frame you want",
            "has 2 frames",
        ),
    ],
)
def test_an_unusual_mode_is_refused_and_converted_only_where_nothing_is_lost(
    folder, name, write, plain, converted
):
    write(folder / "dog" / name)
    with pytest.raises(MismatchError, match=plain):
        load_dataset(f"folder:{folder}")
    if converted is None:
        assert load_dataset(f"folder:{folder}", channels=3).image_shape == (3, 6, 5)
    else:
        with pytest.raises(MismatchError, match=converted):
            load_dataset(f"folder:{folder}", channels=3)


def test_a_narrow_bitmap_is_not_mistaken_for_16_bit(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("x.bmp", "x.tiff", "x.ppm", "x.webp", "x.jpg"):
        Image.fromarray(noise(16, 16, 3)).save(tmp_path / "a" / name)
    assert len(load_dataset(f"folder:{tmp_path}")) == 5


# The other sources


def test_digits_are_scikit_learns_with_sixteen_levels_spread_over_a_byte():
    digits, bunch = load_dataset("digits"), load_digits()
    assert digits.image_shape == (1, 8, 8)
    assert digits.classes == tuple("0123456789")
    assert digits.targets == bunch.target.tolist()
    expected = np.floor(bunch.images * 255 / 16 + 0.5).astype(np.uint8)
    # 8 / 16 * 255 = 127.5 may round to either neighbor
    assert np.abs(digits.read(range(1797))[:, 0].numpy().astype(int) - expected).max() <= 1
    assert int(digits.read(range(1797)).max()) == 255
    train, test = load_dataset("digits:train"), load_dataset("digits", split="test")
    assert torch.equal(
        torch.cat([ImageSource.open(train).pixels(), ImageSource.open(test).pixels()]),
        digits.read(np.arange(1797)),
    )
    assert load_dataset("digits", image_size=16, channels=3).image_shape == (3, 16, 16)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("memory_limit", [0, 1 << 30])
def test_an_hdf5_file_is_read_in_either_layout(tmp_path, last, memory_limit):
    pixels, labels = noise(20, 3, 4, 5), np.arange(20) % 3
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"] = pixels.transpose(0, 2, 3, 1) if last else pixels
        file["labels"] = labels
        file.attrs["classes"] = ["a", "b", "c"]
    loaded = load_dataset(f"hdf5:{tmp_path / 'x.h5'}", memory_limit=memory_limit)
    assert loaded.classes == ("a", "b", "c")
    assert loaded.targets == labels.tolist()
    assert np.array_equal(loaded.read([7, 1, 7, 19]).numpy(), pixels[[7, 1, 7, 19]])
    turned = load_dataset(f"hdf5:{tmp_path / 'x.h5'}", classes=["c", "a", "b"])
    assert [turned.classes[label] for label in turned.targets] == ["abc"[label] for label in labels]
    again = pickle.loads(pickle.dumps(loaded))
    assert again.fingerprint == LabeledImages(torch.tensor(pixels), labels, list("abc")).fingerprint


def test_of_a_cache_only_finished_rows_are_read(tmp_path, caplog):
    pixels, state = noise(9, 1, 4, 4), np.array([0, 1, 2, 1, 1, 0, 2, 1, 0], np.uint8)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"], file["labels"], file["state"] = pixels, np.arange(9) % 2, state
        file.attrs["manifest"] = '{"classes": ["no", "yes"]}'
    loaded = load_dataset(f"hdf5:{tmp_path / 'x.h5'}")
    assert np.array_equal(ImageSource.open(loaded).pixels().numpy(), pixels[state == 1])
    assert loaded.labels.tolist() == (np.arange(9) % 2)[state == 1].tolist()
    assert loaded.classes == ("no", "yes")
    swapped = load_dataset(f"hdf5:{tmp_path / 'x.h5'}", classes=["yes", "no"])
    assert swapped.labels.tolist() == (1 - loaded.labels).tolist()
    assert "damaged" not in caplog.text
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file.attrs["manifest"] = "{"
    assert load_dataset(f"hdf5:{tmp_path / 'x.h5'}").classes == ("0", "1")
    assert "no class names, its attribute `manifest` is damaged" in caplog.text
    with h5py.File(tmp_path / "x.h5", "r+") as file:
        file["state"][:] = 0
    with pytest.raises(DataError, match=r"no finished row\. Generate its images first"):
        load_dataset(f"hdf5:{tmp_path / 'x.h5'}")


def test_an_hdf5_file_that_cannot_be_used_is_one_clear_error(tmp_path):
    path = tmp_path / "x.h5"
    with pytest.raises(DataError, match="does not exist"):
        load_dataset(f"hdf5:{path}")
    path.write_text("hello")
    with pytest.raises(DataError, match="not a readable HDF5 file"):
        load_dataset(f"hdf5:{path}")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"labels": [0]}, "no data set 'images'"),
        ({"images": noise(2, 3, 4, 4)}, "no data set 'labels'"),
        ({"images": noise(2, 3, 4, 4), "labels": [0]}, "expected uint8"),
        ({"images": noise(2, 4, 4, 4), "labels": [0, 0]}, "expected uint8"),
        ({"images": noise(2, 3, 4, 4) / 255, "labels": [0, 1]}, "float64"),
        ({"images": noise(0, 3, 4, 4), "labels": np.zeros(0, int)}, "holds no image"),
        ({"images": h5py.ExternalLink("y.h5", "/images"), "labels": [0]}, "is a link"),
    ]
    for content, message in cases:
        with h5py.File(path, "w") as file:
            for name, value in content.items():
                file[name] = value
        with pytest.raises(DataError, match=message):
            load_dataset(f"hdf5:{path}")
    with h5py.File(path, "w") as file:
        file.create_dataset("images", (1, 1, 2, 2), "u1", external=[("/etc/hostname", 0, 4)])
        file["labels"] = [0]
    with pytest.raises(DataError, match="in other files, which we do not follow"):
        load_dataset(f"hdf5:{path}")


def test_damaged_bytes_of_an_hdf5_file_are_named(tmp_path):
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        options = {"chunks": (2, 1, 4, 4), "compression": "gzip"}
        images = file.create_dataset("images", data=noise(4, 1, 4, 4), **options)
        file["labels"] = [0, 1, 0, 1]
        offset = images.id.get_chunk_info(1).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 16] = bytes(16)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"x\.h5 cannot be read in rows .* replace it"):
        load_dataset(f"hdf5:{path}")
    with pytest.raises(DataError, match=r"x\.h5 cannot be read in rows 3 to 3"):
        load_dataset(f"hdf5:{path}", memory_limit=0).read([3])


def test_labels_beyond_the_classes_are_named(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["images"], file["labels"] = noise(4, 1, 4, 4), [0, 1, 7, 1]
    with pytest.raises(DataError, match=r"image 2 has label 7, but there are 2 classes"):
        load_dataset(f"hdf5:{tmp_path / 'x.h5'}", classes=["a", "b"])
    with pytest.raises(DataError, match=r"image 1 has label -1"):
        LabeledImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0, -1], ["a"])
    with pytest.raises(DataError, match=r"class name 'a' occurs twice"):
        LabeledImages(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), [0, 0], ["a", "a"])


def test_torchvision_data_sets_are_found_by_name_and_never_downloaded_unasked(
    tmp_path, monkeypatch
):
    def forbidden(*args, **kwargs):
        raise AssertionError("tried to download")

    monkeypatch.setattr(datasets.MNIST, "download", forbidden)
    spec = f"torchvision:MNIST?root={tmp_path}"
    with pytest.raises(
        DataError, match=rf"To download it: '{spec.replace('?', '.')}&download=true'"
    ):
        load_dataset(spec)
    with pytest.raises(AssertionError, match="tried to download"):
        load_dataset(f"{spec}&download=true")
    fake = load_dataset("torchvision:FakeData?size=3", image_size=8, classes=[*"abcdefghij"])
    assert (len(fake), fake.image_shape) == (3, (3, 8, 8))


def test_torchvision_splits_become_the_arguments_of_the_class(tmp_path, monkeypatch):
    seen = []

    class Tiny(datasets.VisionDataset):
        classes = ["x", "y"]  # noqa: RUF012 - as torchvision writes it

        def __init__(self, root, train=True, download=False):
            super().__init__(root)
            seen.append((str(root), train, download))
            self.targets = [0, 1]

        def __getitem__(self, index):
            return Image.fromarray(noise(4, 4, seed=index)), self.targets[index]

        def __len__(self):
            return 2

    monkeypatch.setattr(datasets, "CIFAR10", Tiny)
    loaded = load_dataset(f"torchvision:CIFAR10?root={tmp_path}", split="test")
    assert seen == [(str(tmp_path), False, False)]
    assert (loaded.classes, loaded.targets, loaded.image_shape) == (("x", "y"), [0, 1], (1, 4, 4))
    lazy = load_dataset(f"torchvision:CIFAR10:test?root={tmp_path}", memory_limit=0)
    assert seen[1] == seen[0]
    assert lazy.fingerprint == loaded.fingerprint
    with pytest.raises(ValueError, match='splits "train" and "test", not \'val\''):
        load_dataset("torchvision:CIFAR10", split="val")
    with pytest.raises(ValueError, match="has no argument 'sort'"):
        load_dataset("torchvision:CIFAR10?sort=true")


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("cifar10", {}, "Got the data set 'cifar10', expected `folder:PATH`"),
        ("folder:", {}, "Got the data set 'folder:'"),
        ("digits:", {}, "Got the data set 'digits:'"),
        ("digits:val", {}, 'splits "train" and "test", not \'val\''),
        ("digits:train", {"split": "test"}, "names its split, and `split` is 'test'. Leave one"),
        ("torchvision:", {}, "Got the data set 'torchvision:'"),
        ("torchvision:CIFAR10:?root=x", {}, "Got the data set 'torchvision:CIFAR10:"),
        ("torchvision:CIFAR10:val", {}, 'splits "train" and "test", not \'val\''),
        ("torchvision:SVHN:val", {}, "Unknown value 'val' for argument split"),
        ("torchvision:FakeData:train", {}, "FakeData has no splits"),
        ("digits", {"split": "val"}, 'splits "train" and "test"'),
        ("digits", {"image_size": 0}, "`image_size` must be at least 1, got 0"),
        ("digits", {"channels": 2}, "`channels` must be 1 .* or 3 .*, got 2"),
        ("digits", {"image_shape": (4, 8, 8)}, "`channels` must be 1 .* or 3 .*, got 4"),
        ("digits", {"image_shape": (1, 8, 0)}, "`image_size` must be at least 1, got 0"),
        ("digits", {"image_shape": (1, 8, 8), "channels": 1}, "takes the place of"),
        ("digits", {"classes": ["0", "0"]}, "`classes` holds .0. more than once"),
        ("torchvision:Nothing", {}, "no data set 'Nothing'"),
        ("hdf5:x.h5", {"split": "train"}, "no splits"),
    ],
)
def test_wrong_arguments_are_refused(spec, options, message):
    with pytest.raises(ValueError, match=message):
        load_dataset(spec, **options)


# LabeledImages


@pytest.fixture
def small() -> LabeledImages:
    return LabeledImages(torch.tensor(noise(12, 3, 4, 5)), np.arange(12) % 3, list("abc"))


def test_transforms_go_to_image_and_label(small):
    small.transform, small.target_transform = v2.ToImage(), lambda label: label + 10
    image, label = small[4]
    assert torch.equal(image, small.read([4])[0])
    assert label == 11


def test_a_batch_is_its_items(small):
    for (image, label), index in zip(small.__getitems__([3, 3, -1]), [3, 3, 11], strict=True):
        assert (np.asarray(image).tobytes(), label) == (
            np.asarray(small[index][0]).tobytes(),
            small[index][1],
        )
    with pytest.raises(IndexError):
        small[12]
    assert len(list(small)) == 12


def test_a_subset_keeps_everything_and_shares_the_memory(small):
    small.transform = v2.ToImage()
    part = small.subset([5, 2]).subset([1])
    assert torch.equal(part.read([0]), small.read([2]))
    assert (part.classes, part.transform, part.targets) == (small.classes, small.transform, [2])
    assert part._store is small._store
    assert small.subset(small.labels == 1).targets == [1, 1, 1, 1]
    assert part.fingerprint != small.fingerprint


def test_the_fingerprint_sees_pixels_labels_names_and_order(small):
    pixels = small.read(range(12))
    changed = pixels.clone()
    changed[11, 2, 3, 4] ^= 1
    others = [
        LabeledImages(changed, small.labels, list("abc")),
        LabeledImages(pixels, np.roll(small.labels, 1), list("abc")),
        LabeledImages(pixels, small.labels, list("abd")),
        LabeledImages(pixels, small.labels, list("abcd")),
        LabeledImages(pixels.flip(0), small.labels, list("abc")),
        LabeledImages(pixels.reshape(12, 3, 5, 4), small.labels, list("abc")),
    ]
    assert len({small.fingerprint, *(other.fingerprint for other in others)}) == 7
    assert LabeledImages(pixels.clone(), small.labels, list("abc")).fingerprint == small.fingerprint


def test_it_prints_as_torchvisions_data_sets_do(small):
    assert repr(small).splitlines()[:2] == [
        "Dataset LabeledImages",
        "    Number of datapoints: 12",
    ]
    for spec, split in (("digits:train", None), ("digits", "train")):
        assert "    Source: digits, train" in repr(load_dataset(spec, split=split)).splitlines()


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.xdist_group("forkserver")
def test_workers_read_the_same_images(small, method):
    small.transform = v2.ToImage()
    loader = DataLoader(small, batch_size=5, num_workers=1, multiprocessing_context=method)
    assert torch.equal(torch.cat([images for images, _ in loader]), small.read(range(12)))


# Any map-style data set


class Pairs(torch.utils.data.Dataset):
    """The plainest map-style data set."""

    def __init__(self, items):
        self.items = items

    def __getitem__(self, index):
        return self.items[index]

    def __len__(self):
        return len(self.items)


def test_pixels_are_gathered_from_any_data_set(small):
    pixels = small.read(range(12))
    tensors = Pairs(
        [(image / 255, label) for image, label in zip(pixels, small.labels, strict=True)]
    )
    dicts = Pairs([{"image": image, "label": 0} for image in pixels])
    several: ConcatDataset[Any] = ConcatDataset([Subset(small, range(7, 12)), tensors])
    assert torch.equal(ImageSource.open(tensors).pixels(), pixels)
    assert torch.equal(ImageSource.open(dicts).pixels([3, 1]), pixels[[3, 1]])
    assert torch.equal(ImageSource.open(Subset(small, [5, 6])).pixels([1]), pixels[[6]])
    assert torch.equal(ImageSource.open(several).pixels([16, 0, 5]), pixels[[11, 7, 0]])
    small.transform = v2.RandomHorizontalFlip(1.0)
    assert torch.equal(ImageSource.open(small).pixels(), pixels)


def test_pixels_that_do_not_fit_together_are_named(small):
    mixed = Pairs([(small[0][0], 0), (Image.fromarray(noise(4, 4)), 0)])
    with pytest.raises(
        MismatchError, match=r"Image 1 of Pairs has shape \(1, 4, 4\), .*\(3, 4, 5\)"
    ):
        ImageSource.open(mixed).pixels()
    with pytest.raises(
        DataError, match=r"Image 0 of Pairs cannot be used. .* take `Normalize` off"
    ):
        ImageSource.open(Pairs([(torch.randn(3, 4, 4), 0)])).pixels()
    with pytest.raises(MismatchError, match="parts of the ConcatDataset have different shapes"):
        ImageSource.open(ConcatDataset([small, Pairs(mixed.items[1:])])).pixels()
    with pytest.raises(ValueError, match="no image to gather"):
        ImageSource.open([], "`real`").pixels([])


def test_labels_and_classes_are_found_through_wrappers(small):
    plain = Pairs([(None, torch.tensor(4)), (None, 5)])
    wrapped: ConcatDataset[Any] = ConcatDataset([Subset(small, [2, 3]), plain])
    assert ImageSource.open(wrapped).labels.tolist() == [2, 0, 4, 5]
    assert ImageSource.open(wrapped).classes == ("a", "b", "c")
    assert ImageSource.open(plain).classes is None
    other = LabeledImages(small.read([0]), [0], ["z"])
    with pytest.raises(MismatchError, match="different classes: a, b, c and z"):
        _ = ImageSource.open(ConcatDataset([small, other])).classes
    with pytest.raises(DataError, match=r"shape \(1, 2\)"):
        _ = ImageSource.open(Pairs([(None, torch.tensor([0, 1]))])).labels
    with pytest.raises(DataError, match="expected one class index per image"):
        _ = ImageSource.open(Pairs([(None, "cat")])).labels


class Counted(Pairs):
    """Counts what is read."""

    reads = 0

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        return super().__getitem__(index)


def test_of_items_whose_labels_are_listed_only_64_are_read():
    listed = Counted([(None, i) for i in range(100)])
    listed._labels = list(range(100))  # type: ignore[attr-defined]  # as some of torchvision's
    assert ImageSource.open(listed).labels.tolist() == list(range(100))
    assert listed.reads == 64
    unlisted = Counted([(None, i) for i in range(9)])
    both: ConcatDataset[Any] = ConcatDataset([listed, unlisted])
    part = Subset(Subset(both, range(95, 109)), [-1, 0, 6])
    assert ImageSource.open(part).labels.tolist() == [8, 95, 1] == [part[i][1] for i in range(3)]
    assert (listed.reads, unlisted.reads) == (64 + 1 + 1, 2 + 2)


def test_lists_of_labels_are_not_asked_for_another_field():
    items = [{"image": None, "label": i, "smiles": 1 - i} for i in (0, 1)]
    faces = Pairs(items)
    faces.targets = [0, 1]  # type: ignore[attr-defined]
    assert (
        ImageSource.open(faces).labels.tolist()
        == ImageSource.open(faces, fields=Fields("image", "label")).labels.tolist()
        == [0, 1]
    )
    assert ImageSource.open(faces, fields=Fields("image", "smiles")).labels.tolist() == [1, 0]


# Conversions


EXAMPLES = {
    "PIL L": Image.fromarray(noise(3, 4)),
    "PIL RGB": Image.fromarray(noise(3, 4, 3)),
    "uint8 tensor": torch.zeros(3, 2, 2, dtype=torch.uint8),
    "float32 tensor": torch.zeros(1, 2, 2),
    "float16 tensor": torch.zeros(3, 2, 2, dtype=torch.float16),
    "float64 tensor": torch.zeros(3, 2, 2, dtype=torch.float64),
    "tv_tensor": tv_tensors.Image(torch.zeros(3, 2, 2)),
    "uint8 tv_tensor": tv_tensors.Image(torch.zeros(3, 2, 2, dtype=torch.uint8)),
    "uint8 HWC": np.zeros((2, 2, 3), np.uint8),
    "uint8 HW": np.zeros((2, 2), np.uint8),
    "float32 HWC": np.zeros((2, 2, 3), np.float32),
    "float64 HW1": np.zeros((2, 2, 1)),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_image_goes_to_every_type_and_comes_back_unchanged(name):
    example = EXAMPLES[name]
    pixels = torch.tensor(noise(pixels_of(example).shape[0], 16, 16))
    image = like(pixels, example)
    assert type(image) is type(example)
    assert torch.equal(pixels_of(image), pixels)
    if isinstance(example, Image.Image):
        assert (image.mode, image.size) == (example.mode, (16, 16))
    else:
        assert (image.dtype, image.ndim) == (example.dtype, example.ndim)
    with pytest.raises(ValueError, match="cannot be converted to"):
        like(pixels[:1].repeat(4 - len(pixels), 1, 1), example)


def test_float_images_have_torchvisions_range():
    pixels = torch.tensor(noise(3, 5, 6))
    pil = v2.functional.to_pil_image(pixels)
    reference = v2.functional.to_dtype(v2.functional.to_image(pil), torch.float32, scale=True)
    torch.testing.assert_close(like(pixels, torch.zeros(3, 1, 1)), torch.Tensor(reference))
    assert torch.equal(pixels_of(reference), pixels)
    assert torch.equal(pixels_of(pil), pixels)


def test_float_images_are_rounded_to_the_nearest_level():
    values = torch.tensor([0.0, 0.4 / 255, 0.6 / 255, 254.6 / 255, 1.0, 1.00001])
    assert pixels_of(values.reshape(1, 1, 6)).flatten().tolist() == [0, 0, 1, 255, 255, 255]


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (Image.fromarray(noise(4, 4, 4)), ValueError, r'mode RGBA, 4x4.*convert\("RGB"\)'),
        (torch.zeros(4, 4), ValueError, r"\(4, 4\), expected \(C, H, W\)"),
        (torch.zeros(2, 4, 4), ValueError, "channels first"),
        (np.zeros((3, 4, 4), np.uint8), ValueError, "channels last"),
        (torch.zeros(1, 4, 4, dtype=torch.int64), TypeError, "torch.int64 .* expected uint8"),
        (torch.zeros(1, 4, 4, dtype=torch.bool), TypeError, "torch.bool"),
        (torch.full((1, 4, 4), -0.5), ValueError, "from -0.5 to -0.5, expected"),
        (torch.full((1, 4, 4), 200.0), ValueError, "from 200 to 200"),
        (torch.full((1, 4, 4), float("nan")), ValueError, "nan"),
        ("x.png", TypeError, "builtins.str"),
    ],
)
def test_what_is_not_an_image_of_ours_is_refused(image, error, message):
    with pytest.raises(error, match=message):
        pixels_of(image)


@pytest.mark.parametrize(
    "example",
    [3, np.int32(3), np.uint8(3), np.array(3), torch.tensor(3), torch.tensor(3, dtype=torch.int32)],
)
def test_a_label_takes_the_type_of_the_example(example):
    label = label_like(7, example)
    assert type(label) is type(example)
    assert int(label) == 7
    assert getattr(label, "dtype", None) == getattr(example, "dtype", None)


@pytest.mark.parametrize("example", [True, 1.0, "3", torch.tensor(1.0), torch.tensor([1, 0])])
def test_labels_that_are_not_class_indices_are_refused(example):
    with pytest.raises(TypeError, match="Labels must be class indices"):
        label_like(7, example)


def test_every_extension_we_call_an_image_is_one_that_pillow_opens():
    assert set(Image.registered_extensions()) >= IMAGE_EXTENSIONS
