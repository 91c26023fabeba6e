"""Guidance by a classifier of clean images: exact where the answer is known."""

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from synthaug import SynthCache, generate
from synthaug.errors import DivergedError, MismatchError
from synthaug.guidance import ClassifierGuidance, ClassifierPush
from synthaug.samplers import Step, Trajectory, make_scheduler, sample
from synthaug.synthesizers import ClassConditional, FromPipeline, LowDensity, streams
from tests.checkpoints import tiny_unet, write_stable_diffusion
from tests.command_line import fail, succeed
from tests.exact_denoisers import EPSILON, FLOW, GaussianDenoiser, GaussianFlow
from tests.images import to_pixels
from tests.tiny import cascades
from tests.tiny import inversions as inversion
from tests.tiny.class_conditional import NAMES, Real, tiny
from tests.tiny.low_density import steered

pytestmark = pytest.mark.usefixtures("few_steps")
STD = 0.5
SAMPLERS = [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0), ("dpmsolver++", 0.0)]


def classifier(num_classes: int = 4, shape: tuple[int, int, int] = (1, 8, 8)) -> nn.Module:
    torch.manual_seed(1)
    size = int(np.prod(shape))
    layers = nn.Flatten(), nn.Linear(size, 16), nn.Tanh(), nn.Linear(16, num_classes)
    return nn.Sequential(*layers).eval()


def guided(synthesizer: Any = None, **settings: Any) -> Any:
    synthesizer = tiny() if synthesizer is None else synthesizer
    shape, classes = synthesizer.image_shape, synthesizer.classes
    settings = {"model": classifier(len(classes), shape), "scale": 3.0, **settings}
    return synthesizer.with_settings(classifier_guidance=ClassifierGuidance(**settings))


def brightness(output: Tensor, labels: Tensor) -> Tensor:
    """A criterion that is linear in the image."""
    return output.flatten(1).sum(1)


def toy(flow: bool = False, **settings: Any) -> ClassifierPush:
    return ClassifierPush(
        guidance=ClassifierGuidance(nn.Flatten().eval(), criterion=brightness, **settings),
        labels=torch.zeros(400, dtype=torch.int64),
        denoiser=GaussianFlow(STD) if flow else GaussianDenoiser(STD),
        condition=None,
        prediction_type="flow" if flow else "epsilon",
    )


@pytest.mark.parametrize(
    ("name", "eta", "config"), [*((*one, EPSILON) for one in SAMPLERS), ("ddim", 0.0, FLOW)]
)
def test_a_gaussian_is_tilted_by_exp_of_scale_times_the_criterion(name, eta, config):
    push = toy(config is FLOW, scale=0.8, unit="score")
    with torch.inference_mode():
        images = sample(
            push.denoiser,
            make_scheduler(name, config),
            None,
            Trajectory(num_inference_steps=150, eta=eta),
            shape=(1, 4, 4),
            generators=streams(range(400)),
            pushes=[push],
        )
    # N(0, s^2) times exp(scale x) is N(scale s^2, s^2).
    assert images.mean().item() == pytest.approx(0.8 * STD**2, rel=0.12)
    assert images.std().item() == pytest.approx(STD, abs=0.03)


def test_without_the_denoiser_the_estimate_moves_as_the_noisy_image():
    x = torch.randn(2, 1, 4, 4)
    step = Step(torch.tensor(500), 0.4, 0.6, 0.0)
    noise = GaussianDenoiser(STD)(x, step.t, None)
    for through, slope in ((False, 0.4**-0.5), (True, 0.4**0.5 * 0.25 / (0.4 * 0.25 + 0.6))):
        push = toy(unit="score", through_denoiser=through)
        if through:
            denoiser: Any = push.denoiser
            denoiser.alphas_cumprod = torch.full((1000,), 0.4).double()
        moved = push(x, step, noise)
        torch.testing.assert_close(moved, torch.full_like(x, slope * step.sigma**2 / 2))


CASCADE = "cascade"
KINDS = ["class conditional", "sources", "inversion", CASCADE, "low density"]


def synthesizer_of(kind: str) -> tuple[Any, dict[str, Any]]:
    if kind == "inversion":
        return inversion.learned(), {"ratio": 1}
    if kind == CASCADE:
        return cascades.tiny_cascade(), {"per_class": 2}
    if kind == "sources":
        return tiny().with_sources(Real()), {"per_class": 2, "strength": [0.5, 0.9]}
    if kind == "low density":
        return steered(), {"per_class": 2, "alpha": 0.2, "beta": 0.1}
    return tiny(), {"per_class": 2, "guidance_scale": 2.0}


@pytest.mark.parametrize("kind", KINDS)
def test_without_scale_recipe_plan_and_images_are_those_without_guidance(kind):
    plain, quota = synthesizer_of(kind)
    plan = plain.plan(**quota)
    off, on = guided(plain, scale=0.0), guided(plain, scale=5.0)
    assert off.recipe() == plain.recipe()
    assert off.plan(**quota).digest == plan.digest != on.plan(**quota).digest
    before = plain.draw(plan)
    assert torch.equal(off.draw(plan), before)
    assert (on.draw(plan) - before).abs().max() > 0.01
    steps = on.evaluations(plan) - plain.evaluations(plan)
    assert (steps > 0).all()
    assert (off.evaluations(plan) == plain.evaluations(plan)).all()


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.parametrize("kind", ["class conditional", "inversion"])
def test_a_row_is_guided_the_same_alone_or_in_company(kind, through):
    plain, quota = synthesizer_of(kind)
    synthesizer = guided(plain, through_denoiser=through, criterion="loss", scale=0.3)
    plan = synthesizer.plan(**quota)
    together = to_pixels(synthesizer.draw(plan)).int()
    alone = torch.cat([to_pixels(synthesizer.draw(row)).int() for row in plan.batches(1)])
    # The tiny random network of the inversion magnifies how batches round.
    assert (together - alone).abs().max() <= (12 if kind == "inversion" else 1)


@pytest.mark.parametrize("criterion", ["entropy", "loss", "margin", brightness])
def test_a_step_raises_the_criterion_of_the_predicted_image(criterion):
    model = tiny().model
    sharp = nn.Sequential(classifier(), nn.Linear(4, 4)).eval()
    guidance = ClassifierGuidance(sharp, criterion=criterion, scale=0.05)
    labels = torch.arange(4)
    (push,) = model.guided_by(guidance, labels, NAMES, model.conditions(labels))
    step = Step(torch.tensor(300), float(model.make_scheduler("ddpm").alphas_cumprod[300]), 0.9, 0)

    def value(x: Tensor) -> Tensor:
        by = x.clone().requires_grad_()
        found = []

        def kept(labels: Tensor, images: Tensor, by: Tensor) -> Tensor:
            found.append(guidance.criterion_of(sharp(images), labels).detach())
            return torch.zeros_like(by)

        probe: Any = replace(cast(ClassifierPush, push), guidance=cast(Any, Probe(kept)))
        probe(by.detach(), step, x)
        return found[0]

    x = 0.2 * torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (value(x + push(x, step, x)) > value(x)).all()


class Probe:
    """Guidance that looks at the predicted images and does not push."""

    scale, unit, through_denoiser = 1.0, "length", True

    def __init__(self, gradient: Any) -> None:
        self.gradient = gradient


def test_images_that_are_guided_are_what_the_criterion_asks_for():
    labels = torch.arange(4).repeat_interleave(4)
    model = classifier()
    plan = tiny().plan(per_class=4)
    losses: list[float] = []
    for scale in (-8.0, 0.0, 8.0):
        images = guided(model=model, criterion="loss", scale=scale).draw(plan)
        with torch.inference_mode():
            losses.append(nn.functional.cross_entropy(model(images), labels).item())
    assert losses == sorted(losses)
    assert losses[2] > losses[0] + 0.1


def test_a_latent_model_is_guided_through_its_decoder(stable):
    folder, _ = stable
    base = ClassConditional.from_pretrained(
        folder, classes=["fox", "owl"], sampler={"num_inference_steps": 3}
    )
    plan = base.plan(per_class=1)
    for through in (True, False):
        synthesizer = guided(base, through_denoiser=through)
        assert (synthesizer.draw(plan) - base.draw(plan)).abs().max() > 0.01


def test_classes_are_matched_by_name_and_the_classifier_may_know_more():
    model = classifier(5)
    more = ["dog", "cat", "elk", "bee", "ant"]
    named = guided(model=model, classes=more, criterion="loss", scale=4.0)
    order = [more.index(name) for name in NAMES]
    labels = torch.arange(4)
    guidance = named.classifier_guidance
    assert guidance.numbered(labels, NAMES).tolist() == order
    plan = named.plan(per_class=1)
    with pytest.raises(
        MismatchError, match=r"does not know the class 'bee'.*draws ant, bee, cat, dog"
    ):
        guided(model=model, classes=["ant", "cat", "dog", "elk", "x"])
    assert torch.isfinite(named.draw(plan)).all()


def broken(value: float) -> nn.Module:
    model: Any = classifier()
    with torch.no_grad():
        model[3].bias.fill_(value)
    broken: nn.Module = model
    return broken


def sizes(output: Tensor, labels: Tensor) -> Tensor:
    return output.sum()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": classifier().train()}, ValueError, "training mode.*`model.eval\\(\\)`"),
        ({"model": classifier(3)}, MismatchError, r"returned \(2, 3\).*logits of 4 classes: ant"),
        ({"model": broken(float("nan"))}, ValueError, "is nan for a blank image"),
        ({"model": classifier(shape=(3, 8, 8))}, ValueError, r"not take images of shape \(1, 8, 8"),
        ({"model": "resnet"}, TypeError, "`model` is a str"),
        ({"criterion": "doubt"}, ValueError, "`criterion` must be one of 'entropy'"),
        ({"criterion": lambda output, labels: output}, ValueError, "lambda.*Define it with `def`"),
        ({"criterion": sizes}, ValueError, r"`criterion` returned shape \(\) for 2 images"),
        ({"scale": float("inf")}, ValueError, "`scale` must be finite"),
        ({"unit": "pixels"}, ValueError, "`unit` must be one of"),
    ],
    ids=lambda value: "" if isinstance(value, type) else None,
)
def test_what_cannot_guide_is_refused_before_any_work(settings, error, message):
    with pytest.raises(error, match=message):
        guided(**settings)


def test_schedulers_that_a_push_would_mislead_are_refused():
    with pytest.raises(ValueError, match="steps cannot be pushed"):
        guided(tiny(scheduler="EulerDiscreteScheduler"))


class Blind(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), 4)


class Exploding(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :4].abs().sqrt() * 0 + (images.flatten(1)[:, :4] * 0).sqrt()


def test_a_gradient_that_is_missing_or_not_finite_says_so():
    synthesizer = guided(model=Blind().eval())
    with pytest.raises(ValueError, match="not differentiable"):
        synthesizer.draw(synthesizer.plan(per_class=1))
    synthesizer = guided(model=Exploding().eval())
    with pytest.raises(DivergedError, match="gradient of `criterion` entropy is NaN"):
        synthesizer.draw(synthesizer.plan(per_class=1))


def test_the_recipe_knows_the_classifier_and_a_cache_refuses_another(tmp_path):
    synthesizer = guided(criterion=brightness)
    recipe = synthesizer.recipe()
    settings = recipe["settings"]["classifier_guidance"]
    assert settings["criterion"] == "tests.test_classifier_guidance.brightness"
    assert settings["scale"] == 3.0
    plan = synthesizer.plan(per_class=1)
    generate(synthesizer, plan, tmp_path / "cache.h5", progress=False)
    other = guided(model=broken(0.5), criterion=brightness)
    assert other.recipe()["weights"]["classifier"] != recipe["weights"]["classifier"]
    with pytest.raises(MismatchError, match="classifier"):
        generate(other, other.plan(per_class=1), tmp_path / "cache.h5", progress=False)
    with pytest.raises(TypeError, match="`classifier_guidance` cannot be saved"):
        synthesizer.save_pretrained(tmp_path / "model")


def test_a_cascade_is_given_its_guidance_itself():
    cascade = cascades.tiny_cascade()
    base = guided(cascade.base)
    with pytest.raises(ValueError, match="`base` has a `classifier_guidance`"):
        cascade.with_settings(base=base)


# Pipelines of diffusers


@pytest.fixture(scope="module")
def stable(tmp_path_factory):
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("stable")
    return folder, write_stable_diffusion(folder)


def painter(pipeline: Any, **settings: Any) -> FromPipeline:
    given = {"prompts": "see {}", "num_inference_steps": 4, "height": 8, "width": 8, **settings}
    return FromPipeline(pipeline, ("fox", "owl"), **given)


@pytest.mark.parametrize(
    "kind",
    ["DDIM", "DPMSolverMultistep", "EulerDiscrete", "FlowMatchEulerDiscrete"],
)
def test_the_latents_show_what_a_step_of_a_pipeline_predicted(kind, monkeypatch):
    import diffusers

    cls = getattr(diffusers, f"{kind}Scheduler")
    config: dict[str, Any] = {"clip_sample": False} if kind == "DDIM" else {}
    config |= {"solver_order": 1} if kind.startswith("DPM") else {}
    scheduler = cls(**config)
    scheduler.set_timesteps(5)
    torch.manual_seed(0)
    x0 = torch.randn(2, 1, 4, 4)
    seen = []

    def kept(output: Tensor, labels: Tensor) -> Tensor:
        seen.append(output.detach())
        return output.flatten(1).sum(1)

    guidance = ClassifierGuidance(nn.Identity().eval(), criterion=kept, scale=1e-9)
    callback = guidance.callback(torch.zeros(2, dtype=torch.int64))

    class Pipeline:
        def __init__(self) -> None:
            self.components: dict[str, Any] = {}

    pipeline: Any = Pipeline()
    pipeline.scheduler = scheduler
    latents = torch.randn(2, 1, 4, 4) * getattr(scheduler, "init_noise_sigma", 1.0)
    for i, t in enumerate(scheduler.timesteps):
        shown = scheduler.scale_model_input(latents, t) if "Flow" not in kind else latents
        if "Flow" in kind:
            predicted = (shown - 0.3 * x0) / scheduler.sigmas[i]
        else:
            a = scheduler.alphas_cumprod[int(t)]
            if kind == "EulerDiscrete":
                a = 1 / (1 + scheduler.sigmas[i] ** 2)
            predicted = (shown - a.sqrt() * 0.3 * x0) / (1 - a).sqrt()
        latents = scheduler.step(predicted, t, latents).prev_sample
        latents = callback(pipeline, i, t, {"latents": latents})["latents"]
    assert len(seen) == 3  # neither the first step nor the last
    for images in seen:
        torch.testing.assert_close(images, (0.3 * x0).clamp(-1, 1), atol=2e-3, rtol=0)


def test_a_pipeline_is_guided_through_its_callback(stable):
    _, pipeline = stable
    plain = painter(pipeline)
    plan = plain.plan(per_class=2)
    model = classifier(2, (3, 8, 8))
    off = painter(pipeline, classifier_guidance=ClassifierGuidance(model, scale=0.0))
    assert off.recipe() == plain.recipe()
    assert torch.equal(off.draw(plan), plain.draw(plan))
    on = painter(pipeline, classifier_guidance=ClassifierGuidance(model, scale=4.0))
    assert "classifier" in str(on.recipe()["weights"])
    assert (on.draw(plan) - plain.draw(plan)).abs().max() > 0.01
    wrong = painter(pipeline, classifier_guidance=ClassifierGuidance(classifier(3, (3, 8, 8))))
    with pytest.raises(MismatchError, match="logits of 2 classes: fox, owl"):
        wrong.draw(plan)


def test_pipelines_that_cannot_be_guided_are_refused(stable):
    from diffusers import DDPMPipeline, DDPMScheduler

    guidance = ClassifierGuidance(classifier(2, (3, 8, 8)))
    without = DDPMPipeline(tiny_unet(num_classes=None), DDPMScheduler())
    with pytest.raises(ValueError, match=r"takes no `callback_on_step_end`.*ClassConditional"):
        FromPipeline(without, ["dot"], classifier_guidance=guidance)
    with pytest.raises(ValueError, match=r"steps without noise \(`eta` 0\)"):
        painter(stable[1], classifier_guidance=guidance, eta=1.0)
    before = stable[1].scheduler
    stable[1].scheduler = DDPMScheduler()
    try:
        noisy = painter(stable[1], classifier_guidance=guidance)
        plan = noisy.plan(per_class=1)
        with pytest.raises(ValueError, match="is DDPMScheduler, whose steps do not show"):
            noisy.draw(plan)
    finally:
        stable[1].scheduler = before


def test_low_density_passes_the_guidance_to_its_base():
    synthesizer = guided(steered())
    assert isinstance(synthesizer, LowDensity)
    assert synthesizer.base.classifier_guidance is not None


def test_the_command_line_guides_by_a_torchscript_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny().save_pretrained("model")
    torch.jit.save(torch.jit.trace(classifier(), torch.zeros(2, 1, 8, 8)), "judge.pt")
    few = ["--per-class", "1", "--num-inference-steps", "3"]
    judge = ["--classifier", "torchscript:judge.pt", "--criterion", "loss"]
    succeed("generate", "model", "plain.h5", *few)
    strong = [*judge, "--classifier-scale", "4", "--trust-torchscript"]
    succeed("generate", "model", "guided.h5", *few, *strong)
    plain, steered = SynthCache("plain.h5"), SynthCache("guided.h5")
    settings = steered.manifest["recipe"]["settings"]["classifier_guidance"]
    assert (settings["criterion"], settings["scale"]) == ("loss", 4.0)
    assert not torch.equal(plain.read(range(4)), steered.read(range(4)))
    assert "--trust-torchscript" in fail(2, "generate", "model", "x.h5", *few, *judge)
    assert "`--criterion` needs `--classifier`" in fail(
        2, "generate", "model", "x.h5", *few, "--criterion", "loss"
    )
