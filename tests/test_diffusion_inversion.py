import json
import math
import signal
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch import Tensor

from synthaug import Plan, TrainingConfig, generate
from synthaug.errors import CheckpointError, DivergedError, MismatchError
from synthaug.evaluation import digests
from synthaug.synthesizers import (
    DiffusionInversion,
    InversionConfig,
    TokenConfig,
    soft_labels,
    streams,
)
from synthaug.synthesizers.inversion._embeddings import interpolate
from synthaug.synthesizers.inversion._fit import Block, InversionJob, run_pass, timesteps_of
from synthaug.synthesizers.inversion._tokens import TokenEncoder, build_token_unet
from synthaug.transforms import SyntheticVariant
from tests.checkpoints import Counting, tiny_unet, write_stable_diffusion
from tests.images import to_images, to_pixels
from tests.tiny.inversions import (
    NAMES,
    SHAPE,
    D,
    K,
    Real,
    config,
    fitted,
    generator,
    learned,
    table_of,
    tiny_network,
)
from tests.trackers import Noted

pytestmark = pytest.mark.usefixtures("few_steps")

# Stage 1


def test_an_embedding_depends_on_its_image_alone(tmp_path):
    together = fitted(tmp_path / "a", Real(), block_size=3)
    alone = fitted(tmp_path / "b", Real(rows=[4]), batch_size=1)
    reverse = fitted(tmp_path / "c", Real(rows=[4, 3, 2, 1, 0]), batch_size=5)
    torch.testing.assert_close(alone.snapshots[4][0], together.snapshots[4][4], rtol=0, atol=5e-5)
    torch.testing.assert_close(
        reverse.snapshots[4].flip(0), together.snapshots[4], rtol=0, atol=5e-5
    )
    assert (together.snapshots[4][:1] - together.snapshots[4][1:]).abs().amax((1, 2)).min() > 1e-2


def test_updates_are_those_of_torchs_adam():
    job = InversionJob(generator().model, None, Real(2), config(decay=False))
    block = job._block(np.arange(2))
    weight = block.embeddings.clone().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=job.config.learning_rate, betas=(0.8, 0.999))
    seen: list[Tensor] = []

    def denoiser(x, t, c):
        prediction = job.model.denoiser(x, t, c)
        if c.requires_grad and c is not weight:
            seen.append(x.detach())
            optimizer.zero_grad()
            clean, steps = (
                block.mean,
                torch.from_numpy(timesteps_of(block.keys, block.update, 1000)),
            )
            a = job.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
            noise = (x - a.sqrt() * clean) / (1 - a).sqrt()
            velocity = a.sqrt() * noise - (1 - a).sqrt() * clean
            error = job.model.denoiser(x, t, weight) - velocity
            error.square().flatten(1).mean(1).sum().backward()
        return prediction

    for _ in range(4):
        run_pass(denoiser, job.scheduler, block, job.config)  # type: ignore[arg-type]
        optimizer.step()
    torch.testing.assert_close(block.embeddings, weight.detach(), rtol=0, atol=5e-5)
    assert len(seen) == 4


def test_learning_lowers_the_loss_and_leaves_the_network_as_it_was(tmp_path):
    synthesizer = generator()
    before = {k: v.clone() for k, v in synthesizer.model.network.state_dict().items()}
    real = Real(4)
    after, result = synthesizer.fit(
        real, tmp_path, config=config(updates=30, snapshots=(0,), batch_size=4), progress=False
    )
    for name, weight in synthesizer.model.network.named_parameters():
        assert torch.equal(weight, before[name])
        assert weight.grad is None
    table = after.table
    assert table is not None
    x0 = to_images(real.pixels)
    t, noise = torch.tensor([100, 300, 500, 700]), torch.randn(x0.shape)
    scheduler = synthesizer.model.make_scheduler("ddpm")
    target = scheduler.get_velocity(x0, noise, t)

    def loss(c: Tensor) -> float:
        prediction = synthesizer.model.denoiser(scheduler.add_noise(x0, noise, t), t, c)
        return float((prediction - target).square().mean())

    assert loss(table.snapshots[30]) < loss(table.snapshots[0])
    assert [u for u, _ in result.loss_curve] == list(range(1, 31))
    assert 0 < result.updates_per_second < 1e5


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_after", [1, 3, 4, 6])
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(tmp_path, kill_after):
    settings = config(snapshots=(2,), block_size=3, checkpoint_seconds=0)
    job = InversionJob(generator().model, None, Real(), settings)
    whole = job.run(tmp_path / "whole", identity="x", report=lambda *_: None)
    passes = 0

    def report(images, update, loss):
        nonlocal passes
        passes += 1
        if passes > kill_after:
            raise Killed

    with pytest.raises(Killed):
        job.run(tmp_path / "killed", identity="x", report=report)
    again = job.run(tmp_path / "killed", identity="x", report=lambda *_: None)
    assert again.digest == whole.digest
    assert (again.keys == whole.keys).all()
    with pytest.raises(MismatchError, match="another run:\n  extra: 'x' there, 'y' now"):
        job.run(tmp_path / "killed", identity="y", report=lambda *_: None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        job.run(tmp_path / "file", identity="x", report=report)


def test_an_interrupted_inversion_saves_its_updates_and_says_so(tmp_path):
    settings = config(updates=4, block_size=3)
    job = InversionJob(generator().model, None, Real(), settings)
    taken: list[int] = []

    def report(images: int, update: int, loss: float) -> None:
        taken.append(update)
        if len(taken) == 6:  # the second update of the second block
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt) as stop:
        job.run(tmp_path, identity="x", report=report)
    signal.signal(signal.SIGINT, before)
    said = f"Embeddings of 3 of {len(Real())} images, and updates of others, are saved in"
    assert str(stop.value) == f"{said} {tmp_path}."
    resumed: list[tuple[int, bool]] = []
    job.run(tmp_path, identity="x", report=lambda n, u, loss: resumed.append((u, loss == loss)))
    assert resumed[:4] == [(4, False), (2, False), (3, True), (4, True)]


def test_a_tracker_hears_of_every_update_and_a_resumed_run_counts_on(tmp_path, monkeypatch):
    tracker = Noted()
    settings = config(updates=2, block_size=3, log_with=tracker)
    generator().fit(Real(), tmp_path / "a", config=settings, progress=False)
    steps = [step for step, _ in tracker.lines]
    assert steps == [3, 6, 8, 10]  # blocks of 3 and of 2 images
    assert [values["update"] for _, values in tracker.lines] == [1, 2, 1, 2]
    assert all(values["loss"] > 0 < values["updates_per_second"] for _, values in tracker.lines)
    assert settings.binding("x") == config(updates=2, block_size=3).binding("x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="`log_with` is for a job of one process"):
        generator().fit(Real(), tmp_path / "b", config=settings, progress=False)


def test_a_generator_that_names_no_classes_is_refused_for_what_it_is(tmp_path):
    DDPMPipeline(unet=tiny_unet(channels=3), scheduler=DDPMScheduler()).save_pretrained(tmp_path)
    inversion = DiffusionInversion.from_pretrained(tmp_path, device="cpu")
    with pytest.raises(CheckpointError, match="is a UNet2DModel, which attends to no tokens"):
        inversion.fit(Real(), tmp_path / "out")


def test_snapshots_are_named_by_the_updates_that_every_embedding_received(tmp_path):
    table = fitted(tmp_path / "long", Real(), snapshots=(0, 2), decay=False, block_size=2)
    assert list(table.snapshots) == [0, 2, 4]
    short = fitted(tmp_path / "short", Real(), updates=2, decay=False, batch_size=3)
    torch.testing.assert_close(short.snapshots[2], table.snapshots[2], rtol=0, atol=5e-5)


def test_every_image_sees_all_noise_levels_after_a_few_updates():
    keys = np.random.default_rng(0).integers(0, 2**64, 20, dtype=np.uint64)
    t = np.stack([timesteps_of(keys, u, 1000) for u in range(40, 66, 2)])
    assert t.min() >= 0
    assert t.max() < 1000
    for image in t.T:
        assert len(np.unique(image // 200)) == 5  # each fifth of the schedule
    assert len(np.unique(t[0])) > 10  # images start at different levels


def test_updates_come_in_pairs_of_one_timestep_and_opposite_noise():
    job = InversionJob(generator().model, None, Real(2), config())
    block, seen = job._block(np.arange(2)), []

    def denoiser(x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        a = job.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        seen.append((t, (x - a.sqrt() * block.mean) / (1 - a).sqrt()))
        return job.model.denoiser(x, t, c)

    for _ in range(6):
        run_pass(denoiser, job.scheduler, block, job.config)  # type: ignore[arg-type]
    for (t, noise), (t_again, opposite) in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(t, t_again)
        torch.testing.assert_close(opposite, -noise, rtol=0, atol=1e-4)
    assert len({int(t[0]) for t, _ in seen}) == 3  # pairs differ
    assert (seen[0][1] - seen[2][1]).abs().max() > 0.1


def test_embeddings_are_float32_and_finite_with_a_bfloat16_network(tmp_path):
    network = tiny_network().to(torch.bfloat16)
    synthesizer, _ = generator(network).fit(Real(2), tmp_path, config=config(), progress=False)
    assert synthesizer.table is not None
    assert synthesizer.table.snapshots[4].dtype == torch.float32
    assert torch.isfinite(synthesizer.table.snapshots[4]).all()


def test_the_start_from_noise_has_a_fixed_scale(tmp_path):
    for n in (40, 4):
        start = fitted(tmp_path / str(n), Real(n), updates=1, snapshots=(0,)).snapshots[0]
        assert float(start.std()) == pytest.approx(0.05, rel=0.15)


def test_a_run_that_diverges_says_so(tmp_path):
    network = tiny_network()
    with torch.no_grad():
        network.conv_out.bias.fill_(1e30)
    with pytest.raises(DivergedError, match="Lower `learning_rate`"):
        generator(network).fit(Real(2), tmp_path, config=config(), progress=False)


def test_latents_are_scaled_as_the_autoencoder_says_and_sampled_anew_at_each_update(tmp_path):
    pytest.importorskip("transformers")
    write_stable_diffusion(tmp_path / "sd", scaling_factor=0.5)
    synthesizer = DiffusionInversion.from_pretrained(tmp_path / "sd", classes=["a", "b"])
    model = synthesizer.model
    with torch.no_grad():
        mean, std = model.posterior(Real(2).pixels)
        found = model.vae.encode(to_images(Real(2).pixels)).latent_dist
        torch.testing.assert_close(mean, 0.5 * found.mean)
        assert std is not None
        torch.testing.assert_close(std, 0.5 * found.std)
        torch.testing.assert_close(
            model.decode(mean), model.vae.decode(found.mean).sample.clamp(-1, 1)
        )
    block = Block(
        keys=np.array([1, 2], np.uint64),
        mean=mean.float(),
        std=std.float(),
        embeddings=torch.zeros(2, K, 16),
        exp_avg=torch.zeros(2, K, 16),
        exp_avg_sq=torch.zeros(2, K, 16),
    )
    seen = []
    scheduler = model.make_scheduler("ddpm")

    def add_noise(z, noise, t):
        seen.append((z, noise))
        return z

    scheduler.add_noise = add_noise
    for _ in range(2):
        run_pass(model.denoiser, scheduler, block, config())
    (z1, noise1), (z2, noise2) = seen
    for z in (z1, z2):
        assert ((z - mean) / std).abs().max() < 6
        assert (z - mean).abs().max() > 0
    assert not torch.equal(z1, z2)
    assert not torch.equal(noise1, noise2)


def test_a_text_checkpoint_starts_from_prompts_and_takes_any_number_of_tokens(tmp_path):
    pytest.importorskip("transformers")
    write_stable_diffusion(tmp_path / "sd")
    real = Real(4)
    with pytest.raises(ValueError, match=r"Load it with `classes=real\.classes`"):
        DiffusionInversion.from_pretrained(tmp_path / "sd", classes=["a", "b"]).cost(real)
    synthesizer = DiffusionInversion.from_pretrained(tmp_path / "sd", classes=NAMES)
    prompts = synthesizer.model.class_embeddings
    assert isinstance(prompts, Tensor)
    for k in (3, 10):  # the text encoder gives 8
        fit = config(updates=1, snapshots=(0,), num_tokens=k)
        inverted, _ = synthesizer.fit(real, tmp_path / str(k), config=fit, progress=False)
        assert inverted.table is not None
        first = inverted.table.snapshots[0]
        assert torch.equal(first[:, : min(k, 8)], prompts[[0, 1, 0, 1], :k])
        for unconditional in ("mean", "null"):
            variant = inverted.with_settings(unconditional=unconditional, num_inference_steps=2)
            assert torch.isfinite(variant.draw(variant.plan(per_class=1))).all()
    again = DiffusionInversion.from_pretrained(tmp_path / "3")
    assert again.classes == NAMES
    assert again.table is not None
    assert again.table.token_shape == (3, 16)


def test_an_image_size_that_the_autoencoder_cannot_halve_is_refused(tmp_path):
    pytest.importorskip("transformers")
    write_stable_diffusion(tmp_path / "sd")
    for size in (8, 12, 16):
        synthesizer = DiffusionInversion.from_pretrained(
            tmp_path / "sd", classes=NAMES, image_size=size
        )
        assert synthesizer.model.latent_shape == (4, size // 2, size // 2)
    with pytest.raises(ValueError, match="must be a multiple of 2"):
        DiffusionInversion.from_pretrained(tmp_path / "sd", classes=NAMES, image_size=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"updates": 0}, "`updates` must be at least 1, got 0"),
        ({"snapshots": (5,)}, r"`snapshots` must be in \[0, 4\].*got 5"),
        ({"learning_rate": 0.0}, "`learning_rate` must be positive"),
        ({"start": "words"}, "`start` must be encoder, prompt or noise, got 'words'"),
        ({"start": "encoder"}, "the checkpoint has no image encoder"),
        ({"start": "prompt"}, "the checkpoint has no text encoder"),
    ],
)
def test_learning_that_makes_no_sense_is_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        generator().fit(Real(), tmp_path / "out", config=config(**changes))
    assert not (tmp_path / "out").exists()


def test_images_of_another_shape_and_plans_without_embeddings_are_refused(tmp_path):
    real = Real()
    real.image_shape = (1, 8, 8)
    with pytest.raises(MismatchError, match=r"shape \(1, 8, 8\), the generator's \(3, 8, 8\)"):
        generator().fit(real, tmp_path)
    with pytest.raises(ValueError, match="Learn them with `synthaug invert`"):
        generator().plan(per_class=1)


def test_the_cost_is_what_will_be_stored(tmp_path):
    cost = generator().cost(Real(), config(snapshots=(1,)), measure=True)
    fitted(tmp_path, Real(), snapshots=(1,))
    stored = sum(path.stat().st_size for path in (tmp_path / "embeddings").iterdir())
    assert cost.bytes == 5 * 2 * K * D * 4
    assert cost.bytes < stored < cost.bytes + 1000
    assert cost.seconds is not None
    assert cost.seconds > 0
    assert "5 images x 4 updates = 20 passes" in str(cost)


# Stage 2


def conditions(synthesizer: DiffusionInversion, plan: Plan) -> Tensor:
    return synthesizer.conditions(plan, streams(plan["seed"]))


def test_without_noise_and_interpolation_the_condition_is_the_learned_embedding():
    synthesizer = learned()
    table = synthesizer.table
    assert table is not None
    plan = synthesizer.plan(ratio=2, noise=0, interpolation=0, snapshot=[10, 20])
    for row, c in enumerate(conditions(synthesizer, plan)):
        snapshot = int(plan["snapshot"][row])
        assert torch.equal(c, table.snapshots[snapshot][plan["source"][row]])
    assert (plan["partner"] == -1).all()
    assert (plan["partner_key"] == 0).all()
    full = synthesizer.plan(ratio=1, noise=0, interpolation=1)
    assert torch.equal(conditions(synthesizer, full), table.snapshots[20][full["partner"].copy()])


def test_noise_is_relative_to_the_rms_unless_it_is_absolute():
    synthesizer = learned()
    table = synthesizer.table
    assert table is not None
    doubled = replace(table, snapshots={u: 2 * e for u, e in table.snapshots.items()})

    def perturbation(s: DiffusionInversion) -> Tensor:
        plan = s.plan(ratio=1, noise=0.3, interpolation=0)
        assert s.table is not None
        return conditions(s, plan) - s.table.snapshots[20][plan["source"].copy()]

    once = perturbation(synthesizer)
    torch.testing.assert_close(perturbation(replace(synthesizer, table=doubled)), 2 * once)
    assert float(once.std()) == pytest.approx(0.3 * table.rms[20], rel=0.25)
    absolute = replace(synthesizer, relative_noise=False)
    torch.testing.assert_close(
        perturbation(replace(absolute, table=doubled)), perturbation(absolute), atol=1e-5, rtol=0
    )


def test_spherical_interpolation_keeps_the_length_and_is_linear_where_there_is_no_arc():
    a, b = torch.randn(2, 4, K, D)
    b = b * (a.flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)).view(-1, 1, 1)
    for share in (0.1, 0.5, 0.9):
        s = torch.full((4,), share)
        arc = interpolate(a, b, s, spherical=True)
        torch.testing.assert_close(arc.flatten(1).norm(dim=1), a.flatten(1).norm(dim=1))
        torch.testing.assert_close(
            interpolate(a, 3 * a, s, spherical=True), interpolate(a, 3 * a, s, spherical=False)
        )
        assert torch.isfinite(interpolate(a, -a, s, spherical=True)).all()
    x, y = torch.zeros(2, 1, 1, 2)
    x[..., 0], y[..., 1] = 1, 1
    half = torch.tensor([0.5])
    assert torch.equal(interpolate(x, 3 * x, half, spherical=True), 2 * x)
    assert torch.equal(interpolate(x, -x, half / 2, spherical=True), x / 2)
    lengths = [
        float(interpolate(x, y, torch.tensor([s]), spherical=False).norm()) for s in (0.1, 0.5)
    ]
    assert lengths == pytest.approx([math.sqrt(0.82), math.sqrt(0.5)])
    for spherical in (False, True):
        assert torch.equal(interpolate(a, b, torch.zeros(4), spherical=spherical), a)
        assert torch.equal(interpolate(a, b, torch.ones(4), spherical=spherical), b)


def test_partners_are_other_images_of_the_same_class():
    synthesizer = learned(9)
    plan = synthesizer.plan(ratio=40, interpolation=0.2, seed=3)
    table = synthesizer.table
    assert table is not None
    partner = plan["partner"]
    assert (partner != plan["source"]).all()
    assert (table.labels[partner] == plan["label"]).all()
    assert (plan["partner_key"].view(np.uint64) == table.keys[partner]).all()
    pairs = set(zip(plan["source"].tolist(), partner.tolist(), strict=True))
    assert len(pairs) == 5 * 4 + 4 * 3  # every pair of a class comes up
    assert (soft_labels(plan) == np.eye(2)[plan["label"]]).all()


def test_an_equal_image_is_no_partner_and_a_class_of_one_has_none():
    embeddings = torch.randn(4, K, D)
    table = table_of(embeddings, labels=[0, 0, 0, 1])
    twins = replace(table, keys=np.array([7, 7, 9, 5], np.uint64))
    synthesizer = replace(generator(), table=twins)
    plan = synthesizer.plan(counts={"ant": 60}, interpolation=0.5)
    assert set(plan["partner"][plan["source"] < 2]) == {2}
    assert set(plan["partner"][plan["source"] == 2]) == {0}
    with pytest.raises(ValueError, match="a second image in class 'bee', and there is none"):
        synthesizer.plan(per_class=2, interpolation=[0.0, 0.5])
    assert len(synthesizer.plan(per_class=1, interpolation=0)) == 2


def test_partners_of_another_class_come_only_on_request_and_with_soft_labels():
    synthesizer = learned()
    plan = synthesizer.plan(ratio=3, interpolation=[0.25, 0.0], cross_class=True)
    mixed = plan["interpolation"] > 0
    assert (plan["partner_label"][mixed] == 1 - plan["label"][mixed]).all()
    assert (plan["partner_label"][~mixed] == -1).all()
    labels = soft_labels(plan)
    own, other = (labels[np.arange(len(plan)), x] for x in (plan["label"], 1 - plan["label"]))
    assert own.tolist() == np.where(mixed, 0.75, 1).tolist()
    assert other.tolist() == np.where(mixed, 0.25, 0).tolist()
    plain = synthesizer.plan(ratio=3, interpolation=[0.25, 0.0])
    assert not set(plain["seed"]) & set(plan["seed"])  # other images, other seeds


def test_forgetting_an_image_reaches_the_rows_that_interpolated_with_it():
    from synthaug._cache.tombstones import rows_from_sources

    synthesizer = learned()
    plan = synthesizer.plan(ratio=4, interpolation=[0.3, 0.0])
    assert synthesizer.table is not None
    rows = rows_from_sources(plan, synthesizer.table.keys[[2]])
    assert rows.tolist() == np.flatnonzero((plan["source"] == 2) | (plan["partner"] == 2)).tolist()
    assert (plan["source"][rows] != 2).any()


def test_means_are_of_the_scope_that_was_asked_for():
    synthesizer = learned(6, group_size=4)
    table = synthesizer.table
    assert table is not None
    plan = synthesizer.plan(ratio=1, snapshot=[10, 20, 10])

    def means(unconditional: Any) -> Tensor:
        return replace(synthesizer, unconditional=unconditional).unconditional_tokens(plan)

    for row in range(len(plan)):
        e = table.snapshots[int(plan["snapshot"][row])]
        own, group = table.labels == plan["label"][row], plan["source"][row] // 4
        assert torch.equal(means("mean")[row], e.double().mean(0).float())
        torch.testing.assert_close(means("class_mean")[row], e[own].mean(0))
        torch.testing.assert_close(means("group_mean")[row], e[group * 4 : group * 4 + 4].mean(0))
    assert not means("zero").any()
    order = torch.randperm(6)
    shuffled = replace(table, snapshots={u: e[order] for u, e in table.snapshots.items()})
    torch.testing.assert_close(shuffled.mean(10), table.mean(10))


def test_it_can_be_guided_whatever_its_generator_was_trained_for():
    one = learned()
    model = replace(one.model, class_embeddings=None, unconditional_branch=False)
    assert not model.can_be_guided
    assert replace(one, model=model).can_be_guided


def test_guidance_towards_the_mean_from_the_mean_does_nothing():
    same = torch.randn(1, K, D).expand(6, -1, -1).clone()
    synthesizer = replace(generator(), table=table_of(same))
    plan = synthesizer.plan(per_class=1, noise=0, interpolation=0, guidance_scale=1)
    plain = synthesizer.draw(plan)
    for scale in (0.0, 3.0):
        columns = {**plan.columns, "guidance_scale": np.full(len(plan), scale)}
        guided = synthesizer.draw(Plan(columns, plan.classes, plan.settings))
        torch.testing.assert_close(guided, plain, rtol=0, atol=1e-4)


def test_guidance_one_is_the_condition_alone_and_guidance_zero_the_mean_alone():
    synthesizer = learned(num_inference_steps=1, scheduler="ddim")
    table = synthesizer.table
    assert table is not None
    plan = synthesizer.plan(per_class=2, noise=0, interpolation=0, guidance_scale=1)

    def at(scale: float, s: DiffusionInversion = synthesizer) -> Tensor:
        columns = {**plan.columns, "guidance_scale": np.full(len(plan), scale)}
        return s.draw(Plan(columns, plan.classes, plan.settings))

    mean = table.mean(20).expand(6, -1, -1).clone()
    at_mean = replace(synthesizer, table=replace(table, snapshots={20: mean}))
    torch.testing.assert_close(at(0.0), at(1.0, at_mean), rtol=0, atol=1e-5)
    straight = at(0.0) + 0.5 * (at(1.0) - at(0.0))
    inside = (at(0.0).abs() < 1) & (at(1.0).abs() < 1)  # images are clamped at the end
    torch.testing.assert_close(at(0.5)[inside], straight[inside], rtol=0, atol=1e-4)
    assert (at(0.0) - at(1.0)).abs().max() > 1e-3


@pytest.mark.parametrize("scheduler", ["ddim", "PNDMScheduler"])
def test_the_estimate_of_evaluations_is_what_the_network_sees(scheduler):
    counting = Counting(tiny_network())
    synthesizer = learned(network=counting, scheduler=scheduler, num_inference_steps=5)
    plan = synthesizer.plan(per_class=3, guidance_scale=[1.0, 1.0001, 1.0])
    synthesizer.draw(plan)
    assert counting.images == synthesizer.evaluations(plan).sum()
    steps = 6 if scheduler == "PNDMScheduler" else 5
    assert set(synthesizer.evaluations(plan).tolist()) == {steps, 2 * steps}


def test_an_image_does_not_depend_on_the_rows_drawn_with_it():
    synthesizer = learned()
    plan = synthesizer.plan(
        ratio=2, guidance_scale=[1.0, 2.0], noise=[0.0, 0.2, 0.1], snapshot=[10, 20]
    )
    together = synthesizer.draw(plan)
    order = np.random.default_rng(0).permutation(len(plan))
    parts = [synthesizer.draw(rows) for rows in plan[order].batches(5)]
    expected = to_pixels(together[torch.from_numpy(order)]).int()
    assert (to_pixels(torch.cat(parts)).int() - expected).abs().max() <= 1
    noise = [tuple(torch.randn(8, generator=g).tolist()) for g in streams(plan["seed"])]
    assert len(set(noise)) == len(plan)  # no two rows start from the same noise


def test_two_synthesizers_with_different_embeddings_draw_different_images():
    one, two = learned(), learned()
    assert two.table is not None
    two = replace(two, table=replace(two.table, snapshots={20: two.table.snapshots[20] + 1}))
    plan = one.plan(per_class=1)
    assert one.recipe() != two.recipe()
    assert (one.draw(plan) - two.draw(plan)).abs().max() > 1e-3


def test_a_snapshot_is_found_by_its_value_and_an_absent_one_is_an_error():
    synthesizer = learned()
    assert synthesizer.plan(per_class=1, snapshot=10).digest == (
        synthesizer.plan(per_class=1, snapshot=10.0).digest
    )
    with pytest.raises(ValueError, match=r"`snapshot` must be one of 10, 20, got \[10, 15\]"):
        synthesizer.plan(per_class=1, snapshot=[10, 15])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"strength": 0.5}, "Unknown row parameter 'strength'"),
        ({"noise": -1.0}, "`noise` must not be negative"),
        ({"interpolation": 1.5}, r"`interpolation` must be in \[0, 1\]"),
        ({"guidance_scale": [1.0, -1.0]}, "`guidance_scale` must not be negative"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(parameters, message):
    with pytest.raises(ValueError, match=message):
        learned().plan(per_class=1, **parameters)


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="`unconditional` must be one of"):
        generator(unconditional="median")
    with pytest.raises(ValueError, match=r"`eta` = 1\.0 has no effect"):
        generator(scheduler="PNDMScheduler", eta=1.0)
    model = replace(generator().model, class_embeddings=None)
    with pytest.raises(ValueError, match="has no null tokens"):
        DiffusionInversion(model=model, unconditional="null")
    with pytest.raises(ValueError, match="about the classes cow"):
        learned().draw(Plan.build([1], classes=["cow"], settings={}, seed=0))


def test_a_plan_about_other_images_is_refused():
    synthesizer = learned()
    plan = synthesizer.plan(per_class=1)
    assert synthesizer.table is not None
    other = replace(synthesizer.table, keys=synthesizer.table.keys + np.uint64(1))
    with pytest.raises(MismatchError, match="Real image 0 of the plan is not among the images"):
        replace(synthesizer, table=other).draw(plan)


def test_a_variant_of_exactly_the_image_that_passes_through_is_served(tmp_path):
    real = Real(4)
    synthesizer, _ = generator().fit(real, tmp_path / "out", config=config(), progress=False)
    cache = generate(synthesizer, synthesizer.plan(ratio=1), tmp_path / "c.h5", progress=False)
    variant = SyntheticVariant(cache, p=1.0, audit=None)
    for i in range(4):
        served = variant(real.pixels[i])
        row = int(np.flatnonzero(cache.plan["source"] == i)[0])
        assert torch.equal(served, cache.read([row])[0])


# Files


def test_saved_and_loaded_it_draws_the_same_images(tmp_path):
    before = learned(unconditional="class_mean", spherical=True)
    before.save_pretrained(tmp_path / "model")
    after = DiffusionInversion.from_pretrained(tmp_path / "model")
    plan = before.plan(per_class=2)
    assert after.recipe() == before.recipe()
    assert torch.equal(after.draw(plan), before.draw(plan))
    with pytest.raises(ValueError, match="`image_size` was fixed"):
        DiffusionInversion.from_pretrained(tmp_path / "model", image_size=16)


def test_what_fit_writes_names_the_generator_and_does_not_copy_it(tmp_path):
    generator().save_pretrained(tmp_path / "base")
    base = DiffusionInversion.from_pretrained(tmp_path / "base")
    fit, _ = base.fit(Real(), tmp_path / "out", config=config(), progress=False)
    assert not (tmp_path / "out" / "unet").exists()
    again = DiffusionInversion.from_pretrained(tmp_path / "out")
    assert again.recipe() == fit.recipe()
    assert again.table is not None
    assert again.table.keys.tolist() == digests(Real(), "real").tolist()
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="There is no directory"):
        DiffusionInversion.from_pretrained(tmp_path / "out")
    moved = DiffusionInversion.from_pretrained(tmp_path / "out", checkpoint=tmp_path / "moved")
    assert moved.recipe() == fit.recipe()
    network = tiny_network()
    with torch.no_grad():
        network.conv_out.bias.add_(1)
    generator(network).save_pretrained(tmp_path / "other")
    with pytest.raises(MismatchError, match="is not the one that the embeddings were learned"):
        DiffusionInversion.from_pretrained(tmp_path / "out", checkpoint=tmp_path / "other")


def test_a_damaged_table_is_an_error_that_names_it(tmp_path):
    learned().save_pretrained(tmp_path)
    block = tmp_path / "embeddings" / "00000.safetensors"
    block.write_bytes(block.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="embeddings cannot be read"):
        DiffusionInversion.from_pretrained(tmp_path)
    block.unlink()
    with pytest.raises(CheckpointError, match="holds no embeddings"):
        DiffusionInversion.from_pretrained(tmp_path)


# A generator of our own


def test_a_generator_of_ours_is_trained_with_an_encoder_whose_tokens_are_the_start(tmp_path):
    real = Real(6)
    settings = TrainingConfig(steps=3, batch_size=4, warmup_steps=1, device="cpu")
    trained, result = DiffusionInversion.fit_generator(
        real,
        tmp_path / "tokens",
        config=settings,
        tokens=TokenConfig(num_tokens=2, token_width=8),
        channels=8,
        horizontal_flip=True,
        progress=False,
    )
    assert result.step == 3
    loaded = DiffusionInversion.from_pretrained(tmp_path / "tokens")
    assert loaded.encoder is not None
    fit, _ = loaded.fit(
        real, tmp_path / "out", config=InversionConfig(updates=1, snapshots=(0,)), progress=False
    )
    assert fit.table is not None
    tokens = loaded.encoder(to_images(real.pixels))
    torch.testing.assert_close(fit.table.snapshots[0], tokens)
    torch.testing.assert_close(tokens.square().mean(-1), torch.ones(6, 2), rtol=1e-3, atol=1e-3)
    assert trained.encoder is not None
    for name, weight in trained.encoder.state_dict().items():
        assert torch.equal(loaded.encoder.state_dict()[name], weight)
    null = fit.with_settings(unconditional="null", num_inference_steps=2)
    assert null.draw(null.plan(per_class=1)).shape == (2, *SHAPE)
    own = json.loads((tmp_path / "out" / "inversion.json").read_text())
    assert own["origin"]["path"] == str(tmp_path / "tokens")


def test_the_encoder_and_the_null_tokens_are_trained(tmp_path):
    settings = TrainingConfig(steps=2, batch_size=6, warmup_steps=0, ema_decay=0.0, device="cpu")
    trained, _ = DiffusionInversion.fit_generator(
        Real(6),
        tmp_path,
        config=settings,
        tokens=TokenConfig(num_tokens=2, token_width=8, token_dropout=0.5),
        channels=8,
        progress=False,
    )
    torch.manual_seed(settings.seed)
    build_token_unet(SHAPE, token_width=8, channels=8, num_layers=1)
    fresh = TokenEncoder(SHAPE, 2, 8, 8)
    assert trained.encoder is not None
    for name, weight in trained.encoder.state_dict().items():
        assert not torch.equal(weight, fresh.state_dict()[name]), name
    assert isinstance(trained.model.class_embeddings, Tensor)
    assert trained.model.class_embeddings.abs().max() > 0


def test_a_generator_that_makes_no_sense_is_refused(tmp_path):
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_tokens": 0}, "`num_tokens` must be at least 1"),
        ({"token_dropout": 1.0}, r"`token_dropout` must be in \[0, 1\)"),
        ({"token_noise": -1.0}, "`token_noise` must be at least 0 and finite"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            TokenConfig(**settings)
    with pytest.raises(ValueError, match="`prediction_type` must be one of"):
        DiffusionInversion.fit_generator(Real(), tmp_path, prediction_type="score")
