import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from synthaug.density import contrastive_loss
from synthaug.guidance import HardnessPush, Unit, log_odds, unit_rms
from synthaug.samplers import Step, Trajectory, make_scheduler, sample, steps_of
from synthaug.synthesizers import streams
from tests.checkpoints import cosine_config
from tests.exact_denoisers import EPSILON, FLOW, GaussianDenoiser, GaussianFlow

SAMPLERS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0), ("dpmsolver++", 0.0)]
STD = 0.5


class TwoClasses:
    """Hardness whose log-odds for label 0 are linear or quadratic in the noisy image."""

    weights = "none"
    evaluations = 3

    def __init__(self, odds: Any, scale: float = 1.0) -> None:
        self.odds, self.scale = odds, scale
        self.seen: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
        self.seen.append(int(t))
        odds = self.scale * self.odds(x, t)
        return torch.stack([odds, torch.zeros_like(odds)], dim=1)


def push(model: Any, n: int, strength: float | Tensor, unit: Unit = "rms") -> HardnessPush:
    return HardnessPush(
        model=model,
        labels=torch.zeros(n, dtype=torch.int64),
        strength=torch.as_tensor(strength, dtype=torch.float32).expand(n),
        unit=unit,
    )


def towards_more(x: Tensor, t: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def draw(name: str, eta: float, n: int, steps: int, pushes: Any = (), config: Any = None) -> Tensor:
    denoiser: Any = GaussianFlow(STD) if config is FLOW else GaussianDenoiser(STD)
    with torch.inference_mode():
        return sample(
            denoiser,
            make_scheduler(name, config or EPSILON),
            None,
            Trajectory(num_inference_steps=steps, eta=eta),
            shape=(1, 4, 4),
            generators=streams(range(n)),
            pushes=pushes,
        )


STEP = Step(torch.tensor(500), 0.4, 0.5, 1.0)


def test_the_direction_is_that_of_the_contrastive_loss():
    hardness = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 1])
    (of_loss,) = torch.autograd.grad(contrastive_loss(hardness, labels, 0.7).sum(), hardness)
    odds = log_odds(hardness, labels, 0.7)
    (of_odds,) = torch.autograd.grad(odds.sum(), hardness)
    torch.testing.assert_close(of_loss, of_odds * odds.detach().sigmoid()[:, None])
    torch.testing.assert_close(
        torch.nn.functional.softplus(odds), contrastive_loss(hardness, labels, 0.7)
    )


def test_an_image_that_is_surely_of_its_class_still_has_a_direction():
    hardness = torch.tensor([[0.0, 1e6, 2e6]], requires_grad=True)
    labels = torch.tensor([0])
    odds = log_odds(hardness, labels)
    assert torch.isfinite(odds).all()
    (gradient,) = torch.autograd.grad(odds.sum(), hardness)
    assert gradient.tolist() == [[1.0, -1.0, 0.0]]  # of the loss it would be 0
    hardness = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(log_odds(hardness, labels, 1e9).sum(), hardness)
    assert gradient.abs().max() < 1e-8


def test_an_ascent_step_raises_the_own_hardness_and_lowers_the_share_of_the_class():
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])

    class Gaussians:
        weights = "none"
        evaluations = 1

        def __call__(self, x: Tensor, t: Tensor, condition: Tensor | None) -> Tensor:
            return (x.flatten(1)[:, None] - means).square().sum(-1) / 2

    x = 0.9 * means[:, None, None]  # beyond its mean, others would come nearer first
    labels = torch.arange(3)
    model = Gaussians()
    way = HardnessPush(model=model, labels=labels, strength=torch.full((3,), 0.01))
    before, after = (model(y, STEP.t, None) for y in (x, x + way(x, STEP)))
    own = labels[:, None]
    assert (after.gather(1, own) > before.gather(1, own)).all()
    shares = [(-h).softmax(1).gather(1, own) for h in (before, after)]
    assert (shares[1] < shares[0]).all()


@pytest.mark.parametrize("strength", [0.1, 1.0, 7.0])
def test_the_rms_or_length_of_a_push_is_its_strength_times_the_steps_sigma(strength):
    x = torch.randn(3, 1, 4, 4)
    model = TwoClasses(lambda x, t: x.flatten(1).pow(3).sum(1))
    moved = push(model, 3, strength)(x, STEP)
    rms = moved.flatten(1).square().mean(1).sqrt()
    torch.testing.assert_close(rms, torch.full((3,), strength * STEP.sigma))
    length = push(model, 3, strength, "length")(x, STEP).flatten(1).norm(dim=1)
    torch.testing.assert_close(length, rms)


def test_sigma_is_what_an_ancestral_scheduler_adds_as_noise():
    for config in (cosine_config(), cosine_config(beta_schedule="linear")):
        for name in ("ddpm", "ddim"):
            scheduler = make_scheduler(name, config)
            scheduler.set_timesteps(20)
            steps = steps_of(scheduler, scheduler.timesteps, 0.0)
            for i, step in enumerate(steps[:-1]):
                if name == "ddpm":
                    variance = scheduler._get_variance(step.t)
                else:
                    variance = scheduler._get_variance(step.t, scheduler.timesteps[i + 1])
                assert step.sigma == pytest.approx(float(variance) ** 0.5, rel=1e-4)
            assert steps[-1].sigma == 0


def test_the_size_of_the_loss_does_not_matter_and_a_zero_gradient_pushes_nothing():
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def odds(x: Tensor, t: Tensor) -> Tensor:
        return x.flatten(1).sin().sum(1) * torch.tensor([1.0, 0.0, 1e-30])

    plain, scaled = (push(TwoClasses(odds, s), 3, 0.5)(x, STEP) for s in (1.0, 1000.0))
    torch.testing.assert_close(plain, scaled)
    assert (plain[1] == 0).all()
    torch.testing.assert_close(plain[2].square().mean().sqrt(), torch.tensor(0.5 * STEP.sigma))
    assert (unit_rms(torch.zeros(2, 3)) == 0).all()


def test_rows_without_strength_are_bit_equal_to_plain_sampling_and_cost_nothing():
    sizes = []

    def odds(x: Tensor, t: Tensor) -> Tensor:
        sizes.append(len(x))
        return towards_more(x, t)

    way = push(TwoClasses(odds), 4, torch.tensor([0.0, 1.0, 0.0, 0.0]))
    plain, pushed = draw("ddim", 0.0, 4, 10), draw("ddim", 0.0, 4, 10, [way])
    others = [0, 2, 3]
    assert torch.equal(plain[others], pushed[others])
    assert not torch.equal(plain[1], pushed[1])
    assert set(sizes) == {1}
    assert way.evaluations().tolist() == [0, 3, 0, 0]


@pytest.mark.parametrize(("name", "eta"), SAMPLERS)
def test_timesteps_are_on_the_training_grid_and_the_last_step_is_free(name, eta):
    model = TwoClasses(towards_more)
    images = draw(name, eta, 2, 8, [push(model, 2, 0.3)])
    scheduler = make_scheduler(name, EPSILON)
    scheduler.set_timesteps(8)
    assert model.seen == scheduler.timesteps.tolist()[:-1]
    assert torch.isfinite(images).all()


@pytest.mark.parametrize(("name", "eta"), SAMPLERS)
def test_an_image_is_pushed_the_same_alone_and_in_a_batch(name, eta):
    model = TwoClasses(lambda x, t: x.flatten(1).pow(3).sum(1))
    together = draw(name, eta, 3, 8, [push(model, 3, 0.4)])
    alone = draw(name, eta, 1, 8, [push(model, 1, 0.4)])
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "eta"), SAMPLERS[:3])
def test_pushes_of_constant_direction_shift_a_gaussian_by_what_they_add_up_to(name, eta):
    """Where the denoiser is linear, so is every step: the shift of the mean is known exactly."""
    alpha, steps = 0.2, 20
    way = push(TwoClasses(towards_more), 5, alpha)
    plain = draw(name, eta, 5, steps)
    shift = draw(name, eta, 5, steps, [way]) - plain
    scheduler = make_scheduler(name, EPSILON)
    scheduler.set_timesteps(steps)
    expected = 0.0
    for step in steps_of(scheduler, scheduler.timesteps, eta):
        a, b = step.signal, step.next_signal
        per_x = math.sqrt(1 - a) / (a * STD**2 + 1 - a)  # the predicted noise is this times x
        x0 = (1 - math.sqrt(1 - a) * per_x) / math.sqrt(a)
        left = 1 - b - (step.eta * step.sigma) ** 2
        expected *= math.sqrt(b) * x0 + math.sqrt(max(0.0, left)) * per_x
        expected += alpha * step.sigma
    assert expected > 0.2
    torch.testing.assert_close(shift, torch.full_like(shift, expected), rtol=1e-3, atol=1e-5)


FLOWS = [("ddim", 0.0, FLOW), ("dpmsolver++", 0.0, FLOW)]


@pytest.mark.parametrize(
    ("name", "eta", "config"), [*((*one, EPSILON) for one in SAMPLERS), *FLOWS]
)
def test_with_the_score_as_unit_a_gaussian_becomes_its_exact_posterior(name, eta, config):
    """Prior N(0, s^2), likelihood exp(-(x_0 - m)^2 / 2 v), both known at every noise level."""
    m, v = 0.6, 0.3
    signals = make_scheduler("ddpm", EPSILON).alphas_cumprod.double()

    def signals_of(t: int) -> tuple[Tensor, Tensor]:
        return signals[t].sqrt(), (1 - signals[t]).sqrt()

    def odds(x: Tensor, t: Tensor) -> Tensor:
        share = t.double() / 1000
        a, b = (1 - share, share) if config is FLOW else signals_of(int(t))
        gain = a * STD**2 / (a**2 * STD**2 + b**2)  # x_0 given x_t: its mean per x_t,
        left = STD**2 * b**2 / (a**2 * STD**2 + b**2)  # and its variance
        loss = (gain * x - m).square().flatten(1).sum(1) / (2 * (v + left))
        # As the push weighs log-odds by sigmoid: softplus(odds) = LARGE - loss for large odds.
        return (1e3 - loss).float()

    images = draw(name, eta, 300, 200, [push(TwoClasses(odds), 300, 1.0, "score")], config)
    variance = 1 / (1 / STD**2 + 1 / v)
    assert float(images.mean()) == pytest.approx(variance * m / v, abs=0.03)
    assert float(images.var()) == pytest.approx(variance, rel=0.05)


def test_a_hardness_of_any_precision_can_be_the_unit_of_a_push():
    def single(x: Tensor, t: Tensor) -> Tensor:
        return x.flatten(1).mean(1)

    def double(x: Tensor, t: Tensor) -> Tensor:
        return single(x, t).double()

    pushed = [
        draw("ddim", 0.0, 2, 8, [push(TwoClasses(f), 2, 1.0, "score")]) for f in (single, double)
    ]
    torch.testing.assert_close(*pushed)


def test_pushes_add_up():
    model = TwoClasses(towards_more)
    both = draw("ddim", 0.0, 2, 8, [push(model, 2, 0.1), push(model, 2, 0.3)])
    torch.testing.assert_close(both, draw("ddim", 0.0, 2, 8, [push(model, 2, 0.4)]))


def test_what_cannot_be_pushed_is_refused():
    way = push(TwoClasses(towards_more), 1, 0.1)
    for name in ("HeunDiscreteScheduler", "UniPCMultistepScheduler", "PNDMScheduler"):
        with pytest.raises(ValueError, match=f"`scheduler` is {name}.*ddpm, ddim, dpmsolver"):
            draw(name, 0.0, 1, 8, [way])
    blind = TwoClasses(lambda x, t: torch.from_numpy(np.ones(len(x), np.float32)))
    with pytest.raises(ValueError, match="`model` TwoClasses is not differentiable"):
        draw("ddim", 0.0, 1, 8, [push(blind, 1, 0.1)])
