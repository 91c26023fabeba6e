"""How many updates an embedding needs: the loss against the number of updates, from each start.

    python benchmarks/inversion_updates.py runs/tokens --data digits:train

The loss is that of fixed noise at fixed, evenly spaced timesteps, the same for all runs. Every
number of updates is a run of its own, since the learning rate falls to 0 at its end. Compared are
the encoder's tokens and noise as a start, each at several learning rates, and timesteps from the
low-discrepancy sequence against timesteps drawn independently.
"""

import argparse
from typing import Any

import numpy as np
import torch
from _inversion import plot
from _machine import write
from torch import Tensor

from synthaug import DiffusionInversion, load_dataset
from synthaug._training.fit_job import denoising_target
from synthaug.synthesizers import InversionConfig
from synthaug.synthesizers.inversion import _fit as stage1


def independent_timesteps(keys: np.ndarray, update: int, num_timesteps: int) -> np.ndarray:
    return np.random.default_rng(update).integers(0, num_timesteps, len(keys))


def fixed_loss(inversion: DiffusionInversion, x0: Tensor, timesteps: int) -> Any:
    """Embeddings => mean loss of the images, at the same noise always."""
    scheduler = inversion.model.make_scheduler("ddpm")
    steps = scheduler.config.num_train_timesteps
    grid = ((torch.arange(timesteps) + 0.5) / timesteps * steps).long()
    generator = torch.Generator().manual_seed(7)
    noises = [torch.randn(x0.shape, generator=generator).to(x0.device) for _ in grid]

    @torch.inference_mode()
    def loss(embeddings: Tensor) -> float:
        losses = []
        for t, noise in zip(grid, noises, strict=True):
            at = t.expand(len(x0)).to(x0.device)
            prediction = inversion.model.denoiser(
                scheduler.add_noise(x0, noise, at), at, embeddings
            )
            target = denoising_target(scheduler, x0, noise, at)
            losses.append(float((prediction - target).square().mean()))
        return float(np.mean(losses))

    return loss


def main(options: argparse.Namespace) -> None:
    inversion = DiffusionInversion.from_pretrained(options.checkpoint, device=options.device)
    data = load_dataset(options.data, image_shape=inversion.image_shape)
    chosen = np.random.default_rng(options.seed).permutation(len(data))[: options.images]
    real = data.subset(chosen)
    loss: Any = None
    runs: dict[str, dict[str, Any]] = {
        f"{start}, learning rate {rate:g}": {"start": start, "learning_rate": rate}
        for start in ("encoder", "noise")
        for rate in options.learning_rates
    }
    middle = options.learning_rates[len(options.learning_rates) // 2]
    runs["encoder, independent timesteps"] = {"start": "encoder", "learning_rate": middle}
    runs["encoder, constant rate"] = {"start": "encoder", "learning_rate": middle, "decay": False}
    rows = []
    sequence = stage1.timesteps_of
    for name, settings in runs.items():
        stage1.timesteps_of = independent_timesteps if "independent" in name else sequence
        for updates in options.updates:
            config = InversionConfig(updates=max(1, updates), batch_size=options.batch, **settings)
            job = stage1.InversionJob(inversion.model, inversion.encoder, real, config)
            block = job._block(np.arange(len(real)))
            loss = loss or fixed_loss(inversion, block.mean, options.timesteps)
            for _ in range(updates):
                stage1.run_pass(inversion.model.denoiser, job.scheduler, block, config)
            rms = float(block.embeddings.square().mean().sqrt())
            value = loss(block.embeddings)
            rows.append({"run": name, "updates": updates, "loss": value, "rms": rms})
            print(f"{name}, {updates} updates: loss {value:.4f}", flush=True)

    def curves(axes: Any) -> None:
        for name in runs:
            points = [row for row in rows if row["run"] == name]
            style = "--" if name.startswith("noise") else "-"
            x, y = [p["updates"] for p in points], [p["loss"] for p in points]
            axes.plot(x, y, style, marker="o", label=name)
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xlabel("updates per embedding")
        axes.set_ylabel("loss at fixed noise")
        axes.legend(fontsize=7)

    file = options.name or "inversion_updates"
    plot(file, curves)
    facts = {k: v for k, v in vars(options).items() if k not in ("name", "checkpoint")}
    print("Written:", write(file, {**facts, "rows": rows}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", help="From `synthaug train --condition tokens`")
    parser.add_argument("--pretrained-on", required=True, help="What the generator saw, in words")
    parser.add_argument("--data", default="digits:train")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--timesteps", type=int, default=20, help="Of the fixed loss")
    parser.add_argument("--updates", type=int, nargs="+", default=[0, 10, 30, 100, 300])
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.03, 0.1, 0.3])
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", help="Of the results")
    main(parser.parse_args())
