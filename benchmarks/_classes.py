"""Everything that goes through a class list, as steps of a soak with very many classes.

Each class has one image of 2 x 2 pixels. A step finds in the folder what those before it left.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import synthaug
from synthaug import MixedDataset, Plan, SynthCache, caches
from synthaug.images import LabeledImages

SHAPE = (1, 2, 2)


def pixels(number: int, seed: int) -> torch.Tensor:
    """Random images, uint8 (number, 1, 2, 2)."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (number, *SHAPE), np.uint8))


def labeled(number: int, seed: int) -> LabeledImages:
    """One image of every class."""
    names = tuple(f"class {i}" for i in range(number))
    return LabeledImages(pixels(number, seed), np.arange(number), names)


def create(folder: Path, number: int) -> None:
    """Lays out a cache and fills it."""
    plan = Plan.build(
        [1] * number,
        classes=labeled(number, 0).classes,
        settings={},
        seed=0,
        sources=[[source] for source in range(number)],
        source_keys=np.arange(1, number + 1, dtype=np.uint64),
    )
    manifest = {"recipe": {"synthesizer": "Noise", "settings": {}}}
    cache = SynthCache.create(folder / "c.h5", plan, image_shape=SHAPE, manifest=manifest)
    cache.write(range(number), pixels(number, 1))


def look(folder: Path, number: int) -> None:
    """Opens it, checks every row, and counts the images of each class."""
    cache = SynthCache(folder / "c.h5")
    assert not len(cache.verify())
    assert len(caches.info(cache)["classes"]) == number
    assert len(repr(cache)) < 2000


def import_(folder: Path, number: int) -> None:
    """Makes a cache of images in memory."""
    caches.import_images(labeled(number, 2), folder / "imported.h5")


def merge(folder: Path, number: int) -> None:
    """Copies a cache into another one."""
    assert len(caches.merge([folder / "c.h5"], folder / "merged.h5")) == number


def mix(folder: Path, number: int) -> None:
    """Mixes real and synthetic images in both ways, and reads some of each."""
    cache, real = SynthCache(folder / "c.h5"), labeled(number, 3)
    for mixed in (
        MixedDataset(real, cache, audit=None, mode="append", ratio=1),
        MixedDataset(real, cache, audit=None, mode="replace", fraction=0.5),
    ):
        mixed.set_epoch(1)
        mixed.__getitems__(list(range(0, len(mixed), 97)))


def balance(folder: Path, number: int) -> None:
    """Plans images for classes that have fewer than the largest one."""
    plan = synthaug.synthesizers.Constant(
        torch.zeros(number, *SHAPE, dtype=torch.uint8),
        range(number),
        classes=labeled(number, 0).classes,
    ).plan(per_class=2)
    assert len(plan) == 2 * number


def audit(folder: Path, number: int) -> None:
    """Audits a thousand images, whose class list is as long, and writes the report."""
    synthetic, real = labeled(number, 1), labeled(number, 3)
    report = synthaug.audit(
        synthetic.subset(range(1000)),
        real.subset(range(1000)),
        holdout=real.subset(range(1000, 1500)),
        progress=False,
    )
    report.to_json(folder / "audit.json")
    report.to_html(folder / "audit.html")


def export(folder: Path, number: int) -> None:
    """Writes tar files, and class folders."""
    cache = SynthCache(folder / "c.h5")
    caches.export(cache, folder / "tars", format="webdataset")
    caches.export(cache, folder / "folders", format="folder")


def forget(folder: Path, number: int) -> None:
    """Forgets every tenth source in the cache and its exports, and merges again."""
    places, gone = [folder / name for name in ("c.h5", "tars", "folders")], range(1, number + 1, 10)
    assert caches.forget(places, gone) == dict.fromkeys(places, len(gone))
    assert caches.merge(places[:1], folder / "again.h5").done.sum() == number - len(gone)


STEPS: dict[str, Callable[[Path, int], None]] = {
    step.__name__.strip("_"): step
    for step in (create, look, import_, merge, mix, balance, audit, export, forget)
}
