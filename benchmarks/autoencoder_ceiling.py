"""Measures what an autoencoder costs a classifier before any generator: trained on decoded images.

    python benchmarks/autoencoder_ceiling.py --pretrain folder:cifar100-half/train \
        --train folder:cifar10/train --test folder:cifar10/test
    python benchmarks/autoencoder_ceiling.py --checkpoint stable-diffusion-v1-5 --train ...

Classifiers are trained on real images, and on the same images encoded and decoded, for equal steps,
and tested on real images: no latent generator over that autoencoder draws sharper ones. Without a
checkpoint small ones are trained first, on other images, for each number of halvings: absolute
error, and a little of the KL divergence; no adversarial and no perceptual loss.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _inversion import first_per_class
from _machine import write
from diffusers import AutoencoderKL

from synthaug import ClassifierConfig, evaluate, load_dataset
from synthaug._pixels import to_images
from synthaug.evaluation import reconstructions

KL_WEIGHT = 1e-4


def trained(images: Any, halvings: int, options: argparse.Namespace) -> Path:
    """The directory of a small autoencoder."""
    path = Path(options.work) / f"autoencoder-{halvings}"
    if (path / "config.json").exists():
        return path
    torch.manual_seed(0)
    widths = [min(64, options.width * 2**level) for level in range(halvings + 1)]
    vae: Any = AutoencoderKL(
        in_channels=images.image_shape[0],
        out_channels=images.image_shape[0],
        latent_channels=4,
        block_out_channels=widths,
        down_block_types=["DownEncoderBlock2D"] * len(widths),
        up_block_types=["UpDecoderBlock2D"] * len(widths),
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=images.image_shape[-1],
    )
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, options.pretrain_steps)
    rng = np.random.default_rng(0)
    started = time.monotonic()
    for step in range(options.pretrain_steps):
        batch = to_images(images.read(rng.integers(len(images), size=32)))
        found = vae.encode(batch).latent_dist
        error = (vae.decode(found.sample()).sample - batch).abs().mean()
        loss = error + KL_WEIGHT * found.kl().mean() / found.mean[0].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            rate = (step + 1) / (time.monotonic() - started)
            print(f"{halvings} halvings, step {step + 1}: {error:.4f} ({rate:.1f}/s)", flush=True)
    vae.save_pretrained(path, safe_serialization=True)
    return path


def rmse(a: Any, b: Any) -> float:
    """Root mean square error of pixels in [0, 1]."""
    rows = range(len(a))
    return float(((a.read(rows).float() - b.read(rows).float()) / 255).square().mean().sqrt())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", default="runs/ceiling")
    parser.add_argument("--checkpoint", help="Of a latent model; without it, small ones are made")
    parser.add_argument("--pretrain", default="folder:cifar100-half/train")
    parser.add_argument("--pretrain-steps", type=int, default=1500)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--halvings", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--train", default="folder:cifar10/train")
    parser.add_argument("--test", default="folder:cifar10/test")
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--model", default="small-cnn")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--no-flip", action="store_true", help="For digits and letters")
    parser.add_argument("--name", default="autoencoder_ceiling", help="Of the results")
    options = parser.parse_args()
    whole = load_dataset(options.train)
    real = whole.subset(first_per_class(whole.targets, options.per_class, 0))
    if options.checkpoint:
        autoencoders = {"decoded": options.checkpoint}
    else:
        others = load_dataset(options.pretrain)
        autoencoders = {
            f"decoded, {2**h} x {2**h} pixels to one latent": trained(others, h, options)
            for h in options.halvings
        }
    arms: dict[str, Any] = {"real": real}
    errors = {}
    for name, path in autoencoders.items():
        arms[name] = reconstructions(real, path, batch_size=64, progress=False)
        errors[name] = rmse(real, arms[name])
    report = evaluate(
        arms,
        test=load_dataset(options.test),
        config=ClassifierConfig(
            model=options.model, steps=options.steps, horizontal_flip=not options.no_flip
        ),
        seeds=options.seeds,
        output_dir=Path(options.work) / "classifiers",
        progress=False,
    )
    print(report.table(), errors)
    rows = [
        {"arm": arm, "rmse": errors.get(arm, 0.0), "accuracies": report.accuracies(arm).tolist()}
        for arm in arms
    ]
    settings = {k: v for k, v in vars(options).items() if k not in ("work", "name")}
    print("Written:", write(options.name, {"settings": settings, "rows": rows}))
