"""`FromPipeline`: tiny pipelines with random weights, made here."""

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import SynthCache, generate
from synthaug._support.digests import tensor_digest
from synthaug._training import checkpoints
from synthaug.errors import DataError, MismatchError
from synthaug.synthesizers import FromPipeline, streams
from tests.checkpoints import tiny_unet, write_stable_diffusion

CLASSES = ("a_b", "c")


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    pytest.importorskip("transformers")
    return write_stable_diffusion(tmp_path_factory.mktemp("stable"))


@pytest.fixture(scope="module")
def unconditional():
    from diffusers import DDPMPipeline, DDPMScheduler

    pipeline = DDPMPipeline(tiny_unet(num_classes=None), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_stable(pipeline: Any, **changes: Any) -> FromPipeline:
    settings = {"prompts": "see {}", "num_inference_steps": 2, "height": 8, "width": 8}
    return FromPipeline(pipeline, CLASSES, **{**settings, **changes})


def test_an_image_is_what_the_pipeline_draws_for_its_prompt_arguments_and_stream(stable):
    synthesizer = make_stable(stable, negative_prompt="z")
    rows = synthesizer.plan(per_class=2, seed=3, guidance_scale=[3.0, 1.0])
    images = synthesizer.draw(rows)
    assert images.shape == (4, 3, 8, 8)
    for i, (prompt, scale) in enumerate([("see a b", 3.0), ("see a b", 1.0), ("see c", 3.0)]):
        (expected,) = stable(
            prompt,
            num_inference_steps=2,
            height=8,
            width=8,
            negative_prompt="z",
            guidance_scale=scale,
            generator=streams(rows["seed"])[i],
            output_type="pt",
        ).images
        torch.testing.assert_close(images[i], expected * 2 - 1, atol=1e-5, rtol=0)


def test_an_image_depends_on_its_row_alone_also_with_ancestral_noise(unconditional):
    synthesizer = FromPipeline(unconditional, ["dot"], num_inference_steps=3)
    rows = synthesizer.plan(per_class=5, seed=0)
    images = synthesizer.draw(rows)
    assert images.shape == (5, 1, 8, 8)
    assert len(images.unique(dim=0)) == 5
    order = np.array([4, 1, 0])
    torch.testing.assert_close(synthesizer.draw(rows[order]), images[order], atol=1e-5, rtol=0)


def test_whole_numbers_of_a_plan_reach_the_call_as_integers(unconditional):
    synthesizer = FromPipeline(unconditional, ["dot"])
    rows = synthesizer.plan(per_class=2, num_inference_steps=[1, 2])
    for i, steps in enumerate((1, 2)):
        alone = FromPipeline(unconditional, ["dot"], num_inference_steps=steps)
        plain = replace(rows, columns={k: v for k, v in rows.columns.items() if k[0] != "n"})
        torch.testing.assert_close(alone.draw(plain)[i], synthesizer.draw(rows)[i])


def test_it_fills_a_cache_which_says_how_and_refuses_another_pipeline(stable, tmp_path):
    synthesizer = make_stable(stable)
    plan = synthesizer.plan(per_class=1, seed=0)
    path = tmp_path / "cache.h5"
    cache = generate(synthesizer, plan, path, progress=False)
    assert cache.done.all()
    recipe = SynthCache(path).manifest["recipe"]
    assert recipe["settings"]["pipeline"] == "StableDiffusionPipeline"
    assert recipe["settings"]["prompts"] == ["see a b", "see c"]
    assert recipe["settings"]["schedulers"]["scheduler"]["scheduler"] == "DDIMScheduler"
    assert set(recipe["weights"]) == {"unet", "vae", "text_encoder"}
    weight = next(stable.unet.parameters())
    with torch.no_grad():
        weight.add_(1)
        try:
            with pytest.raises(MismatchError, match="unet"):
                generate(make_stable(stable), plan, path, progress=False)
        finally:
            weight.sub_(1)


def test_weights_are_hashed_once_and_again_if_they_change(stable, tmp_path, monkeypatch):
    hashed = []

    def digest(tensors):
        hashed.append(len(tensors))
        return tensor_digest(tensors)

    monkeypatch.setattr(checkpoints, "tensor_digest", digest)
    stable = copy.deepcopy(stable)
    synthesizer = make_stable(stable)
    generate(synthesizer, synthesizer.plan(per_class=1), tmp_path / "c.h5", progress=False)
    assert len(hashed) == 3  # unet, vae and text encoder
    before: Any = synthesizer.recipe()["weights"]
    for change in (
        lambda: stable.unet.conv_in.weight.data.add_(1),  # as adapters are merged
        lambda: stable.vae.load_state_dict(stable.vae.state_dict()),
        lambda: stable.text_encoder.half(),
    ):
        with torch.no_grad():
            change()
    after: Any = make_stable(stable).recipe()["weights"]
    assert len(hashed) == 6
    assert before["vae"] == after["vae"]
    assert before["unet"] != after["unet"]
    assert before["text_encoder"] != after["text_encoder"]


@pytest.mark.parametrize(
    ("classes", "changes", "error", "message"),
    [
        (CLASSES, {"guidance": 2}, TypeError, "takes no `guidance`. It takes: .*guidance_scale"),
        (CLASSES, {"generator": 2}, TypeError, "follows from the rows"),
        (CLASSES, {"latents": torch.zeros(1)}, TypeError, "`latents` is Tensor"),
        (CLASSES, {"prompts": ["one"]}, ValueError, "1 `prompts` for 2 classes"),
        (CLASSES, {"prompts": "a photo"}, ValueError, r"same prompt: .* Put \{\} where"),
        ("cat", {}, ValueError, "list of different names"),
    ],
    ids=["unknown", "ours", "tensor", "prompts", "no place", "classes"],
)
def test_wrong_arguments_are_refused_before_any_work(stable, classes, changes, error, message):
    with pytest.raises(error, match=message):
        FromPipeline(stable, classes, **changes)


def test_a_parameter_of_the_plan_that_the_pipeline_does_not_take_is_refused(unconditional):
    synthesizer = FromPipeline(unconditional, ["dot"], num_inference_steps=1)
    with pytest.raises(TypeError, match="takes no `guidance_scale`"):
        synthesizer.draw(synthesizer.plan(per_class=1, guidance_scale=2.0))


def test_pipelines_that_rows_cannot_be_given_to_are_refused(unconditional):
    class NeedsImage:
        def __call__(self, prompt, image, generator=None, output_type=None): ...

    class NeedsMask:
        def __call__(self, prompt, mask_image, generator=None, output_type=None): ...

    with pytest.raises(ValueError, match=r"NeedsImage needs `image` .* `with_sources`"):
        FromPipeline(NeedsImage(), ["dot"]).plan(per_class=1)
    with pytest.raises(ValueError, match=r"NeedsMask needs `mask_image` .* source, edges, box"):
        FromPipeline(NeedsMask(), ["dot"])
    with pytest.raises(ValueError, match="one generator per image"):
        FromPipeline(lambda prompt: None, ["dot"])
    with pytest.raises(ValueError, match="takes no prompt, so it knows one class"):
        FromPipeline(unconditional, CLASSES)


def test_an_image_that_a_safety_checker_blackened_is_never_stored():
    class Checked:
        def __call__(self, prompt, generator=None, output_type=None):
            images = np.zeros((len(prompt), 4, 4, 3))
            return SimpleNamespace(images=images, nsfw_content_detected=[False, True])

    synthesizer = FromPipeline(Checked(), ["dot"])
    rows = synthesizer.plan(per_class=2)
    with pytest.raises(DataError, match=f"blackened 1 of 2 .*{rows.row(1)['seed']}"):
        synthesizer.draw(rows)
