"""How fast embeddings are learned: image-updates per second, beside the plain loop of the paper.

    python benchmarks/inversion_speed.py --kind pixel --size 32
    python benchmarks/inversion_speed.py --kind stable-diffusion --size 128 --images 4 --batch 4
    python benchmarks/inversion_speed.py --checkpoint stable-diffusion-v1-4 --size 128

The plain loop does what the published recipe does: one group of images at a time with its own
AdamW over all embeddings of the group, weight decay 0.01, float32, images read and encoded by the
autoencoder at every step. Both train the same frozen network on the same images; the ways are
interleaved, and ratios are of the same round, on a CPU of processor time. Without a checkpoint the
weights are random: those of Stable Diffusion 1's architecture with its autoencoder, or of a small
pixel-space network.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import interleave, summary, write
from torch import Tensor

from synthaug import DiffusionInversion
from synthaug._pixels import to_images
from synthaug._support.devices import choose_device
from synthaug._training.fit_job import denoising_target
from synthaug.denoisers import Denoiser
from synthaug.images import LabeledImages
from synthaug.synthesizers import DiffusionModel, InversionConfig
from synthaug.synthesizers.inversion._fit import InversionJob, run_pass
from synthaug.synthesizers.inversion._tokens import build_token_unet


def random_model(kind: str, size: int, channels: int, device: torch.device) -> DiffusionModel:
    """A network with random weights: speed does not depend on them."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.manual_seed(0)
    config = {
        "_class_name": "DDPMScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "epsilon",
    }
    vae, width = None, 64
    if kind == "pixel":
        network = build_token_unet((3, size, size), token_width=64, channels=channels, num_layers=2)
    else:
        width = 768
        network = UNet2DConditionModel(sample_size=size // 8, cross_attention_dim=width)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            sample_size=size,
        )
        vae = vae.eval().requires_grad_(False).to(device)
    return DiffusionModel(
        network=network.eval().requires_grad_(False).to(device),
        scheduler_config=config,
        classes=(),
        image_shape=(3, size, size),
        vae=vae,
        class_embeddings=torch.zeros(1, 5, width),
    )


def plain_loop(
    model: DiffusionModel, real: Any, rows: np.ndarray, shape: tuple[int, int], config: Any
) -> Callable[[], float]:
    """The recipe's loop over one group, as a way to time: seconds of one epoch of it."""
    k, d = shape
    device = model.device
    scheduler = model.make_scheduler("ddpm")
    steps = scheduler.config.num_train_timesteps
    weights = torch.empty(len(rows), k, d, device=device).uniform_(-1, 1).div_(len(rows) ** 0.5)
    weights.requires_grad_()
    optimizer = torch.optim.AdamW([weights], lr=config.learning_rate, weight_decay=1e-2)

    def encode(pixels: Tensor) -> Tensor:
        images = to_images(pixels).to(device)
        if model.vae is None:
            return images
        with torch.no_grad():
            return model.vae.encode(images).latent_dist.sample() * model.vae.config.scaling_factor

    def epoch() -> float:
        started = clock(device)
        for start in range(0, len(rows), config.batch_size):
            part = torch.arange(start, min(start + config.batch_size, len(rows)))
            z = encode(real.read(rows[part.numpy()]))
            noise = torch.randn_like(z)
            t = torch.randint(0, steps, (len(z),), device=device)
            c = weights[part.to(device)]
            x_t = scheduler.add_noise(z, noise, t)
            prediction = model.network(x_t, t, encoder_hidden_states=c).sample
            target = denoising_target(scheduler, z, noise, t)
            loss = torch.nn.functional.mse_loss(prediction.float(), target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        synchronize(device)
        return clock(device) - started

    return epoch


def ours(model: DiffusionModel, real: Any, config: InversionConfig) -> Callable[[], float]:
    """One pass of our loop over the same images, which were encoded before."""
    job = InversionJob(model, None, real, config)
    block = job._block(np.arange(len(real)))
    denoiser = model.denoiser
    if config.compile:
        compiled: Any = torch.compile(model.network)
        denoiser = Denoiser(compiled)

    def one_pass() -> float:
        started = clock(model.device)
        run_pass(denoiser, job.scheduler, block, config)
        synchronize(model.device)
        return clock(model.device) - started

    return one_pass


def clock(device: torch.device) -> float:
    """Seconds: of the processor on a CPU, so that other work on the machine does not count."""
    return time.perf_counter() if device.type == "cuda" else time.process_time()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def whole_run(model: DiffusionModel, real: Any, config: InversionConfig, updates: int) -> float:
    """Image-updates per second of `fit` with everything in it: encoding, checkpoints, files."""
    inversion = DiffusionInversion(model=model)
    full = InversionConfig(
        updates=updates,
        batch_size=config.batch_size,
        num_tokens=config.num_tokens,
        block_size=len(real),
        compile=config.compile,
    )
    with tempfile.TemporaryDirectory() as folder:
        started = clock(model.device)
        inversion.fit(real, Path(folder) / "out", config=full, progress=False)
        return len(real) * updates / (clock(model.device) - started)


def compare(
    model: DiffusionModel, in_bfloat16: DiffusionModel, options: argparse.Namespace
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(
        0, 256, (options.images, *model.image_shape), dtype=torch.uint8, generator=generator
    )
    real = LabeledImages(pixels, np.zeros(options.images, np.int64), ["image"])

    def config(compile: bool = False) -> InversionConfig:
        return InversionConfig(
            updates=10**6,
            batch_size=options.batch,
            num_tokens=options.tokens,
            start="noise",
            compile=compile,
        )

    shape = (options.tokens, int(model.denoiser.config.cross_attention_dim))
    rows = np.arange(options.images)
    ways = {
        "plain loop": plain_loop(model, real, rows, shape, config()),
        "synthaug, float32": ours(model, real, config()),
        "synthaug, bfloat16": ours(in_bfloat16, real, config()),
    }
    if options.compile:
        ways["synthaug, bfloat16, compiled"] = ours(in_bfloat16, real, config(True))
    times = interleave(ways, options.rounds)
    best = min(ways, key=lambda name: float(np.median(times[name])))
    return {
        "image_shape": list(model.image_shape),
        "latent_shape": list(model.latent_shape),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "images": options.images,
        "batch": options.batch,
        "tokens": options.tokens,
        "updates_per_second": {
            name: summary([options.images / x for x in values]) for name, values in times.items()
        },
        "ratio_to_plain_loop": {
            name: summary([a / b for a, b in zip(times["plain loop"], times[name], strict=True)])
            for name in ways
        },
        "fastest": best,
        "whole_fit_updates_per_second": whole_run(
            in_bfloat16 if "bfloat16" in best else model, real, config(), options.updates
        ),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", help="A text-to-image checkpoint in diffusers layout")
    parser.add_argument("--kind", choices=["pixel", "stable-diffusion"], default="pixel")
    parser.add_argument("--size", type=int, default=32, help="Pixels per side")
    parser.add_argument("--channels", type=int, default=32, help="Of the pixel-space network")
    parser.add_argument("--images", type=int, default=100, help="Images of one group")
    parser.add_argument("--batch", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--updates", type=int, default=20, help="Of the whole run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device")
    parser.add_argument("--name", help="Of the results")
    options = parser.parse_args()
    device = choose_device(options.device)
    models = []
    for dtype in (torch.float32, torch.bfloat16):
        if options.checkpoint:
            models.append(
                DiffusionInversion.from_pretrained(
                    options.checkpoint,
                    classes=["image"],
                    image_size=options.size,
                    dtype=dtype,
                    device=device,
                ).model
            )
        else:
            models.append(random_model(options.kind, options.size, options.channels, device))
            models[-1].network.to(dtype)
    result = compare(models[0], models[1], options)
    kind = options.checkpoint or options.kind
    for name, ratio in result["ratio_to_plain_loop"].items():
        rate = result["updates_per_second"][name]["median"]
        print(f"{kind}, {name}: {rate:,.2f} image-updates/s, {ratio['median']:.2f}x", flush=True)
    file = options.name or f"inversion_speed_{kind.replace('-', '_')}"
    print("Written:", write(file, {"model": kind, "device": str(device), **result}))
