"""Measures our denoising loop beside bare network calls and beside the diffusers pipeline.

    python benchmarks/sampling.py                                   # cost of the loop
    python benchmarks/sampling.py --checkpoint runs/cifar10 --data folder:cifar10/test \
        --features resnet20.pt                                      # quality per network evaluation

Cost: the same random network, batch and number of steps for all ways, interleaved, in processor
seconds of one thread; ratios to the bare calls of the same round. Quality: Fréchet distance of
samples to real images in the features given, for three samplers at equal numbers of network
evaluations, beside the distance between two halves of the real images at the same size.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from _machine import interleave, summary, write

from synthaug import ClassConditional, SamplerConfig, load_dataset
from synthaug._noise import streams
from synthaug._pixels import to_pixels
from synthaug.denoisers import build_unet
from synthaug.metrics import frechet_distance
from synthaug.synthesizers import DiffusionModel


def cost(size: int, width: int, batch: int, steps: int, rounds: int) -> dict[str, Any]:
    from diffusers import DDIMPipeline, DDIMScheduler

    torch.manual_seed(0)
    network = build_unet((3, size, size), num_classes=10, channels=width).eval()
    plain = type(network).from_config({**network.config, "num_class_embeds": None}).eval()
    config = {
        "_class_name": "DDPMScheduler",
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    pipeline = DDIMPipeline(plain, DDIMScheduler.from_config(config))
    pipeline.set_progress_bar_config(disable=True)

    def synthesizer(net: Any) -> ClassConditional:
        model = DiffusionModel(
            network=net,
            scheduler_config=config,
            classes=tuple("abcdefghij") if net is network else ("image",),
            image_shape=(3, size, size),
        )
        return ClassConditional(model=model, sampler=SamplerConfig(num_inference_steps=steps))

    unconditional, conditional = synthesizer(plain), synthesizer(network)
    plan = unconditional.plan(per_class=batch, seed=0)
    guided = conditional.plan(per_class=-(-batch // 10), seed=0, guidance_scale=2.0)[:batch]
    x = torch.randn(batch, 3, size, size).contiguous(memory_format=torch.channels_last)
    t = torch.full((batch,), 500)
    y = torch.zeros(batch, dtype=torch.int64)

    def timed(work: Callable[[], Any]) -> Callable[[], float]:
        def way() -> float:
            started = time.process_time()
            with torch.inference_mode():
                work()
            return time.process_time() - started

        return way

    ways = {
        "bare network": timed(lambda: [plain(x, t).sample for _ in range(steps)]),
        "diffusers DDIMPipeline": timed(
            lambda: pipeline(
                batch_size=batch,
                generator=streams(range(batch)),
                num_inference_steps=steps,
                output_type="np",
            )
        ),
        "synthaug": timed(lambda: unconditional.draw(plan)),
        "bare network, two branches": timed(
            lambda: [network(x, t, class_labels=y).sample for _ in range(2 * steps)]
        ),
        "synthaug, guided": timed(lambda: conditional.draw(guided)),
    }
    times = interleave(ways, rounds)
    floor = {
        "diffusers DDIMPipeline": "bare network",
        "synthaug": "bare network",
        "synthaug, guided": "bare network, two branches",
    }
    return {
        "size": size,
        "width": width,
        "batch": batch,
        "steps": steps,
        "parameters": sum(p.numel() for p in plain.parameters()),
        "seconds": {name: summary(values) for name, values in times.items()},
        "ratio_to_bare": {
            name: summary([a / b for a, b in zip(times[name], times[base], strict=True)])
            for name, base in floor.items()
        },
    }


def quality(
    checkpoint: str, data: str, extractor_path: str, images: int, budgets: list[int]
) -> dict[str, Any]:
    from synthaug.features import TorchScript, extract

    extractor = TorchScript(extractor_path, trusted=True)
    real = load_dataset(data)
    order = np.random.default_rng(0).permutation(len(real))[: 2 * images]
    features = extract(extractor, real.read(order))
    floor = frechet_distance(features[images:], features[:images])
    rows = []
    for evaluations in budgets:
        for name in ("ddpm", "ddim", "dpmsolver++"):
            sampler = SamplerConfig(scheduler=name, num_inference_steps=evaluations)
            synthesizer = ClassConditional.from_pretrained(checkpoint, sampler=sampler)
            plan = synthesizer.plan(per_class=images // len(synthesizer.classes), seed=0)
            drawn = [to_pixels(synthesizer.draw(batch)) for batch in plan.batches(100)]
            distance = frechet_distance(extract(extractor, torch.cat(drawn)), features[:images])
            rows.append({"scheduler": name, "evaluations": evaluations, "frechet": distance})
            print(f"{name:12} {evaluations:3} evaluations: {distance:8.3f}", flush=True)
    return {
        "features": extractor.name,
        "images": images,
        "dimensions": features.shape[1],
        "real_to_real": floor,
        "rows": rows,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checkpoint")
    parser.add_argument("--data", default="folder:cifar10/test")
    parser.add_argument("--features")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[5, 10, 20, 50])
    options = parser.parse_args()
    if options.checkpoint:
        if not options.features:
            parser.error("--checkpoint needs --features, a TorchScript feature extractor")
        result = quality(
            options.checkpoint, options.data, options.features, options.images, options.evaluations
        )
        print("Written:", write("sampling_quality", result))
    else:
        results = []
        torch.set_num_threads(1)
        for size in options.sizes:
            results.append(cost(size, 32, options.batch, options.steps, options.rounds))
            for name, ratio in results[-1]["ratio_to_bare"].items():
                print(f"{size} px, {name}: {ratio['median']:.3f}x of the bare network calls")
        ours = statistics.median(r["ratio_to_bare"]["synthaug"]["median"] for r in results)
        print("Written:", write("sampling_cost", {"cost": results, "median_ratio": ours}))
