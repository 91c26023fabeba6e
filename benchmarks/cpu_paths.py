"""Measures layout, compilation, threads and batch size of our small networks on a processor.

    python benchmarks/cpu_paths.py
    python benchmarks/cpu_paths.py --compile --out cpu_compiled
    python benchmarks/cpu_paths.py --drawn runs/digits --out cpu_compiled
    python benchmarks/cpu_paths.py --bfloat16 --channels 16 32 64 --batch 32 --out cpu_bfloat16

The network is the one that `synthaug train` makes; a step of training is forward, backward and
AdamW, a step of sampling one forward pass. All ways take turns in one process, and ratios are to
our own way (eager, channels-last, one thread) in the same round: of processor seconds, which other
work on the machine changes little, and of seconds by the clock. OpenMP's threads spin while they
wait for each other; with OMP_WAIT_POLICY=PASSIVE in the environment, which is what the command line
sets, they sleep. What is measured already is not
measured again. Writes `results/cpu_paths.json`.
"""

import argparse
import os
import time
from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from _machine import summary, write, written

from synthaug import ClassConditional, SamplerConfig
from synthaug._pixels import to_pixels
from synthaug._support.layout import settle_layout
from synthaug.denoisers import build_unet

OURS = "channels-last"
Step = Callable[[], torch.Tensor]


def network(size: int, channels: int = 32) -> Any:
    """The network of `train`, with its default settings but for the channels, in our layout."""
    torch.manual_seed(0)
    return settle_layout(build_unet((3, size, size), num_classes=10, channels=channels))


def sampling(net: Any, size: int, batch: int, layout: torch.memory_format) -> Step:
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
    t, y = torch.full((batch,), 500), torch.arange(batch) % 10

    def step() -> torch.Tensor:
        with torch.inference_mode():
            prediction: torch.Tensor = net(x, t, class_labels=y).sample
            return prediction

    return step


def training(net: Any, size: int, batch: int, layout: torch.memory_format) -> Step:
    optimizer = torch.optim.AdamW(net.parameters())
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=layout)
    t, y = torch.arange(batch) * 10, torch.arange(batch) % 10

    def step() -> torch.Tensor:
        loss = torch.nn.functional.mse_loss(net(x, t, class_labels=y).sample, x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


JOBS: dict[str, Callable[[Any, int, int, torch.memory_format], Step]] = {
    "sampling": sampling,
    "training": training,
}


def timed(step: Step, threads: int, repeats: int) -> tuple[float, float]:
    """Processor seconds and seconds by the clock of some steps."""
    torch.set_num_threads(threads)
    begun = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        step()
    return time.process_time() - begun[0], time.perf_counter() - begun[1]


def compared(
    ways: dict[str, tuple[Step, int, int]], rounds: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """Ratios to our way: of (step, threads, images per step) by name, per image."""
    first, _ = timed(ways[OURS][0], 1, 2)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, (step, threads, images) in ways.items():
            repeats = max(1, round(2 * seconds / first * ways[OURS][2] / images))
            processor, clock = timed(step, threads, repeats)
            if turn:
                times[name].append((processor / repeats / images, clock / repeats / images))
    return {
        name: {
            "processor_seconds_per_image": summary([own for own, _ in values]),
            "processor_ratio": summary(
                [one[0] / ours[0] for one, ours in zip(values, times[OURS], strict=True)]
            ),
            "clock_ratio": summary(
                [one[1] / ours[1] for one, ours in zip(values, times[OURS], strict=True)]
            ),
        }
        for name, values in times.items()
    }


def eager(job: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    make = JOBS[job]
    plain = network(size).to(memory_format=torch.contiguous_format)
    for weight in plain.parameters():
        weight.data = weight.data.contiguous()
    ours = make(network(size), size, args.batch, torch.channels_last)
    ways = {
        OURS: (ours, 1, args.batch),
        "contiguous": (make(plain, size, args.batch, torch.contiguous_format), 1, args.batch),
        f"{args.threads} threads": (ours, args.threads, args.batch),
    }
    for batch in args.batches:
        step = make(network(size), size, batch, torch.channels_last)
        ways[f"batch {batch}"] = (step, 1, batch)
    return compared(ways, args.rounds, args.seconds)


def compiled(job: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    make = JOBS[job]
    torch._dynamo.reset()  # else a network of another size is compiled for all sizes, or not anew
    quick = torch.compile(network(size))
    started = time.process_time(), time.perf_counter()
    torch.set_num_threads(1)
    step = make(quick, size, args.batch, torch.channels_last)
    step()
    once = time.process_time() - started[0], time.perf_counter() - started[1]
    found: dict[str, Any] = compared(
        {
            OURS: (make(network(size), size, args.batch, torch.channels_last), 1, args.batch),
            "compiled": (step, 1, args.batch),
        },
        args.rounds,
        args.seconds,
    )
    ours, quicker = (
        float(found[way]["processor_seconds_per_image"]["median"]) for way in (OURS, "compiled")
    )
    saved = (ours - quicker) * args.batch
    return {
        **found,
        "first step": {"processor_seconds": once[0], "seconds": once[1]},
        "steps until it pays": once[0] / saved if saved > 0 else None,
        "largest difference": None if job == "training" else largest_difference(quick, size, args),
    }


def in_bfloat16(step: Step) -> Step:
    """The step under autocast, as `train` makes it in this precision."""

    def quicker() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return step()

    return quicker


def halved(job: str, size: int, channels: int, args: argparse.Namespace) -> dict[str, Any]:
    """bfloat16 beside float32: drawing with weights in it, training under autocast."""

    def make(net: Any) -> Step:
        return JOBS[job](net, size, args.batch, torch.channels_last)

    ours = make(network(size, channels))
    if job == "training":
        other = in_bfloat16(make(network(size, channels)))
    else:
        net = network(size, channels).bfloat16()
        other = make(lambda x, t, class_labels: net(x.bfloat16(), t, class_labels=class_labels))
    ways = {OURS: (ours, 1, args.batch), "bfloat16": (other, 1, args.batch)}
    return compared(ways, args.rounds, args.seconds)


def largest_difference(quick: Any, size: int, args: argparse.Namespace) -> float:
    """By which the compiled network's predictions differ, whose standard deviation is about 1."""
    results = []
    for net in (network(size), quick):
        torch.manual_seed(1)
        results.append(sampling(net, size, args.batch, torch.channels_last)())
    return float((results[0] - results[1]).abs().max())


def gray_levels(checkpoint: str, scale: float, images: int = 64) -> dict[str, Any]:
    """By how many gray levels drawn images differ, compiled or in other batches."""
    sampler = SamplerConfig(num_inference_steps=50)
    torch._dynamo.reset()
    drawn = []
    for quick in (False, True):
        synthesizer: Any = ClassConditional.from_pretrained(checkpoint, sampler=sampler)
        plan = synthesizer.plan(per_class=7, guidance_scale=scale, seed=0)[:images]
        if quick:
            synthesizer.model.denoiser.network = torch.compile(synthesizer.model.network)
        for batch in (images, 7):
            parts = [to_pixels(synthesizer.draw(rows)) for rows in plan.batches(batch)]
            drawn.append(torch.cat(parts).short())
    eager, small, compiled_, compiled_small = drawn

    def differences(a: torch.Tensor, b: torch.Tensor) -> dict[str, float]:
        apart = (a - b).abs()
        return {"largest": int(apart.max()), "share of pixels": float((apart > 0).float().mean())}

    return {
        "compiled beside eager": differences(eager, compiled_),
        "eager, batch 7": differences(eager, small),
        "compiled, batch 7": differences(compiled_, compiled_small),
    }


def main() -> None:
    """Measures what is not yet in the file, and writes after each part."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--jobs", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="*", default=[16, 256])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="instead of the eager ways")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each way in each round")
    parser.add_argument("--out", default="cpu_paths", help="name of the file in results/")
    parser.add_argument("--bfloat16", action="store_true", help="instead of the eager ways")
    parser.add_argument("--channels", type=int, nargs="+", default=[32], help="with --bfloat16")
    parser.add_argument("--drawn", help="a class-conditional checkpoint, drawn compiled and not")
    parser.add_argument("--guidance", nargs="+", default=["2"], help="with --drawn")
    args = parser.parse_args()
    found = written(args.out)
    parts, drawn = found.get("parts", {}), found.get("gray_levels", {})
    for scale in args.guidance if args.drawn else ():
        drawn[scale] = gray_levels(args.drawn, float(scale))
        print(f"guidance {scale}", drawn[scale], flush=True)
    if args.drawn:
        write(args.out, {"parts": parts, "gray_levels": drawn})
        return
    for size, channels in product(args.sizes, args.channels):
        for job in args.jobs:
            name = f"{job}, {size} pixels" + ", compiled" * args.compile
            name += f", {channels} channels" * args.bfloat16
            name += ", passive" * (os.environ.get("OMP_WAIT_POLICY") == "PASSIVE")
            if name not in parts:
                if args.bfloat16:
                    measured = halved(job, size, channels, args)
                else:
                    measured = compiled(job, size, args) if args.compile else eager(job, size, args)
                parts[name] = {"batch": args.batch, "rounds": args.rounds, "ways": measured}
                write(args.out, {"parts": parts, **({"gray_levels": drawn} if drawn else {})})
            for way, row in parts[name]["ways"].items():
                print(name, way, row, flush=True)


if __name__ == "__main__":
    main()
