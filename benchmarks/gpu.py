"""Everything that a GPU could get wrong or do slowly, in one command and one file.

    python benchmarks/gpu.py                         # all parts on the accelerator, about 8 minutes
    python benchmarks/gpu.py --device cpu --tiny     # that it runs to its end: about a minute
    python benchmarks/gpu.py --only agreement memory

Nothing is downloaded: networks have random weights, images are made up. Parts that are in the file
already are not run again, so a run that was killed goes on; `--again` begins anew. A part whose
package is missing here, or that needs what this device has not, is skipped, and the file says why.
A part that fails is in the file with its error, and the next one runs; the exit status is then 1.

Gate of `agreement`: images of the device differ from those of the CPU by one gray level at most.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import RESULTS, machine
from torch import Tensor, nn

PARTS: dict[str, Callable[["Place"], Mapping[str, Any]]] = {}
SCHEDULERS = (
    "ddpm",
    "ddim",
    "dpmsolver++",
    "DEISMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
)
CONFIG = {
    "_class_name": "DDPMScheduler",
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
}
CLASSES = ("a", "b", "c", "d")


class Skipped(Exception):
    """Why a part does not run here."""


def part(work: Callable[["Place"], Mapping[str, Any]]) -> Callable[["Place"], Mapping[str, Any]]:
    """Registers a part, in the order of this file."""
    PARTS[work.__name__] = work
    return work


@dataclass(frozen=True)
class Place:
    """Where to measure, how large, and until when."""

    device: torch.device
    tiny: bool
    ends: float
    """Reading of `time.monotonic` by which to be done."""

    @property
    def size(self) -> int:
        """Pixels of a side."""
        return 8 if self.tiny else 32

    @property
    def channels(self) -> int:
        """Channels of the first level of our networks."""
        return 8 if self.tiny else 64

    @property
    def steps(self) -> int:
        """Denoising steps where only time or agreement counts."""
        return 2 if self.tiny else 10

    def pick(self, whole: Any, tiny: Any) -> Any:
        """One of two, by size."""
        return tiny if self.tiny else whole

    def wait(self) -> None:
        """Until the device has done all that it was asked for."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)

    def seconds(self, work: Callable[[], object], rounds: int = 3) -> float:
        """The best time of some rounds, after one to warm up."""
        times = []
        for _ in range(1 + (1 if self.tiny else rounds)):
            self.wait()
            started = time.perf_counter()
            work()
            self.wait()
            times.append(time.perf_counter() - started)
        return min(times[1:])

    def needs_cuda(self) -> None:
        """Skips the part elsewhere."""
        if self.device.type != "cuda":
            raise Skipped(f"needs a CUDA device, this is {self.device}")


# -- what is measured ------------------------------------------------------------------------------


def network(place: Place, device: torch.device | str) -> Any:
    """A class-conditional network with random weights, the same on every device."""
    from synthaug.denoisers import build_unet

    torch.manual_seed(0)
    shape = (3, place.size, place.size)
    made = build_unet(shape, num_classes=len(CLASSES), channels=place.channels)
    return made.eval().requires_grad_(False).to(device)


def conditional(place: Place, device: torch.device | str, **sampler: Any) -> Any:
    from synthaug import ClassConditional, SamplerConfig
    from synthaug.synthesizers import DiffusionModel

    model = DiffusionModel(
        network=network(place, device),
        scheduler_config=CONFIG,
        classes=CLASSES,
        image_shape=(3, place.size, place.size),
    )
    config = SamplerConfig(**{"num_inference_steps": place.steps, **sampler})
    return ClassConditional(model=model, sampler=config)


def restorer(place: Place, device: torch.device | str, degradation: Any) -> Any:
    from synthaug import ColdDiffusion
    from synthaug.denoisers import build_unet

    torch.manual_seed(0)
    shape = (3, place.size, place.size)
    made = build_unet(shape, num_classes=None, channels=place.channels).eval()
    return ColdDiffusion(
        network=made.requires_grad_(False).to(device),
        degradation=degradation,
        image_shape=shape,
        classes=CLASSES,
        num_steps=place.steps,
    ).with_sources(pictures(place))


def pictures(place: Place, n: int = 64) -> Any:
    """Blots of a color for each class."""
    from synthaug.images import LabeledImages

    rng = np.random.default_rng(0)
    labels = np.arange(n) % len(CLASSES)
    side = np.arange(place.size)
    centers = rng.uniform(0.2, 0.8, (n, 2, 1)) * place.size
    across = np.exp(-(((side - centers[:, :1]) / place.size) ** 2) * 20)
    down = np.exp(-(((side - centers[:, 1:]) / place.size) ** 2) * 20)
    colors = 60 + 195 * rng.random((len(CLASSES), 3))[labels]
    levels = colors[:, :, None, None] * (down.transpose(0, 2, 1) * across)[:, None]
    return LabeledImages(torch.from_numpy(levels.astype(np.uint8)), labels, CLASSES)


def levels_apart(one: Tensor, other: Tensor) -> dict[str, float]:
    """How far apart images in [-1, 1] are, in gray levels."""
    away = ((one - other) * 127.5).abs()
    return {"most": float(away.max()), "mean": float(away.mean())}


class Blocks(nn.Module):
    """A network of torch alone, for what needs no diffusion model."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Conv2d(3, channels, 3, padding=1),
            *(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(4)),
            nn.Conv2d(channels, 3, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images to images."""
        return self.layers(x).tanh()


class Convolved:
    """A synthesizer without diffusers: the noise of each row through `Blocks`."""

    classes = CLASSES

    def __init__(self, place: Place, channels: int = 64) -> None:
        self.device, self.image_shape = place.device, (3, place.size, place.size)
        self.network = Blocks(8 if place.tiny else channels).to(place.device)

    @torch.inference_mode()
    def draw(self, rows: Any) -> Tensor:
        """One image per row, on the CPU."""
        from synthaug._noise import randn, streams

        return self.network(randn(streams(rows["seed"]), self.image_shape).to(self.device)).cpu()

    def recipe(self) -> dict[str, Any]:
        """Returns the identity of its images."""
        return {"synthesizer": "Convolved", "settings": {}, "weights": {"network": "seed 0"}}


def rows_of(count: int) -> Any:
    from synthaug import Plan

    quota = [count // len(CLASSES)] * len(CLASSES)
    return Plan.build(quota, classes=CLASSES, settings={}, seed=0)


# -- parts -----------------------------------------------------------------------------------------


@part
def agreement(place: Place) -> Mapping[str, Any]:
    """Images of the device beside those of the CPU, for every scheduler, method and degradation."""
    from synthaug import degradations
    from synthaug.guidance import ClassifierGuidance

    drawn: dict[str, dict[str, float]] = {}

    def compare(name: str, make: Callable[[Any], Any], batch: int, **columns: Any) -> None:
        here, there = make("cpu"), make(place.device)
        plan = here.plan(per_class=-(-batch // len(here.classes)), seed=0, **columns)[:batch]
        drawn[f"{name}, batch {batch}"] = levels_apart(here.draw(plan), there.draw(plan))

    batch = place.pick(7, 2)
    for scheduler in SCHEDULERS:
        how = {"scheduler": scheduler}
        compare(scheduler, partial(conditional, place, **how), batch)
    for size in place.pick((1, 64, 256), (1,)):
        compare("guided", lambda d: conditional(place, d), size, guidance_scale=2.0)
    for scale in place.pick((1.0, 4.0), (4.0,)):
        compare(f"guidance {scale:g}", lambda d: conditional(place, d), batch, guidance_scale=scale)

    def steered(device: Any) -> Any:
        torch.manual_seed(1)
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(3 * place.size**2, len(CLASSES)))
        guidance = ClassifierGuidance(classifier.eval().to(device), scale=0.5)
        return conditional(place, device).with_settings(classifier_guidance=guidance)

    compare("classifier guidance", steered, batch)

    def sourced(device: Any) -> Any:
        return conditional(place, device).with_sources(pictures(place))

    compare("variants", sourced, batch, strength=0.6)
    levels = place.pick(10, 2)
    for degradation in (
        degradations.Blur(num_levels=levels, kernel_size=5),
        degradations.Decolorization(num_levels=levels),
        degradations.Inpainting(num_levels=levels, std_step=0.3),
        degradations.SuperResolution(num_levels=2),
        degradations.Snow(num_levels=levels),
    ):
        name = f"cold, {type(degradation).__name__}"
        restored = partial(restorer, place, degradation=degradation)
        compare(name, restored, batch, severity=0.8)
    worst = max(drawn, key=lambda name: drawn[name]["most"])
    return {"drawn": drawn, "worst": worst, "passed": drawn[worst]["most"] <= 1}


@part
def loaded(place: Place) -> Mapping[str, Any]:
    """A checkpoint from disk draws, bit for bit, what the network in memory draws."""
    from synthaug import ClassConditional

    with tempfile.TemporaryDirectory() as folder:
        first = conditional(place, place.device)
        first.save_pretrained(folder)
        again = ClassConditional.from_pretrained(folder, device=place.device, dtype=torch.float32)
        plan = first.plan(per_class=2, seed=0, guidance_scale=2.0)
        images = first.draw(plan), again.draw(plan)
    return {"equal": torch.equal(*images), **levels_apart(*images)}


@part
def tf32(place: Place) -> Mapping[str, Any]:
    """A caller who allows TF32 gets the same images; and what TF32 would have changed."""
    synthesizer = conditional(place, place.device)
    plan = synthesizer.plan(per_class=4, seed=0)
    allowed = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    found: dict[str, Any] = {}
    try:
        images = []
        for on in (False, True):
            torch.backends.cudnn.allow_tf32 = on
            torch.set_float32_matmul_precision("high" if on else "highest")
            images.append(synthesizer.draw(plan))
            torch.manual_seed(0)
            x = torch.randn(8, 64, 16, 16).to(place.device)
            weight = torch.randn(64, 64, 3, 3).to(place.device)
            exact = nn.functional.conv2d(x.cpu().double(), weight.cpu().double())
            error = nn.functional.conv2d(x, weight).cpu().double() - exact
            found[f"convolution, TF32 {'on' if on else 'off'}"] = float(error.abs().max())
    finally:
        torch.backends.cudnn.allow_tf32 = allowed[0]
        torch.set_float32_matmul_precision(allowed[1])
    return {**found, "draws_equal": torch.equal(*images)}


@part
def precision(place: Place) -> Mapping[str, Any]:
    """bfloat16 beside float32: images in gray levels, and time."""
    from synthaug._support.precision import has_bfloat16

    full = conditional(place, place.device)
    half = replace(full, model=replace(full.model, network=network(place, place.device).bfloat16()))
    plan = full.plan(per_class=place.pick(64, 1), seed=0)
    return {
        "in_hardware": has_bfloat16(place.device),
        "levels": levels_apart(full.draw(plan), half.draw(plan)),
        "times_as_fast": place.seconds(lambda: full.draw(plan))
        / place.seconds(lambda: half.draw(plan)),
    }


@part
def compiled(place: Place) -> Mapping[str, Any]:
    """A compiled network, with CUDA graphs and without, beside the eager one."""
    if place.tiny:
        raise Skipped("compilation takes longer than a tiny run")
    eager = conditional(place, place.device)
    plan = eager.plan(per_class=16, seed=0, guidance_scale=2.0)
    images, seconds = eager.draw(plan), place.seconds(lambda: eager.draw(plan))
    found: dict[str, Any] = {"eager_seconds": seconds}
    for mode in ("default", "reduce-overhead"):
        quick: Any = torch.compile(network(place, place.device), mode=mode)
        other = replace(eager, model=replace(eager.model, network=quick))
        started = time.perf_counter()
        drawn = other.draw(plan)
        found[mode] = {
            "first_seconds": time.perf_counter() - started,
            "times_as_fast": seconds / place.seconds(partial(other.draw, plan)),
            "levels": levels_apart(images, drawn),
        }
    return found


@part
def waits(place: Place) -> Mapping[str, Any]:
    """Copies and waits per sampling step, by torch's profiler."""
    place.needs_cuda()
    from torch.profiler import ProfilerActivity, profile

    found: dict[str, Any] = {}
    for scheduler in ("ddim", "ddpm"):
        counts = []
        for steps in (4, 8):
            synthesizer = conditional(
                place, place.device, scheduler=scheduler, num_inference_steps=steps
            )
            plan = synthesizer.plan(per_class=4, seed=0, guidance_scale=2.0)
            synthesizer.draw(plan)
            with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
                synthesizer.draw(plan)
            counts.append({event.key: event.count for event in seen.key_averages()})
        names = ("cudaMemcpyAsync", "cudaStreamSynchronize", "cudaLaunchKernel")
        found[scheduler] = {
            name: (counts[1].get(name, 0) - counts[0].get(name, 0)) / 4 for name in names
        }
    return {"per_step": found}


@part
def memory(place: Place) -> Mapping[str, Any]:
    """A batch that a fiftieth of the device's memory does not hold is halved until it fits."""
    place.needs_cuda()
    from synthaug import generate

    count = 16_384
    with tempfile.TemporaryDirectory() as folder:
        synthesizer, plan = Convolved(place, channels=1024), rows_of(count)
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(0.02, place.device)
        try:
            cache = generate(
                synthesizer, plan, Path(folder) / "a.h5", batch_size=count, progress=False
            )
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, place.device)
        return {"rows": count, "done": int(cache.done.sum())}


@part
def resumed(place: Place) -> Mapping[str, Any]:
    """A job that is killed and run again leaves the file of one that was not."""
    from synthaug import SynthCache, generate

    count = place.pick(4096, 256)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "killed.h5"
        arguments = [sys.executable, __file__, "--device", str(place.device), "--draw", str(path)]
        child = subprocess.Popen(
            [*arguments, str(count), *(["--tiny"] if place.tiny else [])],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        while child.poll() is None and not _some_done(path):
            time.sleep(0.02)
        child.send_signal(signal.SIGKILL)
        child.wait()
        left = int((~SynthCache(path).done).sum()) if path.exists() else count
        synthesizer, plan = Convolved(place), rows_of(count)
        cache = generate(synthesizer, plan, path, batch_size=8, progress=False)
        whole = generate(synthesizer, plan, Path(folder) / "whole.h5", batch_size=8, progress=False)
        every = np.arange(count)
        equal = torch.equal(cache.read(every), whole.read(every))
        return {"left_by_the_kill": left, "equal": equal}


def _some_done(path: Path) -> bool:
    from synthaug import SynthCache

    return path.exists() and bool(SynthCache(path).done.any())  # it appears when it is laid out


@part
def on_the_fly(place: Place) -> Mapping[str, Any]:
    """A training loop whose images are drawn beside it: each alone, and both at once."""
    from synthaug import OnTheFlyDataset

    synthesizer = Convolved(place)
    count, steps = place.pick(8192, 256), place.pick(60, 4)
    batch = count // steps if place.tiny else 128
    torch.manual_seed(0)
    model = Blocks(place.pick(64, 8)).to(place.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(pixels: Tensor) -> None:
        x = pixels.to(place.device).float() / 127.5 - 1
        loss = (model(x) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    still = torch.zeros(batch, 3, place.size, place.size, dtype=torch.uint8)

    def train() -> None:
        for _ in range(steps):
            step(still)

    training = place.seconds(train, rounds=1)
    drawing = place.seconds(lambda: synthesizer.draw(rows_of(count)[: batch * steps]), rounds=1)
    live = OnTheFlyDataset(synthesizer, rows_of(count), batch_size=batch, output_type="pt")
    place.wait()
    started = time.perf_counter()
    for i in range(steps):
        step(torch.stack([live[j % count][0] for j in range(i * batch, (i + 1) * batch)]))
    place.wait()
    together = time.perf_counter() - started
    live.close()
    return {
        "training_alone": training,
        "drawing_alone": drawing,
        "together": together,
        "busy_share": (training + drawing) / together,
    }


@part
def throughput(place: Place) -> Mapping[str, Any]:
    """Images per second beside diffusers' own pipeline, at 32 pixels and at Stable Diffusion's."""
    from diffusers import DDIMPipeline, DDIMScheduler

    from synthaug._noise import streams

    found: dict[str, Any] = {}
    plain = type(network(place, "cpu")).from_config(
        {**network(place, "cpu").config, "num_class_embeds": None}
    )
    pipeline = DDIMPipeline(plain.eval(), DDIMScheduler.from_config(CONFIG)).to(place.device)
    pipeline.set_progress_bar_config(disable=True)
    synthesizer = conditional(place, place.device)
    for batch in place.pick((64, 1024), (4,)):
        plan = synthesizer.plan(per_class=batch // len(CLASSES), seed=0)
        guided = synthesizer.plan(per_class=batch // len(CLASSES), seed=0, guidance_scale=2.0)
        arguments = {
            "batch_size": batch,
            "generator": streams(range(batch)),
            "num_inference_steps": place.steps,
            "output_type": "np",
        }
        found[f"{batch} rows"] = {
            "diffusers": batch / place.seconds(partial(pipeline, **arguments)),
            "synthaug": batch / place.seconds(partial(synthesizer.draw, plan)),
            "synthaug, guided": batch / place.seconds(partial(synthesizer.draw, guided)),
        }
    found["stable diffusion, guided"] = _stable_diffusion(place)
    return {"images_per_second": found, "steps": place.steps}


def _stable_diffusion(place: Place) -> dict[str, float]:
    """A network and an autoencoder of Stable Diffusion's shapes, with random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from synthaug import ClassConditional, SamplerConfig
    from synthaug.synthesizers import DiffusionModel

    widths = place.pick((320, 640, 1280, 1280), (8, 8, 8, 8))
    groups = place.pick(32, 4)
    torch.manual_seed(0)
    dtype = torch.float32 if place.device.type == "cpu" else torch.bfloat16
    unet = UNet2DConditionModel(
        sample_size=place.pick(64, 8),
        block_out_channels=widths,
        cross_attention_dim=place.pick(768, 8),
        norm_num_groups=groups,
        attention_head_dim=place.pick(8, 4),
        layers_per_block=place.pick(2, 1),
    )
    vae = AutoencoderKL(
        block_out_channels=place.pick((128, 256, 512, 512), (4, 4, 4, 4)),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=groups,
        layers_per_block=place.pick(2, 1),
    )
    side = place.pick(512, 64)
    model = DiffusionModel(
        network=unet.eval().requires_grad_(False).to(place.device, dtype),
        scheduler_config={"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"},
        classes=CLASSES,
        image_shape=(3, side, side),
        vae=vae.eval().requires_grad_(False).to(place.device),
        class_embeddings=torch.randn(len(CLASSES) + 1, 77, place.pick(768, 8)),
    )
    config = SamplerConfig(num_inference_steps=place.steps)
    synthesizer = ClassConditional(model=model, sampler=config)
    batch = place.pick(8, 4)
    plan = synthesizer.plan(per_class=batch // len(CLASSES), seed=0, guidance_scale=7.5)
    latents = torch.randn(batch, *model.latent_shape, device=place.device)
    with torch.inference_mode():
        decoding = place.seconds(lambda: model.decode(latents), rounds=1)
    drawing = place.seconds(lambda: synthesizer.draw(plan), rounds=1)
    return {"images_per_second": batch / drawing, "share_of_the_decoder": decoding / drawing}


@part
def inversion(place: Place) -> Mapping[str, Any]:
    """Updates of one image per second."""
    from synthaug.synthesizers import DiffusionInversion, DiffusionModel, InversionConfig
    from synthaug.synthesizers.inversion._fit import InversionJob, run_pass
    from synthaug.synthesizers.inversion._tokens import build_token_unet

    torch.manual_seed(0)
    shape = (3, place.size, place.size)
    made = build_token_unet(shape, token_width=8, channels=place.channels, num_layers=1)
    model = DiffusionModel(
        network=made.eval().requires_grad_(False).to(place.device),
        scheduler_config=CONFIG,
        classes=(),
        image_shape=shape,
        class_embeddings=torch.zeros(1, 3, 8),
    )
    count = place.pick(512, 8)
    config = InversionConfig(num_tokens=3, batch_size=place.pick(256, 4))
    job = InversionJob(DiffusionInversion(model=model).model, None, pictures(place, count), config)
    block = job._block(np.arange(count))
    seconds = place.seconds(lambda: run_pass(model.denoiser, job.scheduler, block, config))
    return {"updates_per_second": count / seconds}


@part
def search(place: Place) -> Mapping[str, Any]:
    """Exact search of nearest neighbors as the audit does it, beside products on the device."""
    from synthaug._neighbors import search as nearest

    rng = np.random.default_rng(0)
    database = rng.normal(size=(place.pick(50_000, 500), 128)).astype(np.float32)
    queries = rng.normal(size=(place.pick(10_000, 100), 128)).astype(np.float32)
    there = torch.from_numpy(database).to(place.device)
    asked = torch.from_numpy(queries).to(place.device)

    def products() -> Tensor:
        parts = asked.split(1024)
        return torch.cat([torch.cdist(x, there).topk(8, largest=False).indices for x in parts])

    _, ids = nearest(database, queries, 8)
    same = float((products().cpu().numpy()[:, 0] == ids[:, 0]).mean())
    return {
        "audit_seconds": place.seconds(lambda: nearest(database, queries, 8), rounds=1),
        "device_seconds": place.seconds(products),
        "same_nearest": same,
    }


@part
def training(place: Place) -> Mapping[str, Any]:
    """Training steps of a generator for as long as is left, up to two minutes; then its images."""
    from synthaug import ClassConditional, TrainingConfig

    found: dict[str, Any] = {}
    left = min(120.0, max(5.0, place.ends - time.monotonic())) if not place.tiny else 0.0
    with tempfile.TemporaryDirectory() as folder:
        for kind in place.pick(("float32", "bfloat16"), ("float32",)):
            config = TrainingConfig(
                steps=place.pick(100, 2),
                batch_size=place.pick(128, 4),
                device=str(place.device),
                precision=kind,
            )
            out = Path(folder) / kind
            arguments: dict[str, Any] = {"channels": place.channels, "progress": False}
            real = pictures(place, place.pick(4096, 16))
            _, first = ClassConditional.fit(real, out, config=config, **arguments)
            rate = first.examples_per_second
            steps = config.steps + int(rate * left / 2 / config.batch_size)
            synthesizer, last = ClassConditional.fit(
                real, out, config=replace(config, steps=steps), **arguments
            )
            images = synthesizer.draw(synthesizer.plan(per_class=2, seed=0))
            found[kind] = {
                "examples_per_second": rate,
                "steps": steps,
                "first_loss": first.loss_curve[0][1],
                "last_loss": last.loss_curve[-1][1],
                "finite": bool(images.isfinite().all()),
            }
    return found


# -- the run ---------------------------------------------------------------------------------------


def run(place: Place, names: list[str], path: Path, *, again: bool) -> int:
    """Runs parts and writes each result at once; the number of parts that failed."""
    kept = {} if again or not path.exists() else json.loads(path.read_text())
    same = kept.get("device") == str(place.device) and kept.get("tiny") == place.tiny
    parts: dict[str, Any] = kept["parts"] if same else {}
    for name in names:
        if parts.get(name, {}).get("state") in ("done", "skipped"):
            print(f"{name}: {parts[name]['state']} before", flush=True)
            continue
        started = time.perf_counter()
        try:
            parts[name] = {"state": "done", **PARTS[name](place)}
        except Skipped as reason:
            parts[name] = {"state": "skipped", "why": str(reason)}
        except ModuleNotFoundError as error:
            parts[name] = {"state": "skipped", "why": f"{error.name} is not installed"}
        except Exception as error:
            parts[name] = {
                "state": "failed",
                "error": f"{type(error).__name__}: {error}",
                "traceback": traceback.format_exc().splitlines()[-12:],
            }
        parts[name]["seconds"] = round(time.perf_counter() - started, 2)
        text = {k: v for k, v in parts[name].items() if k not in ("drawn", "traceback")}
        print(f"{name}: {json.dumps(text)}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        record = {"machine": machine(), "device": str(place.device), "tiny": place.tiny}
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({**record, "parts": parts}, indent=1) + "\n")
        partial.replace(path)
    return sum(
        parts[name]["state"] == "failed" or parts[name].get("passed") is False for name in names
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="auto", help="cuda, cuda:1, mps, xpu, cpu or auto")
    parser.add_argument("--tiny", action="store_true", help="as small as can be")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="what training may fill up")
    parser.add_argument("--again", action="store_true", help="forget what is in the file")
    parser.add_argument("--draw", nargs=2, help=argparse.SUPPRESS)  # the job that gets killed
    options = parser.parse_args()
    from synthaug._support.devices import choose_device

    ends = time.monotonic() + 60 * options.minutes
    place = Place(choose_device(options.device), options.tiny, ends)
    if options.draw:
        from synthaug import generate

        path, count = options.draw
        rows = rows_of(int(count))
        generate(Convolved(place), rows, path, batch_size=8, progress=False)
        return
    sys.exit(1 if run(place, options.only, options.out, again=options.again) else 0)


if __name__ == "__main__":
    main()
