import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthaug import Plan, TrainingConfig, generate
from synthaug.denoisers import build_unet
from synthaug.errors import CheckpointError, DataError, MismatchError
from synthaug.synthesizers import (
    PUBLISHED,
    ClassConditional,
    SamplerConfig,
    published,
    streams,
)
from tests.checkpoints import (
    Counting,
    cosine_config,
    tiny_dit,
    tiny_unet,
    write_stable_diffusion,
)
from tests.command_line import succeed
from tests.images import to_images, to_pixels
from tests.tiny.class_conditional import NAMES, Real, tiny

pytestmark = pytest.mark.usefixtures("few_steps")


def test_saved_and_loaded_it_draws_the_same_images(tmp_path):
    before = tiny(scheduler="ddpm", log_variance_mix=0.3)
    before.save_pretrained(tmp_path / "model")
    after = ClassConditional.from_pretrained(tmp_path / "model")
    plan = before.plan(per_class=2, guidance_scale=[1.0, 3.0])
    assert after.recipe() == before.recipe()
    assert torch.equal(after.draw(plan), before.draw(plan))


def test_plain_diffusers_loads_what_we_save(tmp_path):
    from diffusers import DDPMPipeline

    synthesizer = tiny()
    synthesizer.save_pretrained(tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    for name, weight in synthesizer.model.network.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], weight)
    assert list(tmp_path.rglob("*.bin")) == list(tmp_path.rglob("*.pt")) == []


def test_an_image_does_not_depend_on_the_rows_drawn_with_it():
    synthesizer = tiny().with_sources(Real())
    plan = synthesizer.plan(per_class=4, guidance_scale=[1.0, 2.0], strength=[0.3, 0.9])
    together = to_pixels(synthesizer.draw(plan)).int()
    order = np.random.default_rng(0).permutation(len(plan))
    shuffled = to_pixels(synthesizer.draw(plan[order])).int()
    alone = torch.cat([to_pixels(synthesizer.draw(row)).int() for row in plan.batches(1)])
    assert (together - alone).abs().max() <= 1
    assert (together[torch.from_numpy(order)] - shuffled).abs().max() <= 1


def test_rows_differ_by_label_seed_and_guidance():
    synthesizer = tiny()
    plan = synthesizer.plan(per_class=2, guidance_scale=[1.0, 4.0])
    images = synthesizer.draw(plan).flatten(1)
    assert (torch.cdist(images, images) + 10 * torch.eye(len(plan))).min() > 0.1
    columns = dict(plan.columns)
    columns["seed"] = np.full(len(plan), 5, np.uint64)
    same_seed = Plan(columns=columns, classes=plan.classes, settings=plan.settings)
    images = synthesizer.draw(same_seed).flatten(1)
    assert (torch.cdist(images, images) + torch.eye(len(plan))).min() > 1e-4


def test_the_estimate_of_evaluations_is_what_the_network_sees():
    counting = Counting(tiny_unet())
    synthesizer = tiny(counting, num_inference_steps=10).with_sources(Real())
    plan = synthesizer.plan(per_class=6, guidance_scale=[1.0, 2.0, 1.0], strength=[0.2, 1.0])
    synthesizer.draw(plan)
    assert counting.images == synthesizer.evaluations(plan).sum()
    assert len(set(synthesizer.evaluations(plan).tolist())) > 2


def test_a_changed_or_missing_source_image_is_noticed():
    synthesizer = tiny().with_sources(Real())
    plan = synthesizer.plan(per_class=2, strength=0.5)
    assert set(np.unique(plan["source"])) == set(range(8))
    for label, source in zip(plan["label"], plan["source"], strict=True):
        assert Real().targets[source] == label
    with pytest.raises(
        MismatchError, match="Real image 0 is not the one that the plan was made with"
    ):
        tiny().with_sources(Real(seed=1)).draw(plan)
    with pytest.raises(ValueError, match="Call `with_sources"):
        tiny().draw(plan)


@pytest.mark.parametrize(
    "change",
    [
        {"num_inference_steps": 5},
        {"scheduler": "ddpm"},
        {"scheduler": "dpmsolver++"},
        {"eta": 0.5},
        {"scheduler": "ddpm", "log_variance_mix": 0.3},
        {"scheduler_config": cosine_config(beta_schedule="linear")},
        {"network": tiny_unet(num_classes=5)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_images_changes_the_recipe(change):
    changed = tiny(**change)
    assert changed.recipe() != tiny().recipe()
    json.dumps(changed.recipe(), allow_nan=False)
    if "network" not in change:  # settings are hashed into the seeds, weights are not
        assert (changed.plan(per_class=1)["seed"] != tiny().plan(per_class=1)["seed"]).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({}, "exactly one of `per_class`, `ratio`, `counts` and `fill_to`; got none"),
        ({"per_class": 1, "ratio": 1.0}, "got per_class and ratio"),
        ({"per_class": 0}, "`per_class` must be at least 1"),
        ({"ratio": 1.0}, "`ratio` needs `labels`"),
        ({"fill_to": "largest"}, "`fill_to` needs `labels`"),
        ({"counts": {"cow": 1}}, "`counts` names 'cow', which is not a class"),
        ({"per_class": 1, "strength": 0.5}, "`strength` needs `with_sources`"),
        ({"per_class": 1, "guidance": 2.0}, "Unknown row parameter 'guidance'"),
        ({"per_class": 1, "guidance_scale": -1.0}, "must not be negative"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny().plan(**parameters)


def test_published_recipes_are_plans_with_the_numbers_of_the_papers():
    recipe = published("da-fusion")
    with pytest.raises(ValueError, match=r"'da-fusion' starts from real images. .*with_sources"):
        recipe.plan(tiny())
    plan = recipe.plan(tiny().with_sources(Real()), seed=3, guidance_scale=1.5)
    assert len(plan) == 10 * len(Real())
    assert set(plan["strength"]) == {0.5}
    assert set(plan["guidance_scale"]) == {1.5}  # what is stated counts more
    azizi = published("azizi")
    with pytest.raises(ValueError, match="exactly one of `per_class`"):
        azizi.plan(tiny())
    slow = azizi.prepared(tiny())
    assert azizi.plan(slow, per_class=2, seed=0)["guidance_scale"].tolist() == [1.25] * 8
    assert slow.sampler == SamplerConfig(
        scheduler="ddpm", num_inference_steps=1000, log_variance_mix=0.0
    )
    for one in PUBLISHED.values():
        assert f"https://arxiv.org/abs/{one.paper.arxiv}" in str(one)
        assert "Differs: " in str(one)
    with pytest.raises(ValueError, match="must be one of 'real-guidance', 'da-fusion', 'azizi', "):
        published("diff-mix")


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="`num_inference_steps` must be at least 1, got 0"):
        tiny(num_inference_steps=0)
    with pytest.raises(ValueError, match="only 1000 timesteps"):
        tiny(num_inference_steps=1001)
    with pytest.raises(ValueError, match=r"`eta` = 1\.0 has no effect"):
        tiny(scheduler="dpmsolver++", eta=1.0)
    with pytest.raises(CheckpointError, match="knows 2 classes, but 4 are named"):
        tiny(tiny_unet(num_classes=2))
    unconditional = tiny(tiny_unet(num_classes=None))
    with pytest.raises(ValueError, match=r"`guidance_scale` must be 1, got 2: .* knows no classes"):
        unconditional.plan(per_class=1, guidance_scale=2.0)
    with pytest.raises(ValueError, match="its images would bear random labels"):
        unconditional.plan(per_class=1)
    assert len(unconditional.with_sources(Real()).plan(per_class=1)) == 4
    plan = Plan.build([1], classes=["cow"], settings={}, seed=0)
    with pytest.raises(ValueError, match="about the classes cow"):
        tiny().draw(plan)


def test_real_images_that_do_not_fit_the_model_are_refused():
    real = Real()
    real.image_shape = (3, 8, 8)
    with pytest.raises(MismatchError, match=r"Load them with `image_size=8` and `channels=1`"):
        tiny().with_sources(real)
    real = Real()
    real.classes = ("bee", "ant", "cat", "dog")
    with pytest.raises(
        MismatchError, match="the classes bee, ant, cat, dog, the model ant, bee, cat"
    ):
        tiny().with_sources(real)
    with pytest.raises(ValueError, match=r"must be in \[0, 3\], .* got 0 to 4"):
        tiny().with_sources(Real(), [0, 1, 2, 3, 0, 1, 2, 4])
    with pytest.raises(ValueError, match="Got 3 `labels` for 8 real images"):
        tiny().with_sources(Real(), [0, 1, 2])


# -- checkpoints ---------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load_error(path: Any, **arguments: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        ClassConditional.from_pretrained(path, **arguments)
    return str(caught.value)


def test_a_checkpoint_that_cannot_be_used_is_named(saved, tmp_path):
    assert "There is no directory" in load_error(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "is not a diffusers checkpoint: it has no model_index.json" in load_error(
        tmp_path / "empty"
    )
    assert "is a file" in load_error(saved / "synthaug.json")
    (saved / "scheduler" / "scheduler_config.json").write_text("{")
    assert "scheduler_config.json cannot be read" in load_error(saved)


def test_missing_or_broken_weights_are_named(saved):
    weights = saved / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert "unet cannot be read" in load_error(saved)
    weights.unlink()
    assert "unet cannot be read" in load_error(saved)


def test_pickled_weights_are_not_loaded(saved):
    unet = tiny_unet()
    shutil.rmtree(saved / "unet")
    unet.save_pretrained(saved / "unet", safe_serialization=False)
    assert "unet cannot be read" in load_error(saved)


def test_weights_that_are_not_finite_are_named(tmp_path):
    unet = tiny_unet()
    torch.nn.init.constant_(unet.conv_in.weight, float("nan"))
    tiny(unet).save_pretrained(tmp_path)
    assert "the weight conv_in.weight is not finite" in load_error(tmp_path)


def test_only_known_parts_are_loaded(saved):
    index = json.loads((saved / "model_index.json").read_text())
    index["unet"] = ["os", "system"]
    (saved / "model_index.json").write_text(json.dumps(index))
    assert "the unet is ['os', 'system']; we load UNet2DModel or UNet2DCond" in load_error(saved)


def test_class_names_are_asked_for_and_must_differ(saved):
    (saved / "synthaug.json").unlink()
    with pytest.raises(ValueError, match=r"does not name its classes\. Pass `classes`"):
        ClassConditional.from_pretrained(saved)
    with pytest.raises(ValueError, match="holds a name twice"):
        ClassConditional.from_pretrained(saved, classes=["a", "a"])
    with pytest.raises(ValueError, match="must be a list of names, got the string 'ant'"):
        ClassConditional.from_pretrained(saved, classes="ant")
    with pytest.raises(ValueError, match="`classes` is empty"):
        ClassConditional.from_pretrained(saved, classes=[])
    loaded = ClassConditional.from_pretrained(saved, classes=list("abcde"))
    assert loaded.classes == tuple("abcde")


def test_the_classes_of_a_model_of_ours_have_the_names_that_it_was_trained_with(saved):
    assert ClassConditional.from_pretrained(saved, classes=NAMES).classes == NAMES
    with pytest.raises(ValueError, match="trained on the classes ant, bee, cat, dog, in this ord"):
        ClassConditional.from_pretrained(saved, classes=["cat", "dog"])
    with pytest.raises(ValueError, match="`null_class` has no effect"):
        ClassConditional.from_pretrained(saved, null_class=True)


def test_a_foreign_network_has_a_null_class_only_if_one_is_declared(saved):
    (saved / "synthaug.json").unlink()
    for names in (NAMES, NAMES[:2]):
        with pytest.raises(ValueError, match=r"knows 5 classes, but `classes` has \d names"):
            ClassConditional.from_pretrained(saved, classes=names)
    with pytest.raises(ValueError, match="knows 4 classes, but `classes` has 5 names"):
        ClassConditional.from_pretrained(saved, classes=list("abcde"), null_class=True)


@pytest.mark.parametrize(("names", "guided"), [(NAMES, True), ((*NAMES, "eel"), False)])
def test_a_foreign_network_with_a_null_class_can_be_guided(saved, names, guided):
    (saved / "synthaug.json").unlink()
    loaded = ClassConditional.from_pretrained(saved, classes=names, null_class=guided)
    assert loaded.can_be_guided == guided
    assert len(loaded.plan(per_class=1)) == len(names)
    line = ["plan", saved, "--classes", ",".join(names), "--per-class", 1, "--guidance-scale", 2]
    if guided:
        assert "guidance_scale" in succeed(*line, "--null-class", "--device", "cpu")
    else:
        with pytest.raises(ValueError, match="was not trained without labels"):
            loaded.plan(per_class=1, guidance_scale=2.0)


def test_settings_are_saved_and_unknown_ones_are_refused(tmp_path):
    tiny(eta=0.5, num_inference_steps=7).save_pretrained(tmp_path)
    loaded = ClassConditional.from_pretrained(tmp_path)
    assert (loaded.sampler.eta, loaded.sampler.num_inference_steps) == (0.5, 7)
    with pytest.raises(ValueError, match="Unknown setting 'guidance_scale'"):
        ClassConditional.from_pretrained(tmp_path, sampler={"guidance_scale": 2.0})
    with pytest.raises(ValueError, match="`device` is 'abacus'"):
        ClassConditional.from_pretrained(tmp_path, device="abacus")
    for dtype in ("half", torch.int8):
        with pytest.raises(ValueError, match=r"`dtype` must be .*such as torch.bfloat16, got"):
            ClassConditional.from_pretrained(tmp_path, dtype=dtype)  # type: ignore[arg-type]


def test_a_disk_that_is_full_is_named_and_the_checkpoint_before_stays(saved, monkeypatch):
    whole = ClassConditional.from_pretrained(saved).recipe()

    def full(*arguments: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tiny_unet()), "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.* MiB are free"):
        tiny(tiny_unet(num_classes=5)).save_pretrained(saved)
    assert ClassConditional.from_pretrained(saved).recipe() == whole


def test_what_a_kill_left_between_two_renames_is_put_back(saved):
    (saved / "unet").rename(saved / ".unet-old")
    assert ClassConditional.from_pretrained(saved).recipe() == tiny().recipe()


def test_a_model_that_the_hub_does_not_give_is_named(monkeypatch):
    import huggingface_hub

    def offline(*arguments: Any, **settings: Any) -> str:
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    assert "could not be loaded from the hub (OSError" in load_error("hub:someone/something")
    monkeypatch.undo()  # without the prefix nobody is asked
    assert "There is no directory someone/something" in load_error("someone/something")


# -- Stable Diffusion and DiT --------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_stable_diffusion_checkpoint_draws_what_its_own_pipeline_draws(tmp_path, prediction_type):
    pipeline = write_stable_diffusion(tmp_path, prediction_type, scaling_factor=0.5)
    synthesizer = ClassConditional.from_pretrained(
        tmp_path,
        classes=["r_fox", "owl"],
        prompt_template="a {}",
        sampler={"num_inference_steps": 5},
    )
    plan = synthesizer.plan(per_class=2, guidance_scale=3.0)
    ours = (synthesizer.draw(plan) / 2 + 0.5).permute(0, 2, 3, 1).numpy()
    theirs = pipeline(
        ["a r fox", "a r fox", "a owl", "a owl"],
        height=8,
        width=8,
        guidance_scale=3.0,
        num_inference_steps=5,
        generator=streams(plan["seed"]),
        output_type="np",
    ).images
    assert synthesizer.image_shape == (3, 8, 8)
    assert np.abs(ours - theirs).max() < 1 / 255
    assert np.abs(theirs[0] - theirs[2]).max() > 1 / 255
    assert synthesizer.recipe()["settings"]["prompts"] == ["a r fox", "a owl", ""]  # type: ignore[index,call-overload]


def test_a_text_checkpoint_is_saved_with_its_embeddings_and_without_its_text_encoder(tmp_path):
    write_stable_diffusion(tmp_path / "sd")
    before = ClassConditional.from_pretrained(
        tmp_path / "sd", classes=["fox", "owl"], sampler={"num_inference_steps": 3}
    )
    before.save_pretrained(tmp_path / "ours")
    after = ClassConditional.from_pretrained(tmp_path / "ours")
    plan = before.plan(per_class=1, guidance_scale=2.0)
    assert torch.equal(after.draw(plan), before.draw(plan))
    assert not (tmp_path / "ours" / "text_encoder").exists()


def test_the_checkpoints_own_scheduler_may_repeat_a_step_and_that_is_counted(tmp_path):
    from diffusers import PNDMScheduler

    write_stable_diffusion(tmp_path)
    PNDMScheduler(skip_prk_steps=True, steps_offset=1).save_pretrained(tmp_path / "scheduler")
    synthesizer = ClassConditional.from_pretrained(
        tmp_path, classes=["fox"], sampler={"num_inference_steps": 6, "scheduler": None}
    )
    counting = Counting(synthesizer.model.network)
    synthesizer = replace(synthesizer, model=replace(synthesizer.model, network=counting))
    plan = synthesizer.plan(per_class=1)
    synthesizer.draw(plan)
    assert counting.images == synthesizer.evaluations(plan).sum() == 7


def test_latents_are_scaled_by_the_autoencoders_own_factor(tmp_path):
    write_stable_diffusion(tmp_path, scaling_factor=0.5)
    synthesizer = ClassConditional.from_pretrained(tmp_path, classes=["fox"])
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        vae: Any = synthesizer.model.vae
        mean = vae.encode(to_images(pixels)).latent_dist.mode()
        torch.testing.assert_close(synthesizer.model.encode(pixels), 0.5 * mean)
        torch.testing.assert_close(
            synthesizer.model.decode(0.5 * mean), vae.decode(mean).sample.clamp(-1, 1)
        )


def test_a_size_that_the_autoencoder_cannot_halve_is_refused(tmp_path):
    write_stable_diffusion(tmp_path)
    with pytest.raises(ValueError, match="11 x 11 must be a multiple of 2"):
        ClassConditional.from_pretrained(tmp_path, classes=["fox"], image_size=11)


def test_a_transformer_that_also_predicts_its_variance_is_sampled(tmp_path):
    synthesizer = tiny(tiny_dit(out_channels=2, patch_size=2, norm_num_groups=1))
    synthesizer.save_pretrained(tmp_path)
    loaded = ClassConditional.from_pretrained(tmp_path)
    plan = loaded.plan(per_class=1, guidance_scale=2.0)
    images = loaded.draw(plan)
    assert images.shape == (4, 1, 8, 8)
    assert torch.equal(images, synthesizer.draw(plan))


# -- training ------------------------------------------------------------------------------------


def fit(path: Path, real: Any = None, steps: int = 4, **arguments: Any) -> ClassConditional:
    config = TrainingConfig(
        steps=steps, batch_size=4, warmup_steps=1, ema_decay=0.5, device="cpu", seed=3
    )
    return ClassConditional.fit(
        real or Real(), path, config=config, channels=8, progress=False, **arguments
    )[0]


def test_training_resumed_equals_training_in_one_go(tmp_path):
    whole = fit(tmp_path / "whole", steps=4)
    fit(tmp_path / "parts", steps=2)
    parts = fit(tmp_path / "parts", steps=4)
    for name, weight in whole.model.network.state_dict().items():
        assert torch.equal(parts.model.network.state_dict()[name], weight), name
    loaded = ClassConditional.from_pretrained(tmp_path / "parts")
    plan = whole.plan(per_class=1)
    assert torch.equal(loaded.draw(plan), whole.draw(plan))


def test_training_lowers_the_loss_and_learns_the_classes(tmp_path):
    """Four classes of constant gray: after training, each class is drawn in its own gray."""
    real = Real(labels=(0, 1, 2, 3) * 4)
    grays = torch.tensor([32, 96, 160, 224], dtype=torch.uint8)
    real.pixels = grays[torch.tensor(real.targets)].view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    config = TrainingConfig(
        steps=120, batch_size=16, warmup_steps=10, learning_rate=1e-2, ema_decay=0.9, device="cpu"
    )
    synthesizer, result = ClassConditional.fit(
        real, tmp_path, config=config, channels=8, progress=False
    )
    assert result.loss_curve[-1][1] < 0.25 * result.loss_curve[0][1]
    synthesizer = replace(synthesizer, sampler=SamplerConfig(num_inference_steps=20))
    plan = synthesizer.plan(per_class=4, guidance_scale=1.0)
    drawn = to_pixels(synthesizer.draw(plan)).float().mean((1, 2, 3)).view(4, 4).mean(1)
    assert (drawn - grays.float()).abs().max() < 20


def test_unlabeled_images_only_train_the_unconditional_branch(tmp_path):
    synthesizer = fit(tmp_path, unlabeled=Real(seed=1), label_dropout=0.0, steps=2)
    assert synthesizer.classes == NAMES
    embedding: Any = synthesizer.model.network.class_embedding
    assert embedding.weight.shape[0] == len(NAMES) + 1


def test_a_model_that_never_saw_a_hidden_label_cannot_be_guided(tmp_path):
    fit(tmp_path, label_dropout=0.0, steps=1)
    synthesizer = ClassConditional.from_pretrained(tmp_path)
    assert len(synthesizer.plan(per_class=1)) == 4
    with pytest.raises(ValueError, match="was not trained without labels"):
        synthesizer.plan(per_class=1, guidance_scale=1.5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_every_prediction_type_trains_and_draws(tmp_path, prediction_type):
    synthesizer = fit(tmp_path, prediction_type=prediction_type, steps=2)
    assert synthesizer.model.scheduler_config["prediction_type"] == prediction_type
    assert torch.isfinite(synthesizer.draw(synthesizer.plan(per_class=1))).all()


def test_a_cache_says_what_its_generator_was_trained_on(tmp_path):
    fit(tmp_path / "model", unlabeled=Real(seed=1), steps=1)
    synthesizer = ClassConditional.from_pretrained(
        tmp_path / "model", sampler=SamplerConfig(num_inference_steps=1)
    )
    plan = synthesizer.plan(per_class=1)
    cache = generate(synthesizer, plan, tmp_path / "cache.h5", progress=False)
    known = {"fingerprint": "real", "images": 8}
    assert cache.manifest["trained_on"] == {"labeled": known, "unlabeled": known}


def test_training_leaves_the_global_generator_alone(tmp_path):
    state = torch.random.get_rng_state()
    fit(tmp_path, steps=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_data_that_cannot_be_trained_on_are_refused_before_any_work(tmp_path):
    with pytest.raises(DataError, match="Class 'dog' has no images"):
        fit(tmp_path / "run", Real(labels=(0, 1, 2)))
    odd = Real()
    odd.image_shape = (1, 8, 16)
    with pytest.raises(MismatchError, match=r"shape \(1, 8, 16\), `real` of \(1, 8, 8\)"):
        fit(tmp_path / "run", unlabeled=odd)
    with pytest.raises(DataError, match=r"Labels must be in \[0, 3\].* found 0 to 4"):
        fit(tmp_path / "run", Real(labels=(0, 1, 2, 3, 4)))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"label_dropout": 1.0}, r"`label_dropout` must be in \[0, 1\), got 1"),
        (
            {"prediction_type": "score"},
            "`prediction_type` must be one of 'v_prediction', 'epsilon'",
        ),
        ({"num_layers": 0}, "`num_layers` must be at least 1, got 0"),
    ]
    for settings, message in wrong:
        with pytest.raises(ValueError, match=message):
            fit(tmp_path / "run", **settings)
    big = Real()
    big.image_shape = (1, 38, 38)
    said = "38 x 38 pixels cannot be halved 2 times.* `image_size=36` or `image_size=40`"
    with pytest.raises(MismatchError, match=said):
        fit(tmp_path / "run", big)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [8, 12, 16, 28, 32, 64])
def test_the_network_fits_the_image_size(size):
    network = build_unet((1, size, size), num_classes=2, channels=8)
    with torch.inference_mode():
        out = network(torch.zeros(1, 1, size, size), 5, class_labels=torch.tensor([2])).sample
    assert out.shape == (1, 1, size, size)


def test_saving_over_a_checkpoint_replaces_it_whole_or_not_at_all(tmp_path, monkeypatch):
    tiny().save_pretrained(tmp_path)
    whole = ClassConditional.from_pretrained(tmp_path).recipe()
    changed = tiny(tiny_unet(num_classes=5))

    def killed(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(changed.model.network), "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        changed.save_pretrained(tmp_path)
    assert ClassConditional.from_pretrained(tmp_path).recipe() == whole
    monkeypatch.undo()
    changed.save_pretrained(tmp_path)
    assert ClassConditional.from_pretrained(tmp_path).recipe() == changed.recipe()
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
