"""Any diffusers directory as a generator: from files, on the command line, from real images."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from synthaug import ClassConditional, SynthCache
from synthaug._images.labeled import LabeledImages
from synthaug._pixels import to_pixels
from synthaug.errors import CheckpointError
from synthaug.synthesizers import FromPipeline, LoadingConfig, streams
from synthaug.synthesizers._adapters import adapter_settings, add_adapters
from synthaug.synthesizers._kinds import load
from synthaug.synthesizers._pipeline_files import check_adapter
from synthaug.synthesizers._pipeline_images import MADE, made_from
from tests.command_line import fail, succeed

CLASSES = ("cat", "dog")
DRAWN = ("--classes", "cat,dog", "--per-class", "2", "--num-inference-steps", "2", "--quiet")


def real_images(n: int = 4, size: int = 8) -> LabeledImages:
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (n, 3, size, size)).astype(np.uint8)
    )
    return LabeledImages(pixels, torch.arange(n) % 2, classes=CLASSES)


def largest_difference(images: Any, others: Any) -> int:
    """In gray levels."""
    pixels = [to_pixels(one).int() for one in (images, others)]
    return int((pixels[0] - pixels[1]).abs().max())


def by_pipeline(pipeline: Any, rows: Any, prompts: Any, **arguments: Any) -> Any:
    """What the pipeline draws, one row at a time, as images in [-1, 1]."""
    drawn = []
    for prompt, generator in zip(prompts, streams(rows["seed"]), strict=True):
        drawn += pipeline(
            prompt=prompt, generator=generator, output_type="pt", **arguments
        ).images.float()
    return torch.stack(drawn) * 2 - 1


# From files


@pytest.mark.parametrize("family", ["sdxl", "stable_diffusion_3", "flux", "pixart"])
def test_the_command_draws_what_the_pipeline_draws_and_says_which(
    family, tiny_checkpoint, tmp_path
):
    checkpoint = tiny_checkpoint(family)
    others = {k: v for k, v in checkpoint.arguments.items() if k != "num_inference_steps"}
    out = succeed(
        "generate",
        checkpoint.path,
        tmp_path / "c.h5",
        *DRAWN,
        "--prompts",
        '["a {}", "the {}"]',
        "--arguments",
        json.dumps(others),
    )
    name = type(checkpoint.pipeline).__name__
    assert f"Drawn by the checkpoint's own {name}. We have no loop for it." in out
    cache = SynthCache(tmp_path / "c.h5")
    texts = [cache.provenance(i)["texts"]["prompt"] for i in range(4)]
    assert texts == ["a cat", "the cat", "a dog", "the dog"]
    expected = by_pipeline(checkpoint.pipeline, cache.plan, texts, **checkpoint.arguments)
    assert largest_difference(cache.read(range(4)).float() / 127.5 - 1, expected) <= 1


def test_a_checkpoint_with_a_loop_of_ours_is_drawn_by_it_unless_the_pipeline_is_asked_for(
    tiny_checkpoint, tmp_path
):
    path = tiny_checkpoint("stable_diffusion").path
    assert "Drawn by ClassConditional." in succeed("plan", path, *DRAWN)
    out = succeed("generate", path, tmp_path / "c.h5", *DRAWN, "--pipeline")
    assert "own StableDiffusionPipeline. `--pipeline` was given." in out
    recipe = SynthCache(tmp_path / "c.h5").manifest["recipe"]
    assert recipe["synthesizer"] == "FromPipeline"
    out = succeed("plan", path, *DRAWN, "--negative-prompt", "dark")
    assert "`--negative-prompt` was given." in out
    assert isinstance(load(path, classes=CLASSES), ClassConditional)


def test_what_our_loop_would_draw_wrongly_is_drawn_by_the_pipeline(tiny_checkpoint, tmp_path):
    path = shutil.copytree(tiny_checkpoint("stable_diffusion").path, tmp_path / "flow")
    config = path / "scheduler" / "scheduler_config.json"
    config.write_text('{"_class_name": "LCMScheduler", "clip_sample": false}')
    index = path / "model_index.json"
    content = {**json.loads(index.read_text()), "scheduler": ["diffusers", "LCMScheduler"]}
    index.write_text(json.dumps(content))
    out = succeed("plan", path, *DRAWN)
    assert "Drawn by the checkpoint's own StableDiffusionPipeline. The checkpoint's sched" in out
    assert "is a consistency model" in out


def test_prompts_of_the_command_line_come_from_a_file(tiny_checkpoint, tmp_path):
    (tmp_path / "captions.csv").write_text("class,prompt\ncat,one cat\ndog,big dog\ncat,a cat\n")
    path = tiny_checkpoint("stable_diffusion").path
    line = ("generate", path, tmp_path / "c.h5", *DRAWN, "--image-size", "8")
    succeed(*line, "--prompts", f"file:{tmp_path / 'captions.csv'}")
    cache = SynthCache(tmp_path / "c.h5")
    drawn = [cache.provenance(i)["texts"]["prompt"] for i in range(4)]
    assert drawn == ["one cat", "a cat", "big dog", "big dog"]


def test_the_grid_of_attributes_is_swept(tiny_checkpoint, tmp_path):
    path = tiny_checkpoint("stable_diffusion").path
    grid = ("--prompts", "{} {time}", "--attributes", '{"time": ["now", "ago"]}')
    succeed("generate", path, tmp_path / "c.h5", *DRAWN, *grid, "--image-size", "8")
    cache = SynthCache(tmp_path / "c.h5")
    assert cache.provenance(1)["texts"]["prompt"] == "cat ago"


def only_variant(path: Path, variant: str = "fp16") -> Path:
    for file in sorted(path.glob("*/*.safetensors")):
        file.rename(file.with_suffix(f".{variant}.safetensors"))
    return path


def test_weights_of_a_variant_are_loaded_and_named_if_there_are_no_others(
    tiny_checkpoint, tmp_path
):
    checkpoint = tiny_checkpoint("sdxl")
    path = only_variant(shutil.copytree(checkpoint.path, tmp_path / "sdxl"))
    message = fail(4, "plan", path, *DRAWN)
    assert "holds only the variant fp16 of the weights. Pass `--variant fp16`" in message
    out = succeed("plan", path, *DRAWN, "--variant", "fp16")
    assert "2" in out
    plain = FromPipeline.from_pretrained(checkpoint.path, classes=CLASSES)
    half = FromPipeline.from_pretrained(path, classes=CLASSES, files=LoadingConfig(variant="fp16"))
    assert plain.recipe() == half.recipe()


@pytest.mark.parametrize("family", ["sdxl", "stable_diffusion"])
@pytest.mark.parametrize(
    ("file", "setting", "value", "message"),
    [
        ("model_index.json", "_class_name", ["mine.py", "Mine"], "custom pipeline"),
        ("model_index.json", "vae", ["os", "system"], "the vae is system of os"),
        ("model_index.json", "vae", ["vae_of_mine", "Mine"], "the vae is Mine of vae_of_mine"),
        ("unet/config.json", "auto_map", {"AutoModel": "mine.Mine"}, "sets `auto_map`"),
        ("tokenizer/tokenizer_config.json", "auto_map", {"a": "b"}, "sets `auto_map`"),
        ("text_encoder/config.json", "quantization_config", {"a": 1}, "`quantization_config`"),
    ],
)
def test_a_pipeline_that_names_code_is_refused(
    family, file, setting, value, message, tiny_checkpoint, tmp_path
):
    path = shutil.copytree(tiny_checkpoint(family).path, tmp_path / family)
    config = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps({**config, setting: value}))
    with pytest.raises(CheckpointError, match=message):
        FromPipeline.from_pretrained(path, classes=CLASSES)


def test_a_setting_that_only_a_call_meets_is_an_error_that_names_the_checkpoint(
    tiny_checkpoint, tmp_path
):
    checkpoint = tiny_checkpoint("flux")
    path = shutil.copytree(checkpoint.path, tmp_path / "flux")
    config = json.loads((path / "transformer" / "config.json").read_text())
    config["axes_dims_rope"][0] = 10**40
    (path / "transformer" / "config.json").write_text(json.dumps(config))
    broken = FromPipeline.from_pretrained(path, classes=CLASSES, **checkpoint.arguments)
    with pytest.raises(CheckpointError, match=rf"{path} cannot draw \(OverflowError"):
        broken.draw(broken.plan(per_class=1))
    unfit = broken.with_settings(max_sequence_length=10**9)
    with pytest.raises(ValueError, match="max_sequence_length"):
        unfit.draw(unfit.plan(per_class=1))


def test_pickled_weights_are_refused(tiny_checkpoint, tmp_path):
    path = shutil.copytree(tiny_checkpoint("sdxl").path, tmp_path / "sdxl")
    (path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (path / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"unet holds pickled weights.* Convert"):
        FromPipeline.from_pretrained(path, classes=CLASSES)


def test_adapters_are_merged_into_the_weights(tiny_checkpoint, tmp_path):
    pytest.importorskip("peft")
    from safetensors.torch import save_file

    path = tiny_checkpoint("stable_diffusion").path
    plain: Any = FromPipeline.from_pretrained(path, classes=CLASSES, num_inference_steps=2)
    name = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    width = plain.pipeline.unet.get_parameter(f"{name.removeprefix('unet.')}.weight").shape[0]
    down, up = torch.ones(2, width), torch.ones(width, 2)
    save_file(
        {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}, tmp_path / "a.safetensors"
    )
    files = LoadingConfig(lora=str(tmp_path / "a.safetensors"))
    adapted: Any = FromPipeline.from_pretrained(path, classes=CLASSES, files=files)
    before, after = (one.recipe()["weights"] for one in (plain, adapted))
    assert before["vae"] == after["vae"]
    assert before["unet"] != after["unet"]
    key = f"{name.removeprefix('unet.')}.weight"
    change = adapted.pipeline.unet.get_parameter(key) - plain.pipeline.unet.get_parameter(key)
    torch.testing.assert_close(change, torch.full_like(change, 2.0))
    save_file({"x.lora_A.weight": down}, tmp_path / "b.safetensors")
    for file, message in (
        ("b.safetensors", "for another model"),
        ("c.bin", "expected a .safetens"),
    ):
        with pytest.raises(CheckpointError, match=message):
            FromPipeline.from_pretrained(
                path, classes=CLASSES, files=LoadingConfig(lora=str(tmp_path / file))
            )


A, B = "transformer.a.to_q.lora_A.weight", "transformer.a.to_q.lora_B.weight"
ALPHA = {"transformer.a.to_q.alpha": torch.tensor(16.0)}


@pytest.mark.parametrize(
    ("more", "settings", "expected"),
    [
        ({}, {}, 1.0),
        (ALPHA, {}, 4.0),
        ({}, {"lora_alpha": 2}, 0.5),
        (ALPHA, {"lora_alpha": 16, "use_rslora": True}, 8.0),
        ({}, {"lora_alpha": 2, "alpha_pattern": {"o_q": 4, "to_q": 8}}, 2.0),
        (ALPHA, {"lora_alpha": 2}, r"a\.to_q has the alphas 2.0 and 16.0"),
        ({}, {"use_dora": True}, "sets `use_dora`"),
        ({"transformer.a.to_q.lora_magnitude_vector": torch.ones(3)}, {}, "lora_magnitude_vector"),
        ({"text_encoder.q.lora_A.weight": torch.ones(4, 3)}, {}, r"has text_encoder\.q\.lora_A"),
        ({"transformer.a.to_k.lora_B.weight": torch.ones(3, 4)}, {}, r"a\.to_k\.lora_B"),
    ],
)
def test_adapters_that_we_merge_have_their_alpha_and_nothing_of_them_is_left_out(
    tmp_path, more, settings, expected
):
    """As for PixArt, whose pipeline cannot load adapters."""
    from safetensors.torch import save_file

    weights = {A: torch.full((4, 3), 0.5), B: torch.full((3, 4), 0.5), **more}
    said = json.dumps({f"transformer.{name}": value for name, value in settings.items()})
    file = tmp_path / "a.safetensors"
    save_file(weights, file, {"lora_adapter_metadata": said})
    network: Any = torch.nn.ModuleDict({"a": torch.nn.ModuleDict({"to_q": torch.nn.Linear(3, 3)})})
    before = network["a"]["to_q"].weight.clone()
    arguments = weights, adapter_settings(file)
    if isinstance(expected, str):
        with pytest.raises((LookupError, ValueError), match=expected):
            add_adapters(network, *arguments, "transformer")
        return
    add_adapters(network, *arguments, "transformer")
    change = network["a"]["to_q"].weight - before
    torch.testing.assert_close(change, torch.full_like(change, expected))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("megatron_core", "evil"),
        ("auto_mapping", {"base_model_class": "Evil", "parent_library": "evil"}),
        ("r", 10**9),
        ("rank_pattern", {"((.*)*)*x": 2}),
        ("target_modules", "((.*)*)*x"),
        ("init_lora_weights", "pissa"),
    ],
)
def test_the_config_of_an_adapter_imports_allocates_and_matches_nothing(tmp_path, setting, value):
    pytest.importorskip("peft")
    from safetensors.torch import save_file

    weights = {"unet.a.lora_A.weight": torch.ones(2, 4), "unet.a.lora_B.weight": torch.ones(4, 2)}
    plain = {"r": 2, "lora_alpha": 4, "target_modules": ["a"], "peft_type": "LORA"}
    plain |= {"init_lora_weights": "gaussian", "rank_pattern": {"a.b": 2}}
    for changes in ({}, {setting: value}):
        config = {f"unet.{name}": value for name, value in {**plain, **changes}.items()}
        metadata = {"lora_adapter_metadata": json.dumps(config)}
        save_file(weights, tmp_path / "a.safetensors", metadata)
        if changes:
            with pytest.raises(CheckpointError, match=rf"a\.safetensors sets `{setting}` to"):
                check_adapter(tmp_path / "a.safetensors")
        else:
            check_adapter(tmp_path / "a.safetensors")
    save_file({"((.*)*)*x.lora_A.weight": torch.ones(2, 4)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="weights of a layer"):
        check_adapter(tmp_path / "b.safetensors")


def test_offloading_needs_a_gpu(tiny_checkpoint):
    path = tiny_checkpoint("stable_diffusion").path
    assert "`--offload` moves networks" in fail(
        2, "plan", path, *DRAWN, "--offload", "--device", "cpu"
    )


# From real images


@pytest.mark.parametrize("family", ["stable_diffusion", "sdxl", "stable_diffusion_3", "flux"])
def test_variants_of_real_images_are_what_the_image_to_image_pipeline_draws(
    family, tiny_checkpoint
):
    from diffusers import AutoPipelineForImage2Image

    checkpoint, real = tiny_checkpoint(family), real_images()
    synthesizer = FromPipeline(checkpoint.pipeline, CLASSES, num_inference_steps=4)
    synthesizer = synthesizer.with_sources(real)
    cut = synthesizer.plan(per_class=2, strength=[0.3, 0.7], guidance_scale=1.0)
    assert synthesizer.evaluations(cut).tolist() == [1, 2] * 2  # steps are cut off, not rounded
    rows = synthesizer.plan(per_class=2, strength=[0.5, 1.0], seed=0)
    images = synthesizer.draw(rows)
    assert rows["label"].tolist() == [int(real.targets[i]) for i in rows["source"]]
    partner = AutoPipelineForImage2Image.from_pipe(checkpoint.pipeline)
    partner.set_progress_bar_config(disable=True)
    size = {"height": 8, "width": 8} if family in ("stable_diffusion_3", "flux") else {}
    for i in range(4):
        source = real.read([int(rows["source"][i])])[0]
        expected = by_pipeline(
            partner,
            rows[i : i + 1],
            [CLASSES[rows["label"][i]]],
            image=Image.fromarray(source.permute(1, 2, 0).numpy()),
            strength=float(rows["strength"][i]),
            num_inference_steps=4,
            **size,
        )
        assert largest_difference(images[i : i + 1], expected) <= 1
    order = np.array([3, 0])
    assert largest_difference(synthesizer.draw(rows[order]), images[order]) <= 1


def test_the_command_starts_from_real_images(tiny_checkpoint, tmp_path):
    for i, name in enumerate(CLASSES):
        folder = tmp_path / "real" / name
        folder.mkdir(parents=True)
        pixels = real_images(4).read([i])[0].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / "0.png")
    line = ("generate", tiny_checkpoint("sdxl").path, tmp_path / "c.h5", *DRAWN[:2], *DRAWN[4:])
    out = succeed(
        *line, "--ratio", "1", "--source", f"folder:{tmp_path / 'real'}", "--strength", "0.5"
    )
    assert "StableDiffusionXLImg2ImgPipeline" in out
    cache = SynthCache(tmp_path / "c.h5")
    assert [cache.provenance(i)["source"] for i in range(2)] == [0, 1]
    assert cache.manifest["recipe"]["settings"]["image_inputs"] == {"image": "source"}
    message = fail(2, *line, "--per-class", "1", "--strength", "0.5")
    assert "`--strength` needs real images. Give them with `--source`." in message


def test_pipelines_without_a_partner_refuse_sources(tiny_checkpoint):
    synthesizer = FromPipeline(tiny_checkpoint("pixart").pipeline, CLASSES)
    with pytest.raises(
        TypeError, match=r"PixArt.* takes no `image`, and diffusers knows no image-"
    ):
        synthesizer.with_sources(real_images())


def test_plans_and_sources_belong_together(tiny_checkpoint):
    plain = FromPipeline(tiny_checkpoint("stable_diffusion").pipeline, CLASSES)
    sourced = plain.with_sources(real_images())
    for one, other in ((plain, sourced), (sourced, plain)):
        with pytest.raises(ValueError, match="if and only if the synthesizer has some"):
            one.draw(other.plan(per_class=1))
    with pytest.raises(ValueError, match=r"`strength` must be in \(0, 1\], got 1.5"):
        sourced.plan(per_class=1, strength=1.5)
    with pytest.raises(ValueError, match=r"`strength` 0.4 of 2 `num_inference_steps` is less than"):
        sourced.plan(per_class=1, strength=[0.4, 1], num_inference_steps=[2, 4])


def test_prompts_whose_end_no_encoder_would_read_are_refused(tiny_checkpoint):
    pipeline = tiny_checkpoint("stable_diffusion").pipeline
    with pytest.raises(ValueError, match=r"'cat at dawn' has 11 tokens, and .* reads 8"):
        FromPipeline(pipeline, CLASSES, prompts="{} at dawn")
    # The second encoder of this one reads 16 tokens.
    FromPipeline(tiny_checkpoint("stable_diffusion_3").pipeline, CLASSES, prompts="{} at dawn")


class Controlled:
    """A pipeline with a control image and a mask, which returns what it is given."""

    def __call__(
        self,
        prompt: Any,
        image: Any,
        control_image: Any,
        mask_image: Any,
        ip_adapter_image: Any = None,
        generator: Any = None,
        output_type: Any = None,
    ) -> Any:
        from types import SimpleNamespace

        (faces,) = ip_adapter_image
        stacks = zip(control_image, mask_image, faces, strict=True)
        images = [
            np.concatenate([np.asarray(control)[..., :1], np.asarray(mask)[..., None], face], 2)
            for control, mask, face in ((c, m, np.asarray(f)[..., :1]) for c, m, f in stacks)
        ]
        return SimpleNamespace(images=np.stack(images).astype(np.float32) / 255)


def test_control_images_masks_and_adapters_images_are_made_for_each_row():
    made = {
        "image": "source",
        "control_image": "edges",
        "mask_image": "box",
        "ip_adapter_image": "source",
    }
    real = real_images()
    synthesizer = FromPipeline(Controlled(), CLASSES, image_inputs=made)
    with pytest.raises(ValueError, match="needs `control_image` in every call"):
        synthesizer.plan(per_class=1)
    synthesizer = synthesizer.with_sources(real)
    assert synthesizer.image_shape == (3, 8, 8)
    rows = synthesizer.plan(per_class=4, seed=0)
    assert rows.settings["image_inputs"] == made
    images = synthesizer.draw(rows)
    order = np.array([5, 2])
    torch.testing.assert_close(synthesizer.draw(rows[order]), images[order], atol=0, rtol=0)
    for i in range(len(rows)):
        source = real.read([int(rows["source"][i])])
        assert (to_pixels(images[i : i + 1, 2:]) == source[:, :1]).all()
        outlines = MADE["edges"](source, rows["seed"][i : i + 1])
        assert (to_pixels(images[i : i + 1, :1]) == outlines).all()
    masks = images[:, 1] > 0
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) > 1
    assert all(2 <= mask.any(axis).sum() <= 6 for mask in masks for axis in (0, 1))


def test_outlines_are_where_the_brightness_changes():
    pixels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    pixels[..., 4:] = 255
    (outlines,) = MADE["edges"](pixels, np.zeros(1, np.uint64))
    assert (outlines[0, :, 3:5] == 255).all()
    assert outlines[0, :, :3].max() == outlines[0, :, 5:].max() == 0
    (picture,) = made_from(pixels, np.zeros(1, np.uint64), {"image": "source"})["image"]
    assert picture.mode == "RGB"


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (
            {"image": "blur"},
            ValueError,
            "`image_inputs` must be made by source, edges, box, got 'blur'",
        ),
        ({"picture": "source"}, TypeError, "takes no `picture`"),
    ],
)
def test_images_that_cannot_be_made_are_refused(images, error, message, tiny_checkpoint):
    pipeline = tiny_checkpoint("stable_diffusion").pipeline
    with pytest.raises(error, match=message):
        FromPipeline(pipeline, CLASSES, image_inputs=images).with_sources(real_images())


def test_a_control_net_draws_by_the_outlines_of_each_source(tiny_checkpoint, tmp_path):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    parts = tiny_checkpoint("stable_diffusion").pipeline.components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ControlNetModel.from_unet(
            parts["unet"], conditioning_embedding_out_channels=(8, 8), load_weights_from_unet=True
        )
        for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
            torch.nn.init.normal_(block.weight)  # which are zero before training
        torch.nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight)
    StableDiffusionControlNetPipeline(
        **{**parts, "controlnet": net.eval(), "requires_safety_checker": False}
    ).save_pretrained(tmp_path / "control")
    arguments: Any = {"num_inference_steps": 2, "classes": CLASSES, "device": "cpu"}
    plain = FromPipeline.from_pretrained(tmp_path / "control", **arguments)
    real = real_images()
    with pytest.raises(
        TypeError, match=r"control what is drawn.* `image_inputs={'image': 'edges'}`"
    ):
        plain.with_sources(real)
    by_edges = plain.with_settings(image_inputs={"image": "edges"}).with_sources(real)
    rows = by_edges.plan(per_class=1, seed=0)
    images = by_edges.draw(rows)
    for i in range(2):
        outlines = made_from(
            real.read([int(rows["source"][i])]), rows["seed"][i : i + 1], {"image": "edges"}
        )
        expected = by_pipeline(
            plain.pipeline,
            rows[i : i + 1],
            [CLASSES[rows["label"][i]]],
            num_inference_steps=2,
            height=8,
            width=8,
            **outlines,
        )
        assert largest_difference(images[i : i + 1], expected) <= 1
    by_itself = plain.with_settings(image_inputs={"image": "source"}).with_sources(real)
    assert largest_difference(by_itself.draw(rows), images) > 1
    again = FromPipeline.from_pretrained(tmp_path / "control", **arguments)
    assert again.recipe() == plain.recipe()
