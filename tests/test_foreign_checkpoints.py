"""Checkpoints of other people: drawn as their own pipeline does, or refused at loading."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthaug.errors import CheckpointError
from synthaug.synthesizers import ClassConditional, DiffusionInversion, streams

SCHEDULERS = ("ddim", "dpmsolver++", None)
NO_LOOP = r"FromPipeline`\.$"
PROMPTS = ["a", "b c"]


def load(checkpoint: Any, classes: Any = PROMPTS, **arguments: Any) -> ClassConditional:
    sampler = {"num_inference_steps": 2, "scheduler": None, **arguments.pop("sampler", {})}
    path = checkpoint if isinstance(checkpoint, Path) else checkpoint.path
    return ClassConditional.from_pretrained(
        path, classes=classes, device="cpu", sampler=sampler, **arguments
    )


def gray_levels(ours: torch.Tensor, theirs: Any) -> float:
    """Largest difference between our images and those of a pipeline."""
    return float(np.abs((ours / 2 + 0.5).permute(0, 2, 3, 1).numpy() - theirs.images).max() * 255)


@pytest.fixture
def changed(tiny_checkpoint: Any, tmp_path: Path) -> Any:
    """`changed(family, file, **settings)`: a copy of a checkpoint with other settings in a file."""

    def copy(family: str, file: str, **settings: Any) -> Path:
        path = shutil.copytree(tiny_checkpoint(family).path, tmp_path / family, dirs_exist_ok=True)
        config = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps({**config, **settings}))
        return path

    return copy


# -- drawn natively --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", ["stable_diffusion", "stable_diffusion_2", "sd_turbo", "zero_terminal_snr"]
)
def test_prompts_are_drawn_as_the_pipeline_draws_them(tiny_checkpoint, family):
    checkpoint = tiny_checkpoint(family)
    rescale = 0.7 if family == "zero_terminal_snr" else 0.0  # for which it was thought of
    synthesizer = load(checkpoint, sampler={"guidance_rescale": rescale})
    settings: Any = synthesizer.recipe()["settings"]
    assert settings.get("guidance_rescale", 0.0) == rescale
    plan = synthesizer.plan(per_class=1, guidance_scale=3.0)
    theirs = checkpoint.pipeline(
        PROMPTS,
        guidance_scale=3.0,
        guidance_rescale=rescale,
        generator=streams(plan["seed"]),
        output_type="np",
        **checkpoint.arguments,
    )
    assert gray_levels(synthesizer.draw(plan), theirs) < 0.01


@pytest.mark.parametrize("family", ["ddpm", "ddpm_at_the_root", "latent_diffusion"])
def test_images_without_classes_are_drawn_as_the_pipeline_draws_them(tiny_checkpoint, family):
    checkpoint = tiny_checkpoint(family)
    synthesizer = load(checkpoint, ["thing"])
    plan = synthesizer.plan(per_class=2)
    assert synthesizer.image_shape == (3, 8, 8)
    theirs = checkpoint.pipeline(
        batch_size=2, generator=streams(plan["seed"]), output_type="np", **checkpoint.arguments
    )
    assert gray_levels(synthesizer.draw(plan), theirs) < 0.01


def test_a_quantized_autoencoder_encodes_real_images_too(tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint("latent_diffusion")
    synthesizer = load(checkpoint, ["thing"])
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    vqvae = checkpoint.pipeline.vqvae
    with torch.inference_mode():
        mean, std = synthesizer.model.posterior(pixels)
        expected = vqvae.encode(pixels / 127.5 - 1).latents * vqvae.config.scaling_factor
    torch.testing.assert_close(mean, expected)
    assert std is not None
    assert not std.any()
    synthesizer.save_pretrained(tmp_path)
    plan = synthesizer.plan(per_class=1)
    again = ClassConditional.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(again.draw(plan), synthesizer.draw(plan))


def test_latents_are_moved_and_scaled_per_channel(changed):
    mean, std = [0.5, -1.0, 0.0, 2.0], [1.0, 2.0, 0.5, 4.0]
    path = changed("stable_diffusion", "vae/config.json", latents_mean=mean, latents_std=std)
    model = load(path).model
    pixels = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        plain = model.vae.encode(pixels / 127.5 - 1).latent_dist.mode()
        ours = model.encode(pixels)
        moved = (plain - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
        torch.testing.assert_close(ours, moved * model.vae.config.scaling_factor)
        torch.testing.assert_close(model.decode(ours), model.vae.decode(plain).sample.clamp(-1, 1))


# -- labels by name --------------------------------------------------------------------------------


def test_a_dit_draws_the_classes_that_are_named(tiny_checkpoint, tmp_path):
    checkpoint = tiny_checkpoint("dit")
    synthesizer = load(checkpoint, ["goldfinch", "House_finch", "thing 999"])
    plan = synthesizer.plan(per_class=1, guidance_scale=3.0)
    theirs = checkpoint.pipeline(
        [11, 12, 999],
        guidance_scale=3.0,
        generator=streams(plan["seed"]),
        output_type="np",
        **checkpoint.arguments,
    )
    assert gray_levels(synthesizer.draw(plan), theirs) < 0.01
    synthesizer.save_pretrained(tmp_path)
    again = ClassConditional.from_pretrained(tmp_path, device="cpu")
    assert torch.equal(again.draw(plan), synthesizer.draw(plan))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["goldfnch"], "'goldfnch' in `classes` is no class .* Close names are goldfinch"),
        (["crane"], r"name of several classes \(1: crane, bird and 2: crane, machine\)"),
    ],
)
def test_names_that_a_dit_does_not_know_or_knows_twice_are_refused(changed, classes, message):
    labels = {i: f"thing {i}" for i in range(1000)}
    labels |= {1: "crane, bird", 2: "crane, machine", 11: "goldfinch"}
    path = changed("dit", "model_index.json", id2label=labels)
    with pytest.raises(ValueError, match=message):
        load(path, classes)
    assert load(path, ["crane, machine"]).model.num_conditions == 2


def test_a_table_of_names_that_does_not_fit_the_network_is_refused(changed):
    path = changed("dit", "model_index.json", id2label={"0": "tench"})
    with pytest.raises(CheckpointError, match="does not name the 1,000 classes"):
        load(path, ["tench"])
    path = changed("dit", "model_index.json", id2label=None)
    with pytest.raises(ValueError, match="knows 1,000 classes, but `classes` has 1 names"):
        load(path, ["tench"])


# -- refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    ("family", "fault"),
    [
        ("consistency", "is a consistency model"),
        ("latent_consistency", "is a consistency model"),
        ("cogview4", "transformer is CogView4Transformer2DModel"),
        ("deepfloyd", "text_encoder is T5EncoderModel"),
    ],
)
def test_what_we_would_draw_wrongly_is_refused_by_every_path(
    tiny_checkpoint, family, fault, scheduler
):
    for kind in (ClassConditional, DiffusionInversion):
        with pytest.raises(CheckpointError, match=f"{fault}.*{NO_LOOP}"):
            kind.from_pretrained(
                tiny_checkpoint(family).path,
                classes=PROMPTS,
                device="cpu",
                sampler={"scheduler": scheduler},
            )


@pytest.mark.parametrize(
    ("family", "fault"),
    [
        ("inpainting", "takes 9 channels, of which 4 are noise"),
        ("upscaler", "takes 7 channels, of which 4 are noise"),
        ("superresolution", "takes 6 channels, of which 3 are noise"),
    ],
)
def test_networks_that_edit_images_are_refused_when_they_are_loaded(tiny_checkpoint, family, fault):
    with pytest.raises(CheckpointError, match=f"{fault}.*text-to-image"):
        load(tiny_checkpoint(family), ["a"])


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"_class_name": "EDMEulerScheduler"}, "may predict something else"),
        ({"use_flow_sigmas": True}, "predicts a flow"),
        ({"prediction_type": "flow_prediction"}, "predicts a flow"),
        ({"prediction_type": "x0"}, "has the `prediction_type` 'x0'"),
        ({"timestep_type": "continuous"}, "takes timesteps of the type 'continuous'"),
    ],
)
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_scheduler_of_another_kind_of_network_is_refused(changed, settings, fault, scheduler):
    path = changed("stable_diffusion", "scheduler/scheduler_config.json", **settings)
    with pytest.raises(CheckpointError, match=f"{fault}.*{NO_LOOP}"):
        load(path, sampler={"scheduler": scheduler})


@pytest.mark.parametrize(
    ("file", "settings", "fault"),
    [
        ("unet/config.json", {"time_cond_proj_dim": 8}, "`time_cond_proj_dim` to 8"),
        ("unet/config.json", {"class_embed_type": "identity"}, "`class_embed_type` is 'identity'"),
        ("text_encoder/config.json", {"model_type": "t5"}, "of the type 't5', and not CLIP's"),
        ("vae/config.json", {"scaling_factor": None}, "`scaling_factor` is 'None'"),
        ("vae/config.json", {"scaling_factor": 0}, "sets `scaling_factor` to 0"),
        ("vae/config.json", {"latents_mean": [1.0]}, "`latents_mean` to 1 numbers for 4 channels"),
    ],
)
def test_a_part_that_we_would_misread_is_refused(tiny_checkpoint, changed, file, settings, fault):
    family = "latent_consistency" if "time_cond_proj_dim" in settings else "stable_diffusion"
    path = changed(family, file, **settings)
    scheduler = tiny_checkpoint("stable_diffusion").path / "scheduler" / "scheduler_config.json"
    shutil.copy(scheduler, path / "scheduler")
    with pytest.raises(CheckpointError, match=fault):
        load(path)


def test_a_transformer_of_another_kind_under_the_name_of_a_dit_is_refused(changed):
    path = changed("pixart", "model_index.json", transformer=["diffusers", "Transformer2DModel"])
    with pytest.raises(CheckpointError, match="`norm_type` 'ada_norm_single', and not a DiT's"):
        load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": ["abcdefg"]}, "'abcdefg' has 9 tokens, and the text encoder reads 8"),
        ({"negative_prompt": "abcdefg"}, "'abcdefg' has 9 tokens"),
        ({"classes": ["a", "A"]}, "'a' and 'A' of two classes are the same"),
        ({"prompt_template": "b"}, "'b' and 'b' of two classes are the same"),
    ],
)
def test_prompts_that_the_text_encoder_cannot_read_whole_or_apart_are_refused(
    tiny_checkpoint, arguments, message
):
    with pytest.raises(ValueError, match=message):
        load(tiny_checkpoint("stable_diffusion"), **arguments)


def test_weights_that_are_elsewhere_are_refused(tiny_checkpoint):
    model = load(tiny_checkpoint("stable_diffusion")).model
    with pytest.raises(CheckpointError, match="weights of the autoencoder are offloaded"):
        replace(model, vae=type(model.vae).from_config(model.vae.config).to("meta"))


# -- schedules -------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.29, 0.58, 1.0])
def test_variants_of_real_images_are_drawn_as_the_image_to_image_pipeline_does(
    tiny_checkpoint, strength
):
    from diffusers import StableDiffusionImg2ImgPipeline

    checkpoint = tiny_checkpoint("stable_diffusion")
    synthesizer = load(checkpoint, ["a"], sampler={"num_inference_steps": 10})
    real = torch.utils.data.TensorDataset(
        torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    )
    plan = synthesizer.with_sources(real).plan(per_class=2, strength=strength, guidance_scale=2.0)
    pixels = real.tensors[0][torch.tensor(plan["source"])]
    model = synthesizer.model
    with torch.inference_mode():
        latents = model.encode(pixels)
    pipeline = StableDiffusionImg2ImgPipeline(
        **checkpoint.pipeline.components, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(
        ["a", "a"],
        image=latents,  # it would sample the posterior
        strength=strength,
        guidance_scale=2.0,
        num_inference_steps=10,
        generator=streams(plan["seed"]),
        output_type="np",
    )
    ours = synthesizer.with_sources(real).draw(plan)
    assert gray_levels(ours, theirs) < 0.01


def test_a_schedule_that_ends_in_pure_noise_needs_a_network_that_can_leave_it(
    tiny_checkpoint, changed
):
    path = changed(
        "zero_terminal_snr", "scheduler/scheduler_config.json", prediction_type="epsilon"
    )
    for scheduler in SCHEDULERS:
        with pytest.raises(CheckpointError, match="set `prediction_type` to 'v_prediction' in sch"):
            load(path, sampler={"scheduler": scheduler})
    checkpoint = tiny_checkpoint("zero_terminal_snr")
    with pytest.raises(ValueError, match="Use the `scheduler` 'ddpm', which takes the same steps"):
        load(checkpoint, sampler={"eta": 1.0})
    for sampler in ({"eta": 0.9}, {"scheduler": "ddpm"}):
        synthesizer = load(checkpoint, sampler=sampler)
        assert torch.isfinite(synthesizer.draw(synthesizer.plan(per_class=1))).all()


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++", "DEISMultistepScheduler"])
def test_more_steps_than_a_scheduler_can_space_are_refused(tiny_checkpoint, scheduler):
    sampler = {"scheduler": scheduler, "num_inference_steps": 1000}
    with pytest.raises(ValueError, match=r"is 1,000, which .* cannot space as 'leading'"):
        load(tiny_checkpoint("stable_diffusion"), sampler=sampler)
    load(tiny_checkpoint("sd_turbo"), sampler=sampler)  # spaced from the end
