"""Whether two seeds of a classifier are better trained stacked in one process.

    OMP_NUM_THREADS=1 python benchmarks/stacked_seeds.py

A step is forward, backward and SGD with momentum, as `evaluate` trains; with `--attack-steps` it
begins with as many gradients of the images. Ways take turns in one process with one thread:
"separate" trains the two networks one after the other; "stacked" trains them by `torch.func.vmap`,
each on a batch of its own, without the running statistics of batch norm, which favors it a little.
Two processes of one thread on two cores take half the processor seconds of "separate", and a
stacked process of two threads at least half those of "stacked": their ratio is the most that
stacking can gain. Writes `results/stacked_seeds.json`.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from _machine import interleave, summary, write, written
from torch import Tensor
from torch.func import functional_call, grad, replace_all_batch_norm_modules_, stack_module_state
from torch.nn import functional as F

from synthaug.evaluation._classifiers import build_classifier

SEEDS, CLASSES, RATE = 2, 10, 0.1
CASES = {"small-cnn, 8 pixels": 8, "small-cnn, 16 pixels": 16, "resnet20, 32 pixels": 32}


def separate(networks: list[Any], x: Tensor, y: Tensor, attack_steps: int) -> Callable[[], Any]:
    optimizers = [torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9) for net in networks]

    def step() -> None:
        for net, optimizer, images, labels in zip(networks, optimizers, x, y, strict=True):
            seen = images
            for _ in range(attack_steps):
                seen = seen.detach().requires_grad_()
                (slope,) = torch.autograd.grad(F.cross_entropy(net(seen), labels), seen)
                seen = seen + 0.01 * slope.sign()
            optimizer.zero_grad()
            F.cross_entropy(net(seen.detach()), labels).backward()
            optimizer.step()

    return step


def stacked(networks: list[Any], x: Tensor, y: Tensor, attack_steps: int) -> Callable[[], Any]:
    base = replace_all_batch_norm_modules_(networks[0])
    for net in networks[1:]:
        replace_all_batch_norm_modules_(net)
    weights, buffers = stack_module_state(networks)
    weights = {name: weight.detach() for name, weight in weights.items()}
    momentum = {name: torch.zeros_like(weight) for name, weight in weights.items()}

    def loss(own: Any, held: Any, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(base, (own, held), (images,)), labels)

    of_weights = torch.vmap(grad(loss))
    of_images = torch.vmap(grad(loss, argnums=2))

    def step() -> None:
        seen = x
        for _ in range(attack_steps):
            seen = seen + 0.01 * of_images(weights, buffers, seen, y).sign()
        for name, slope in of_weights(weights, buffers, seen, y).items():
            momentum[name].mul_(0.9).add_(slope)
            weights[name].sub_(RATE * momentum[name])

    return step


def compared(name: str, args: argparse.Namespace) -> dict[str, Any]:
    model, size = name.split(",")[0], CASES[name]
    x = torch.randn(SEEDS, args.batch, 3, size, size)
    y = torch.arange(SEEDS * args.batch).reshape(SEEDS, -1) % CLASSES

    def networks() -> list[Any]:
        return [build_classifier(model, CLASSES, (3, size, size)).train() for _ in range(SEEDS)]

    def timed(step: Callable[[], Any]) -> Callable[[], float]:
        def way() -> float:
            started = time.process_time()
            for _ in range(args.steps):
                step()
            return (time.process_time() - started) / args.steps

        return way

    ways = {
        "separate": timed(separate(networks(), x, y, args.attack_steps)),
        "stacked": timed(stacked(networks(), x, y, args.attack_steps)),
    }
    times = interleave(ways, args.rounds)
    gain = [one / other for one, other in zip(times["separate"], times["stacked"], strict=True)]
    return {
        "batch": args.batch,
        "attack_steps": args.attack_steps,
        "processor_seconds": {way: summary(values) for way, values in times.items()},
        "most_gain": summary(gain),
    }


def main() -> None:
    """Measures what is not yet in the file, and writes after each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=3, help="of each way in each round")
    parser.add_argument("--attack-steps", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", default="stacked_seeds", help="name of the file in results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = written(args.out).get("cases", {})
    for case in args.cases:
        name = case + f", {args.attack_steps} attack steps" * bool(args.attack_steps)
        if name not in cases:
            cases[name] = compared(case, args)
            write(args.out, {"seeds": SEEDS, "cases": cases})
        print(name, cases[name]["most_gain"], flush=True)


if __name__ == "__main__":
    main()
