"""Freezes behavior: what tiny models and data sets give now is what they must give later.

    python tests/frozen.py                        # compare, and print every difference
    python tests/frozen.py --only plans caches    # some areas
    python tests/frozen.py --record --only audit  # after an intended change: record, read the diff

Only public calls are made, so the package may be reorganized under this script. All weights and
images are fractions of small integers taken from a hash, so they, their digests, and the plans and
recipes that follow from them are equal on every processor and for every torch. What is computed in
floating point is compared with a tolerance.

The area `surface` (public names, commands and their options with defaults) is for information: its
differences are printed, and do not fail.
"""

import argparse
import contextlib
import hashlib
import io
import json
import math
import os
import re
import runpy
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parents[1]))  # when run as a script

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import synthaug
from tests.checkpoints import cosine_config, tiny_unet, write_stable_diffusion
from tests.classifiers import configured

SAMPLER = ("scheduler", "num_inference_steps", "eta", "log_variance_mix")
"""Settings that synthesizers take together, as their `sampler`."""

# Where public names are that may move to another namespace, or be renamed: the only such place.
MOVING = {
    "check_labels": "synthaug.evaluation:check_labels",
    "estimate_cost": "synthaug.caches:estimate_cost",
    "FromPipeline": "synthaug:FromPipeline",
    "Constant": "synthaug.synthesizers:Constant",
    "InversionConfig": "synthaug.synthesizers:InversionConfig",
    "reconstructions": "synthaug.evaluation:reconstructions",
    "scaling_arms": "synthaug.evaluation:scaling_arms",
    "score_hardness": "synthaug.evaluation:score_hardness",
    "score_quality": "synthaug.evaluation:score_quality",
    "SeededSampler": "synthaug.mixing:SeededSampler",
    "soft_labels": "synthaug.synthesizers:soft_labels",
    "sweep": "synthaug.sweeps:sweep",
    "SweepConfig": "synthaug.sweeps:SweepConfig",
    "FineTuningConfig": "synthaug.synthesizers:FineTuningConfig",
    "StageConfig": "synthaug.synthesizers:StageConfig",
    "TokenConfig": "synthaug.synthesizers:TokenConfig",
}
# How float32 on the CPU is asked for: defaults may change, recorded values must not depend on them.
DTYPE: Any = torch.float32
DEVICE: Any = "cpu"
ON_CPU = ("--device", "cpu")
TRAINED: dict[str, Any] = {
    "steps": 2,
    "batch_size": 4,
    "warmup_steps": 0,
    "precision": "float32",
    "device": DEVICE,
}

FOLDER = Path(__file__).with_suffix("")
LIBRARIES = ("torch", "diffusers", "transformers", "h5py", "numpy")
"""Their versions are kept: schedulers and networks of another release may have other settings."""
GRAY_LEVELS, ON_AVERAGE = 1, 0.1
"""Differences of pixels between processors: values near the middle of two levels are rounded to
either. No chain here is chaotic, so more than that is another image."""
RELATIVE = 1e-3
"""Tolerance of other floating-point numbers."""
ABSOLUTE = {"accurac": 0.09, "scores": 2e-3, "distances": 2e-3}
"""Absolute tolerances, by a part of the name: two test images of 24 may change sides between
processors, and the distance of equal images is 0 but for rounding. 1e-6 elsewhere."""
MACHINE = {"versions", "version", "environment", "images_per_second", "examples_per_second"}
MACHINE |= {"seconds", "device_hours", "bytes", "disk_bytes", "diffusers_version", "command"}
MACHINE |= {"torch", "torchvision", "threads"}
"""Keys whose values depend on the machine or the libraries: their types alone are frozen."""
COMPUTED = {"class_embeddings", "colors"}
"""Digests of numbers that were computed in floating point."""
NAMES = ("ant", "bee", "cat", "dog")
PAIR = NAMES[:2]

Record = dict[str, Any]
"""Nested dicts and lists; leaves are None, bool, int, float, str, or images: uint8 arrays."""


def moved(name: str) -> Any:
    """A public object, wherever it is now."""
    module, _, attribute = MOVING[name].partition(":")
    return getattr(import_module(module), attribute)


# -- exact numbers -------------------------------------------------------------------------------


def integers(seed: str, *shape: int) -> NDArray[np.float64]:
    """Whole numbers from 0 to 65,535, the same everywhere."""
    raw = hashlib.shake_256(seed.encode()).digest(2 * math.prod(shape))
    return np.frombuffer(raw, "<u2").reshape(shape).astype(np.float64)


def pixels(seed: str, labels: Any, shape: tuple[int, int, int], num_classes: int) -> Tensor:
    """Blocky images, brighter with the label, uint8 (n, *shape)."""
    c, h, w = shape
    coarse = integers(seed, len(labels), c, h // 2, w // 2) // 512  # 0 to 127
    fine = integers(f"{seed} fine", len(labels), c, h, w) // 2048  # 0 to 31
    level = np.asarray(labels).reshape(-1, 1, 1, 1) * (96 // num_classes)
    return torch.from_numpy((coarse.repeat(2, 2).repeat(2, 3) + fine + level).astype(np.uint8))


def make_exact(path: Path) -> Path:
    """Replaces all floating-point tensors of the safetensors files in a folder by exact numbers."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    for file in sorted(path.rglob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        metadata.pop("synthaug.digest", None)  # of the weights that were there
        changed = {k: exact(k, v) for k, v in tensors.items()}
        save_file(changed, str(file), metadata or None)
    return path


def exact(name: str, old: Tensor) -> Tensor:
    """Numbers of the size that a network's tensor of this name and shape should have."""
    last = name.rpartition(".")[2]
    if not old.is_floating_point() or last == "counts" or not old.numel():
        return old
    unit = (integers(name, *old.shape) - 32768) / 32768  # uniform in [-1, 1)
    if last == "whitening":
        values = np.eye(old.shape[-1]) + unit / 8
    elif old.ndim == 1:
        values = unit / 8 + (last == "weight")  # biases around 0, factors of norms around 1
    elif old.ndim == 3 or last == "means":  # token sequences, class means
        values = unit * 2
    else:
        values = unit * math.sqrt(3 / math.prod(old.shape[1:]))
    return torch.from_numpy(np.ascontiguousarray(values)).to(old.dtype)


# -- data and models -----------------------------------------------------------------------------


class World:
    """Data sets and checkpoints in a folder, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def data(self, name: str, count: int, channels: int = 1, classes: Any = NAMES) -> str:
        """A folder of 8x8 images, `count` of every class: its specification."""
        root = self.folder / "data" / f"{name}-{count}-{channels}-{len(classes)}"
        if not root.exists():
            labels = np.arange(count * len(classes)) % len(classes)
            drawn = pixels(name, labels, (channels, 8, 8), len(classes))
            for i, (label, image) in enumerate(zip(labels, drawn, strict=True)):
                folder = root / classes[label]
                folder.mkdir(parents=True, exist_ok=True)
                picture = image[0].numpy() if channels == 1 else image.permute(1, 2, 0).numpy()
                Image.fromarray(picture).save(folder / f"{i:03d}.png")
        return f"folder:{root}"

    def real(self, *arguments: Any, **options: Any) -> Any:
        """The data set of `data`, loaded."""
        return synthaug.load_dataset(self.data(*arguments, **options), progress=False)

    @cached_property
    def gray(self) -> Any:
        return self.real("train", 4)

    @cached_property
    def color(self) -> Any:
        return self.real("train", 4, channels=3, classes=PAIR)

    # Checkpoints, whose weights are exact

    def _unet(self, size: int) -> Path:
        from diffusers import DDPMPipeline, DDPMScheduler

        config = {k: v for k, v in cosine_config().items() if not k.startswith("_")}
        path = self.folder / f"unet-{size}"
        DDPMPipeline(tiny_unet(size=size), DDPMScheduler(**config)).save_pretrained(path)
        record = {"classes": NAMES, "unconditional_branch": True}
        (path / "synthaug.json").write_text(json.dumps(record))
        return make_exact(path)

    @cached_property
    def unet(self) -> Path:
        return self._unet(8)

    @cached_property
    def small_unet(self) -> Path:
        return self._unet(4)

    @cached_property
    def stable_diffusion(self) -> Path:
        write_stable_diffusion(self.folder / "sd")
        return make_exact(self.folder / "sd")

    @cached_property
    def dit(self) -> Path:
        from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

        transformer = DiTTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            sample_size=4,
            patch_size=2,
            norm_num_groups=4,
            num_embeds_ada_norm=2,
        )
        vae = AutoencoderKL.from_pretrained(self.stable_diffusion / "vae")
        pipeline = DiTPipeline(transformer, vae, DDIMScheduler(), id2label={0: "ant", 1: "bee"})
        pipeline.save_pretrained(self.folder / "dit")
        return make_exact(self.folder / "dit")

    def config(self, **changes: Any) -> Any:
        return synthaug.TrainingConfig(**{**TRAINED, **changes})

    @cached_property
    def tokens(self) -> Path:
        """A generator that can be inverted."""
        synthaug.DiffusionInversion.fit_generator(
            self.color,
            self.folder / "tokens",
            config=self.config(),
            tokens=moved("TokenConfig")(num_tokens=2, token_width=8),
            channels=8,
            progress=False,
        )
        (self.folder / "tokens" / "inversion.json").unlink()  # it holds the digest of the weights
        return make_exact(self.folder / "tokens")

    def inverted(self, generator: Path, **load: Any) -> Path:
        path = self.folder / f"{generator.name}-inverted"
        if not path.exists():
            inversion = synthaug.DiffusionInversion.from_pretrained(
                generator, dtype=DTYPE, device=DEVICE, **load
            )
            config = moved("InversionConfig")(updates=2, snapshots=(1,), num_tokens=2)
            inversion.fit(self.color, path, config=config, progress=False)
            make_exact(path)
        return path

    def cold(self, name: str, **settings: Any) -> Path:
        path = self.folder / "-".join(["cold", name, *map(str, settings.values())])
        if not path.exists():
            synthaug.ColdDiffusion.fit(
                self.color,
                path,
                degradation=synthaug.degradations.named(name, **settings),
                config=self.config(),
                channels=8,
                progress=False,
            )
            make_exact(path)
        return path

    @cached_property
    def low_density(self) -> Path:
        # Saved by synthaug, the base needs no class names and is found beside the networks.
        base = self.load("ClassConditional", self.unet, classes=NAMES, num_inference_steps=3)
        synthaug.LowDensity.fit(
            self.gray,
            base,
            self.folder / "low-density",
            config=self.config(),
            num_synthetic=4,
            embedding_dim=4,
            noise_levels=2,
            progress=False,
        )
        for name in ("hardness", "realism"):
            make_exact(self.folder / "low-density" / name)
        return self.folder / "low-density"

    def stage(self, augmentation: Any) -> Path:
        path = self.folder / f"stage-{augmentation}"
        if not path.exists():
            synthaug.Cascade.fit_stage(
                self.gray,
                path,
                moved("StageConfig")(low_size=4, conditioning_augmentation=augmentation),
                config=self.config(),
                channels=8,
                progress=False,
            )
            make_exact(path)
        return path

    # Synthesizers

    def load(self, kind: str, path: Path, **options: Any) -> Any:
        sampler = {name: options.pop(name) for name in SAMPLER if name in options}
        if sampler:
            options["sampler"] = sampler
        cls = getattr(synthaug, kind)
        return cls.from_pretrained(path, dtype=DTYPE, device=DEVICE, **options)

    @cached_property
    def synthesizers(self) -> dict[str, tuple[Any, Any]]:
        """Name -> a synthesizer and a plan of it."""
        return {name: (made, plan(made)) for name, made, plan in self._synthesizers()}

    def _synthesizers(self) -> Iterator[tuple[str, Any, Callable[[Any], Any]]]:
        def conditional(path: Path, classes: Any, **settings: Any) -> Any:
            settings = {"num_inference_steps": 4, **settings}
            return self.load("ClassConditional", path, classes=classes, **settings)

        def guided(made: Any) -> Any:
            return made.plan(per_class=2, guidance_scale=[1.0, 3.0], seed=1)

        yield "unet, ddim", conditional(self.unet, NAMES), guided
        ddpm = conditional(self.unet, NAMES, scheduler="ddpm", log_variance_mix=0.25)
        yield "unet, ddpm", ddpm, guided
        yield "unet, ddim, eta", conditional(self.unet, NAMES, eta=0.5), guided
        yield "unet, dpmsolver++", conditional(self.unet, NAMES, scheduler="dpmsolver++"), guided
        from_real = conditional(self.unet, NAMES).with_sources(self.gray)
        yield (
            "unet, from sources",
            from_real,
            lambda made: made.plan(ratio=0.75, strength=[0.25, 0.75], seed=2),
        )
        yield "dit", conditional(self.dit, PAIR), guided
        prompts = conditional(
            self.stable_diffusion, PAIR, prompt_template="a {}", negative_prompt="z"
        )
        yield "stable diffusion", prompts, guided
        yield (
            "stable diffusion, from sources",
            prompts.with_sources(self.color),
            lambda made: made.plan(counts={"bee": 5}, seed=3),
        )

        tokens = self.inverted(self.tokens)
        steps: dict[str, Any] = {"num_inference_steps": 3}

        def variants(made: Any, **options: Any) -> Any:
            parameters = {"noise": [0.0, 0.5], "interpolation": [0.0, 0.25], "snapshot": [1, 2]}
            return made.plan(ratio=1, seed=4, **parameters, **options)

        inversion = self.load("DiffusionInversion", tokens, **steps)
        yield "inversion", inversion, variants
        yield "inversion, across classes", inversion, lambda made: variants(made, cross_class=True)
        other = self.load(
            "DiffusionInversion",
            tokens,
            unconditional="group_mean",
            group_size=3,
            spherical=True,
            relative_noise=False,
            **steps,
        )
        yield "inversion, spherical", other, variants
        latent = self.inverted(self.stable_diffusion, classes=PAIR, negative_prompt="z")
        latent_inversion = self.load("DiffusionInversion", latent, unconditional="null", **steps)
        yield "inversion, latent", latent_inversion, variants

        def restored(made: Any) -> Any:
            return made.plan(per_class=3, severity=[0.25, 0.5, 1.0], seed=5)

        for name, settings in {
            "blur": {"num_levels": 6, "kernel_size": 5},
            "inpainting": {"num_levels": 6},
            "snow": {"num_levels": 6},
            "super-resolution": {"num_levels": 2},
            "decolorization": {"num_levels": 6},
            "noise": {"num_levels": 6},
        }.items():
            cold = self.load("ColdDiffusion", self.cold(name, **settings))
            yield f"cold, {name}", cold.with_sources(self.color), restored
        path = self.cold("blur", num_levels=6, kernel_size=5)
        for options in (
            {"algorithm": "naive"},
            {"algorithm": "direct"},
            {"output": "prediction", "num_steps": 2},
        ):
            cold = self.load("ColdDiffusion", path, **options)
            label = ", ".join(map(str, options.values()))
            yield f"cold, blur, {label}", cold.with_sources(self.color), restored
        path = self.cold("blur", num_levels=8, kernel_size=5, padding="circular", exact_mean=True)
        generating = self.load("ColdDiffusion", path, classes=["image"])
        yield "cold, generated", generating, lambda made: made.plan(per_class=4, seed=6)

        def pushed(made: Any) -> Any:
            return made.plan(per_class=2, alpha=[0.0, 1.5], beta=0.5, guidance_scale=2.0, seed=7)

        yield "low density", self.load("LowDensity", self.low_density), pushed
        yield "low density, rms", self.load("LowDensity", self.low_density, unit="rms"), pushed

        def enlarged(made: Any) -> Any:
            return made.plan(per_class=2, stage_guidance_scale=[1.0, 2.0], seed=8)

        def enlarged_from_noise(made: Any) -> Any:
            scales, levels = [1.0, 2.0], [50, 200]
            return made.plan(
                per_class=2, stage_guidance_scale=scales, noise_conditioning_level=levels, seed=8
            )

        def cascade(augmentation: str, *, truncated: bool = False) -> Any:
            return self.load(
                "Cascade",
                self.small_unet,
                stages=[self.stage(augmentation)],
                classes=NAMES,
                truncated=truncated,
                **steps,
            )

        yield "cascade, gaussian", cascade("gaussian"), enlarged_from_noise
        truncated = cascade("gaussian", truncated=True)
        yield "cascade, gaussian, truncated", truncated, enlarged_from_noise
        yield "cascade, blur", cascade("blur"), enlarged

        from diffusers import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline.from_pretrained(
            self.stable_diffusion, safety_checker=None, requires_safety_checker=False
        )
        pipeline.set_progress_bar_config(disable=True)
        wrapped = moved("FromPipeline")(
            pipeline, ["a_b", "c"], prompts="see {}", num_inference_steps=2, height=8, width=8
        )
        yield "pipeline", wrapped, guided
        yield "constant", self.constant, lambda made: made.plan(per_class=6, seed=9)

    @cached_property
    def constant(self) -> Any:
        labels = np.arange(32) % 4
        return moved("Constant")(pixels("constant", labels, (1, 8, 8), 4), labels, classes=NAMES)

    def cache(self, name: str = "cache", per_class: int = 6, seed: int = 9) -> Any:
        """A cache of the images of `constant`."""
        path = self.folder / f"{name}.h5"
        plan = self.constant.plan(per_class=per_class, seed=seed)
        return synthaug.generate(self.constant, plan, path, progress=False)


# -- areas ---------------------------------------------------------------------------------------

AREAS: dict[str, Callable[[World], Record]] = {}


def area(function: Callable[[World], Record]) -> Callable[[World], Record]:
    """Makes a function an area, of its name."""
    AREAS[function.__name__] = function
    return function


def columns(plan: Any) -> Record:
    """All there is to know about a plan."""
    found = {name: plan[name] for name in plan.columns}
    return {"digest": plan.digest, "classes": plan.classes, "settings": plan.settings, **found}


@area
def plans(world: World) -> Record:
    """Seeds, digests and columns of plans; all exact."""
    build = synthaug.Plan.build
    keys = np.array([5, 7, 5, 9, 11], np.uint64) + np.uint64(2**63)
    sourced = {"sources": [[0, 1, 2], [3, 4]], "source_keys": keys}
    common: dict[str, Any] = {"classes": PAIR, "settings": {"b": 2.0, "a": [1, None]}, "seed": 3}
    whole = build([7, 5], parameters={"x": [0.5, 1.5], "n": [1, 2, 3]}, **sourced, **common)
    wrapped = whole.with_parameters({"alpha": [0.0, 1.0]}, settings={"around": 1})
    found = {
        "built": columns(build([3, 2], parameters={"x": [0.1, 0.2]}, **common)),
        "built from sources": columns(whole),
        "sliced": columns(whole[3:9]),
        "masked": columns(whole[whole["label"] == 1]),
        "with parameters": columns(wrapped),
        "repr": repr(whole),
        "row": {k: v for k, v in whole.row(4).items()},
        "quota": whole.quota,
    }
    part = build([7, 5], rows=slice(3, 9), parameters={"x": [0.5, 1.5]}, **sourced, **common)
    found["part"] = columns(part)
    for name, (made, plan) in world.synthesizers.items():
        found[name] = {**columns(plan), "evaluations": made.evaluations(plan)}
        # Settings contain what was computed in floating point only where recipes do.
    labels = [0, 0, 0, 1, 1, 2, 3]
    found["ratio"] = columns(world.constant.plan(labels, ratio=1.5, seed=1))
    found["counts"] = columns(world.constant.plan(counts={"bee": 3, "dog": 1}))
    across = world.synthesizers["inversion, across classes"][1]
    found["soft labels"] = moved("soft_labels")(across).tolist()
    cost = moved("estimate_cost")(1000, (3, 8, 8), evaluations_per_image=50)
    found["cost"] = str(cost)
    return found


@area
def recipes(world: World) -> Record:
    """Settings and weight digests; exact, as weights are."""
    return {
        name: {
            "recipe": made.recipe(),
            "image_shape": getattr(made, "image_shape", None),  # that of a pipeline is not known
            "classes": made.classes,
        }
        for name, (made, _) in world.synthesizers.items()
    }


def to_uint8(images: Tensor) -> NDArray[np.uint8]:
    return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()


@area
def images(world: World) -> Record:
    """What every synthesizer draws."""
    found: Record = {
        name: to_uint8(made.draw(plan)) for name, (made, plan) in world.synthesizers.items()
    }
    decoded = moved("reconstructions")(
        world.color, world.stable_diffusion, device=DEVICE, progress=False
    )
    found["reconstructions"] = decoded.read(range(8)).numpy()
    cold = world.load("ColdDiffusion", world.cold("inpainting", num_levels=6))
    x = world.color.read(range(4)).float() / 127.5 - 1
    severity = torch.tensor([0.2, 0.4, 0.6, 1.0])
    restored = cold.degrade_and_restore(x, severity=severity, seeds=range(4))
    found["degraded and restored"] = to_uint8(restored)
    return found


@area
def fits(world: World) -> Record:
    """Losses of training, and what it leaves in its folder: names, shapes, settings."""
    folder = world.folder / "fits"

    def described(path: Path, result: Any) -> Record:
        return {
            "files": files(path),
            "tensors": shapes(path),
            "settings": {p.name: without_digests(read_json(p)) for p in path.glob("*.json")},
            "losses": [float(loss) for _, loss in result.loss_curve],
            "step": getattr(result, "step", None),
        }

    found: Record = {}
    result: Any
    options: dict[str, Any] = {"config": world.config(steps=3), "channels": 8, "progress": False}
    labeled = folder / "conditional"
    _, result = synthaug.ClassConditional.fit(world.gray, labeled, **options)
    found["class-conditional"] = described(labeled, result)
    make_exact(labeled)
    tuning: dict[str, Any] = {"config": world.config(), "progress": False}
    for name, base, rank in (
        ("unet", labeled, None),
        ("stable diffusion", world.stable_diffusion, 2),
        ("dit", world.dit, None),
    ):
        real = world.gray if base == labeled else world.color
        path = folder / f"tuned {name}"
        _, result = synthaug.ClassConditional.fine_tune(
            base, real, path, adaptation=moved("FineTuningConfig")(lora_rank=rank), **tuning
        )
        found[f"fine-tuned {name}"] = described(path, result)
    blur = synthaug.degradations.named("blur", num_levels=6, kernel_size=5)
    _, result = synthaug.ColdDiffusion.fit(
        world.color, folder / "cold", degradation=blur, **options
    )
    found["cold"] = described(folder / "cold", result)
    _, result = synthaug.DiffusionInversion.fit_generator(
        world.color,
        folder / "tokens",
        tokens=moved("TokenConfig")(num_tokens=2, token_width=8),
        **options,
    )
    found["tokens"] = described(folder / "tokens", result)
    inversion = synthaug.DiffusionInversion.from_pretrained(
        world.tokens, dtype=DTYPE, device=DEVICE
    )
    config = moved("InversionConfig")(updates=3, num_tokens=2, batch_size=3)
    _, result = inversion.fit(world.color, folder / "inverted", config=config, progress=False)
    found["inverted"] = described(folder / "inverted", result)
    _, result = synthaug.Cascade.fit_stage(
        world.gray, folder / "stage", moved("StageConfig")(low_size=4), **options
    )
    found["stage"] = described(folder / "stage", result)
    hardness = world.low_density  # trained in making it, and then made exact
    found["low density"] = {
        "files": files(hardness),
        "tensors": shapes(hardness),
        "settings": read_json(hardness / "synthaug.json"),
    }
    return found


def without_digests(value: Any) -> Any:
    """A record without the digests of weights that were trained."""
    if not isinstance(value, dict):
        return value
    return {k: kinds(v) if k == "weights" else without_digests(v) for k, v in value.items()}


def files(path: Path) -> list[str]:
    """Names of all files in a folder."""
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def shapes(path: Path) -> Record:
    """Shape and dtype of every tensor in the safetensors files of a folder, as a digest."""
    from safetensors import safe_open

    found: Record = {}
    for file in sorted(path.rglob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            names = sorted(opened.keys())
            listed = [
                [n, opened.get_slice(n).get_dtype(), *opened.get_slice(n).get_shape()]
                for n in names
            ]
        found[str(file.relative_to(path))] = {
            "tensors": len(names),
            "digest": digest(json.dumps(listed).encode()),
        }
    return found


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def layout(path: Path) -> Record:
    """The bytes of a cache file, data set by data set, and its attributes."""
    raw, sets = path.read_bytes(), {}
    with h5py.File(path) as file:
        first = file["images"].id.get_offset() or 0

        def visit(name: str, item: Any) -> None:
            if not isinstance(item, h5py.Dataset):
                return
            at = item.id.get_offset()
            sets[name] = {
                "shape": item.shape,
                "dtype": item.dtype.str,
                "chunks": item.chunks,
                "at": at - first if at and first else None,  # the manifest varies in length
                "sha256": digest(raw[at : at + item.nbytes] if at else item[()].tobytes()),
            }

        file.visititems(visit)
        attributes = {
            name: [
                str(file.attrs.get_id(name).get_type().get_class()),
                file.attrs.get_id(name).shape,
            ]
            for name in sorted(file.attrs)
        }
        manifest = json.loads(bytes(file.attrs["manifest"]))
        order = sorted(sets, key=lambda name: file[name].id.get_offset() or 0)
        told = {k: file.attrs[k] for k in ("format", "format_version", "plan_digest")}
    told = {k: v.decode() if isinstance(v, bytes) else int(v) for k, v in told.items()}
    return {
        "page": first % 4096,
        "start": raw[:12].hex(),  # signature, version of the superblock, sizes of its fields
        "order": order,
        "sets": sets,
        "attributes": attributes,
        "told": told,
        "manifest": manifest,
    }


@area
def caches(world: World) -> Record:
    """Files of caches, to the byte, and what the tools for them do."""
    cache = world.cache()
    tools, first = synthaug.caches, cache.path
    again = synthaug.generate(
        world.constant, cache.plan, world.folder / "again.h5", batch_size=5, progress=False
    )
    found: Record = {
        "file": layout(first),
        "two files are equal": first.read_bytes() == again.path.read_bytes(),
        "identity": cache.identity,
        "read": cache.read([3, 1, -1]).numpy(),
        "state": cache.state,
        "done": cache.done,
        "labels": cache.labels,
        "plan": cache.plan.digest,
        "verify": cache.verify(),
        "provenance": cache.provenance(5),
        "item": [cache[7][1], np.asarray(cache[7][0])[None]],
        "repr": re.sub(r"\S*/", "", repr(cache)),
        "info": tools.info(cache),
    }
    cache.withdraw([2, 9])
    found["withdrawn"] = {"state": cache.state, "file": layout(first)["sets"]}
    parts = []
    for i, rows in enumerate((slice(0, 10), slice(10, 24))):
        path = world.folder / f"part-{i}.h5"
        parts.append(synthaug.generate(world.constant, cache.plan[rows], path, progress=False).path)
    merged = tools.merge(parts, world.folder / "merged.h5")
    found["merged"] = layout(merged.path)
    imported = tools.import_images(world.data("train", 4), world.folder / "imported.h5")
    found["imported"] = layout(imported.path)
    made, plan = world.synthesizers["unet, from sources"]
    variants = synthaug.generate(made, plan, world.folder / "variants.h5", progress=False)
    tools.check_sources(variants, world.gray)  # raises if they were others
    forgotten = tools.forget([variants.path], world.gray.read([0, 6]))
    found["forgotten"] = {path.name: count for path, count in forgotten.items()}
    found["state after"] = synthaug.SynthCache(variants.path).state
    exported = tools.export(imported, world.folder / "exported", format="folder")
    found["exported"] = {  # pixels, since how they are compressed depends on a library
        name: digest(np.asarray(Image.open(exported / name)).tobytes())
        for name in files(exported)
        if name.endswith(".png")
    }
    compressed = tools.export(imported, world.folder / "compressed.h5", format="hdf5")
    found["compressed"] = layout(compressed)["sets"]
    found["cited"] = re.findall(r"@\w+\{(\w+)", tools.cite(variants, bibtex=True))
    return found


def signature(items: Any) -> list[list[Any]]:
    """Digest and label of images: which ones they are."""
    found = []
    for image, label in items:
        label = label.tolist() if isinstance(label, np.ndarray | Tensor) else int(label)
        found.append([digest(np.ascontiguousarray(np.asarray(image)).tobytes())[:8], label])
    return found


@area
def mixing(world: World) -> Record:
    """Which images data sets, samplers and transforms serve, and in which order; exact."""
    rules, cache = synthaug.mixing, world.cache("mixed")
    scores = integers("scores", len(cache))
    weights = integers("weights", len(cache)) // 4096

    def mixture(**options: Any) -> Any:
        return synthaug.MixedDataset(world.gray, cache, audit=None, seed=5, **options)

    def epochs(mixed: Any) -> list[Any]:
        found = []
        for epoch in (0, 1, 7):
            mixed.set_epoch(epoch)
            found.append([mixed.synthetic_rows(), mixed.targets])
        return found

    kinds: dict[str, dict[str, Any]] = {
        "replace": {"fraction": 0.5},
        "by class": {"fraction": {"ant": 1.0, "dog": 0.25}},
        "linear": {"fraction": rules.Linear(0.0, 1.0, epochs=4)},
        "cosine": {"fraction": rules.Cosine(0.2, 0.8, epochs=4)},
        "append": {"mode": "append", "ratio": 0.75},
        "balance": {"mode": "append", "ratio": rules.Balance(to=7)},
        "filters": {"fraction": 0.75, "filters": [rules.Highest(scores, 0.5)]},
        "lowest": {"fraction": 0.75, "filters": [rules.Lowest(scores, 0.5)]},
        "at least": {"fraction": 0.75, "filters": [rules.AtLeast(scores, 20000)]},
        "weighted": {"fraction": 0.75, "draw": rules.Weighted(weights)},
        "stratified": {"fraction": 0.75, "draw": rules.Stratified(scores, 2)},
    }
    found: Record = {}
    for name, options in kinds.items():
        mixed = mixture(**options)
        found[name] = {"epochs": epochs(mixed), "recipe": mixed.recipe()}
    mixed = mixture(fraction=0.5)
    found["items"] = signature(mixed[i] for i in range(len(mixed)))
    found["read"] = mixed.read(range(len(mixed))).numpy()
    found["synthetic"] = [mixed.is_synthetic(i) for i in range(len(mixed))]
    found["provenance"] = [mixed.provenance(i) for i in range(len(mixed)) if mixed.is_synthetic(i)]
    soft = mixture(fraction=0.5, items=rules.ItemFormat(soft_labels=True))
    found["soft labels"] = signature(soft[i] for i in range(4))

    appended = mixture(mode="append", ratio=0.75)
    sampler = synthaug.MixedBatchSampler(appended, batch_size=8, synthetic_per_batch=3, seed=2)
    batches = []
    for epoch in (0, 3):
        sampler.set_epoch(epoch)
        batches.append([list(batch) for batch in sampler])
    found["batches"] = batches
    seeded = moved("SeededSampler")(world.gray, seed=3, num_replicas=2, rank=1)
    orders = []
    for epoch in (0, 2):
        seeded.set_epoch(epoch)
        orders.append(list(seeded))
    found["seeded"] = orders

    live = synthaug.OnTheFlyDataset(
        world.constant, cache.plan, size=10, reuse=2, background=False, seed=4, output_type="np"
    )
    pool = []
    for epoch in (0, 1, 5):
        live.set_epoch(epoch)
        pool.append([live.rows(), live.targets])
    found["on the fly"] = pool
    found["on the fly, items"] = signature(live[i] for i in range(len(live)))

    made, plan = world.synthesizers["cold, inpainting"]
    variants = synthaug.generate(made, plan, world.folder / "cold-variants.h5", progress=False)
    variant = synthaug.transforms.SyntheticVariant(variants, audit=None, p=0.7)
    torch.manual_seed(0)
    before = world.color.read(range(8))
    rows = {image.numpy().tobytes(): i for i, image in enumerate(variants.read(range(len(plan))))}
    served = [variant(image).numpy().tobytes() for image in before for _ in range(3)]
    found["variants"] = [rows.get(image, -1) for image in served]
    mixer = synthaug.transforms.MixSynthetic(cache, audit=None, fraction=0.5, classes=NAMES)
    labels = torch.tensor(world.gray.targets)
    batch, targets = mixer(world.gray.read(range(16)).float() / 255, labels)
    found["batch mixed"] = (batch * 255).round().to(torch.uint8).numpy()
    found["batch labels"] = targets.tolist()
    restore = synthaug.transforms.ColdRestore(
        world.load("ColdDiffusion", world.cold("blur", num_levels=6, kernel_size=5)), p=0.5
    )
    found["restored"] = restore(before).numpy()
    return found


def with_copies(world: World) -> Any:
    """A cache of which rows 0, 1 and 20 are training images, one of them mirrored."""
    train = world.real("train", 15)
    labels = np.arange(60) % 4
    drawn = pixels("judged", labels, (1, 8, 8), 4)
    drawn[0], drawn[4], drawn[1] = (
        train.read([0])[0],
        train.read([3])[0].flip(-1),
        train.read([20])[0],
    )
    made = moved("Constant")(drawn, labels, classes=NAMES)
    path = world.folder / "judged.h5"
    return synthaug.generate(made, made.plan(per_class=15, seed=1), path, progress=False)


def as_json(report: Any, world: World) -> Any:
    path = world.folder / "report.json"
    report.to_json(path)
    return read_json(path)


@area
def audit(world: World) -> Record:
    """Reports of the audit, whole."""
    cache, train, holdout = with_copies(world), world.real("train", 15), world.real("holdout", 20)
    found: Record = {}
    for name, options in {
        "with holdout": {"holdout": holdout},
        "two spaces": {"holdout": holdout, "features": ["pixels:4", "pixels:8"], "k": 4},
        "without holdout": {},
    }.items():
        report = synthaug.audit(cache, train, progress=False, max_pairs=4, **options)
        page = world.folder / "page.html"
        report.to_html(page)
        found[name] = {
            "json": as_json(report, world),
            "verdict": report.verdict,
            "exit code": report.exit_code,
            "flagged": report.flagged,
            "passed": int(report.passed.sum()),
            "smallest effect": report.smallest_effect,
            "copies of": report.copies_of([0, 3]),
            "page": "<html" in page.read_text(),
        }
        back = synthaug.AuditReport.from_json(world.folder / "report.json")
        found[name]["read back"] = as_json(back, world) == as_json(report, world)
    mixed = synthaug.MixedDataset(world.gray, cache, audit=report, fraction=1.0)
    found["served"] = mixed.synthetic_rows()
    kept, held = synthaug.split_for_audit(train, holdout=0.25, seed=1, progress=False)
    found["split"] = [kept, held]
    return found


@area
def evaluation(world: World) -> Record:
    """Reports on the use of synthetic images, whole."""
    cache, train = with_copies(world), world.real("train", 15)
    test, validation = world.real("test", 6), world.real("validation", 6)
    mixed = synthaug.MixedDataset(train, cache, audit=None, fraction=0.5)
    options: dict[str, Any] = {"device": DEVICE, "progress": False}
    report = synthaug.evaluate(
        {"real": train, "real + synthetic": mixed},
        test=test,
        validation=validation,
        seeds=2,
        **configured(
            steps=4,
            batch_size=8,
            learning_rate=0.002,  # with more and larger steps rounding would decide
            precision="float32",
            **options,
        ),
    )
    space = synthaug.features.named("pixels:2")
    quality = moved("score_quality")(
        cache, train, features=space, holdout=test, force=True, progress=False
    )
    hardness = moved("score_hardness")(cache, train, features=space, holdout=test, progress=False)
    short = configured(steps=2, **options)
    labels = moved("check_labels")(cache, train, percentile=50, seeds=(0,), **short)
    made = world.load("ClassConditional", world.unet, classes=NAMES, num_inference_steps=2)
    swept = moved("sweep")(
        made,
        real=train,
        validation=validation,
        test=test,
        output_dir=world.folder / "sweep",
        grid={"guidance_scale": [1.0, 2.0]},
        guidance=[1.5],
        features=space,
        config=moved("SweepConfig")(
            per_class=3,
            classifiers=synthaug.ClassifierConfig(steps=4, device=options["device"]),
            seeds=1,
            force=True,
        ),
        progress=options["progress"],
    )
    arms = moved("scaling_arms")(train, cache, audit=None, ratios=(0, 1))
    return {
        "evaluate": as_json(report, world),
        "quality": as_json(quality, world),
        "hardness": as_json(hardness, world),
        "labels": as_json(labels, world),
        "sweep": without_digests(as_json(swept, world)),
        "arms": {name: len(arm) for name, arm in arms.items()},
    }


@area
def numbers(world: World) -> Record:
    """Features, metrics, degradations."""
    real, other = world.real("train", 15), world.real("test", 15)
    measures, extractors = synthaug.metrics, synthaug.features
    found: Record = {}
    spaces = {}
    for name in ("pixels:2", "pixels:4", "spectrum"):
        with contextlib.suppress(ValueError):  # a space that is not known, which the diff shows
            space = extractors.named(name)
            spaces[name] = [
                extractors.extract(space, one.read(range(len(one)))) for one in (real, other)
            ]
            found[name] = {
                "first": spaces[name][0][0].tolist()[:8],
                "facts": extractors.describe(space),
            }
    x, y = (features / 255 for features in spaces["pixels:2"])
    found["frechet"] = measures.frechet_distance(x, y)
    found["kernel"] = measures.kernel_distance(x, y)
    found["manifold"] = list(measures.manifold_scores(x, y))
    found["inception"] = list(measures.inception_score(4 * x))
    streams = [torch.Generator().manual_seed(i) for i in range(4)]
    images = world.color.read(range(4)).float() / 127.5 - 1
    for name in ("blur", "inpainting", "snow", "super-resolution", "decolorization", "noise"):
        degradation = synthaug.degradations.named(name)
        s = torch.tensor([1, 2, 3, degradation.num_levels])
        drawn = degradation.realize(streams, (3, 8, 8))
        found[name] = {
            "image": to_uint8(degradation(images, s, drawn)),
            "config": degradation.config(),
            "leaves": degradation.leaves((3, 8, 8)),
        }
    dataset = world.gray
    found["data"] = {
        "fingerprint": dataset.fingerprint,
        "subset": dataset.subset([3, 1]).fingerprint,
        "classes": dataset.classes,
        "targets": dataset.targets,
        "read": dataset.read([5, 3]).numpy(),
        "repr": re.sub(r"\S*/", "", repr(dataset)),
        "resized": synthaug.load_dataset(
            world.data("train", 4), image_size=6, channels=3, progress=False
        ).read([0, 1]).numpy(),
        "digits": synthaug.load_dataset("digits:train").fingerprint,
    }  # fmt: skip
    return found


def run(*arguments: Any) -> tuple[int, str, str]:
    """Exit code, output and errors of a command line."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    line = ["synthaug", *map(str, arguments)]
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        mock.patch.object(sys, "argv", line),
    ):
        try:
            runpy.run_module("synthaug", run_name="__main__")
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


@area
def commands(world: World) -> Record:
    """What commands answer in JSON: keys, whole numbers, exit codes."""
    root = world.folder / "cli"
    found: Record = {}

    defaults: Any = synthaug.synthesizers.SamplerConfig.__init__.__kwdefaults__

    def answer(line: str, *arguments: Any) -> None:
        with mock.patch.dict(defaults, num_inference_steps=2):  # for pictures of what was trained
            code, out, err = run(*line.split(), *arguments, "--json")
        if not out:
            raise RuntimeError(f"{line} ended with exit code {code}:\n{err}")
        record = json.loads(out)
        record["result"] = without_numbers(record["result"])
        found[line] = record

    train, test = world.data("train", 15), world.data("test", 6)
    color = world.data("train", 4, channels=3, classes=PAIR)
    small = ("--steps", 2, "--batch-size", 4, "--precision", "float32", *ON_CPU)
    width = ("--width", 8)
    draw = ("--num-inference-steps", 2, "--precision", "float32", *ON_CPU)
    made, model, report = root / "made.h5", root / "model", root / "audit"
    answer("train", train, model, *small, *width)
    make_exact(model)
    answer("plan", model, "--per-class", 3, "--guidance-scale", "1.0,2.0", *draw)
    answer("generate", model, made, "--per-class", 3, *draw)
    answer("cite", made)
    answer("cache info", made)
    answer("cache verify", made)
    answer("cache merge", root / "merged.h5", made)
    answer("cache export", made, root / "files", "--format", "folder")
    answer("cache import", f"folder:{root / 'files'}", root / "back.h5")
    answer("cache forget", f"folder:{root / 'files'}", root / "back.h5")
    answer("audit", made, train, "--holdout", test, "--out", report)
    space = ("--features", "pixels:2", "--holdout", test, "--out")
    answer("evaluate density", made, train, *space, root / "density")
    answer("evaluate quality", made, train, *space, root / "quality", "--force")
    once = ("--steps", 2, "--seeds", 1, *ON_CPU, "--out")
    answer("evaluate labels", made, train, "--percentile", 50, *once, root / "labels")
    runs = ("--precision", "float32", "--batch-size", 8)
    answer("evaluate", train, made, test, *runs, *once, root / "arms")
    grid = ("--guidance-scale", "1.0,2.0", "--guidance", 1.5, "--per-class", 3)
    sweep = ("--validation", test, *grid, "--features", "pixels:2", "--force")
    answer("sweep", model, train, *sweep, "--num-inference-steps", 2, *once, root / "sweep")
    answer("train --condition tokens", color, root / "tokens", *small, *width)
    answer("invert", root / "tokens", color, root / "inverted", "--updates", 2, *draw[2:])
    answer("train --method cold", color, root / "cold", *small, *width)
    answer("train --image-size 4", train, root / "base", *small, *width)
    answer("train --method upsample --low-size 4", train, root / "stage", *small, *width)
    answer("cascade", root / "whole", root / "base", root / "stage")
    lines = ("generate", "train --steps many", "plan /nowhere --per-class 1", "cite /nowhere")
    found["refused"] = {line: run(*line.split())[0] for line in lines}
    return found


def without_numbers(value: Any) -> Any:
    """A result without what was computed in floating point, or decided by it."""
    if isinstance(value, dict):
        return {k: kinds(v) if k == "chosen" else without_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [without_numbers(v) for v in value]
    return "<number>" if isinstance(value, float) else value


def surface(_: World) -> Record:
    """Public names, and commands with their options and defaults."""
    names: Record = {"synthaug": list(synthaug.__all__)}
    for name in synthaug.__all__:
        if isinstance(module := getattr(synthaug, name), type(sys)):
            own = [
                n
                for n, v in vars(module).items()
                if getattr(v, "__module__", "") == module.__name__
            ]
            public = [n for n in own if n[0] != "_"]
            names[f"synthaug.{name}"] = sorted(getattr(module, "__all__", public))
    listed = re.findall(r"^    ([a-z]+(?: [a-z]+)?)(?:  |$)", run("--help")[1], re.MULTILINE)
    inner = re.findall(r"^    ([a-z]+)(?:  |$)", run("cache", "--help")[1], re.MULTILINE)
    found: Record = {}
    for command in [*listed, *(f"cache {name}" for name in inner)]:
        text = run(*command.split(), "--help-all")[1]
        options: Record = {}
        for block in re.split(r"\n(?=  \S)", text):
            if head := re.match(r"  (--?[\w-]+.*?)(?:  |\n|$)", block):
                default = re.search(r"default: (.*?)\)", " ".join(block.split()))
                options[head[1]] = default[1] if default else None
        found[command] = options
    return {"names": names, "commands": found}


# -- recording and comparing ---------------------------------------------------------------------


def plain(value: Any, folder: str, key: str = "") -> Any:
    """A record as JSON, but for images; what depends on the machine is reduced to its type."""
    if isinstance(value, Mapping):
        return {
            str(k).replace(folder, "<folder>"): kinds(v)
            if k in MACHINE
            else plain(v, folder, str(k))
            for k, v in value.items()
        }
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim > 2:
        return value
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [plain(v, folder, key) for v in value]
    if isinstance(value, str | os.PathLike):
        return text(str(value), folder, key)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def text(value: str, folder: str, key: str) -> str:
    """Prose may be reworded; pictures, paths and digests of computed numbers vary."""
    value = value.replace(folder, "<folder>")
    if key in COMPUTED and re.fullmatch("[0-9a-f]{32}", value):
        return "<digest>"
    if value.startswith("data:image"):
        return "<picture>"
    return "<text>" if len(value.split()) > 4 else value


def kinds(value: Any) -> Any:
    """The types of all leaves."""
    if isinstance(value, Mapping):
        return {str(k): kinds(v) for k, v in value.items()}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return "<number>" if number else f"<{type(value).__name__}>"


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a record, with the way to it."""
    if isinstance(value, dict) and value:
        for name, one in value.items():
            yield from leaves(one, f"{path} / {name}" if path else name)
    elif isinstance(value, list) and value:
        for i, one in enumerate(value):
            yield from leaves(one, f"{path}[{i}]")
    else:
        yield path, value


def differs(name: str, old: Any, new: Any) -> str | None:
    """What is different between two leaves; `None` within the tolerance."""
    if isinstance(old, np.ndarray) and isinstance(new, np.ndarray):
        if old.shape != new.shape:
            return f"shape {old.shape} -> {new.shape}"
        gap = np.abs(old.astype(int) - new)
        if gap.max() <= GRAY_LEVELS and gap.mean() <= ON_AVERAGE:
            return None
        return f"images differ by {gap.mean():.2f} gray levels on average, {gap.max()} at most"
    if isinstance(old, float) or isinstance(new, float):
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (old, new))
        absolute = next((gap for part, gap in ABSOLUTE.items() if part in name), 1e-6)
        if numeric and math.isclose(old, new, rel_tol=RELATIVE, abs_tol=absolute):
            return None
    elif type(old) is type(new) and old == new:
        return None
    return f"{old!r} -> {new!r}"


def differences(old: Record, new: Record) -> list[str]:
    """One line for every leaf that is missing, new or different."""
    before, after = dict(leaves(old)), dict(leaves(new))
    found = [f"{name}: is gone (was {shown(before[name])})" for name in before if name not in after]
    found += [f"{name}: is new ({shown(after[name])})" for name in after if name not in before]
    for name in before.keys() & after.keys():
        change = differs(name, before[name], after[name])
        if change is not None:
            found.append(f"{name}: {change}")
    return sorted(found)


def shown(value: Any) -> str:
    return f"images {value.shape}" if isinstance(value, np.ndarray) else repr(value)


def write(name: str, record: Record, libraries: Record) -> None:
    """Keeps a record: images in an .npz, all else as JSON, a list of numbers on one line."""
    record = {"libraries": libraries, **record}
    FOLDER.mkdir(exist_ok=True)
    arrays = {path: leaf for path, leaf in leaves(record) if isinstance(leaf, np.ndarray)}

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: without(v) for k, v in value.items()}
        if isinstance(value, list):
            return [without(v) for v in value]
        return "<images>" if isinstance(value, np.ndarray) else value

    text = json.dumps(without(record), indent=1, allow_nan=False)
    flat = re.compile(r"\[\n\s*([^\[\]{}]*?)\n\s*\]")
    text = flat.sub(lambda found: "[" + re.sub(r"\s*\n\s*", " ", found[1]) + "]", text)
    (FOLDER / f"{name}.json").write_text(text + "\n")
    if arrays:
        named: Any = arrays
        np.savez_compressed(FOLDER / f"{name}.npz", **named)


def read(name: str) -> tuple[Record, Record]:
    """A record that was kept, and the libraries that it was made with."""
    record = read_json(FOLDER / f"{name}.json")
    path = FOLDER / f"{name}.npz"
    arrays = dict(np.load(path)) if path.exists() else {}

    def joined(value: Any, way: str = "") -> Any:
        if isinstance(value, dict):
            return {k: joined(v, f"{way} / {k}" if way else k) for k, v in value.items()}
        if isinstance(value, list):
            return [joined(v, f"{way}[{i}]") for i, v in enumerate(value)]
        return arrays[way] if value == "<images>" else value

    kept = joined(record)
    return kept, kept.pop("libraries")


def found_now(name: str, world: World) -> Record:
    """What an area gives now."""
    function = {**AREAS, "surface": surface}[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unaudited caches, slow copies, few samples
        return plain(function(world), str(world.folder))


def main() -> int:
    """Records or compares; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--record", action="store_true", help="keep what is found now")
    parser.add_argument("--only", nargs="+", choices=[*AREAS, "surface"], help="these areas")
    options = parser.parse_args()
    failed, used = 0, {name: version(name) for name in LIBRARIES}
    with tempfile.TemporaryDirectory() as folder:
        world = World(Path(folder).resolve())
        for name in options.only or [*AREAS, "surface"]:
            now = found_now(name, world)
            if options.record:
                write(name, now, used)
                print(f"{name}: recorded, {len(dict(leaves(now))):,} values")
                continue
            kept, libraries = read(name)
            found = differences(kept, now)
            failed += bool(found) and name in AREAS
            print(f"{name}: {len(found)} differences" if found else f"{name}: equal")
            print("".join(f"    {line}\n" for line in found), end="")
            if found and libraries != used:
                print(f"    (recorded with {libraries}, here is {used})")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
