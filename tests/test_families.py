"""Models with several text encoders, in our own loop: drawn, fine-tuned and inverted.

Tiny and random: these tests show that the mathematics is that of each family, not how good images
are.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synthaug import ClassConditional, TrainingConfig
from synthaug.errors import CheckpointError, MismatchError
from synthaug.images import LabeledImages
from synthaug.samplers import clean_estimate, noised, set_timesteps, timesteps_from
from synthaug.synthesizers import (
    DiffusionInversion,
    FineTuningConfig,
    FromPipeline,
    InversionConfig,
    LoadingConfig,
    LossGrid,
    streams,
)

pytestmark = pytest.mark.usefixtures("few_steps")

FAMILIES = ("sdxl", "stable_diffusion_3", "flux", "pixart", "sana")
CLASSES = ("a", "b")
WEIGHTS = "diffusion_pytorch_model.safetensors"
SEEDS = np.arange(2, dtype=np.uint64)


def size_of(checkpoint: Any) -> int:
    return int(checkpoint.arguments["height"])


def real_images(size: int) -> LabeledImages:
    """A left half that is white, and a right one."""
    pixels = torch.full((2, 3, size, size), 20, dtype=torch.uint8)
    pixels[0, :, :, : size // 2] = pixels[1, :, :, size // 2 :] = 230
    return LabeledImages(pixels, np.arange(2), CLASSES)


def loaded(checkpoint: Any, **arguments: Any) -> ClassConditional:
    """In our loop, by the scheduler that the checkpoint ships."""
    usual = {"classes": CLASSES, "image_size": size_of(checkpoint), "device": "cpu"}
    sampler = {"scheduler": None, **checkpoint.arguments}
    sampler = {name: sampler[name] for name in ("scheduler", "num_inference_steps")}
    return ClassConditional.from_pretrained(
        checkpoint.path, **{**usual, "sampler": sampler, **arguments}
    )


def by_pipeline(pipeline: Any, arguments: Any, guidance_scale: float = 1.0) -> Tensor:
    """An image of each class from the streams of two seeds, in [-1, 1]."""
    scale = {"guidance_scale": guidance_scale}
    if type(pipeline).__name__ == "FluxPipeline":
        scale = {"true_cfg_scale": guidance_scale, "guidance_scale": 1.0}
        if guidance_scale > 1:
            arguments = {**arguments, "negative_prompt": ["", ""]}
    made = pipeline(
        prompt=list(CLASSES), generator=streams(SEEDS), output_type="np", **scale, **arguments
    )
    return torch.from_numpy(made.images).permute(0, 3, 1, 2) * 2 - 1


def by_us(synthesizer: ClassConditional, guidance_scale: float = 1.0) -> Tensor:
    """The same images by our loop."""
    plan = synthesizer.plan(per_class=1, guidance_scale=guidance_scale)
    return synthesizer.draw(replace(plan, columns={**plan.columns, "seed": SEEDS}))


def gray_levels(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) * 127.5


@dataclass(frozen=True)
class Tuned:
    """A fine-tuned family, and what it was before."""

    checkpoint: Any
    before: ClassConditional
    after: ClassConditional
    folder: Path

    @property
    def adapters(self) -> Path:
        return self.folder / "lora" / "pytorch_lora_weights.safetensors"


def tune(checkpoint: Any, folder: Path, steps: int = 12) -> ClassConditional:
    size = size_of(checkpoint)
    config = TrainingConfig(
        steps=steps, batch_size=2, learning_rate=0.03, warmup_steps=0, ema_decay=0.0, device="cpu"
    )
    adaptation = FineTuningConfig(lora_rank=2, image_size=size, label_dropout=0.0)
    after, _ = ClassConditional.fine_tune(
        checkpoint.path,
        real_images(size),
        folder,
        adaptation=adaptation,
        config=config,
        progress=False,
    )
    steps = checkpoint.arguments["num_inference_steps"]
    return after.with_settings(scheduler=None, num_inference_steps=steps)


@pytest.fixture(scope="module")
def tuned(tiny_checkpoint, tmp_path_factory) -> Callable[[str], Tuned]:
    done: dict[str, Tuned] = {}

    def tuned(family: str) -> Tuned:
        if family not in done:
            checkpoint = tiny_checkpoint(family)
            folder = tmp_path_factory.mktemp(family)
            after = tune(checkpoint, folder)
            done[family] = Tuned(checkpoint, loaded(checkpoint), after, folder)
        return done[family]

    return tuned


@pytest.mark.parametrize("family", FAMILIES)
def test_our_loop_draws_what_the_pipeline_draws(tiny_checkpoint, family):
    checkpoint = tiny_checkpoint(family)
    expected = by_pipeline(checkpoint.pipeline, checkpoint.arguments, 2.0)
    drawn = by_us(loaded(checkpoint), 2.0)
    assert gray_levels(drawn, expected) < 0.1
    unguided = by_us(loaded(checkpoint))
    assert gray_levels(drawn, unguided) > 1


def test_the_default_sampler_clips_no_latents_unless_the_checkpoint_says_so(tiny_checkpoint):
    from diffusers import DDIMScheduler, DiffusionPipeline

    checkpoint = tiny_checkpoint("pixart")  # its solver does not know `clip_sample`
    pipeline = DiffusionPipeline.from_pretrained(checkpoint.path)
    config = {k: v for k, v in pipeline.scheduler.config.items() if v is not None}
    pipeline.scheduler = DDIMScheduler.from_config(
        config, clip_sample=False, timestep_spacing="linspace"
    )
    expected = by_pipeline(pipeline, {**checkpoint.arguments, "num_inference_steps": 4})
    drawn = by_us(loaded(checkpoint, sampler={"num_inference_steps": 4}))
    assert gray_levels(drawn, expected) < 0.1


@pytest.mark.parametrize("strength", [0.25, 0.35])
def test_variants_take_the_steps_of_the_image_to_image_pipeline(tiny_checkpoint, strength):
    from diffusers import StableDiffusion3Img2ImgPipeline

    checkpoint = tiny_checkpoint("stable_diffusion_3")
    parts = checkpoint.pipeline.components
    scheduler = type(parts["scheduler"]).from_config(parts["scheduler"].config)
    scheduler.set_timesteps(10)
    pipeline = StableDiffusion3Img2ImgPipeline(**{**parts, "scheduler": scheduler})
    theirs, steps = pipeline.get_timesteps(10, strength, "cpu")
    sampler = {"scheduler": None, "num_inference_steps": 10}
    synthesizer = loaded(checkpoint, sampler=sampler).with_sources(real_images(8))
    ours = synthesizer.model.scheduler(synthesizer.sampler)
    set_timesteps(ours, 10)
    assert torch.equal(timesteps_from(ours, 10, strength), theirs)
    plan = synthesizer.plan(per_class=1, strength=strength)
    assert synthesizer.evaluations(plan).tolist() == [steps, steps]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_falls_and_adapted_weights_alone_change(tuned, family):
    one = tuned(family)
    real = real_images(size_of(one.checkpoint))
    before, after = (
        model.restoration_losses(real.read([0, 1]), real.labels, LossGrid(levels=4, draws=2))
        for model in (one.before, one.after)
    )
    assert after.mean() < 0.99 * before.mean()
    weights = one.after.model.network.state_dict()
    for name, weight in one.before.model.network.state_dict().items():
        adapted = ".to_" in name or ("add_" in name and "proj" in name)
        assert torch.equal(weights[name], weight) or (adapted and name.endswith(".weight")), name
    for part in ("vae", "class_embeddings"):
        assert one.before.model.weights[part] == one.after.model.weights[part]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_saved_adapters_draw_the_same_images_in_our_loop_and_in_the_pipeline(tuned, family):
    one = tuned(family)
    drawn = by_us(one.after)
    assert not (one.folder / one.after.model.denoiser.part).exists()  # a pipeline has gigabytes
    again = ClassConditional.from_pretrained(
        one.folder, device="cpu", sampler={"scheduler": None, "num_inference_steps": 2}
    )
    assert torch.equal(by_us(again), drawn)
    assert again.recipe() == one.after.recipe()
    pipeline = FromPipeline.from_pretrained(
        one.checkpoint.path,
        classes=CLASSES,
        device="cpu",
        files=LoadingConfig(lora=str(one.adapters)),
    ).pipeline
    assert gray_levels(by_pipeline(pipeline, one.checkpoint.arguments), drawn) < 0.1
    assert gray_levels(by_us(one.before), drawn) > 1


@pytest.mark.parametrize("family", ["sdxl", "stable_diffusion_3", "flux", "sana"])
def test_diffusers_loads_the_adapters_by_itself(tuned, family):
    from diffusers import DiffusionPipeline

    one = tuned(family)
    pipeline = DiffusionPipeline.from_pretrained(one.checkpoint.path)
    pipeline.load_lora_weights(one.folder / "lora")
    drawn = by_pipeline(pipeline, one.checkpoint.arguments)
    assert gray_levels(drawn, by_us(one.after)) < 0.1


def test_a_row_is_drawn_alone_as_in_company(tuned):
    after = tuned("flux").after
    plan = after.plan(per_class=2, guidance_scale=[1.0, 2.0], seed=3)
    drawn = after.draw(plan)
    for row in (0, len(plan) - 1):
        torch.testing.assert_close(after.draw(plan[[row]])[0], drawn[row], atol=1e-4, rtol=0)


def test_a_run_that_was_stopped_goes_on_to_the_same_adapters(tuned, tmp_path):
    one = tuned("stable_diffusion_3")
    tune(one.checkpoint, tmp_path, steps=5)
    tune(one.checkpoint, tmp_path)
    assert (tmp_path / "lora" / one.adapters.name).read_bytes() == one.adapters.read_bytes()


@pytest.mark.parametrize("part", ["network", "vae", "scheduler"])
def test_adapters_of_a_checkpoint_that_changed_are_refused(tuned, tmp_path, part):
    one = tuned("stable_diffusion_3")
    base = shutil.copytree(one.checkpoint.path, tmp_path / "base")
    folder = shutil.copytree(one.folder, tmp_path / "moved")
    record = folder / "synthaug.json"
    own = json.loads(record.read_text())
    beside = own["adapts"]["beside"]
    assert (one.folder / beside).resolve() == one.checkpoint.path.resolve()
    record.write_text(json.dumps({**own, "adapts": {**own["adapts"], "path": "/gone"}}))
    with pytest.raises(CheckpointError, match=r"adapters of the checkpoint /gone, .* `path` in"):
        ClassConditional.from_pretrained(folder, device="cpu")
    moved = {**own["adapts"], "path": "/gone", "beside": "../base"}
    record.write_text(json.dumps({**own, "adapts": moved}))
    bfloat16: dict[str, Any] = {"device": "cpu", "dtype": torch.bfloat16}
    loaded = ClassConditional.from_pretrained(folder, **bfloat16)
    assert loaded.model.denoiser.dtype == torch.bfloat16
    if part == "scheduler":
        file = base / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "shift": 2.5}))
    else:
        file = base / {"network": "transformer"}.get(part, part) / WEIGHTS
        weights = load_file(file)
        save_file({name: weight + 0.3 for name, weight in weights.items()}, file, {"format": "pt"})
    match = rf"The {part} in .* is not the one that the adapters in .* were trained with"
    with pytest.raises(MismatchError, match=match):
        ClassConditional.from_pretrained(folder, **bfloat16)


def test_adapters_alone_are_not_fine_tuned_and_no_pipeline(tuned, tmp_path):
    folder = tuned("stable_diffusion_3").folder
    with pytest.raises(CheckpointError, match=r"holds adapters, which cannot be trained further"):
        ClassConditional.fine_tune(folder, real_images(8), tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"by `ClassConditional\.from_pre.*, with `lora` \("):
        FromPipeline.from_pretrained(folder, classes=CLASSES, device="cpu")


@pytest.mark.parametrize("adapts", ["x", {"path": [1], "network": ""}, {"path": "/gone"}])
def test_a_damaged_record_of_adapters_is_named(tuned, tmp_path, adapts):
    folder = shutil.copytree(tuned("stable_diffusion_3").folder, tmp_path / "adapters")
    own = json.loads((folder / "synthaug.json").read_text())
    (folder / "synthaug.json").write_text(json.dumps({**own, "adapts": adapts}))
    with pytest.raises(CheckpointError, match=r"In .*synthaug\.json, `adapts` is .*, expected the"):
        ClassConditional.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize(
    ("name", "part", "message"),
    [
        ("prompt.pooled", None, "lacks the tensor prompt.pooled, which a SD3Transformer"),
        ("prompt.pooled", torch.ones(2, 1), "prompt.pooled is of 2 prompts, not 3"),
        ("class_embeddings", None, "KeyError: 'class_embeddings'"),
    ],
)
def test_damaged_embeddings_of_adapters_are_named(tuned, tmp_path, name, part, message):
    folder = shutil.copytree(tuned("stable_diffusion_3").folder, tmp_path / "adapters")
    file = folder / "class_embeddings.safetensors"
    tensors = {**load_file(file), name: part}
    save_file({name: part for name, part in tensors.items() if part is not None}, file)
    with pytest.raises(CheckpointError, match=rf"class_embeddings\.safetensors cannot .*{message}"):
        ClassConditional.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_embedding_predicts_an_image_that_is_nearer_its_source_than_the_prompts(
    tiny_checkpoint, tmp_path, family
):
    """From its noised source, at the size that is asked for; at the start they are the prompt's.

    Random networks do not denoise, so a whole chain ends nowhere near an image.
    """
    checkpoint = tiny_checkpoint(family)
    size = size_of(checkpoint)
    real = real_images(size)
    generator = DiffusionInversion.from_pretrained(
        checkpoint.path, classes=CLASSES, image_size=size, device="cpu"
    )
    prompts = generator.model.conditions(torch.from_numpy(real.labels))
    config = InversionConfig(
        updates=24, snapshots=(0,), learning_rate=0.3, num_tokens=prompts.shape[1]
    )
    inverted, _ = generator.fit(real, tmp_path / "inverted", config=config, progress=False)
    assert inverted.table is not None
    model, labels = inverted.model, torch.from_numpy(real.labels)
    scheduler, x0 = model.training_scheduler(), model.encode(real.read([0, 1]))
    distances = dict.fromkeys(inverted.table.snapshots, 0.0)
    for update, tokens in inverted.table.snapshots.items():
        condition = model.attending(tokens, labels)
        for noise in torch.randn(8, *x0.shape, generator=torch.Generator().manual_seed(0)):
            t = torch.tensor(600)
            x_t = noised(scheduler, x0, noise, t.expand(2))
            with torch.no_grad():
                predicted = clean_estimate(scheduler, model.denoiser(x_t, t, condition), x_t, t)
            distances[update] += float((predicted - x0).square().mean())
    assert distances[24] < 0.995 * distances[0]
    first = model.attending(inverted.table.snapshots[0], labels)
    for name, part in prompts.tensors().items():
        assert torch.equal(first.tensors()[name], part), name
        assert torch.equal(condition.tensors()[name], part) == (name != "class_embeddings")
    plan = inverted.plan(ratio=1, interpolation=0.0, guidance_scale=2.0, seed=1)
    again = DiffusionInversion.from_pretrained(tmp_path / "inverted", device="cpu")
    assert torch.equal(again.draw(plan[[1]]), inverted.draw(plan[[1]]))


@pytest.mark.parametrize("family", ["cogview4", "latent_consistency"])
def test_a_family_that_cannot_be_fine_tuned_is_refused_with_those_that_can(
    tiny_checkpoint, tmp_path, family
):
    match = r"we cannot fine-tune\. We support .*StableDiffusionXLPipeline, .*SanaPipeline"
    with pytest.raises(CheckpointError, match=match):
        ClassConditional.fine_tune(tiny_checkpoint(family).path, object(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        ("flux", {"classes": ["abcdefghijklmnopqrst"]}, "reads 16: the end would be cut off"),
        ("sana", {"classes": ["a" * 299]}, "has 300 tokens, and the text encoder reads 299"),
        ("flux", {"prompt_template": "x"}, "of two classes are the same to the text encoders"),
        ("stable_diffusion_3", {"image_size": 18}, "`image_size` is 18, .* images up to 16 x 16"),
        ("flux", {"image_size": 6}, "a multiple of 4.*times 2, the side of the network's patches"),
    ],
)
def test_what_does_not_fit_a_family_is_refused(
    tiny_checkpoint, family, changes, message, monkeypatch
):
    if "image_size" in changes:  # before prompts are embedded
        monkeypatch.setattr("synthaug.synthesizers._model.embeddings_of", None)
    with pytest.raises(ValueError, match=message):
        loaded(tiny_checkpoint(family), **changes)


def test_the_last_letter_of_the_longest_prompt_is_read(tiny_checkpoint):
    drawing = loaded(tiny_checkpoint("sana"), classes=["a" * 298, "a" * 297 + "b"])
    assert len(drawing.classes) == 2  # else the same to the text encoder, and refused
    with pytest.raises(ValueError, match="has 11 tokens, and the text encoder reads 9"):
        FromPipeline(tiny_checkpoint("sana").pipeline, classes=["a" * 10], max_sequence_length=10)
