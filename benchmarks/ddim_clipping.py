"""DDIM and DDPM of diffusers with and without `clip_sample`, on models of ours.

    python benchmarks/ddim_clipping.py --seeds 0 1 2

A generator is trained on all digits of one half of the writers for each seed. Each way draws as
many images, and their Fréchet distance in pixels to that half is written, beside the distance of
DPM-Solver++, which does not clip. Kept in --work: run again after a kill, it goes on.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from _machine import write

from synthaug import ClassConditional, TrainingConfig, load_dataset
from synthaug._pixels import to_pixels
from synthaug.features import extract, named
from synthaug.metrics import frechet_distance

WAYS = [("ddim", 50, True), ("ddim", 50, False), ("ddpm", 50, True), ("ddpm", 50, False)]
WAYS.append(("dpmsolver++", 20, False))


def main() -> None:
    """Writes the file anew after each row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", default="digits:train", help="`load_dataset` takes it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 2.0], help="of guidance")
    parser.add_argument("--steps", type=int, default=1500, help="of each generator")
    parser.add_argument("--width", type=int, default=16, help="of each generator")
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--work", type=Path, default=Path("runs/ddim_clipping"))
    args = parser.parse_args()
    real, pixels = load_dataset(args.data), named("pixels")
    theirs = np.asarray(extract(pixels, real.read(np.arange(len(real)))))
    kept = args.work / "rows.json"
    rows = json.loads(kept.read_text()) if kept.exists() else []
    for seed in args.seeds:
        config = TrainingConfig(
            steps=args.steps,
            batch_size=64,
            learning_rate=1e-3,
            decay_steps=args.steps // 3,
            ema_decay=0.998,
            seed=seed,
            device="cpu",
            precision="float32",
        )
        model, _ = ClassConditional.fit(
            real, args.work / f"seed-{seed}", channels=args.width, config=config
        )
        for scheduler, evaluations, clip in WAYS:
            changed = {**model.model.scheduler_config, "clip_sample": clip}
            other = replace(model, model=replace(model.model, scheduler_config=changed))
            other = other.with_settings(scheduler=scheduler, num_inference_steps=evaluations)
            for scale in args.scales:
                row = {"seed": seed, "scheduler": scheduler, "clip_sample": clip, "guidance": scale}
                if any(row.items() <= done.items() for done in rows):
                    continue
                plan = other.plan(per_class=args.per_class, guidance_scale=scale, seed=seed)
                found = frechet_distance(theirs, extract(pixels, to_pixels(other.draw(plan))))
                rows.append({**row, "evaluations": evaluations, "distance": float(found)})
                kept.write_text(json.dumps(rows))
                print(rows[-1], flush=True)
    settings = {name: value for name, value in vars(args).items() if name != "work"}
    print(write("ddim_clipping", {"settings": settings, "features": "pixels", "rows": rows}))


if __name__ == "__main__":
    main()
