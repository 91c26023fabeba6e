"""Reading random batches of encoded images: our cache beside other stores of the same files.

    pip install lmdb webdataset litdata scikit-learn     # what is missing is left out and said so
    python benchmarks/encoded_caches.py --sizes 256 512 --out encoded.json

The images are crops of two photographs. Every store holds the same files (but those that encode
themselves, which is said), and reads a batch of 16 at random as one uint8 tensor; webdataset and
litdata read the next 16. All take turns in every round. "bare decoder" decodes files that are in
memory, one after the other; a ratio is to it in the same round, by processor time. Reads per second
are by the clock: our cache decodes on as many threads as there are processors.
"""

import argparse
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from _machine import interleave, machine, summary
from PIL import Image

from synthaug import Plan, SynthCache

BATCH = 16
IMAGES = {256: 48, 512: 24}
ENCODINGS = {
    "png": ("PNG", {}),
    "webp": ("WEBP", {"lossless": True, "quality": 0, "method": 0}),
    "jpeg:95": ("JPEG", {"quality": 95, "subsampling": 0}),
}
Read = Callable[[np.ndarray], torch.Tensor]
Builder = Callable[[Path, np.ndarray, list[bytes], str], tuple[Read, int]]
"""Makes a store of images uint8 (n, C, H, W) and their files; returns how to read, and bytes."""
WAYS: dict[str, Builder] = {}


def way(name: str) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        WAYS[name] = build
        return build

    return register


def crops(size: int, count: int) -> np.ndarray:
    """Parts of photographs, uint8 (n, 3, size, size)."""
    photographs = import_module("sklearn.datasets").load_sample_images().images
    rng = np.random.default_rng(0)
    images = np.empty((count, 3, size, size), np.uint8)
    for i in range(count):
        photograph = photographs[i % len(photographs)]
        height, width = photograph.shape[:2]
        side = int(rng.integers(height * 6 // 10, height))
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        crop = Image.fromarray(photograph[top : top + side, left : left + side])
        images[i] = np.asarray(crop.resize((size, size))).transpose(2, 0, 1)
    return images


def decoded(data: Any) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture).transpose(2, 0, 1)


def decoded_webp(data: bytes) -> np.ndarray:
    from torchvision.io import decode_webp

    pixels: np.ndarray = decode_webp(torch.frombuffer(bytearray(data), dtype=torch.uint8)).numpy()
    return pixels


def stacked(images: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(images))


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@way("bare decoder")
def bare(folder: Path, images: np.ndarray, files: list[bytes], encoding: str) -> tuple[Read, int]:
    decode = decoded_webp if encoding == "webp" else decoded
    size = sum(map(len, files))
    return lambda rows: stacked([decode(files[row]) for row in rows]), size


@way("synthaug")
def ours(folder: Path, images: np.ndarray, files: list[bytes], encoding: str) -> tuple[Read, int]:
    plan = Plan.build([len(images)], classes=("a",), settings={}, seed=0)
    manifest: dict[str, Any] = {"recipe": {}}
    cache = SynthCache.create(
        folder / "c.h5", plan, image_shape=images.shape[1:], manifest=manifest, encoding=encoding
    )
    cache.write(range(len(images)), torch.from_numpy(images), fsync="never")
    return cache.read, cache.path.stat().st_size


@way("ImageFolder")
def image_folder(
    folder: Path, images: np.ndarray, files: list[bytes], encoding: str
) -> tuple[Read, int]:
    from torchvision.datasets import ImageFolder

    (folder / "a").mkdir()
    for i, file in enumerate(files):
        (folder / "a" / f"{i:08d}.{encoding.partition(':')[0]}").write_bytes(file)
    data = ImageFolder(str(folder))

    def read(rows: np.ndarray) -> torch.Tensor:
        return stacked([np.asarray(data[int(row)][0]).transpose(2, 0, 1) for row in rows])

    return read, bytes_below(folder)


@way("LMDB")
def lmdb(folder: Path, images: np.ndarray, files: list[bytes], encoding: str) -> tuple[Read, int]:
    environment = import_module("lmdb").open(str(folder), map_size=2**30)
    with environment.begin(write=True) as transaction:
        for i, file in enumerate(files):
            transaction.put(f"{i:08d}".encode(), file)

    def read(rows: np.ndarray) -> torch.Tensor:
        with environment.begin(buffers=True) as transaction:
            return stacked([decoded(transaction.get(f"{row:08d}".encode())) for row in rows])

    return read, bytes_below(folder)


@way("webdataset, in order")
def webdataset(
    folder: Path, images: np.ndarray, files: list[bytes], encoding: str
) -> tuple[Read, int]:
    library = import_module("webdataset")
    with library.TarWriter(str(folder / "images.tar")) as archive:
        for i, file in enumerate(files):
            archive.write({"__key__": f"{i:08d}", "img": file})

    def samples() -> Iterator[bytes]:
        while True:
            for sample in library.WebDataset(str(folder / "images.tar"), shardshuffle=False):
                yield sample["img"]

    stream = samples()
    return lambda rows: stacked([decoded(next(stream)) for _ in rows]), bytes_below(folder)


@way("litdata, in order")
def litdata(
    folder: Path, images: np.ndarray, files: list[bytes], encoding: str
) -> tuple[Read, int]:
    library = import_module("litdata")
    writer = import_module("litdata.streaming.writer").BinaryWriter(str(folder), chunk_bytes="64MB")
    for i, file in enumerate(files):
        writer[i] = file
    writer.done()
    writer.merge()
    data = library.StreamingDataset(str(folder))

    def samples() -> Iterator[bytes]:
        while True:
            yield from data

    stream = samples()
    return lambda rows: stacked([decoded(next(stream)) for _ in rows]), bytes_below(folder)


def measured(size: int, encoding: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Every store, of images of one size in one encoding."""
    images = crops(size, IMAGES.get(size, BATCH))
    form, options = ENCODINGS[encoding]
    files = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(buffer, form, **options)
        files.append(buffer.getvalue())
    expected = stacked([decoded(file) for file in files])
    batches = np.random.default_rng(1).integers(0, len(images), (rounds + 1, BATCH))
    runs: dict[str, Callable[[], float]] = {}
    sizes: dict[str, int] = {}
    missing: list[str] = []
    clock: dict[str, list[float]] = {}
    for name, build in WAYS.items():
        place = folder / f"{size}-{encoding.replace(':', '-')}-{len(runs) + len(missing)}"
        place.mkdir()
        try:
            read, sizes[name] = build(place, images, files, encoding)
        except ImportError as error:
            missing.append(f"{name}: {error.name} is not installed")
            continue
        if "in order" not in name:
            assert torch.equal(read(batches[0]), expected[batches[0]]), name
        runs[name] = _timed(read, batches, clock.setdefault(name, []))
    times = interleave(runs, rounds)
    floor = times["bare decoder"]
    ways = {
        name: {
            "reads per second": summary([BATCH / seconds for seconds in clock[name][1:]]),
            "processor time over bare decoder": summary(
                [a / b for a, b in zip(seconds, floor, strict=True)]
            ),
            "bytes per image": sizes[name] // len(images),
        }
        for name, seconds in times.items()
    }
    return {"images": len(images), "ways": ways, "missing": missing}


def _timed(read: Read, batches: np.ndarray, clock: list[float]) -> Callable[[], float]:
    turns = iter(batches)

    def run() -> float:
        batch = next(turns)
        began, used = time.perf_counter(), time.process_time()
        read(batch)
        clock.append(time.perf_counter() - began)
        return time.process_time() - used

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--data", type=Path, help="folder for the stores; by default a new one")
    parser.add_argument("--out", type=Path, default=Path("encoded_caches.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"batch": BATCH, "rounds": arguments.rounds, "sizes": {}}
    if arguments.out.exists():  # goes on where it was
        results = json.loads(arguments.out.read_text())
    for size in arguments.sizes:
        found = results["sizes"].setdefault(str(size), {})
        for encoding in (name for name in ENCODINGS if name not in found):
            with TemporaryDirectory(dir=arguments.data) as folder:
                found[encoding] = measured(size, encoding, Path(folder), arguments.rounds)
            results["machine"] = machine()
            unfinished = arguments.out.with_suffix(".partial")
            unfinished.write_text(json.dumps(results, indent=2) + "\n")
            os.replace(unfinished, arguments.out)
            print(f"\n{size} x {size}, {encoding}")
            for name, numbers in found[encoding]["ways"].items():
                rate = numbers["reads per second"]["median"]
                ratio = numbers["processor time over bare decoder"]["median"]
                print(f"  {name:22} {rate:8.0f}/s {ratio:6.2f} {numbers['bytes per image']:10,}")


if __name__ == "__main__":
    main()
