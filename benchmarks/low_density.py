"""Measures steering to low density: hardness, realism, labels, cost against rejection, accuracy.

    synthaug train folder:cifar10/train runs/hard --method hardness --base runs/cifar10
    python benchmarks/low_density.py runs/hard --data folder:cifar10/train \
        --test folder:cifar10/test --judge resnet20.pt --name cifar10

One pool of images is drawn per setting of alpha and beta, and kept in `--work`. A judge that no
part of the sampler knows scores all of them beside real images that nothing was trained on: a
TorchScript file that returns (features, logits), or, without one, a classifier trained here.

Hardness is that of the judge's features, under Gaussians of the training images. "faithful" is the
share of images that the judge gives their label. "seems_real" is the mean probability of a logistic
regression on the judge's features that tells training images from plain samples; the Fréchet
distance is to the held-out images. Cost: an image is accepted if it is harder than a quantile of
the plain samples and keeps its label; evaluations and seconds per accepted image, plain over
steered. Accuracy: classifiers with plain or steered images mixed in, on all test images and on the
hardest tenth of them.
"""

import argparse
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _inversion import plot
from _machine import interleave, summary, write
from sklearn.linear_model import LogisticRegression

from synthaug import (
    ClassifierConfig,
    LowDensity,
    MixedDataset,
    Plan,
    SamplerConfig,
    SynthCache,
    generate,
    load_dataset,
)
from synthaug._images.source import ImageSource
from synthaug._pixels import to_images
from synthaug.density import ClassGaussians, Neighborhood
from synthaug.evaluation import class_probabilities
from synthaug.evaluation._augment import standard_augment
from synthaug.evaluation._classifiers import build_classifier
from synthaug.evaluation._fit import FitSettings, fit, seed_initial_weights
from synthaug.evaluation._inputs import Batches
from synthaug.features import without_head
from synthaug.metrics import frechet_distance

Setting = tuple[float, float]
"""alpha and beta."""


class Judge:
    """Features and class probabilities by a network that the sampler does not know."""

    def __init__(self, path: str | None, real: Any, steps: int) -> None:
        self.file = None if path is None else torch.jit.load(path)
        if self.file is None:
            import copy

            device = torch.device("cpu")
            seed_initial_weights(100)
            self.network = build_classifier("small-cnn", len(real.classes), real.image_shape)
            fit(
                self.network,
                Batches(ImageSource.open(real, "`data`"), real.classes, device),
                FitSettings.of(ClassifierConfig(steps=steps), "float32"),
                seed=100,
                run="judge",
                augment=standard_augment(real.image_shape, horizontal_flip=False),
            )
            self.network.eval()
            self.headless = without_head(copy.deepcopy(self.network), "judge")

    @torch.inference_mode()
    def __call__(self, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Features float32 (n, d) and predicted classes int64 (n,)."""
        features, classes = [], []
        for part in pixels.split(500):
            if self.file is not None:
                x = part.expand(-1, 3, -1, -1).float() / 255
                found, logits = self.file(x)
            else:
                found, logits = self.headless(to_images(part)), self.network(to_images(part))
            features.append(found.float())
            classes.append(logits.argmax(1))
        return torch.cat(features).numpy(), torch.cat(classes).numpy()


class Scores:
    """How real images of the training set see others."""

    def __init__(self, judge: Judge, real: Any, test: Any, components: int | None) -> None:
        self.judge = judge
        features, _ = judge(_pixels(real))
        labels = np.asarray(real.targets)
        self.gaussians = ClassGaussians.fit(features, labels, components=components)
        self.features = self.projected(features)
        self.neighborhood = Neighborhood(self.features)
        self.held_out, _ = judge(_pixels(test))
        self.held_out = self.projected(self.held_out)
        self.telling: Any = None

    def projected(self, features: np.ndarray) -> np.ndarray:
        """The features that hardness is measured in."""
        g = self.gaussians
        if g.components is None or g.center is None:
            return features
        found: np.ndarray = ((features - g.center.numpy()) @ g.components.numpy().T).astype("f4")
        return found

    def learn_realism(self, plain: np.ndarray) -> None:
        """Learns to tell training images from plain samples."""
        x = np.concatenate([self.features, plain])
        y = np.repeat([1, 0], [len(self.features), len(plain)])
        self.telling = LogisticRegression(max_iter=2000, class_weight="balanced").fit(x, y)

    def __call__(self, pixels: torch.Tensor, labels: np.ndarray) -> dict[str, Any]:
        """Every score of every image."""
        features, predicted = self.judge(pixels)
        hardness = self.gaussians.hardness(features, np.array(labels, np.int64))
        x = self.projected(features)
        near = self.neighborhood.scores(x)
        return {
            "hardness": np.asarray(hardness),
            "average_distance": near.average_distance,
            "outlier_factor": near.outlier_factor,
            "faithful": predicted == labels,
            "features": x,
        }

    def table(self, scored: Mapping[str, Any]) -> dict[str, float]:
        """Returns the scores of a pool of images."""
        found = {
            "images": len(scored["hardness"]),
            "hardness_mean": float(scored["hardness"].mean()),
            **{
                f"hardness_{q}": float(np.percentile(scored["hardness"], q))
                for q in (5, 25, 50, 75, 95)
            },
            "average_distance": float(scored["average_distance"].mean()),
            "outlier_factor": float(scored["outlier_factor"].mean()),
            "faithful": float(scored["faithful"].mean()),
        }
        if self.telling is not None:
            seems = self.telling.predict_proba(scored["features"])[:, 1]
            found["seems_real"] = float(seems.mean())
        if len(scored["hardness"]) >= 2 * self.held_out.shape[1]:
            found["frechet"] = frechet_distance(scored["features"], self.held_out, force=True)
        return found


def _pixels(images: Any) -> torch.Tensor:
    found: torch.Tensor = images.read(np.arange(len(images)))
    return found


def rows_of(steered: LowDensity, setting: Setting, count: int, options: argparse.Namespace) -> Plan:
    """Rows of one setting, with classifier-free guidance where it is asked for."""
    guided = {} if options.guidance_scale is None else {"guidance_scale": options.guidance_scale}
    alpha, beta = setting
    return steered.plan(per_class=count, alpha=alpha, beta=beta, seed=options.seed, **guided)


def pools(
    steered: LowDensity, settings: list[Setting], options: argparse.Namespace
) -> dict[Setting, SynthCache]:
    """A cache for every setting; those that exist are read."""
    found = {}
    for alpha, beta in settings:
        count = options.plain_per_class if (alpha, beta) == (0, 0) else options.per_class
        plan = rows_of(steered, (alpha, beta), count, options)
        path = Path(options.work) / f"{alpha:g}-{beta:g}.h5"
        path.parent.mkdir(parents=True, exist_ok=True)
        found[alpha, beta] = generate(steered, plan, path, batch_size=options.batch_size)
    return found


def cost(
    steered: LowDensity,
    scored: Mapping[Setting, Mapping[str, Any]],
    real: Mapping[str, Any],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Evaluations and seconds per accepted image, at quantiles of the plain samples' hardness."""
    rows = {setting: rows_of(steered, setting, 1, options) for setting in scored}
    batches = {s: plan[np.arange(options.timed) % len(plan)] for s, plan in rows.items()}

    def timed(setting: Setting) -> float:
        started = time.perf_counter()
        steered.draw(batches[setting])
        return (time.perf_counter() - started) / options.timed

    names = {f"{a:g}-{b:g}": (a, b) for a, b in scored}
    seconds = interleave({n: partial(timed, s) for n, s in names.items()}, options.rounds)
    plain = scored[0.0, 0.0]
    levels = []
    for quantile in options.quantiles:
        h = float(np.percentile(plain["hardness"], quantile))
        level: dict[str, Any] = {
            "quantile": quantile,
            "hardness": h,
            "real_faithful": _faithful(real, h),
            "real_beyond": float((real["hardness"] > h).mean()),
            "settings": {},
        }
        for name, setting in names.items():
            one = scored[setting]
            beyond = one["hardness"] > h
            kept = float((beyond & one["faithful"]).mean())
            per_image = float(steered.evaluations(rows[setting]).mean())
            level["settings"][name] = {
                "beyond": float(beyond.mean()),
                "faithful": _faithful(one, h),
                "accepted": kept,
                "evaluations_per_accepted": per_image / kept if kept else None,
                "seconds_per_accepted": float(np.median(seconds[name])) / kept if kept else None,
            }
        base = level["settings"]["0-0"]
        for found in level["settings"].values():
            for unit in ("evaluations", "seconds"):
                a, b = base[f"{unit}_per_accepted"], found[f"{unit}_per_accepted"]
                found[f"{unit}_ratio"] = a / b if a and b else None
        levels.append(level)
    return {
        "seconds_per_image": {name: summary(values) for name, values in seconds.items()},
        "levels": levels,
    }


def _faithful(scored: Mapping[str, Any], h: float) -> float | None:
    beyond = scored["hardness"] > h
    return float(scored["faithful"][beyond].mean()) if beyond.any() else None


def first_of_each_class(real: Any, count: int) -> np.ndarray:
    """Positions of the first `count` images of every class."""
    labels = np.asarray(real.targets)
    return np.concatenate([np.flatnonzero(labels == c)[:count] for c in np.unique(labels)])


def accuracy(
    real: Any,
    test: Any,
    caches: Mapping[Setting, SynthCache],
    hardness: np.ndarray,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Accuracy on all test images and on the hardest tenth, for every arm and seed."""
    labels = np.asarray(test.targets)
    hard = hardness >= np.percentile(hardness, 90)
    if options.real_per_class is not None:
        real = real.subset(first_of_each_class(real, options.real_per_class))
    arms = {"real": real}
    for alpha, beta in [(0.0, 0.0), *options.arms]:
        mixed = MixedDataset(
            real, caches[alpha, beta], audit=None, fraction=options.fraction, seed=0
        )
        arms[f"{alpha:g}-{beta:g}"] = mixed
    found: dict[str, Any] = {}
    for name, arm in arms.items():
        found[name] = {"all": [], "hard": []}
        for seed in range(options.seeds):
            said = class_probabilities(
                arm,
                _pixels(test),
                seeds=(seed,),
                config=ClassifierConfig(steps=options.classifier_steps, device="cpu"),
                progress=False,
            )
            right = said.argmax(1) == labels
            found[name]["all"].append(float(right.mean()))
            found[name]["hard"].append(float(right[hard].mean()))
        print(
            f"{name:10} all {np.mean(found[name]['all']):.4f}, hard "
            f"{np.mean(found[name]['hard']):.4f}",
            flush=True,
        )
    return found


def draw(axes: Any, scored: Mapping[str, Mapping[str, Any]]) -> None:
    """Histograms over hardness above that of the easiest image, which has a long tail."""
    lowest = min(float(s["hardness"].min()) for s in scored.values())
    highest = max(float(np.percentile(s["hardness"], 99)) for s in scored.values())
    bins = np.geomspace(5, highest - lowest + 5, 25).tolist()
    for name, one in scored.items():
        axes.hist(
            (one["hardness"] - lowest + 5).clip(max=bins[-1]),
            bins,
            weights=np.full(len(one["hardness"]), 1 / len(one["hardness"])),
            histtype="step",
            label=name,
            linewidth=2.5 if name == "held-out real" else 1.2,
        )
    axes.set_xscale("log")
    axes.set_xlabel("Hardness above the easiest image, plus 5 (nats)")
    axes.set_ylabel("Share of images")
    axes.legend(fontsize=7)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("steered", help="From `synthaug train --method hardness`")
    parser.add_argument("--data", default="folder:cifar10/train")
    parser.add_argument("--test", default="folder:cifar10/test")
    parser.add_argument("--judge", help="TorchScript: [0, 1] (n, 3, H, W) -> (features, logits)")
    parser.add_argument("--components", type=int, help="Of the judge's features")
    parser.add_argument("--unit", choices=["rms", "length"], default="length")
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.1, 0.25, 0.5, 1.0])
    parser.add_argument("--betas", type=float, nargs="+", default=[0.0, 0.5, 1.0, 2.0])
    parser.add_argument("--alpha", type=float, default=0.5, help="That the betas go with")
    parser.add_argument("--arms", type=float, nargs="+", default=[0.5, 1.0], help="alpha beta ...")
    parser.add_argument("--guidance-scale", type=float, help="Classifier-free, of every image")
    parser.add_argument("--per-class", type=int, default=200)
    parser.add_argument("--plain-per-class", type=int, default=1000)
    parser.add_argument("--quantiles", type=float, nargs="+", default=[50, 90, 95, 99])
    parser.add_argument("--scheduler", default="ddim")
    parser.add_argument("--eta", type=float, default=0.0)
    parser.add_argument("--inference-steps", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--timed", type=int, default=32, help="Images per timing")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3, help="Classifiers of each arm; 0 skips")
    parser.add_argument("--real-per-class", type=int, help="Real images in the arms; default all")
    parser.add_argument("--fraction", type=float, default=0.3, help="Synthetic in the arms")
    parser.add_argument("--classifier-steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", default="runs/low_density", help="Keeps what is drawn")
    parser.add_argument("--name", default="digits", help="Of the results")
    parser.add_argument("--quick", action="store_true", help="Few of everything: does it run?")
    options = parser.parse_args()
    if options.quick:
        small = {"per_class": 3, "plain_per_class": 4, "inference_steps": 3, "timed": 4}
        small |= {"rounds": 1, "seeds": min(1, options.seeds), "classifier_steps": 20}
        vars(options).update(small, alphas=[0.5], betas=[1.0])
    options.arms = list(zip(options.arms[::2], options.arms[1::2], strict=True))

    steered = LowDensity.from_pretrained(
        options.steered,
        sampler=SamplerConfig(
            scheduler=options.scheduler,
            eta=options.eta,
            num_inference_steps=options.inference_steps,
        ),
        unit=options.unit,
        device="cpu",
    )
    real = load_dataset(options.data, image_shape=steered.image_shape, classes=steered.classes)
    test = load_dataset(options.test, image_shape=steered.image_shape, classes=steered.classes)
    settings = [(0.0, 0.0), *((a, 0.0) for a in options.alphas)]
    settings += [(options.alpha, b) for b in options.betas] + options.arms
    settings = list(dict.fromkeys(settings))
    caches = pools(steered, settings, options)
    scores = Scores(
        Judge(options.judge, real, options.classifier_steps), real, test, options.components
    )
    scored = {s: scores(_pixels(c), c.labels) for s, c in caches.items()}
    scores.learn_realism(scored[0.0, 0.0]["features"])
    held_out = scores(_pixels(test), np.asarray(test.targets))
    table = {"held-out real": scores.table(held_out)}
    table.update({f"{a:g}-{b:g}": scores.table(one) for (a, b), one in scored.items()})
    for name, row in table.items():
        print(f"{name:14}", {k: round(v, 3) for k, v in row.items()}, flush=True)
    result: dict[str, Any] = {
        "options": {k: v for k, v in vars(options).items() if k not in ("work", "name")},
        "table": table,
        "cost": cost(steered, scored, held_out, options),
    }
    if options.seeds:
        result["accuracy"] = accuracy(real, test, caches, held_out["hardness"], options)
    print("Written:", write(f"low_density_{options.name}", result))
    shown = {"held-out real": held_out, "plain": scored[0.0, 0.0]}
    shown |= {f"alpha {a:g}": scored[a, 0.0] for a in options.alphas}
    print("Written:", plot(f"low_density_{options.name}", lambda axes: draw(axes, shown)))


if __name__ == "__main__":
    main()
