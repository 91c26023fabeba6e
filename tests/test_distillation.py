"""Students that draw in a few steps: what they are taught, what they draw, what they refuse."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from synthaug import ClassConditional, SamplerConfig, TrainingConfig
from synthaug._cache.citations import papers
from synthaug.errors import CheckpointError, MismatchError
from synthaug.samplers import Trajectory, sample
from synthaug.synthesizers import (
    DiffusionModel,
    DistillationConfig,
    LossGrid,
    LowDensity,
    streams,
)
from synthaug.synthesizers.class_conditional._distillation import DistillJob
from synthaug.transforms import DenoiseOnce
from tests.checkpoints import cosine_config, tiny_unet
from tests.command_line import fail, succeed
from tests.tiny.class_conditional import Real, tiny

FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.0}
SCHEDULERS = {"v": cosine_config(), "flow": FLOW}
STD = 0.5


class GaussianTeacher(DistillJob):
    """A job whose teacher is the best one for independent values of N(0, 0.5^2)."""

    def _taught(self, x: Any, t: Any, condition: Any) -> Any:
        if self.teacher.prediction_type == "flow":
            noise, image = t / 1000, 1 - t / 1000
        else:
            signal = self._scheduler.alphas_cumprod[t]
            image, noise = signal.sqrt(), (1 - signal).sqrt()
        image, noise = image.view(-1, 1, 1, 1), noise.view(-1, 1, 1, 1)
        x0 = image * STD**2 / (image**2 * STD**2 + noise**2) * x
        eps = noise / (image**2 * STD**2 + noise**2) * x
        return eps - x0 if self.teacher.prediction_type == "flow" else image * eps - noise * x0


class Obedient:
    """A student that says exactly what it was taught, which of Gaussians is linear in x."""

    device = torch.device("cpu")

    def __init__(self, lessons: dict[float, float]) -> None:
        self.lessons = lessons

    def __call__(self, x: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
        return x * self.lessons[float(t)]


@pytest.mark.parametrize("kind", SCHEDULERS)
@pytest.mark.parametrize("evaluations", [1, 2, 3])
def test_a_perfect_student_of_gaussians_draws_what_their_flow_of_probability_does(
    kind, evaluations
):
    """That is 0.5 times the noise. Sampler and lessons are held together: they must agree about
    every timestep and level."""
    config = DistillationConfig(evaluations=evaluations, teacher_steps=300)
    job = GaussianTeacher(tiny(scheduler_config=SCHEDULERS[kind]).model, Real(), config)
    step = torch.arange(evaluations)
    x0, noise = torch.randn(2, evaluations, 1, 8, 8)
    x, t, target = job.lesson(x0, noise, step, None)
    assert t[-1] > 300  # the last step is not shorter than the others
    factors = (target / x).flatten(1)
    torch.testing.assert_close(factors, factors.mean(1, keepdim=True).expand_as(factors))
    drawn, noise = obeyed(job, t, factors.mean(1))
    torch.testing.assert_close(drawn, STD * noise, atol=2e-2, rtol=0)


def obeyed(job: DistillJob, t: torch.Tensor, factors: torch.Tensor) -> tuple[Any, Any]:
    """What the sampler makes of noise with a student that multiplies by these factors."""
    seeds = np.arange(2, dtype=np.uint64)
    drawn = sample(
        Obedient(dict(zip(t.tolist(), factors.tolist(), strict=True))),
        job.student.scheduler(job.sampler),
        None,
        Trajectory(num_inference_steps=len(t)),
        shape=(1, 8, 8),
        generators=streams(seeds),
    )
    return drawn, torch.stack([torch.randn(1, 8, 8, generator=g) for g in streams(seeds)])


class LinearTeacher(DistillJob):
    """A job whose teacher says 0.3 times what it sees."""

    def _taught(self, x: Any, t: Any, condition: Any) -> Any:
        return 0.3 * x


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("evaluations", [3, 7])
def test_a_student_arrives_exactly_where_its_teacher_does_whatever_its_number_of_steps(
    prediction, evaluations
):
    """diffusers' DDIM steps by 333 of 1,000 timesteps, or 142: not to where its next step begins,
    nor to the clean image."""
    config = DistillationConfig(evaluations=evaluations, teacher_steps=1)
    schedule = cosine_config(prediction_type=prediction)
    job = LinearTeacher(tiny(scheduler_config=schedule).model, Real(), config)
    x0, noise = torch.randn(2, evaluations, 1, 8, 8)
    x, t, target = job.lesson(x0, noise, torch.arange(evaluations), None)
    drawn, noise = obeyed(job, t, (target / x).flatten(1)[:, 0])
    signals = job._scheduler.alphas_cumprod.double()
    visited = [signals[-1], *signals[t - 1000 // evaluations][:-1], torch.tensor(1.0)]
    factor = torch.tensor(1.0, dtype=torch.float64)
    for signal, after in pairwise(visited):
        (a, b), (c, d) = ((s.sqrt(), (1 - s).sqrt()) for s in (signal, after))
        clean = 0.3 if prediction == "sample" else a - 0.3 * b
        factor *= c * clean + d * (1 - a * clean) / b
    torch.testing.assert_close(drawn, float(factor) * noise, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("steps", [2, 10])
def test_a_student_of_one_step_draws_what_its_teacher_does_by_dpm_solver(prediction, steps):
    config = DistillationConfig(evaluations=1, teacher_steps=steps)
    schedule = cosine_config(prediction_type=prediction)
    job = LinearTeacher(tiny(scheduler_config=schedule).model, Real(), config)
    x0, noise = torch.randn(2, 1, 1, 8, 8)
    x, t, target = job.lesson(x0, noise, torch.tensor([0]), None)
    drawn, noise = obeyed(job, t, (target / x).flatten(1)[:, 0])
    solver: Any = DPMSolverMultistepScheduler.from_config(schedule)
    solver.set_timesteps(steps)
    for visited in solver.timesteps:
        noise = solver.step(0.3 * noise, visited, noise).prev_sample
    torch.testing.assert_close(drawn, noise, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", SCHEDULERS)
def test_a_few_steps_of_the_teacher_are_as_good_as_very_many(kind):
    """Of the second order: their error is a quarter of that of twice as large ones, and not half,
    at each step of the student that ends before the clean image."""
    model, step = tiny(scheduler_config=SCHEDULERS[kind]).model, torch.tensor([1])
    x0, noise = torch.randn(2, 1, 1, 8, 8)
    lessons = [
        GaussianTeacher(model, Real(), DistillationConfig(evaluations=3, teacher_steps=n)).lesson(
            x0, noise, step, None
        )[2]
        for n in (8, 16, 320)
    ]
    errors = [float((few - lessons[-1]).norm()) for few in lessons[:2]]
    assert errors[1] < 0.3 * errors[0]


def test_a_student_of_a_flow_that_was_drawn_with_noise_is_deterministic():
    config = {**FLOW, "stochastic_sampling": True}
    job = DistillJob(tiny(scheduler_config=config).model, Real(), DistillationConfig())
    assert not job.student.scheduler(job.sampler).config.stochastic_sampling


def test_a_guided_teacher_teaches_its_guidance():
    config = DistillationConfig(evaluations=1, teacher_steps=1, guidance_scale=3.0)
    model = tiny(scheduler_config=FLOW).model
    x0, noise = torch.randn(2, 2, 1, 8, 8)
    labels = torch.tensor([1, 2])
    x, t, target = DistillJob(model, Real(), config).lesson(
        x0, noise, torch.zeros(2).long(), labels
    )
    network: Any = model.network
    with torch.no_grad():
        told, null = (network(x, t, class_labels=y).sample for y in (labels, torch.tensor([4, 4])))
    torch.testing.assert_close(x, noise)  # of one step alone the lesson is the prediction itself
    torch.testing.assert_close(target, null + 3 * (told - null), atol=1e-5, rtol=1e-5)


# A student, from the command line


@pytest.fixture(scope="module")
def runs(tmp_path_factory, digits) -> Path:
    """A teacher of digits, and its student of two steps."""
    folder = tmp_path_factory.mktemp("runs")
    model = DiffusionModel(
        network=tiny_unet(10),
        scheduler_config=cosine_config(),
        classes=digits.classes,
        image_shape=(1, 8, 8),
        trained_on={"labeled": {"fingerprint": "of the teacher"}},
    )
    ClassConditional(model=model, sampler=SamplerConfig(num_inference_steps=2)).save_pretrained(
        folder / "teacher"
    )
    text = succeed(
        *("train", "digits", folder / "student", "--method", "distill", "--base"),
        *(folder / "teacher", "--evaluations", 2, "--teacher-steps", 2, "--steps", 1),
        *("--batch-size", 2, "--guidance-scale", 2, "--device", "cpu"),
    )
    assert f"Next: synthaug generate {folder / 'student'} CACHE.h5 --per-class 100" in text
    return folder


def load(runs: Path, name: str = "student", **sampler: Any) -> ClassConditional:
    return ClassConditional.from_pretrained(runs / name, device="cpu", sampler=sampler)


def test_a_student_names_its_teacher_and_its_images_are_a_function_of_their_rows(runs):
    student, teacher = load(runs), load(runs, "teacher")
    assert student.sampler == SamplerConfig(scheduler="ddim", num_inference_steps=2)
    recipe: Any = student.recipe()
    trained_on: Any = student.trained_on
    assert recipe["settings"]["distilled"] == {
        "evaluations": 2,
        "teacher_steps": 2,
        "guidance_scale": 2.0,
        "teacher": teacher.model.weights,
    }
    assert trained_on["base"]["labeled"] == {"fingerprint": "of the teacher"}
    assert student.model.weights != teacher.model.weights
    plan = student.plan(per_class=1)
    assert (student.evaluations(plan) == 2).all()
    torch.testing.assert_close(student.draw(plan[3:5]), student.draw(plan)[3:5], atol=1e-5, rtol=0)


def test_a_student_draws_in_its_own_steps_only(runs, tmp_path):
    message = fail(
        2, "generate", runs / "student", tmp_path / "c.h5", "--per-class", 1, "--device", "cpu",
        "--scheduler", "dpmsolver++", "--num-inference-steps", 10,
    )  # fmt: skip
    assert "are dpmsolver++, 10 and 0, but this checkpoint is a student" in message
    for sampler in ({"num_inference_steps": 4}, {"eta": 1.0}, {"scheduler": "ddpm"}):
        with pytest.raises(ValueError, match="distilled to draw in ddim, 2 and 0"):
            load(runs, **sampler)
    assert load(runs, scheduler=None).recipe() == load(runs).recipe()
    student = load(runs)
    with pytest.raises(ValueError, match=r"was distilled at the scale 2\.0, and keeps it"):
        student.plan(per_class=1, guidance_scale=3.0)
    hardness: Any = None  # that of the teacher, perhaps
    one, label = torch.zeros(1, 1, 8, 8, dtype=torch.uint8), np.array([0])
    for misuse in (
        lambda: student.distill(Real(), tmp_path / "twice"),
        lambda: student.restoration_losses(one, label, LossGrid()),
        lambda: LowDensity(base=student, hardness=hardness),
        lambda: DenoiseOnce(student),
    ):
        with pytest.raises(CheckpointError, match="is a student that was distilled"):
            misuse()


@pytest.mark.parametrize(
    ("scheduler", "config", "error", "message"),
    [
        ({"prediction_type": "epsilon"}, {}, CheckpointError, "The teacher predicts the noise"),
        ({}, {"evaluations": 0}, ValueError, "`evaluations` must be at least 1"),
        ({}, {"evaluations": 40, "teacher_steps": 26}, ValueError, "is 1,040, more than the 1,000"),
        ({}, {"guidance_scale": -1.0}, ValueError, "`guidance_scale`"),
    ],
)
def test_what_cannot_be_distilled_is_refused(tmp_path, scheduler, config, error, message):
    teacher = tiny(scheduler_config=cosine_config(**scheduler))
    with pytest.raises(error, match=message):
        teacher.distill(Real(), tmp_path, DistillationConfig(**config))


def test_the_paper_is_cited_whatever_the_student_predicts():
    job = DistillJob(tiny(scheduler_config=FLOW).model, Real(), DistillationConfig())
    student = ClassConditional(model=job.student, sampler=job.sampler)
    made = SimpleNamespace(manifest={"recipe": student.recipe()}, plan=student.plan(per_class=1))
    assert "salimans2022progressive" in {paper.key for paper in papers(made)}


def test_the_teacher_is_not_overwritten(runs):
    message = fail(
        2, "train", "digits", runs / "teacher", "--method", "distill", "--base", runs / "teacher",
        "--steps", 1, "--device", "cpu",
    )  # fmt: skip
    assert "which holds a checkpoint that is not a student and would be overwritten" in message


def test_images_of_other_classes_are_refused(tmp_path):
    real = Real()
    real.classes = ("ant", "bee", "cat", "emu")
    with pytest.raises(MismatchError, match="real images have the classes ant, bee, cat, emu"):
        tiny().distill(real, tmp_path)


def test_a_student_gets_near_its_teacher_and_a_run_that_was_stopped_ends_alike(tmp_path):
    teacher = tiny(num_inference_steps=4)
    few = DistillationConfig(evaluations=1, teacher_steps=4)
    common: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0}

    def student(out: str, steps: int) -> ClassConditional:
        config = TrainingConfig(steps=steps, ema_decay=0.5, device="cpu", **common)
        return teacher.distill(Real(), tmp_path / out, few, config=config, progress=False)[0]

    whole = student("whole", 8)
    student("stopped", 4)
    assert student("stopped", 8).model.weights == whole.model.weights
    plan = teacher.plan(per_class=2)
    at_once = replace(teacher, sampler=whole.sampler)
    expected = teacher.draw(plan)
    before, after = ((one.draw(plan) - expected).square().mean() for one in (at_once, whole))
    assert after < before / 2


def test_a_run_that_other_lessons_began_is_not_continued(tmp_path, monkeypatch):
    identity = DistillJob._identity
    few = DistillationConfig(evaluations=1, teacher_steps=2)
    config = TrainingConfig(steps=1, batch_size=4, device="cpu")

    def before(self, module):
        return {k: v for k, v in identity(self, module).items() if k != "lessons"}

    monkeypatch.setattr(DistillJob, "_identity", before)
    tiny().distill(Real(), tmp_path, few, config=config, progress=False)
    monkeypatch.setattr(DistillJob, "_identity", identity)
    with pytest.raises(MismatchError, match="lessons"):
        tiny().distill(Real(), tmp_path, few, config=replace(config, steps=2), progress=False)
