"""Fine-tuning: only what is to be trained moves, and what comes out loads like any checkpoint."""

import json
import shutil
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from synthaug import TrainingConfig
from synthaug._training.checkpoints import write_json
from synthaug.errors import CheckpointError, MismatchError
from synthaug.features import Pixel
from synthaug.synthesizers import ClassConditional, DiffusionModel, frechet_score, select_snapshot
from synthaug.synthesizers.class_conditional._config import FineTuningConfig
from synthaug.synthesizers.class_conditional._fine_tuning import (
    class_tables,
    learn_classes,
    merged,
)
from tests.checkpoints import (
    cosine_config,
    sampled,
    tiny_dit,
    tiny_unet,
    write_stable_diffusion,
)
from tests.command_line import fail, succeed
from tests.images import to_images
from tests.tiny.fine_tuning import Real, job_of

pytestmark = pytest.mark.usefixtures("few_steps")


def config(**changes: Any) -> TrainingConfig:
    defaults = {"steps": 4, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0}
    return TrainingConfig(**{**defaults, "ema_decay": 0.0, "device": "cpu", **changes})


def tune(
    base: Path, out: Path, real: Real | None = None, **options: Any
) -> tuple[ClassConditional, Any]:
    names = {field.name for field in fields(FineTuningConfig)}
    adaptation = FineTuningConfig(**{name: options.pop(name) for name in names & options.keys()})
    arguments = {"config": config(), "progress": False, "adaptation": adaptation, **options}
    return ClassConditional.fine_tune(base, real or Real(), out, **arguments)


@pytest.fixture(scope="module")
def prompted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prompted")
    write_stable_diffusion(path)
    return path


@pytest.fixture(scope="module")
def labeled(tmp_path_factory) -> Path:
    """Knows the classes ant, bee, cat and dog, and the null class."""
    path = tmp_path_factory.mktemp("labeled")
    write_labeled(path)
    return path


def write_labeled(path: Path, num_classes: int | None = 4, **scheduler: Any) -> nn.Module:
    kind = scheduler.pop("_class_name", None)
    network = tiny_unet(num_classes)
    names = ("ant", "bee", "cat", "dog")[: num_classes or 1]
    model = DiffusionModel(
        network=network,
        scheduler_config=cosine_config(**scheduler),
        classes=names,
        image_shape=(1, 8, 8),
    )
    ClassConditional(model=model, **sampled(num_inference_steps=4)).save_pretrained(path)
    if kind is not None:
        write_json(path / "scheduler" / "scheduler_config.json", {"_class_name": kind})
    return network


# What moves, and what does not


@pytest.mark.parametrize("rank", [None, 2])
def test_the_network_is_trained_and_the_autoencoder_and_the_prompts_are_not(
    prompted, tmp_path, rank
):
    before = ClassConditional.from_pretrained(prompted, classes=Real().classes, device="cpu")
    after, _ = tune(prompted, tmp_path, Real(3), lora_rank=rank)
    old, new = before.model.weights, after.model.weights
    assert (old["vae"], old["class_embeddings"]) == (new["vae"], new["class_embeddings"])
    assert old["network"] != new["network"]
    adapted = ("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight")
    weights = after.model.network.state_dict()
    for name, weight in before.model.network.state_dict().items():
        moved = not torch.equal(weights[name], weight)
        assert moved == (rank is None or name.endswith(adapted)), name


def test_adapters_leave_the_labels_network_alone_but_for_its_attention_and_its_table(
    labeled, tmp_path
):
    before = job_of(labeled).base.network.state_dict()
    after = tune(labeled, tmp_path, lora_rank=2)[0].model.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name.rpartition(".")[0].rpartition("to_")[2] for name in moved} == {
        "q",
        "k",
        "v",
        "out.0",
        "class_embedding",
    }


def test_merged_weights_predict_what_the_adapters_do_and_the_adapters_stay(prompted):
    job = job_of(prompted, Real(3), lora_rank=2)
    x, t, tokens = torch.randn(2, 4, 4, 4), torch.tensor([3, 700]), torch.randn(2, 8, 16)
    base = job.base.denoiser(x, t, tokens)
    torch.manual_seed(0)
    network: Any = job._build()
    for name, weight in network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    kept = {name: weight.clone() for name, weight in network.state_dict().items()}
    plain: Any = merged(network)
    with torch.no_grad():
        expected = network(x, t, tokens).sample
        found = plain(x, t, tokens).sample
    assert (found - expected).abs().max() < 1e-5 < 1e-2 < (found - base).abs().max()
    assert all(torch.equal(weight, kept[name]) for name, weight in network.state_dict().items())


def test_a_diffusers_pipeline_with_the_saved_adapters_predicts_what_our_model_does(
    prompted, tmp_path
):
    from diffusers import StableDiffusionPipeline

    ours, _ = tune(prompted, tmp_path, Real(3), lora_rank=2)
    pipeline = StableDiffusionPipeline.from_pretrained(prompted, local_files_only=True)
    x, t, tokens = torch.randn(2, 4, 4, 4), torch.tensor([3, 700]), torch.randn(2, 8, 16)
    with torch.no_grad():
        base = pipeline.unet(x, t, tokens).sample
        pipeline.load_lora_weights(tmp_path / "lora")
        theirs = pipeline.unet(x, t, tokens).sample
    difference = (ours.model.network(x, t, tokens).sample - theirs).abs().max()
    assert difference < 1e-5 < 1e-3 < (base - theirs).abs().max()


# Classes


def test_a_class_known_by_name_keeps_its_row_and_so_does_the_null_class(labeled):
    old = tiny_unet().class_embedding.weight
    (table,) = class_tables(job_of(labeled).base.network)
    assert torch.equal(table.weight[[0, 2]], old[[1, 4]])


def test_new_classes_start_with_the_mean_and_the_covariance_of_those_that_are_known(labeled):
    network = ClassConditional.from_pretrained(labeled, device="cpu").model.network
    rows = class_tables(network)[0].weight[:4].clone()
    names = [f"new {i}" for i in range(4000)]
    learn_classes(network, ("ant", "bee", "cat", "dog"), names, {})
    new = class_tables(network)[0].weight[:4000]
    scale = rows.std(0).mean()
    assert (new.mean(0) - rows.mean(0)).abs().max() < 5 * scale / 4000**0.5 * 1.5
    assert (new.T.cov() - rows.T.cov()).abs().max() < 0.2 * rows.T.cov().abs().max()
    assert len(new.unique(dim=0)) == 4000


@pytest.mark.parametrize(
    ("classes", "factor"),
    [(["bee", "emu"], 7), (["cat", "ant"], 1)],
    ids=["one is new", "all known"],
)
def test_a_table_with_new_classes_learns_at_a_rate_of_its_own(labeled, classes, factor):
    job = job_of(labeled, Real(classes=tuple(classes)))
    rates = {name: job._rate_factor(name) for name, _ in job.base.network.named_parameters()}
    assert {name for name, rate in rates.items() if rate != 1} == (
        {"class_embedding.weight"} if factor != 1 else set()
    )
    assert rates["class_embedding.weight"] == factor


def test_every_block_of_a_dit_learns_the_classes(tmp_path):
    network = tiny_dit(num_layers=2)
    old = [table.weight.clone() for table in class_tables(network)]
    model = DiffusionModel(
        network=network,
        scheduler_config=cosine_config(),
        classes=("ant", "bee", "cat", "dog"),
        image_shape=(1, 8, 8),
    )
    ClassConditional(model=model).save_pretrained(tmp_path / "base")
    job = job_of(tmp_path / "base")
    new = class_tables(job.base.network)
    assert len(old) == len(new) == 2
    for table, rows in zip(new, old, strict=True):
        assert torch.equal(table.weight[[0, 2]], rows[[1, 4]])
    mixing = [
        torch.linalg.lstsq(rows[:4].T - rows[:4].mean(0)[:, None], row - rows[:4].mean(0)).solution
        for row, rows in zip((table.weight[1] for table in new), old, strict=True)
    ]
    torch.testing.assert_close(*mixing, rtol=1e-3, atol=1e-4)  # one class, in every block
    tuned, _ = tune(tmp_path / "base", tmp_path / "out", lora_rank=2)
    loaded = ClassConditional.from_pretrained(tmp_path / "out", device="cpu")
    plan = tuned.plan(per_class=1, guidance_scale=2.0)
    assert torch.equal(loaded.draw(plan), tuned.draw(plan))


def test_a_network_that_took_no_labels_starts_as_what_it_was_whatever_the_label(tmp_path):
    network = write_labeled(tmp_path, None)
    base = job_of(tmp_path).base
    x, t = torch.randn(3, 1, 8, 8), torch.tensor(500)
    with torch.no_grad():
        expected = network(x, t).sample
        found = base.denoiser(x, t, torch.tensor([0, 1, 2]))
    assert torch.allclose(found, expected, atol=1e-6)
    assert base.can_be_guided


def test_adapters_and_a_table_that_an_old_config_does_not_know_of_are_saved(tmp_path):
    write_labeled(tmp_path / "base", None)
    file = tmp_path / "base" / "unet" / "config.json"
    old = json.loads(file.read_text())
    del old["num_class_embeds"]
    file.write_text(json.dumps(old))
    tuned, _ = tune(tmp_path / "base", tmp_path / "out", lora_rank=2)
    loaded = ClassConditional.from_pretrained(tmp_path / "out", device="cpu")
    assert loaded.recipe() == tuned.recipe()
    assert loaded.model.num_conditions == 3


def test_labels_are_hidden_as_often_as_asked(labeled):
    job = job_of(labeled, label_dropout=0.25)
    seen: list[Tensor] = []

    class Listening(nn.Linear):
        def forward(self, x: Tensor, t: Any = None, class_labels: Any = None) -> Any:
            seen.append(class_labels)
            return type("Output", (), {"sample": x})

    torch.manual_seed(0)
    job._loss(Listening(1, 1), np.zeros(4000, np.int64))
    hidden = (seen[0] == 2).float().mean()
    assert set(seen[0].tolist()) == {0, 2}
    assert abs(hidden - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


# The run


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_loss_falls_whatever_the_network_predicts(tmp_path, prediction_type):
    write_labeled(tmp_path / "base", prediction_type=prediction_type)
    options: dict[str, Any] = {"config": config(steps=30, learning_rate=3e-3), "label_dropout": 0.0}
    _, result = tune(tmp_path / "base", tmp_path / "out", **options)
    losses = [loss for _, loss in result.loss_curve]
    assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


def test_latents_are_drawn_from_the_posterior_of_each_image_or_of_its_mirror_image(prompted):
    real = Real(3)
    real.pixels = torch.randint(0, 256, (8, 3, 8, 8)).to(torch.uint8)
    job = job_of(prompted, real, horizontal_flip=True)
    (mean, std), (mirrored, _) = (
        job.base.posterior(pixels) for pixels in (real.pixels, real.pixels.flip(-1))
    )
    assert std is not None
    torch.manual_seed(0)
    rows = np.repeat([1, 6], 500)
    drawn = job._inputs(rows)
    for row, values in zip([1, 6], drawn.chunk(2), strict=True):
        # Half of the draws are about either mean.
        center = (mean[row] + mirrored[row]) / 2
        spread = (std[row].square() + ((mean[row] - mirrored[row]) / 2).square()).sqrt()
        assert ((values.mean(0) - center).abs() < 5 * spread / 500**0.5).all()
    assert len(drawn.flatten(1).unique(dim=0)) == len(drawn)


def test_latents_that_are_not_kept_are_those_that_are(prompted, monkeypatch):
    real = Real(3)
    real.pixels = torch.randint(0, 256, (8, 3, 8, 8)).to(torch.uint8)

    def inputs() -> Tensor:
        torch.manual_seed(0)
        return job_of(prompted, real, horizontal_flip=True)._inputs(np.arange(8))

    kept = inputs()
    monkeypatch.setattr("synthaug.synthesizers.class_conditional._fine_tuning._KEPT_BYTES", 0)
    assert torch.allclose(inputs(), kept, atol=1e-6)


@pytest.mark.parametrize("rank", [None, 2])
def test_a_resumed_run_equals_one_that_was_not_and_loaded_it_draws_the_same_images(
    prompted, tmp_path, rank
):
    options = {"lora_rank": rank, "horizontal_flip": True}
    whole, _ = tune(prompted, tmp_path / "whole", Real(3), **options)
    tune(prompted, tmp_path / "parts", Real(3), config=config(steps=2), **options)
    parts, _ = tune(prompted, tmp_path / "parts", Real(3), **options)
    loaded = ClassConditional.from_pretrained(tmp_path / "parts", device="cpu")
    assert whole.recipe() == parts.recipe() == loaded.recipe()
    assert loaded.trained_on == whole.trained_on
    plan = whole.plan(per_class=1, guidance_scale=2.0)
    assert torch.equal(loaded.draw(plan), parts.draw(plan))


def test_autocast_to_bfloat16_leaves_the_weights_in_float32(prompted, tmp_path):
    options = {"lora_rank": 2, "config": config(steps=2, precision="bfloat16")}
    tuned, result = tune(prompted, tmp_path, Real(3), **options)
    assert {weight.dtype for weight in tuned.model.network.state_dict().values()} == {torch.float32}
    assert np.isfinite([loss for _, loss in result.loss_curve]).all()


def test_the_best_snapshot_is_found_and_loads(labeled, tmp_path):
    tuned, _ = tune(labeled, tmp_path, snapshots=(1, 2, 4))

    def brightness(synthesizer: ClassConditional) -> float:
        return float(synthesizer.draw(synthesizer.plan(per_class=2)).mean())

    low = select_snapshot(tmp_path, brightness, device="cpu")
    high = select_snapshot(tmp_path, brightness, device="cpu", higher_is_better=True)
    assert list(low.scores) == [1, 2, 4]
    assert low.scores[low.step] == min(low.scores.values())
    assert high.scores[high.step] == max(low.scores.values())
    loaded = ClassConditional.from_pretrained(high.path, device="cpu")
    assert brightness(loaded) == high.scores[high.step]
    assert low.scores[4] == brightness(tuned)


def test_the_frechet_score_is_smaller_for_images_that_are_more_alike(labeled):
    synthesizer = ClassConditional.from_pretrained(labeled, device="cpu")
    drawn, noise = Real(classes=synthesizer.classes), Real(classes=synthesizer.classes)
    images = synthesizer.draw(synthesizer.plan(per_class=8, seed=1))
    drawn.pixels = ((images + 1) * 127.5).to(torch.uint8)
    drawn.targets = noise.targets = [0] * 32
    noise.pixels = 255 - drawn.pixels // 2
    near, far = (
        frechet_score(validation, Pixel(size=2), per_class=8)(synthesizer)
        for validation in (drawn, noise)
    )
    assert near < far / 2


def test_the_command_line_tunes_a_checkpoint_and_names_the_best_snapshot(labeled, tmp_path):
    real, folders = Real(), {}
    for split, shade in (("train", 0), ("validation", 3)):
        folders[split] = f"folder:{tmp_path / split}"
        for i, image in enumerate(real.read(range(8))):
            path = tmp_path / split / real.classes[real.targets[i]] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image[0].numpy() + shade).save(path)
    train = ["train", folders["train"], tmp_path / "out", "--method", "finetune", "--steps", 2]
    given = [*train, "--base", labeled, "--device", "cpu", "--snapshots", "[1, 2]"]
    chosen = [*given, "--validation", folders["validation"], "--features", "pixels:1"]
    text = succeed(*chosen, "--lora-rank", 2)
    assert "Step 2: Fréchet distance" in text
    best = Path(text.split("Best snapshot: ")[1].splitlines()[0])
    assert ClassConditional.from_pretrained(best, device="cpu").classes == real.classes
    for refused, message in (
        (train, "`--method finetune` needs `--base`, the checkpoint to start from"),
        ([*given, "--features", "pixels"], "give `--snapshots`, `--validation` and `--features`"),
        ([*given, "--low-size", 4], "`--low-size` has no meaning with --method finetune"),
    ):
        assert message in fail(2, *refused)


# Refused


def test_the_score_of_a_generator_on_its_own_training_images_is_refused(labeled, tmp_path):
    tuned, _ = tune(labeled, tmp_path, config=config(steps=1))
    score = frechet_score(Real(), Pixel(size=1), per_class=4)
    with pytest.raises(MismatchError, match="`validation` is what the generator was trained"):
        score(tuned)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 0}, "`lora_rank` must be at least 1, got 0"),
        ({"label_dropout": 1.0}, r"`label_dropout` must be in \[0, 1\), got 1.0"),
        ({"snapshots": [3, 5]}, r"`snapshots` must be in \[1, 4\], got 5"),
        ({"image_size": 16}, r"shape \(1, 8, 8\), the checkpoint draws \(1, 16, 16\)"),
        ({"real": Real(3)}, "Load them with `image_size=8` and `channels=1`"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused_before_any_work(labeled, tmp_path, options, message):
    with pytest.raises((ValueError, MismatchError), match=message):
        tune(labeled, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_the_checkpoint_to_start_from_is_not_written_over(labeled):
    with pytest.raises(ValueError, match="the checkpoint to start from"):
        tune(labeled, labeled / ".." / labeled.name)


def test_a_network_that_needs_more_than_a_prompt_is_refused(prompted, tmp_path):
    from diffusers import UNet2DConditionModel

    path = shutil.copytree(prompted, tmp_path / "base")
    config = {**json.loads((path / "unet" / "config.json").read_text()), "num_class_embeds": 10}
    UNet2DConditionModel.from_config(config).save_pretrained(path / "unet")
    with pytest.raises(CheckpointError, match=r"\(`num_class_embeds` is 10\), and we do not know"):
        job_of(path, Real(3))


def test_a_model_that_predicts_a_flow_goes_on_with_the_loss_of_flows(tmp_path):
    write_labeled(tmp_path, _class_name="FlowMatchEulerDiscreteScheduler")
    job = job_of(tmp_path, label_dropout=0.0)
    seen: list[tuple[Tensor, Tensor]] = []

    class Silent(nn.Linear):
        def forward(self, x: Tensor, t: Any = None, class_labels: Any = None) -> Any:
            seen.append((x, t))
            return type("Output", (), {"sample": torch.zeros_like(x)})

    torch.manual_seed(0)
    loss = job._loss(Silent(1, 1), np.zeros(2000, np.int64))
    x_t, share = seen[0][0], seen[0][1].view(-1, 1, 1, 1) / 1000
    x0 = to_images(Real().read([0]))
    noise = (x_t - (1 - share) * x0) / share
    assert float(loss) == pytest.approx(float((noise - x0).square().mean()), rel=1e-3)
    logits = share.logit()
    assert abs(float(logits.mean())) < 0.05
    assert abs(float(logits.std()) - 1) < 0.05


def test_a_network_without_attention_takes_no_adapters(tmp_path):
    from synthaug.denoisers import build_unet

    kinds: dict[str, Any] = {
        "down_block_types": ["DownBlock2D"] * 2,
        "up_block_types": ["UpBlock2D"] * 2,
    }
    network = build_unet((1, 8, 8), num_classes=2, channels=8, add_attention=False, **kinds)
    model = DiffusionModel(
        network=network,
        scheduler_config=cosine_config(),
        classes=Real().classes,
        image_shape=(1, 8, 8),
    )
    ClassConditional(model=model).save_pretrained(tmp_path / "base")
    with pytest.raises(CheckpointError, match="no attention layer to put adapters on"):
        tune(tmp_path / "base", tmp_path / "out", lora_rank=2)


def test_without_peft_the_error_names_the_extra(labeled, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"pip install 'synthaug\[lora\]'"):
        tune(labeled, tmp_path, lora_rank=2)


def test_gradient_checkpointing_computes_blocks_again_and_learns_the_same(
    labeled: Path, tmp_path: Path, computed_again: list[Any]
) -> None:
    learned = []
    for on in (False, True):
        options: dict[str, Any] = {"config": config(steps=1), "gradient_checkpointing": on}
        tuned, _ = tune(labeled, tmp_path / str(on), **options)
        learned.append(tuned.model.denoiser.network.state_dict())
        assert bool(computed_again) is on
    for name, values in learned[0].items():
        torch.testing.assert_close(learned[1][name], values, rtol=1e-5, atol=1e-6)
