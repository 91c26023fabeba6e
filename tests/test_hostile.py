"""Odd and hostile inputs: each is one clear error, before any work, and none waits for ever."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

import synthaug
from synthaug import ClassConditional, Plan, SynthCache
from synthaug.caches import export, forget, info
from synthaug.errors import CheckpointError, DataError, SynthaugError
from synthaug.images import LabeledImages
from tests.checkpoints import write_stable_diffusion
from tests.command_line import fail, run, succeed
from tests.reports import REPORTS
from tests.tiny.class_conditional import tiny

ESCAPE = "\x1b[2J\x1b]0;owned\x07"
MANIFEST: dict[str, Any] = {"recipe": {"synthesizer": "Noise", "settings": {}}}


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    """Whatever opens a pipe and waits is told so."""

    def stop(*_: Any) -> None:
        raise TimeoutError("it waits for a pipe")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def cache_of(path: Path, classes: tuple[str, ...] = ("a", "b"), **manifest: Any) -> SynthCache:
    """A cache of one image per class."""
    plan = Plan.build([1] * len(classes), classes=classes, settings={}, seed=0)
    shape = (1, 2, 2)
    made = SynthCache.create(path, plan, image_shape=shape, manifest={**MANIFEST, **manifest})
    made.write(range(len(classes)), torch.zeros(len(classes), *shape, dtype=torch.uint8))
    return made


def pipe(path: Path) -> Path:
    """A pipe in place of what may have been there."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    return path


# Pipes and devices in place of files


def image_folder(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        Image.new("L", (2, 2)).save(folder / name / "x.png")


def piped_image(folder: Path) -> None:
    image_folder(folder)
    pipe(folder / "a" / "y.png")
    synthaug.load_dataset(f"folder:{folder}")


def endless_image(folder: Path) -> None:
    image_folder(folder)
    (folder / "a" / "y.png").symlink_to("/dev/zero")
    synthaug.load_dataset(f"folder:{folder}")


def piped_report(folder: Path) -> None:
    synthaug.AuditReport.from_json(pipe(folder / "audit.json"))


def piped_log(folder: Path) -> None:
    synthaug.mixing.read_log(pipe(folder / "log.csv"))


def piped_cache(folder: Path) -> None:
    SynthCache(pipe(folder / "c.h5"))


def piped_hdf5(folder: Path) -> None:
    synthaug.load_dataset(f"hdf5:{pipe(folder / 'x.h5')}")


def piped_records(folder: Path) -> None:
    pipe(folder / "out" / "provenance.jsonl")
    forget([cache_of(folder / "c.h5").path, folder / "out"], [1])


def piped_archive(folder: Path) -> None:
    pipe(folder / "out" / "000000.tar")
    forget([cache_of(folder / "c.h5").path, folder / "out"], [1])


def piped_embeddings(folder: Path) -> None:
    pipe(folder / "out" / "embeddings" / "0.safetensors")
    forget([cache_of(folder / "c.h5").path, folder / "out"], [1])


@pytest.mark.parametrize(
    "use",
    [
        piped_image,
        endless_image,
        piped_report,
        piped_log,
        piped_cache,
        piped_hdf5,
        piped_records,
        piped_archive,
        piped_embeddings,
    ],
)
def test_a_pipe_or_a_device_in_place_of_an_input_is_an_error_and_no_wait(
    tmp_path: Path, use: Callable[[Path], None]
) -> None:
    with pytest.raises(SynthaugError, match=r"pipe|device|not a file|is not a regular"):
        use(tmp_path / "in")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("diffusion")
    write_stable_diffusion(path)
    return path


def load(path: Path) -> ClassConditional:
    return ClassConditional.from_pretrained(path, device="cpu")


def test_a_pipe_in_any_place_of_a_checkpoint_is_an_error(checkpoint: Path, tmp_path: Path) -> None:
    names = [p.relative_to(checkpoint) for p in checkpoint.rglob("*") if p.is_file()]
    assert len(names) > 4
    for number, name in enumerate(names):
        place = tmp_path / str(number)
        shutil.copytree(checkpoint, place)
        pipe(place / name)
        with pytest.raises(CheckpointError, match="pipe"):
            load(place)


def test_nothing_is_written_to_a_pipe_and_no_device_is_replaced(tmp_path: Path) -> None:
    cache, place = cache_of(tmp_path / "c.h5"), pipe(tmp_path / "out.png")
    report = REPORTS["LabelCheck"]()
    for write in (report.to_json, report.to_html):
        with pytest.raises(ValueError, match=r"out.png is a pipe, expected the name of a file"):
            write(place)
    assert "out.png is a pipe" in fail(2, "cache", "info", cache.path, "--sheet", place)
    mixed = synthaug.MixedDataset(
        LabeledImages(torch.zeros(2, 1, 2, 2, dtype=torch.uint8), [0, 1], ("a", "b")),
        cache,
        audit=None,
        fraction=0.5,
    )
    with pytest.raises(ValueError, match="is a pipe"):
        mixed.log_served(place)
    assert place.is_fifo()
    with pytest.raises(ValueError, match=r"/dev/null is a device"):
        report.to_json("/dev/null")
    assert "pictures cannot be written as" in fail(
        2, "cache", "info", cache.path, "--sheet", "x.xyz"
    )


def test_a_configuration_in_a_pipe_or_nested_deeply_is_refused(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("[" * 1000)
    for file in (pipe(tmp_path / "c.yaml"), tmp_path / "deep.yaml"):
        outcome = run("cache", "info", "c.h5", "--config", file)
        assert outcome.code == 2
        assert f"--config {file} cannot be read" in outcome.err
    marker, code = tmp_path / "marker", tmp_path / "code.yaml"
    code.write_text(f"!!python/object/apply:os.mkdir ['{marker}']")
    assert f"--config {code} cannot be read" in run("cache", "info", "c.h5", "--config", code).err
    assert not marker.exists()


def test_a_lock_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "c.h5.lock").symlink_to(tmp_path / "precious")
    synthaug.caches.import_images(
        LabeledImages(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), [0], ("a",)), tmp_path / "c.h5"
    )
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_file_that_has_the_name_of_a_lock_is_not_written_over(tmp_path: Path) -> None:
    images = LabeledImages(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), [0], ("a",))
    lock = tmp_path / "poetry.lock"
    for text in ("[[package]]", "{}", '{"hosts": 1}'):
        lock.write_text(text)
        with pytest.raises(ValueError, match=r"poetry\.lock is no lock of synthaug"):
            synthaug.caches.import_images(images, tmp_path / "poetry")
        assert lock.read_text() == text
    lock.unlink()
    pipe(lock)
    with pytest.raises(ValueError, match=r"poetry\.lock is no lock of synthaug"):
        synthaug.caches.import_images(images, tmp_path / "poetry")
    lock.unlink()
    lock.write_bytes(bytes(9))  # as a power failure leaves it
    synthaug.caches.import_images(images, tmp_path / "poetry")


def test_an_export_with_a_link_in_it_does_not_make_forget_write_elsewhere(tmp_path: Path) -> None:
    keys = np.array([1, 2], np.uint64)
    plan = Plan.build([2], classes=("a",), settings={}, seed=0, sources=[[0, 1]], source_keys=keys)
    cache = SynthCache.create(tmp_path / "c.h5", plan, image_shape=(1, 2, 2), manifest=MANIFEST)
    cache.write([0, 1], torch.zeros(2, 1, 2, 2, dtype=torch.uint8))
    export(cache, tmp_path / "out", format="webdataset")
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "out" / "000000.partial").symlink_to(tmp_path / "precious")
    assert forget([cache.path, tmp_path / "out"], [1])[tmp_path / "out"] == 1
    assert (tmp_path / "precious").read_text() == "precious"


def test_folders_that_lead_into_themselves_end(tmp_path: Path) -> None:
    image_folder(tmp_path)
    for name in ("again", "anew"):
        (tmp_path / "a" / name).symlink_to(tmp_path / "a")
    assert len(synthaug.load_dataset(f"folder:{tmp_path}")) == 2


# HDF5 files

PIXELS = np.zeros((3, 1, 2, 2), np.uint8)


def huge_labels(file: h5py.File) -> None:
    file["labels"][1] = 2**62


def linked_state(file: h5py.File) -> None:
    file["state"] = h5py.ExternalLink("/etc/other.h5", "/state")


def virtual_labels(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "labels", (3,))
    del file["labels"]
    file.create_virtual_dataset("labels", layout)


def more_than_it_can_hold(file: h5py.File) -> None:
    del file["labels"], file["images"]
    rows = 2**40
    file.create_dataset("labels", (rows,), "i8", chunks=(2**16,), compression="gzip")
    file.create_dataset("images", (rows, 1, 2, 2), "u1", chunks=(1, 1, 2, 2))


def chunks_that_fill_memory(file: h5py.File) -> None:
    del file["images"]
    chunks, most = (2**30, 1, 2, 2), (None, 1, 2, 2)
    file.create_dataset("images", PIXELS.shape, "u1", chunks=chunks, maxshape=most)


def odd_state(file: h5py.File) -> None:
    file["state"] = np.ones(2, "u1")


def deep_manifest(file: h5py.File) -> None:
    file.attrs["manifest"] = "[" * 5000 + "]" * 5000
    file["labels"][1] = 2**62


HDF5: dict[Callable[[h5py.File], None], str] = {
    huge_labels: r"image 1 has label 4,611,686,018,427,387,904; .* give the names of all classes",
    linked_state: "`state` is a link",
    virtual_labels: "`labels` is a virtual data set",
    more_than_it_can_hold: "`labels` has .* bytes in a file of .*, which is not plausible",
    chunks_that_fill_memory: "`images` has chunks of 4,294,967,296 bytes",
    odd_state: r"`state` uint8 \(2,\), expected integers \(3,\)",
    deep_manifest: "image 1 has label",
}


@pytest.mark.parametrize("build", HDF5)
def test_an_hdf5_source_is_checked_before_it_is_read(
    tmp_path: Path, build: Callable[[h5py.File], None]
) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["images"], file["labels"] = PIXELS, np.zeros(3, np.int64)
        build(file)
    with pytest.raises(DataError, match=HDF5[build]):
        synthaug.load_dataset(f"hdf5:{path}")


def test_features_in_other_files_are_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        file["features"] = h5py.ExternalLink("/etc/other.h5", "/features")
    with pytest.raises(DataError, match="`features` is a link"):
        synthaug.audit(str(path), str(path))


# JSON


def test_json_nested_deeply_is_an_error_wherever_it_is_read(
    tmp_path: Path, checkpoint: Path
) -> None:
    for levels in (101, 5_000, 1_000_000):
        deep = "[" * levels + "]" * levels
        (tmp_path / "r.json").write_text(deep)
        with pytest.raises(SynthaugError, match=r"r.json .* nested more than 100 levels"):
            synthaug.AuditReport.from_json(tmp_path / "r.json")
    os.truncate(tmp_path / "r.json", 2**40)
    with pytest.raises(SynthaugError, match=r"r.json .* more than the .* that it may have"):
        synthaug.AuditReport.from_json(tmp_path / "r.json")
    place = tmp_path / "model"
    shutil.copytree(checkpoint, place)
    (place / "unet" / "config.json").write_text(deep)
    with pytest.raises(CheckpointError, match=r"config.json .* nested more than 100 levels"):
        load(place)


# Checkpoints

BIG = 10_000_000
CONFIGS: list[tuple[str, str, Any, str]] = [
    ("model_index.json", "unet", 5, "the unet is 5"),
    ("unet/config.json", "layers_per_block", BIG, "sets `layers_per_block` to 10,000,000"),
    (
        "unet/config.json",
        "block_out_channels",
        [8] * 100_000,
        "sets `block_out_channels` to 100,000",
    ),
    ("unet/config.json", "block_out_channels", [8, 2**40], "cannot be read"),
    ("unet/config.json", "sample_size", 2**40, "`sample_size`"),
    ("scheduler/scheduler_config.json", "num_train_timesteps", 10**12, "`num_train_timesteps`"),
    ("text_encoder/config.json", "num_hidden_layers", BIG, "sets `num_hidden_layers`"),
    ("vae/config.json", "layers_per_block", BIG, "sets `layers_per_block`"),
]


@pytest.mark.parametrize(("file", "setting", "value", "message"), CONFIGS)
def test_a_config_of_another_size_than_its_weights_is_refused_before_it_is_built(
    tmp_path: Path,
    diffusion: Path,
    checkpoint: Path,
    file: str,
    setting: str,
    value: Any,
    message: str,
) -> None:
    place = tmp_path / "model"
    pixels = not file.startswith(("text", "vae"))
    shutil.copytree(checkpoint if pixels else diffusion, place)
    config = json.loads((place / file).read_text())
    (place / file).write_text(json.dumps({**config, setting: value}))
    if setting == "sample_size":
        (place / "synthaug.json").unlink()
    classes = None if pixels and setting != "sample_size" else list("abcde")
    with pytest.raises(SynthaugError, match=message):
        synthaug.generate(
            made := ClassConditional.from_pretrained(place, classes=classes, device="cpu"),
            made.plan(per_class=1),
            tmp_path / "c.h5",
            progress=False,
        )


OWN_VALUES: list[tuple[str, str, Any, str]] = [
    ("synthaug.json", "classes", ["a", "a"], "synthaug.json holds a name twice"),
    ("synthaug.json", "image_shape", [3, 8], "expected \\(C, H, W\\)"),
    ("synthaug.json", "image_shape", [3, 8, 1e308], "expected \\(C, H, W\\)"),
    ("synthaug.json", "scheduler", "\ud800", r"`scheduler` is '\\ud800', which we do not know"),
    ("scheduler/scheduler_config.json", "timestep_spacing", "x", "scheduler_config.json"),
    ("scheduler/scheduler_config.json", "clip_sample_range", 1e308, "float32 cannot hold"),
    ("unet/config.json", "norm_num_groups", -1, "a norm has -1 groups"),
    ("model_index.json", "unet", ["diffusers", "a" * 5000], r"the unet is a{500} \.\.\."),
]


@pytest.mark.parametrize(("file", "setting", "value", "message"), OWN_VALUES)
def test_odd_values_of_a_checkpoint_are_its_error_and_no_argument_s(
    tmp_path: Path, checkpoint: Path, file: str, setting: str, value: Any, message: str
) -> None:
    place = tmp_path / "model"
    shutil.copytree(checkpoint, place)
    config = json.loads((place / file).read_text())
    (place / file).write_text(json.dumps({**config, setting: value}))
    with pytest.raises(CheckpointError, match=message):
        load(place)
    with pytest.raises(ValueError, match="`device`"):
        ClassConditional.from_pretrained(checkpoint, device="nothing")


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("classes", 3, "`classes` is 3, expected a list of names"),
        ("image_size", "x", "`image_size` must be a whole number, got 'x'"),
        ("image_size", 1.5, "`image_size` must be a whole number, got 1.5"),
        ("sampler", 3, "`sampler` is a int, expected a SamplerConfig"),
        ("device", 3.5, "`device` is '3.5', which torch cannot use here"),
        ("prompt_template", 4, "`prompt_template` is a int, expected a text"),
    ],
)
def test_an_argument_of_another_type_is_no_damage_of_the_checkpoint(
    checkpoint: Path, argument: str, value: Any, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        ClassConditional.from_pretrained(checkpoint, **{argument: value})


def test_settings_that_a_network_does_not_have_are_named_with_their_file(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "model"
    shutil.copytree(checkpoint, place)
    path = place / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "norm_epsilon": 1e-3}))
    load(place)
    (record,) = [record for record in caplog.records if "norm_epsilon" in record.getMessage()]
    assert record.getMessage().startswith(f"{path} sets norm_epsilon, which is ignored")


def test_weights_that_are_missing_are_not_drawn_at_random(tmp_path: Path, checkpoint: Path) -> None:
    for number, change in enumerate(("missing", "more")):
        place = tmp_path / str(number)
        shutil.copytree(checkpoint, place)
        (path,) = (place / "unet").glob("*.safetensors")
        tensors = load_file(path)
        if change == "missing":
            del tensors["conv_out.bias"]
        else:
            tensors["other"] = torch.zeros(1)
        save_file(tensors, path)
        with pytest.raises(CheckpointError, match=r"conv_out\.bias|has, unasked, the weight other"):
            load(place)


# Names


def test_control_characters_in_names_reach_no_terminal_and_no_page(tmp_path: Path) -> None:
    names = (f"cat{ESCAPE}", "dog\nEvery row is intact.", "\u202egnp.exe")
    cache = cache_of(tmp_path / "c.h5", names)
    text = succeed("cache", "info", cache.path)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert r"cat\x1b[2J\x1b]0;owned\x07" in text
    assert r"dog\nEvery row" in text
    message = fail(2, "cache", "export", cache.path, tmp_path / "out", "--format", "folder")
    assert "\x1b" not in message
    folder = tmp_path / "images" / f"x{ESCAPE}"
    folder.mkdir(parents=True)
    (folder / "x.png").write_bytes(b"no image")
    assert "\x1b" not in fail(
        4, "evaluate", "quality", f"folder:{folder.parent}", "digits", "--features", "pixels"
    )
    report = REPORTS["LabelCheck"]()
    report = type(report)(**{**vars(report), "classes": (names[0], "dog\udcff")})
    page = report.to_html(tmp_path / "x.html").read_text()
    for shown in (str(report), page, report._repr_html_()):
        assert "\x1b" not in shown
        assert r"cat\x1b[2J" in shown
        assert r"dog\udcff" in shown
    assert "\x1b" not in str(DataError(f"Class {names[0]} is empty."))


NAMES = {
    "manifest.json": "a file of the export",
    "Provenance.JSONL": "a file of the export",
    "A": "class 'a'",
    "STRASSE": "class 'stra\u00dfe'",
    "../x": "on every system",
    "con": "on every system",
    "Com1.txt": "on every system",
    "cat ": "on every system",
    "cat.": "on every system",
    ".hidden": "on every system",
    "": "on every system",
    "a\x1b": "on every system",
    "a\nb": "on every system",
    "a/b": "on every system: it has a slash",
    "what?": "on every system: .* characters that some systems refuse",
    "conout$": "Windows keeps 'conout\\$' for a device",
    "LPT\u00b9.png": "Windows keeps .* for a device",
    "x" * 256: "256 bytes",
    "x" * 190: "the path has 210 characters",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_class_that_is_no_folder_on_every_system_is_refused_before_work(
    tmp_path: Path, name: str
) -> None:
    cache = cache_of(tmp_path / "c.h5", ("a", "stra\u00dfe", "train", name))
    for form in ("folder", "huggingface"):
        with pytest.raises(ValueError, match=NAMES[name]) as caught:
            export(cache, tmp_path / "out", format=form)
        assert "Export as 'webdataset' or 'hdf5'" in str(caught.value)
    assert os.listdir(tmp_path) == ["c.h5"]
    export(cache, tmp_path / "out", format="webdataset")


def test_classes_that_differ_in_their_unicode_form_alone_are_one_class(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="more than once"):
        cache_of(tmp_path / "c.h5", ("\u00e9", "e\u0301"))


def test_a_license_is_one_line_of_words_in_the_card(tmp_path: Path) -> None:
    nasty = "MIT\n---\n# Real photographs\n<img src=x onerror=alert(1)> [click](javascript:x) `"
    license = {"generator": nasty, "source": nasty}
    cache = cache_of(tmp_path / "c.h5", license=license)
    card = (export(cache, tmp_path / "out", format="huggingface") / "README.md").read_text()
    assert "\n# Real" not in card
    assert card.count("\n---\n") == 1
    assert r"\<img src=x onerror=alert(1)\> \[click\](javascript:x) \`" in card
    assert yaml.safe_load(card.split("\n---\n")[0])["license_name"] == nasty.replace("\n", r"\n")


def test_facts_of_a_cache_with_odd_settings_are_shown(tmp_path: Path) -> None:
    for number, odd in enumerate((5, [1], "x", None, {"a": {"b": [None]}})):
        recipe = {"synthesizer": odd, "settings": odd, "weights": odd}
        cache = cache_of(tmp_path / f"{number}.h5", recipe=recipe, source=odd)
        assert "Synthesizer" in succeed("cache", "info", cache.path)
        succeed("cache", "info", cache.path, "--json")


def test_a_hundred_thousand_classes_are_counted_at_once(tmp_path: Path) -> None:
    names = tuple(f"class {i}" for i in range(100_000))
    plan = Plan.build([1] + [0] * 99_998 + [1], classes=names, settings={}, seed=0)
    cache = SynthCache.create(tmp_path / "c.h5", plan, image_shape=(1, 2, 2), manifest=MANIFEST)
    cache.write([1], torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    facts = info(cache)
    assert facts["classes"]["class 99999"] == {"done": 1, "pending": 0, "withdrawn": 0}
    assert facts["classes"]["class 0"]["pending"] == 1
    turned = synthaug.load_dataset(f"hdf5:{cache.path}", classes=names[::-1])
    assert turned.targets == [0]
    pixels = torch.zeros(100_000, 1, 2, 2, dtype=torch.uint8)
    real = LabeledImages(pixels, np.arange(100_000), names)
    assert len(synthaug.MixedDataset(real, cache, audit=None, mode="append", ratio=0))
    sheet = tmp_path / "x.png"
    assert "Samples" in succeed("cache", "info", cache.path, "--sheet", sheet)


def test_an_empty_report_is_a_page_or_an_error(tmp_path: Path) -> None:
    from dataclasses import replace

    evaluated = replace(REPORTS["EvaluationReport"](), runs=[], arms={}, classes=[])
    assert "</html>" in evaluated.to_html(tmp_path / "x.html").read_text()
    checked = REPORTS["LabelCheck"]()
    none = {name: vars(checked)[name][:0] for name in ("labels", "scores", "withheld")}
    assert "</html>" in replace(checked, **none).to_html(tmp_path / "x.html").read_text()
    with pytest.raises(ValueError, match="`coarse` holds no setting"):
        replace(REPORTS["SweepReport"](), coarse=[])
    hard = REPORTS["HardnessReport"]()
    nothing = replace(hard.train, hardness=hard.train.hardness * np.nan)
    with pytest.raises(ValueError, match="holds no score"):
        replace(hard, train=nothing)
