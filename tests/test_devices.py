"""On a pretended GPU: nothing mixes devices, and steps neither copy nor wait without need."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from synthaug import TrainingConfig, generate
from synthaug._training.network_config import DenoiserConfig, LabeledConfig
from synthaug.degradations import Blur
from synthaug.evaluation import AdversarialConfig
from synthaug.guidance import ClassifierGuidance
from synthaug.images import LabeledImages
from synthaug.synthesizers._fit import FitJob
from synthaug.synthesizers._losses import LossGrid
from synthaug.synthesizers.class_conditional._config import DistillationConfig
from synthaug.synthesizers.class_conditional._distillation import DistillJob
from synthaug.synthesizers.cold._config import RestorerConfig
from synthaug.synthesizers.cold._fit import ColdFitJob
from synthaug.synthesizers.inversion._config import TokenConfig
from synthaug.synthesizers.inversion._fit import InversionJob, run_pass
from synthaug.synthesizers.inversion._tokens import TokenFitJob
from synthaug.transforms import ColdRestore, DenoiseOnce, MixSynthetic
from tests.classifiers import FAST, evaluate, linear
from tests.images import to_pixels
from tests.pretended import PretendedGPU, on_gpu
from tests.tiny import cascades, class_conditional, cold, inversions, low_density


class Linear(nn.Module):
    """A classifier of 8x8 images."""

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64 * channels, 4)
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.flatten(1))


GUIDANCE = ClassifierGuidance(Linear(), scale=0.5)
REAL = class_conditional.Real()
ONE_LEVEL = 2 / 255


# Synthesizers of three steps, arguments of the plan, and what a draw of three rows may cost: copies
# that the host waits for (ancestral steps need noise, which diffusers copies from the CPU), and
# other waits (is a gradient finite?).
DRAWN: dict[str, tuple[Callable[[], Any], dict[str, Any], int, int]] = {
    "guided": (lambda: tiny(), {"guidance_scale": [1.0, 3.0]}, 0, 0),
    "ancestral": (lambda: tiny(scheduler="ddpm"), {"guidance_scale": 2.0}, 3, 0),
    "variants": (lambda: tiny().with_sources(REAL), {"strength": 0.7}, 2, 0),
    "classifier": (lambda: tiny(classifier_guidance=GUIDANCE), {}, 0, 2),
    "low density": (lambda: low_density.steered(tiny()), {"alpha": [0.0, 1.0], "beta": 0.5}, 0, 0),
    "inversion": (lambda: inversions.learned(), {"guidance_scale": 2.0}, 0, 0),
    "cold": (lambda: cold.tiny(num_steps=3).with_sources(cold.Real()), {"severity": 0.9}, 1, 0),
    "cold generator": (lambda: cold.generator(num_steps=3), {}, 1, 0),
    "cascade": (lambda: cascades.tiny_cascade(), {"guidance_scale": 2.0}, 0, 0),
}


def tiny(**settings: Any) -> Any:
    return class_conditional.tiny(**{"num_inference_steps": 3, **settings})


@pytest.mark.parametrize("name", DRAWN)
def test_a_draw_stays_on_its_device_and_seldom_waits_for_it(name):
    make, columns, copies, waits = DRAWN[name]
    synthesizer = make()
    plan = synthesizer.plan(per_class=2, seed=0, **columns)[:3]
    with PretendedGPU() as gpu:
        there = on_gpu(synthesizer)
        gpu.counts.clear()
        images = there.draw(plan)
    assert type(images) is torch.Tensor  # on the CPU
    torch.testing.assert_close(images, synthesizer.draw(plan), atol=ONE_LEVEL, rtol=0)
    assert gpu.counts["to the device"] <= copies
    assert gpu.counts["waits"] <= waits
    assert gpu.counts["from the device"] <= (2 if name == "cascade" else 1)


SMALL: dict[str, Any] = {"channels": 8, "num_layers": 1, "horizontal_flip": True}
JOBS: dict[str, Callable[[], Any]] = {
    "class conditional": lambda: FitJob(REAL, None, LabeledConfig(**SMALL)),
    "cold": lambda: ColdFitJob(
        REAL, Blur(num_levels=4, kernel_size=5), RestorerConfig(**SMALL), seed=0
    ),
    "stage": cascades.job,
    "student": lambda: DistillJob(tiny().model, REAL, DistillationConfig(guidance_scale=2.0)),
    "tokens": lambda: TokenFitJob(
        REAL, TokenConfig(num_tokens=2, token_width=8), DenoiserConfig(**SMALL)
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_training_step_stays_on_its_device_and_never_waits_for_it(job):
    made = JOBS[job]()
    rows = np.arange(4)
    network = made._build()
    torch.manual_seed(1)
    loss = made._loss(network, rows)
    with PretendedGPU() as gpu:
        there = on_gpu(network)
        torch.manual_seed(1)
        made._loss(there, rows)  # what is moved once is there now
        gpu.counts.clear()
        torch.manual_seed(1)
        lost = made._loss(there, rows)
        lost.backward()
        assert gpu.counts["to the device"] == gpu.counts["waits"] == 0
        assert lost.item() == pytest.approx(loss.item(), rel=1e-3)


def test_a_training_run_looks_at_the_device_now_and_then(tmp_path):
    with PretendedGPU() as gpu:
        counts = []
        for steps in (1, 2):
            config = TrainingConfig(
                steps=steps, batch_size=4, device="cuda:0", precision="float32", log_with=None
            )
            JOBS["class conditional"]().run(
                tmp_path / str(steps), config, on_checkpoint=lambda network: None, progress=False
            )
            counts.append(gpu.counts.copy())
            gpu.counts.clear()
    few, many = counts
    assert many["to the device"] == few["to the device"]
    assert many["from the device"] - few["from the device"] <= 1  # a loss per point of the log


def test_an_update_of_embeddings_stays_on_its_device():
    found = []
    for place in (lambda value: value, on_gpu):
        with PretendedGPU() as gpu:
            synthesizer = place(inversions.generator())
            job = InversionJob(synthesizer.model, None, inversions.Real(), inversions.config())
            block = job._block(np.arange(3))
            run_pass(job.model.denoiser, job.scheduler, block, job.config)  # copies the schedule
            gpu.counts.clear()
            total, _ = run_pass(job.model.denoiser, job.scheduler, block, job.config)
            assert gpu.counts["to the device"] == gpu.counts["waits"] == 0
            found.append(float(total))
    assert found[1] == pytest.approx(found[0], rel=1e-4)


@pytest.mark.parametrize("augment", ["standard", "cutmix"])
@pytest.mark.parametrize("attack", [None, AdversarialConfig(epsilon=0.1, steps=1, test_steps=1)])
def test_a_step_of_an_evaluation_stays_on_its_device(augment, attack):
    images = LabeledImages(REAL.pixels, np.array(REAL.targets), REAL.classes)
    settings = {**FAST, "test": images, "allow_overlap": True, "seeds": 1, "model": linear}
    with PretendedGPU() as gpu:
        copies = []
        for steps in (1, 3):
            gpu.counts.clear()
            report = evaluate(
                {"real": images},
                **settings | {"steps": steps, "device": "cuda:0"},
                augment=augment,
                adversarial=attack,
                precision="float32",
            )
            copies.append(gpu.counts["to the device"])
    assert copies[0] == copies[1]
    expected = evaluate(
        {"real": images}, **settings | {"steps": 3}, augment=augment, adversarial=attack
    )
    assert report.runs[0].loss_curve[-1][1] == pytest.approx(
        expected.runs[0].loss_curve[-1][1], rel=1e-4
    )


def test_mixing_restoring_and_drawing_on_the_fly_stay_on_their_devices(tmp_path):
    synthesizer = tiny()
    plan = synthesizer.plan(per_class=1, seed=0)
    cache = generate(synthesizer, plan, tmp_path / "c.h5", progress=False)
    images, labels = REAL.pixels, torch.tensor(REAL.targets)
    mix = MixSynthetic(cache, audit=None, fraction=0.5)
    with PretendedGPU():
        there = on_gpu(synthesizer)
        restore = ColdRestore(on_gpu(cold.tiny(image_shape=(3, 8, 8))), p=1.0)
        batch = restore(cold.Real().pixels.to("cuda:0"))
        assert batch.device.type == "cuda"
        mixed, kept = mix(images.to("cuda:0"), labels.to("cuda:0"))
        assert mixed.device == kept.device == torch.device("cuda:0")
        assert DenoiseOnce(there, p=1.0)(images.to("cuda:0")).device.type == "cuda"
        drawn = there.draw(plan)
        losses = there.restoration_losses(images, labels.numpy(), LossGrid(levels=2, draws=1))
    torch.testing.assert_close(
        to_pixels(drawn).float(), cache.read(np.arange(4)).float(), atol=1, rtol=0
    )
    expected = synthesizer.restoration_losses(images, labels.numpy(), LossGrid(levels=2, draws=1))
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
