"""How many updates an embedding needs: loss and distance of variants, beside the paper's loop.

    python benchmarks/inversion_updates.py runs/tokens --data digits:test --name inversion_updates_8

The loss is that of fixed noise at fixed, evenly spaced timesteps, which no way of learning sees;
the distance that of variants drawn without noise and interpolation to their source, as the RMS of
pixels in [0, 255]. Every seed has images and noise of its own. The paper's loop starts from noise,
at a constant learning rate, with independent noise and timesteps and a weight decay; where the rate
falls to 0, every number of updates is a run of its own. The other ways differ from ours by what
their name says. Seeds that are measured already are not measured again.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from _inversion import draw_pixels
from _machine import interleave, summary, write, written
from torch import Tensor

from synthaug import DiffusionInversion, SamplerConfig, load_dataset
from synthaug._training.fit_job import denoising_target
from synthaug.samplers import noised
from synthaug.synthesizers import InversionConfig
from synthaug.synthesizers.inversion._embeddings import EmbeddingTable
from synthaug.synthesizers.inversion._fit import Block, InversionJob, run_pass, timesteps_of

OURS = "synthaug"
PAPER = "the paper's loop"


@dataclass(frozen=True)
class Way:
    """How embeddings are learned by Adam."""

    start: str = "encoder"
    rate: float = 0.2
    decay: bool = True
    beta1: float = 0.8
    weight_decay: float = 0.0
    paired: bool = True
    stratified: bool = True
    shared: bool = True
    density: str = "uniform"
    second_moment: str = "of each number"


OTHERS = {
    "unpaired": Way(paired=False),
    "unpaired, as before": Way(paired=False, rate=0.1, beta1=0.9),
    "independent timesteps": Way(stratified=False),
    "noise for each image": Way(shared=False),
    "more small timesteps, weighted": Way(density="quadratic"),
    "one second moment per image": Way(second_moment="of the image"),
}


@final
class Laboratory:
    """Some images, and what is measured of their embeddings."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        sampler = SamplerConfig(scheduler="dpmsolver++", num_inference_steps=10)
        self.inversion = DiffusionInversion.from_pretrained(options.checkpoint, sampler=sampler)
        data = load_dataset(options.data, image_shape=self.inversion.image_shape)
        chosen = np.random.default_rng(seed).permutation(len(data))[: options.images]
        self.real, self.seed = data.subset(chosen), seed
        self.scheduler = self.inversion.model.training_scheduler()
        self.steps = self.scheduler.config.num_train_timesteps
        self.x0 = self.block(Way()).mean

    def job(self, way: Way, updates: int = 1) -> InversionJob:
        """Returns the package's own job, from the start of a way."""
        start: Any = way.start
        config = InversionConfig(updates=updates, start=start, seed=self.seed)
        return InversionJob(self.inversion.model, self.inversion.encoder, self.real, config)

    def block(self, way: Way, updates: int = 1) -> Block:
        """Returns the images with their first embeddings."""
        return self.job(way, updates)._block(np.arange(len(self.real)))

    def errors(self, c: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The loss of every image, (n,)."""
        x_t = noised(self.scheduler, self.x0, noise, t)
        target = denoising_target(self.scheduler, self.x0, noise, t)
        return (self.inversion.model.denoiser(x_t, t, c) - target).square().flatten(1).mean(1)

    @torch.inference_mode()
    def losses(self, c: Tensor, levels: int = 20) -> Tensor:
        """The loss at fixed noise of every image, (n,)."""
        generator = torch.Generator().manual_seed(7)
        grid = ((torch.arange(levels) + 0.5) / levels * self.steps).long()
        each = [
            self.errors(c, t.expand(len(c)), torch.randn(self.x0.shape, generator=generator))
            for t in grid
        ]
        return torch.stack(each).mean(0)

    def distance(self, c: Tensor) -> float:
        """From sources to variants, two of each, RMS of pixels."""
        table = EmbeddingTable(
            classes=tuple(self.real.classes),
            labels=self.real.labels,
            keys=self.block(Way()).keys,
            snapshots={1: c.detach().clone()},
        )
        learned = replace(self.inversion, table=table)
        plan = learned.plan(ratio=2, noise=0.0, interpolation=0.0, guidance_scale=1.0, seed=3)
        source = self.real.read(plan["source"]).float()
        difference = draw_pixels(learned, plan).float() - source
        return float(difference.square().flatten(1).mean(1).sqrt().mean())


def ours(lab: Laboratory, updates: int, start: str = "encoder") -> Tensor:
    """The package's way."""
    way = Way(start=start)
    job, block = lab.job(way, updates), lab.block(way, updates)
    for _ in range(updates):
        run_pass(lab.inversion.model.denoiser, job.scheduler, block, job.config)
    return block.embeddings


def learn(
    lab: Laboratory, way: Way, updates: int, seen: Callable[[int, Tensor], None] = lambda u, c: None
) -> Tensor:
    """Another way; `seen` is shown the embeddings after each update."""
    block = lab.block(way)
    c, n = block.embeddings, len(block.keys)
    if way == PAPERS:  # the start of a linear layer over a group of 100 images
        c = torch.empty_like(c).uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(9))
    generator = torch.Generator().manual_seed(lab.seed)
    rng = np.random.default_rng(lab.seed)
    m, v, noise, drawn = torch.zeros_like(c), torch.zeros_like(c), torch.zeros(0), np.zeros(n)
    for u in range(updates):
        again = way.paired and u % 2
        shape = lab.x0.shape[1:] if way.shared else lab.x0.shape
        noise = -noise if again else torch.randn(shape, generator=generator)
        drawn = drawn if again else rng.random(n)
        # The package's timesteps change after two updates.
        at = timesteps_of(block.keys, u if way.paired else 2 * u, 10**6) / 10**6
        x = torch.from_numpy(at if way.stratified else drawn).float()
        weight = 2 * x.view(-1, 1, 1) if way.density == "quadratic" else 1.0
        t = ((x**2 if way.density == "quadratic" else x) * lab.steps).long()
        c = c.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(lab.errors(c, t, noise.expand_as(lab.x0)).sum(), c)
        gradient = gradient * weight
        square = gradient.square()
        if way.second_moment == "of the image":
            square = square.mean((1, 2), keepdim=True).expand_as(square)
        m.lerp_(gradient, 1 - way.beta1)
        v.lerp_(square, 1 - 0.999)
        rate = way.rate * (1 - u / updates if way.decay else 1.0)
        step = m / (1 - way.beta1 ** (u + 1)) / ((v / (1 - 0.999 ** (u + 1))).sqrt() + 1e-8)
        c = c.detach() * (1 - rate * way.weight_decay) - rate * step
        seen(u + 1, c)
    return c


PAPERS = Way("noise", 0.03, False, 0.9, 0.01, False, False, False)


def lbfgs(lab: Laboratory, updates: int, points: int = 10) -> Tensor:
    """L-BFGS on the loss at some fixed timesteps and noises, each of which costs an update."""
    c = lab.block(Way()).embeddings.requires_grad_()
    generator = torch.Generator().manual_seed(lab.seed)
    noises = torch.randn((points, *lab.x0.shape), generator=generator)
    grid = ((torch.arange(points) + 0.5) / points * lab.steps).long()
    calls = max(1, updates // points)
    optimizer = torch.optim.LBFGS([c], max_iter=calls, max_eval=calls, history_size=calls)

    def closure() -> Tensor:
        optimizer.zero_grad()
        parts = [
            lab.errors(c, t.expand(len(c)), noise).sum()
            for t, noise in zip(grid, noises, strict=True)
        ]
        loss = torch.stack(parts).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return c.detach()


def best_stop(losses: dict[int, Tensor], mean_updates: int) -> float:
    """The least mean loss if an oracle chose the updates of each image, as many in the mean."""
    counts = sorted(losses)
    price = torch.tensor(counts, dtype=torch.float64)
    table = torch.stack([losses[count] for count in counts]).double()
    best = float(losses[mean_updates].mean())
    for rate in torch.logspace(-7, -1, 200, dtype=torch.float64):  # a Lagrange multiplier
        chosen = (table + rate * price[:, None]).argmin(0)
        if price[chosen].mean() <= mean_updates:
            best = min(best, float(table.gather(0, chosen[None]).mean()))
    return best


def measured(options: argparse.Namespace, seed: int) -> dict[str, Any]:
    """All ways with one seed."""
    lab = Laboratory(options, seed)
    rows: list[dict[str, Any]] = []

    def note(way: str, updates: int, c: Tensor) -> Tensor:
        losses = lab.losses(c)
        found = {"loss": float(losses.mean()), "distance": lab.distance(c)}
        rows.append({"way": way, "updates": updates, **found})
        print(seed, rows[-1], flush=True)
        return losses

    note("start", 0, lab.block(Way()).embeddings)
    own = {n: note(OURS, n, ours(lab, n)) for n in options.updates}
    for name, way in (
        (PAPER, PAPERS),
        (f"{PAPER} from the encoder's tokens", replace(PAPERS, start="encoder")),
    ):

        def seen(update: int, c: Tensor, name: str = name) -> None:
            if update in options.paper_updates:
                note(name, update, c)

        learn(lab, way, max(options.paper_updates), seen)
    for n in options.updates[1:]:
        note(f"{OURS} from noise", n, ours(lab, n, "noise"))
        for name, way in OTHERS.items():
            note(name, n, learn(lab, way, n))
        note("L-BFGS", n, lbfgs(lab, n))
    middle = sorted(own)[len(own) // 2]
    return {"rows": rows, "oracle": {"updates": middle, "loss": best_stop(own, middle)}}


def seconds(options: argparse.Namespace, updates: int = 12) -> dict[str, Any]:
    """Processor seconds of an update of one image, of our loop and of the paper's."""
    lab = Laboratory(options, 0)

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def way() -> float:
            started = time.process_time()
            work()
            return (time.process_time() - started) / updates / len(lab.real)

        return way

    ways = {
        OURS: timed(lambda: ours(lab, updates)),
        PAPER: timed(lambda: learn(lab, PAPERS, updates)),
    }
    found = interleave(ways, 5)
    ratios = [a / b for a, b in zip(found[OURS], found[PAPER], strict=True)]
    return {**{name: summary(values) for name, values in found.items()}, "ratio": summary(ratios)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="From `synthaug train --condition tokens`")
    parser.add_argument("--pretrained-on", required=True, help="What the generator saw, in words")
    parser.add_argument("--data", default="digits:test")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--updates", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--paper-updates", type=int, nargs="+", default=[30, 100, 300, 1000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", default="inversion_updates_8", help="Of the results")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = written(options.name)
    parts = found.get("seeds", {})
    facts = {k: v for k, v in vars(options).items() if k not in ("name", "checkpoint", "seeds")}
    facts["seconds_per_update"] = found.get("seconds_per_update") or seconds(options)
    for seed in range(options.seeds):
        if str(seed) not in parts:
            parts[str(seed)] = measured(options, seed)
            write(options.name, {**facts, "seeds": parts})


if __name__ == "__main__":
    main()
