"""Nothing that we read runs code: payloads in every file of every checkpoint, and elsewhere."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import synthaug
from synthaug import features
from synthaug.errors import CheckpointError, DataError, SynthaugError
from synthaug.evaluation import reconstructions
from synthaug.images import LabeledImages
from synthaug.synthesizers import (
    Cascade,
    CascadeStage,
    ClassConditional,
    ColdDiffusion,
    DiffusionInversion,
    FromPipeline,
    LowDensity,
)
from tests.checkpoints import (
    cosine_config,
    tiny_dit,
    tiny_unet,
    write_stable_diffusion,
    write_stable_diffusion_upscaler,
)
from tests.command_line import fail
from tests.payloads import Payload
from tests.tiny.cascades import tiny_cascade
from tests.tiny.class_conditional import tiny
from tests.tiny.cold import tiny as tiny_cold
from tests.tiny.inversions import Real, generator
from tests.tiny.inversions import fitted as inverted
from tests.tiny.low_density import steered
from tests.tiny_checkpoints import FAMILIES


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that code of a checkpoint would write. Whoever asks on standard input is told yes."""
    monkeypatch.setattr(sys, "stdin", answers := io.StringIO("y\n" * 100))
    path = tmp_path / "marker"
    yield path
    assert not path.exists(), "code of the checkpoint ran"
    assert answers.tell() == 0, "standard input was read"


def code(marker: Path) -> str:
    """A module that leaves a marker, and has a class of every kind that it may be asked for."""
    return (
        f"open({str(marker)!r}, 'w').close()\n"
        "from diffusers import DiffusionPipeline, UNet2DModel\n"
        "from transformers import CLIPTextModel, CLIPTokenizer\n"
        "class Evil(CLIPTokenizer): pass\n"
    )


def surround(folder: Path, marker: Path) -> None:
    """Puts modules and pickles beside whatever lies in a checkpoint, under the names they go by."""
    for place in (folder, *(p for p in folder.rglob("*") if p.is_dir())):
        for module in ("evil", "__init__", "pipeline", "modeling_clip", "tokenization_clip"):
            (place / f"{module}.py").write_text(code(marker))
        for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", ".metadata"):
            (place / name).write_bytes(pickle.dumps(Payload(marker)))
        adapter = {"base_model_name_or_path": "evil", "peft_type": "LORA"}
        (place / "adapter_config.json").write_text(json.dumps(adapter))
        torch.save(Payload(marker), place / "adapter_model.bin")


NAMES = ["a", "b"]


def stable_diffusion(path: Path) -> Callable[[Path], Any]:
    write_stable_diffusion(path)
    return partial(ClassConditional.from_pretrained, classes=NAMES, device="cpu")


def autoencoder(path: Path) -> Callable[[Path], Any]:
    write_stable_diffusion(path)
    images = LabeledImages(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 1], NAMES)
    return partial(reconstructions, images, device="cpu", progress=False)


def upscaler(path: Path) -> Callable[[Path], Any]:
    write_stable_diffusion_upscaler(path)
    shutil.rmtree(path / "plain")
    return partial(CascadeStage.from_pretrained, classes=NAMES, low_size=(8, 8), device="cpu")


def latent_upscaler(path: Path) -> Callable[[Path], Any]:
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel

    changes = {"in_channels": 6, "out_channels": 3, "sample_size": 8}
    LDMSuperResolutionPipeline(
        vqvae=VQModel(block_out_channels=(8, 8), norm_num_groups=4, latent_channels=3),
        unet=UNet2DModel.from_config({**tiny_unet(None).config, **changes}),
        scheduler=DDIMScheduler(clip_sample=False),
    ).save_pretrained(path)
    return partial(CascadeStage.from_pretrained, classes=["a"], low_size=(8, 8), device="cpu")


def class_conditional(path: Path) -> Callable[[Path], Any]:
    tiny().save_pretrained(path)
    return partial(ClassConditional.from_pretrained, device="cpu")


def transformer(path: Path) -> Callable[[Path], Any]:
    tiny(tiny_dit()).save_pretrained(path)
    return partial(ClassConditional.from_pretrained, device="cpu")


def cold(path: Path) -> Callable[[Path], Any]:
    tiny_cold().save_pretrained(path)
    return partial(ColdDiffusion.from_pretrained, device="cpu")


def cascade(path: Path) -> Callable[[Path], Any]:
    tiny_cascade().save_pretrained(path)
    return partial(Cascade.from_pretrained, device="cpu")


def low_density(path: Path) -> Callable[[Path], Any]:
    steered().save_pretrained(path)
    return partial(LowDensity.from_pretrained, device="cpu")


def token_generator(path: Path) -> Callable[[Path], Any]:
    generator().model.save_pretrained(path, {})
    return partial(DiffusionInversion.from_pretrained, device="cpu")


def pipeline(path: Path) -> Callable[[Path], Any]:
    FAMILIES["pixart"](path)
    return partial(FromPipeline.from_pretrained, classes=NAMES, device="cpu")


LAYOUTS = {
    stable_diffusion: "**/*",
    autoencoder: "vae/*",
    upscaler: "low_res_scheduler/*",
    latent_upscaler: "vqvae/*",
    class_conditional: "**/*",
    transformer: "transformer/*",
    cold: "*",
    cascade: ("*", "stage_1/**/*"),  # the base is a `class_conditional`
    low_density: "*/*",
    token_generator: "*",
    pipeline: "text_encoder/*",
}
"""Which files of each are payloads: those that others have too are tried once."""


def with_code(content: Any) -> Iterator[Any]:
    """A config in all the ways in which configs of these libraries name code."""
    if not isinstance(content, dict):
        return
    mapped = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoModel": "evil.Evil"}
    yield {**content, "auto_map": mapped, "tokenizer_class": "Evil"}
    yield {**content, "custom_pipeline": "evil", "custom_pipelines": {"evil": {}}}
    yield {**content, "_class_name": ["evil", "Evil"]}
    yield {**content, "_class_name": "evil.Evil", "architectures": ["evil.Evil"]}
    yield {**content, "attn_implementation": "evil/kernel", "transformers_weights": "evil.bin"}
    yield {**content, "quantization_config": {"quant_method": "evil"}}
    for name, value in content.items():
        if isinstance(value, list) and len(value) == 2:
            yield {**content, name: ["evil", value[1]]}
            yield {**content, name: ["evil", "Evil"]}
            yield {**content, name: [value[0], "evil.Evil"]}


def tried(load: Callable[[Path], Any], folder: Path) -> Exception | None:
    """The error of loading, which our own code raised, or `None`."""
    raised = None
    try:
        load(folder)
    except (SynthaugError, ValueError) as error:
        raised = error
    if raised is not None:
        where = traceback.extract_tb(raised.__traceback__)[-1].filename
        if not Path(where).is_relative_to(Path(synthaug.__file__).parent):
            raise raised
    return raised


@pytest.mark.parametrize(
    ("layout", "files"), LAYOUTS.items(), ids=[layout.__name__ for layout in LAYOUTS]
)
def test_no_file_of_a_checkpoint_runs_code(layout, files, tmp_path, marker):
    folder = tmp_path / "checkpoint"
    load = layout(folder)
    patterns = (files,) if isinstance(files, str) else files
    found = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    tried_files = [path for path in found if path.is_file()]
    surround(folder, marker)
    if layout is pipeline:  # other libraries read it, so pickles and adapters are refused
        assert "holds an adapter" in str(tried(load, folder))
        for adapter in folder.rglob("adapter_config.json"):
            adapter.unlink()
        assert "holds pickled weights" in str(tried(load, folder))
        for pickled in (*folder.rglob("*.bin"), *folder.rglob("*.pt")):
            pickled.unlink()
    assert tried(load, folder) is None  # nothing of that is looked at
    assert tried_files
    for path in tried_files:
        whole = path.read_bytes()
        if path.suffix == ".json":
            for changed in with_code(json.loads(whole)):
                write_json(path, changed)
                tried(load, folder)
        path.write_bytes(pickle.dumps(Payload(marker)))
        tried(load, folder)
        if path.suffix == ".safetensors":
            torch.save(Payload(marker), path)
            tried(load, folder)
        path.write_bytes(whole)
    assert tried(load, folder) is None


def test_a_tokenizer_with_code_of_its_own_is_refused_and_nobody_is_asked(tmp_path, marker):
    load = stable_diffusion(tmp_path / "sd")
    config = tmp_path / "sd" / "tokenizer" / "tokenizer_config.json"
    content = json.loads(config.read_text())
    (config.parent / "evil.py").write_text(code(marker))
    del content["tokenizer_class"]
    write_json(config, {**content, "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}})
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json sets `auto_map`"):
        load(tmp_path / "sd")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("_class_name", ["evil", "Evil"], r"names the custom pipeline \['evil', 'Evil'\]"),
        ("custom_pipeline", "evil", "sets `custom_pipeline`"),
        (
            "unet",
            ["evil", "UNet2DConditionModel"],
            r"the unet is \['evil', 'UNet2DCond",
        ),
        ("unet", ["diffusers", "Evil"], "the unet is Evil; we load"),
        ("unet", "Evil", "the unet is Evil; we load"),
        (
            "vae",
            ["diffusers", ["AutoencoderKL"]],
            "we load AutoencoderKL or AutoencoderDC or VQModel",
        ),
        ("text_encoder", ["transformers", "T5EncoderModel"], "T5EncoderModel; we load CLIPText"),
        ("tokenizer", ["evil", "CLIPTokenizer"], "we load CLIPTokenizer or CLIPTokenizerFast"),
    ],
)
def test_what_is_instantiated_comes_from_a_closed_list(tmp_path, marker, name, value, message):
    load = stable_diffusion(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    write_json(tmp_path / "model_index.json", {**index, name: value})
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


@pytest.mark.parametrize("name", ["../../model.safetensors", "shard.bin", "/etc/passwd", 7])
def test_an_index_of_weights_leads_nowhere_else(tmp_path, marker, name):
    load = class_conditional(tmp_path)
    weights = {"weight_map": {"conv_in.weight": name}, "metadata": {}}
    write_json(tmp_path / "unet" / "diffusion_pytorch_model.safetensors.index.json", weights)
    with pytest.raises(CheckpointError, match=r"index\.json (names|cannot be read)"):
        load(tmp_path)


@pytest.mark.parametrize("part", ["unet", "tokenizer", "text_encoder", "vae"])
def test_a_missing_part_is_not_looked_for_on_the_hub(tmp_path, monkeypatch, part):
    load = stable_diffusion(tmp_path / "sd")
    shutil.rmtree(tmp_path / "sd" / part)
    monkeypatch.chdir(tmp_path)  # "sd/unet" could be a repository
    with pytest.raises(CheckpointError, match=f"{part} is missing"):
        load(Path("sd"))


def test_a_text_encoder_without_some_weights_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    load = stable_diffusion(tmp_path)
    path = tmp_path / "text_encoder" / "model.safetensors"
    weights = load_file(path)
    weights.pop(next(name for name in weights if name.endswith("final_layer_norm.weight")))
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"there is no weight .*final_layer_norm\.weight"):
        load(tmp_path)


def test_a_tokenizer_cannot_ask_for_more_memory_than_the_encoder_takes(tmp_path):
    load = stable_diffusion(tmp_path)
    config = tmp_path / "tokenizer" / "tokenizer_config.json"
    before = load(tmp_path).model.class_embeddings
    write_json(config, {**json.loads(config.read_text()), "model_max_length": 10**15})
    assert torch.equal(load(tmp_path).model.class_embeddings, before)


@pytest.mark.parametrize(
    "config",
    [{"num_train_timesteps": "many"}, {"beta_schedule": "evil"}, {"trained_betas": {}}],
)
def test_a_scheduler_that_diffusers_cannot_make_is_a_clear_error(tmp_path, config):
    load = class_conditional(tmp_path)
    write_json(tmp_path / "scheduler" / "scheduler_config.json", {**cosine_config(), **config})
    with pytest.raises(CheckpointError, match=r"Correct scheduler_config\.json"):
        load(tmp_path)


def test_embeddings_and_checkpoints_of_an_inversion_are_no_pickles(tmp_path, marker):
    generator().model.save_pretrained(tmp_path / "generator", {})
    inverted(tmp_path / "out", Real())
    whole = {path: path.read_bytes() for path in (tmp_path / "out" / "embeddings").iterdir()}
    for path in whole:
        path.write_bytes(pickle.dumps(Payload(marker)))
    load = partial(
        DiffusionInversion.from_pretrained,
        tmp_path / "out",
        checkpoint=tmp_path / "generator",
        device="cpu",
    )
    with pytest.raises(CheckpointError, match="Learn them anew"):
        load()
    for path, data in whole.items():
        path.write_bytes(data[:-3] + bytes([data[-3] ^ 1]) + data[-2:])  # another embedding
    with pytest.raises(CheckpointError, match="its tensors are not those that were written"):
        load()
    record = json.loads((tmp_path / "out" / "inversion.json").read_text())
    write_json(tmp_path / "out" / "inversion.json", {**record, "classes": ["ant", True]})
    with pytest.raises(CheckpointError, match=r"inversion\.json is damaged: `classes` is"):
        load()


# TorchScript


class Writer(nn.Module):
    """Writes a file when it is run, compiled or not."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return x.flatten(1)


def test_torchscript_runs_only_when_the_user_says_that_it_is_trusted(tmp_path, marker):
    path = tmp_path / "m.pt"
    torch.jit.script(Writer(str(marker))).save(path)
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    for ask in (
        partial(features.TorchScript, path),
        partial(features.named, f"torchscript:{path}"),
        partial(synthaug.audit, images, images, features=f"torchscript:{path}"),
    ):
        with pytest.raises(ValueError, match=r"trusted=True.*--trust-torchscript"):
            ask()
    torch.jit.script(nn.Flatten()).save(tmp_path / "flat.pt")
    found = features.named(f"torchscript:{tmp_path / 'flat.pt'}", trusted=True)
    assert pickle.loads(pickle.dumps(found))(images).shape == (2, 48)


@pytest.mark.parametrize("option", ["features", "classifier"])
def test_a_command_runs_torchscript_only_with_its_flag(tmp_path, marker, option):
    path = tmp_path / "m.pt"
    torch.jit.script(Writer(str(marker))).save(path)
    given = {"features": "pixels", option: f"torchscript:{path}"}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    command = ("evaluate", "quality", "digits:test", "digits:test", "--out", tmp_path / "q")
    assert "--trust-torchscript" in fail(2, *command, *words)


@pytest.mark.parametrize(
    "name", ["hf-hub:a/b", "resnet18.hf-hub:a/b", "local-dir:/tmp", "resnet18/x", "../resnet18"]
)
def test_timm_is_asked_for_its_own_models_only(name):
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match="timm has no model"):
        features.named(f"timm:{name}", pretrained=False)


# Images


def test_an_image_in_postscript_starts_no_interpreter(tmp_path, marker, monkeypatch):
    folder = tmp_path / "images" / "cat"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "a.eps")
    (folder / "a.eps").rename(folder / "a.png")
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n: > '{marker}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    with pytest.raises(DataError, match=r"a\.png cannot be decoded"):
        synthaug.load_dataset(f"folder:{tmp_path / 'images'}").read([0])


@pytest.mark.parametrize("name", ["LSUN", "LSUNClass"])
def test_data_sets_of_torchvision_that_unpickle_unchecked_files_are_refused(name):
    with pytest.raises(ValueError, match="a pickle beside its images"):
        synthaug.load_dataset(f"torchvision:{name}?root=/tmp")


def test_data_sets_of_torchvision_check_a_pickle_before_they_read_it(tmp_path, marker):
    for folder in ("cifar-10-batches-py", "cifar-100-python", "MNIST/processed"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (tmp_path / "cifar-10-batches-py" / name).write_bytes(pickle.dumps(Payload(marker)))
    for name in ("meta", "train", "test"):
        (tmp_path / "cifar-100-python" / name).write_bytes(pickle.dumps(Payload(marker)))
    for name in ("training.pt", "test.pt"):
        torch.save(Payload(marker), tmp_path / "MNIST" / "processed" / name)
    for name in ("CIFAR10", "CIFAR100", "MNIST"):
        with pytest.raises(DataError, match="cannot be read from"):
            synthaug.load_dataset(f"torchvision:{name}:test?root={tmp_path}")


def test_files_of_images_and_features_are_never_unpickled(tmp_path, marker):
    import numpy as np

    held = np.array([Payload(marker)], dtype=object)
    np.save(tmp_path / "a.npy", held, allow_pickle=True)
    np.savez(tmp_path / "a.npz", images=held, features=held)
    (tmp_path / "a.h5").write_bytes(pickle.dumps(Payload(marker)))
    (tmp_path / "a.json").write_bytes(pickle.dumps(Payload(marker)))
    images = torch.zeros(4, 1, 4, 4, dtype=torch.uint8)
    for name in ("a.npy", "a.npz", "a.h5"):
        with pytest.raises((SynthaugError, ValueError, TypeError)):
            synthaug.audit(tmp_path / name, images)
    extractor = features.TorchModule(nn.Flatten(), preprocess=lambda x: x.float())
    kept = np.array(features.extract(extractor, images, features_dir=tmp_path / "kept"))
    (file,) = (tmp_path / "kept").iterdir()
    data = (tmp_path / "a.npy").read_bytes()  # with a digest of its own, which fits
    file.write_bytes(data + hashlib.blake2b(data, digest_size=16).digest())
    again = features.extract(extractor, images, features_dir=tmp_path / "kept")
    assert np.array_equal(again, kept)
    with pytest.raises(SynthaugError):
        synthaug.SynthCache(tmp_path / "a.h5")
    with pytest.raises(SynthaugError):
        synthaug.AuditReport.from_json(tmp_path / "a.json")


def test_the_threat_model_names_tests_that_there_are():
    tests = Path(__file__).parent
    page = (tests.parent / "docs" / "threat_model.md").read_text()
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", page)
    assert len(named) > 40
    for file, name in named:
        assert f"def {name}(" in (tests / file).read_text(), name
