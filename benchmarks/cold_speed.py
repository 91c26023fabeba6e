"""Measures what cold diffusion costs beside a straightforward implementation, in one run.

    python benchmarks/cold_speed.py                     # 32 pixels, the blur of the paper for CIFAR
    python benchmarks/cold_speed.py --batch 4 --levels 10 --rounds 2 --width 8     # seconds

The straightforward way applies the kernels of a level one after another, and starts from the first
one again at each step of the recursion; for a batch of mixed levels it goes image by image, or
keeps all levels of all images and picks. Ours applies one matrix per axis for any level. Both get
the same images, the same levels and the same random network; how far their results differ is
reported beside the times. Times are processor time of one thread, which other work on the machine
changes little.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _machine import interleave, summary, write
from torch import Tensor

from synthaug import ColdDiffusion
from synthaug.degradations import Blur
from synthaug.denoisers import build_unet
from synthaug.synthesizers.cold._sampling import restore


class Loops:
    """The straightforward implementation."""

    def __init__(self, blur: Blur, channels: int) -> None:
        kernels = [blur.step_kernel(i) for i in range(blur.num_levels)]
        size = blur.kernel_size
        self.kernels = [
            torch.outer(k, k).float().expand(channels, 1, size, size).contiguous() for k in kernels
        ]
        self.padding, self.mode = [size // 2] * 4, blur.padding

    def degrade(self, x: Tensor, s: int) -> Tensor:
        """One level for all images."""
        for kernel in self.kernels[:s]:
            padded = F.pad(x, self.padding, mode=self.mode)
            x = F.conv2d(padded, kernel, groups=x.shape[1])
        return x

    def image_by_image(self, x: Tensor, s: Tensor) -> Tensor:
        """A level for each image, each on its own."""
        rows = zip(x, s.tolist(), strict=True)
        return torch.cat([self.degrade(image[None], level) for image, level in rows])

    def all_levels(self, x: Tensor, s: Tensor) -> Tensor:
        """A level for each image, chosen from all levels of all images."""
        levels = [x]
        for i in range(int(s.max())):
            padded = F.pad(levels[-1], self.padding, mode=self.mode)
            levels.append(F.conv2d(padded, self.kernels[i], groups=x.shape[1]))
        return torch.stack(levels)[s, torch.arange(len(x))]

    def restore(self, restorer: Callable[[Tensor, Tensor], Tensor], x: Tensor, s: int) -> Tensor:
        """Algorithm 2 from level s."""
        for level in range(s, 0, -1):
            x_hat = restorer(x, torch.full((len(x),), level))
            x = x - self.degrade(x_hat, level) + self.degrade(x_hat, level - 1)
        return x


def measure(size: int, width: int, batch: int, levels: int, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    blur = Blur(num_levels=levels)
    loops = Loops(blur, 3)
    x = torch.rand(batch, 3, size, size) * 2 - 1
    s = torch.randint(1, levels + 1, (batch,))
    network = build_unet((3, size, size), num_classes=None, channels=width).eval()
    cold = ColdDiffusion(
        network=network.requires_grad_(False), degradation=blur, image_shape=(3, size, size)
    )
    x_T = blur(x, levels)

    def nothing(images: Tensor, level: Tensor) -> Tensor:
        return images

    results: dict[str, Tensor] = {}

    def timed(name: str, work: Callable[[], Tensor]) -> Callable[[], float]:
        def way() -> float:
            started = time.process_time()
            with torch.inference_mode():
                results[name] = work()
            return time.process_time() - started

        return way

    pairs = {
        f"level {levels} of all images": (
            lambda: blur(x, levels),
            lambda: loops.degrade(x, levels),
        ),
        "mixed levels, image by image": (lambda: blur(x, s), lambda: loops.image_by_image(x, s)),
        "mixed levels, all of all": (lambda: blur(x, s), lambda: loops.all_levels(x, s)),
        "Algorithm 2 without the network": (
            lambda: restore(nothing, blur, x_T, torch.full((batch,), levels), {}).x0,
            lambda: loops.restore(nothing, x_T, levels),
        ),
        "Algorithm 2": (
            lambda: cold.restore(x_T, levels).x0,
            lambda: loops.restore(cold.predict, x_T, levels),
        ),
        "the network alone": (
            lambda: torch.stack([cold.predict(x_T, s) for _ in range(levels)])[-1],
            lambda: torch.stack([cold.predict(x_T, s) for _ in range(levels)])[-1],
        ),
    }

    ways = {}
    for name, (ours, theirs) in pairs.items():
        ways[f"{name}, ours"] = timed(f"{name}, ours", ours)
        ways[f"{name}, loops"] = timed(f"{name}, loops", theirs)
    times = interleave(ways, rounds)
    ratios, differences = {}, {}
    for name in pairs:
        rows = zip(times[f"{name}, ours"], times[f"{name}, loops"], strict=True)
        ratios[name] = summary([b / a for a, b in rows])
        gap = (results[f"{name}, ours"] - results[f"{name}, loops"]).abs().max()
        differences[name] = float(gap)
    total = statistics.median(times["Algorithm 2, ours"])
    inside = statistics.median(times["the network alone, ours"])
    return {
        "size": size,
        "width": width,
        "batch": batch,
        "levels": levels,
        "seconds": {name: summary(values) for name, values in times.items()},
        "speedup": ratios,
        "largest_difference": differences,
        "share_outside_network": max(0.0, 1 - inside / total),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--levels", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    result = measure(**vars(options))
    for name, ratio in result["speedup"].items():
        gap = result["largest_difference"][name]
        ours = result["seconds"][f"{name}, ours"]["median"]
        print(f"{name:34} {ours:8.4f} s, {ratio['median']:7.2f}x faster, difference {gap:.1e}")
    print(f"share of Algorithm 2 outside the network: {result['share_outside_network']:.3f}")
    print("Written:", write("cold_speed", result))
