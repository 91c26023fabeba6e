"""Reading random batches of images: our cache beside a bare memory map and beside other stores.

    pip install lmdb datasets webdataset litdata      # what is missing is left out and said so
    python benchmarks/cache_read.py                   # all sizes, alone
    python benchmarks/cache_read.py --sizes 32 --loader --mixed

All ways read the same images, page cache warm, one process, batches of 128 as a uint8 tensor; they
take turns in every round, and the numbers are medians of the ratio to the memory map of the same
round. webdataset cannot read at random, and litdata is twenty times slower at it: they stream the
next 128. Times are the processor's, so that other work on the machine counts less; with a
`DataLoader` and workers they are those of the clock.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from _machine import interleave, summary, write
from PIL import Image
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from synthaug import MixedDataset, Plan, SynthCache
from synthaug.images import LabeledImages

BATCH = 128
BYTES = 64 * 2**20  # of images, per size
CLASSES = tuple(f"class{i}" for i in range(10))
Read = Callable[[np.ndarray], Any]
Builder = Callable[[Path, np.ndarray], Read]
WAYS: dict[str, Builder] = {}


def way(name: str) -> Callable[[Builder], Builder]:
    def register(build: Builder) -> Builder:
        WAYS[name] = build
        return build

    return register


def photographs(size: int) -> np.ndarray:
    """Images that compress about as photographs do: smooth, with a little noise."""
    rng = np.random.default_rng(0)
    n = min(20_000, BYTES // (3 * size * size))
    coarse = torch.from_numpy(rng.random((n, 3, 5, 5), np.float32))
    images = np.empty((n, 3, size, size), np.uint8)
    for i in range(0, n, 500):
        smooth = torch.nn.functional.interpolate(coarse[i : i + 500], size=size, mode="bicubic")
        noisy = smooth.numpy() * 200 + 20 + rng.normal(0, 4, smooth.shape)
        images[i : i + 500] = noisy.clip(0, 255).astype(np.uint8)
    return images


def filled_cache(folder: Path, images: np.ndarray) -> SynthCache:
    labels = np.arange(len(images)) * len(CLASSES) // len(images)
    quota = np.bincount(labels, minlength=len(CLASSES))
    plan = Plan.build(quota, classes=CLASSES, settings={}, seed=0)
    cache = SynthCache.create(
        folder / "cache.h5",
        plan,
        image_shape=images.shape[1:],
        manifest={"recipe": {}},
        encoding="raw",
    )
    cache.write(range(len(images)), torch.from_numpy(images), fsync="never")
    return cache


@way("numpy.memmap")
def memmap(folder: Path, images: np.ndarray) -> Read:
    images.tofile(folder / "images.bin")
    mapped = np.memmap(folder / "images.bin", np.uint8, "r", shape=images.shape)
    return lambda i: torch.from_numpy(mapped[i])


@way("synthaug")
def synthaug(folder: Path, images: np.ndarray) -> Read:
    return filled_cache(folder, images).read


@way("synthaug, first reading (with checksums)")
def synthaug_first(folder: Path, images: np.ndarray) -> Read:
    cache = filled_cache(folder, images)

    def read(i: np.ndarray) -> torch.Tensor:
        reader: Any = cache._reader
        reader.served[i] = 0
        return cache.read(i)

    return read


@way("HDF5 contiguous, ds[i]")
def hdf5_items(folder: Path, images: np.ndarray) -> Read:
    return hdf5(folder, images)


def hdf5(folder: Path, images: np.ndarray, **storage: Any) -> Read:
    with h5py.File(folder / "images.h5", "w") as file:
        file.create_dataset("images", data=images, **storage)
    data = h5py.File(folder / "images.h5", "r")["images"]
    return lambda i: torch.from_numpy(np.stack([data[j] for j in i]))


@way("HDF5 chunks of 1, gzip")
def hdf5_gzip(folder: Path, images: np.ndarray) -> Read:
    return hdf5(folder, images, chunks=(1, *images.shape[1:]), compression="gzip")


@way("HDF5 chunks of 1, lzf")
def hdf5_lzf(folder: Path, images: np.ndarray) -> Read:
    return hdf5(folder, images, chunks=(1, *images.shape[1:]), compression="lzf")


@way("HDF5 chunks of 64")
def hdf5_chunks(folder: Path, images: np.ndarray) -> Read:
    return hdf5(folder, images, chunks=(min(64, len(images)), *images.shape[1:]))


@way("HDF5 chunks of 64, gzip")
def hdf5_chunks_gzip(folder: Path, images: np.ndarray) -> Read:
    chunks = (min(64, len(images)), *images.shape[1:])
    return hdf5(folder, images, chunks=chunks, compression="gzip")


@way("LMDB, raw")
def lmdb_raw(folder: Path, images: np.ndarray) -> Read:
    lmdb = import_module("lmdb")

    environment = lmdb.open(str(folder / "lmdb"), map_size=2 * images.nbytes + 2**24)
    with environment.begin(write=True) as transaction:
        for i, image in enumerate(images):
            transaction.put(f"{i:08d}".encode(), image.tobytes())
    shape = images.shape[1:]

    def read(i: np.ndarray) -> torch.Tensor:
        with environment.begin(buffers=True) as transaction:
            rows = [np.frombuffer(transaction.get(f"{j:08d}".encode()), np.uint8) for j in i]
            return torch.from_numpy(np.stack(rows).reshape(-1, *shape))

    return read


@way("HF datasets, raw")
def hf_raw(folder: Path, images: np.ndarray) -> Read:
    datasets = import_module("datasets")

    datasets.disable_progress_bars()
    made = datasets.Dataset.from_dict({"pixels": [image.tobytes() for image in images]})
    made.save_to_disk(str(folder / "hf"))
    data, shape = datasets.load_from_disk(str(folder / "hf")), images.shape[1:]

    def read(i: np.ndarray) -> torch.Tensor:
        rows = [np.frombuffer(row, np.uint8) for row in data[i]["pixels"]]
        return torch.from_numpy(np.stack(rows).reshape(-1, *shape))

    return read


@way("HF datasets, PNG")
def hf_png(folder: Path, images: np.ndarray) -> Read:
    datasets = import_module("datasets")

    datasets.disable_progress_bars()
    features = datasets.Features({"image": datasets.Image()})
    encoded = [{"bytes": encode(image, "PNG"), "path": None} for image in images]
    made = datasets.Dataset.from_dict({"image": encoded}, features=features)
    made.save_to_disk(str(folder / "hf_png"))
    data = datasets.load_from_disk(str(folder / "hf_png"))
    return lambda i: stacked(data[i]["image"])


@way("webdataset, raw, in order")
def webdataset_raw(folder: Path, images: np.ndarray) -> Read:
    webdataset = import_module("webdataset")

    with webdataset.TarWriter(str(folder / "images.tar")) as archive:
        for i, image in enumerate(images):
            archive.write({"__key__": f"{i:08d}", "bin": image.tobytes()})
    shape = images.shape[1:]

    def samples() -> Iterator[bytes]:
        while True:
            for sample in webdataset.WebDataset(str(folder / "images.tar"), shardshuffle=False):
                yield sample["bin"]

    stream = samples()

    def read(i: np.ndarray) -> torch.Tensor:
        rows = [np.frombuffer(next(stream), np.uint8) for _ in i]
        return torch.from_numpy(np.stack(rows).reshape(-1, *shape))

    return read


@way("litdata, raw, in order")
def litdata_raw(folder: Path, images: np.ndarray) -> Read:
    litdata = import_module("litdata")
    writing = import_module("litdata.streaming.writer")
    out = folder / "litdata"
    out.mkdir()
    writer = writing.BinaryWriter(str(out), chunk_bytes="64MB")
    for i, image in enumerate(images):
        writer[i] = torch.from_numpy(image)
    writer.done()
    writer.merge()
    data = litdata.StreamingDataset(str(out))

    def samples() -> Iterator[torch.Tensor]:
        while True:
            yield from data

    stream = samples()
    return lambda i: torch.stack([next(stream) for _ in i])


@way("ImageFolder, PNG")
def folder_png(folder: Path, images: np.ndarray) -> Read:
    return image_folder(folder / "png", images, "PNG")


@way("ImageFolder, JPEG")
def folder_jpeg(folder: Path, images: np.ndarray) -> Read:
    return image_folder(folder / "jpeg", images, "JPEG")


def image_folder(root: Path, images: np.ndarray, form: str) -> Read:
    from torchvision.datasets import ImageFolder

    (root / "a").mkdir(parents=True)
    for i, image in enumerate(images):
        (root / "a" / f"{i:08d}.{form.lower()}").write_bytes(encode(image, form))
    data = ImageFolder(str(root))
    return lambda i: stacked([data[int(j)][0] for j in i])


def encode(image: np.ndarray, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, form)
    return buffer.getvalue()


def stacked(images: list[Any]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(x) for x in images]).transpose(0, 3, 1, 2))


def timed(read: Read, count: int) -> Callable[[], float]:
    """Seconds per batch, over as many batches as take about a twentieth of a second."""
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, count, BATCH) for _ in range(200)]
    read(batches[0])
    began = time.process_time()
    read(batches[1])
    repeat = int(np.clip(0.05 / (time.process_time() - began), 1, len(batches)))

    def run() -> float:
        began = time.process_time()
        for batch in batches[:repeat]:
            read(batch)
        return (time.process_time() - began) / repeat

    return run


def ratios(ways: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, Any]:
    """Median seconds of every way, and of its ratio to the first one in the same round."""
    times = interleave(ways, rounds)
    floor = next(iter(times.values()))
    return {
        name: {
            "seconds": summary(seconds),
            "ratio": summary([a / b for a, b in zip(seconds, floor, strict=True)]),
        }
        for name, seconds in times.items()
    }


def alone(size: int, rounds: int) -> dict[str, Any]:
    """Every way by itself; bytes are compared before the clock runs."""
    images = photographs(size)
    some = np.arange(0, len(images), len(images) // 10)
    with tempfile.TemporaryDirectory() as folder:
        runs, missing = {}, []
        for i, (name, build) in enumerate(WAYS.items()):
            (Path(folder) / str(i)).mkdir()
            try:
                read = build(Path(folder) / str(i), images)
            except ImportError as error:
                missing.append(f"{name}: {error.name} is not installed")
                continue
            if "JPEG" not in name and "in order" not in name:
                assert np.array_equal(read(some), images[some]), name
            runs[name] = timed(read, len(images))
        result = ratios(runs, rounds)
    return {"images": len(images), "ways": result, "missing": missing}


class MappedImages(Dataset[Any]):
    """The least that a data set in a memory map can be."""

    def __init__(self, path: Path, images: np.ndarray) -> None:
        images.tofile(path)
        self.mapped = np.memmap(path, np.uint8, "r", shape=images.shape)
        self.labels = np.zeros(len(images), np.int64)

    def __len__(self) -> int:
        return len(self.mapped)

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self.mapped[index].copy()), int(self.labels[index])

    def __getitems__(self, indices: list[int]) -> list[Any]:
        pixels = torch.from_numpy(self.mapped[indices])
        return list(zip(pixels, self.labels[indices].tolist(), strict=True))


class Items(Dataset[Any]):
    """One image per call of `read`, as most stores are used."""

    def __init__(self, read: Read, count: int) -> None:
        self.read, self.count = read, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.read(np.array([index]))[0], 0


def loader(size: int, rounds: int, workers: int) -> dict[str, Any]:
    """Through a `DataLoader` with its own collation, per batch."""
    images = photographs(size)
    batches = max(8, 40 * 32 // size)
    clock = time.perf_counter if workers else time.process_time

    def epoch(data: Any) -> Callable[[], float]:
        loading: Any = DataLoader(
            data,
            BATCH,
            sampler=RandomSampler(data, replacement=True, num_samples=batches * BATCH),
            num_workers=workers,
            persistent_workers=workers > 0,
        )

        def run() -> float:
            began = clock()
            for _ in loading:
                pass
            return (clock() - began) / batches

        return run

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cache = filled_cache(folder, images)
        cache.output_type = "pt"
        cache.read(range(len(cache)))  # the checksums; measured alone
        ways = {
            "numpy.memmap": epoch(MappedImages(folder / "map", images)),
            "synthaug": epoch(cache),
            "HDF5 contiguous, ds[i]": epoch(Items(hdf5(folder, images), len(images))),
            "ImageFolder, PNG": epoch(
                Items(image_folder(folder / "png", images, "PNG"), len(images))
            ),
        }
        return {"images": len(images), "workers": workers, "ways": ratios(ways, rounds)}


class Arrays(Dataset[Any]):
    """Images as torchvision's CIFAR10 keeps and serves them."""

    def __init__(self, images: np.ndarray, targets: np.ndarray, transform: Any) -> None:
        self.data = np.ascontiguousarray(images.transpose(0, 2, 3, 1))  # NCHW => NHWC
        self.targets = targets.tolist()
        self.classes = list(CLASSES)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        image: Any = Image.fromarray(self.data[index])
        return self.transform(image) if self.transform else image, self.targets[index]


def mixed(size: int, rounds: int) -> dict[str, Any]:
    """A `MixedDataset` beside the plain data set that it wraps, by batch and by item."""
    images = photographs(size)
    augment = v2.Compose(
        [
            v2.RandomCrop(size, padding=size // 8),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def items(data: Any) -> Read:
        return lambda i: [data[j] for j in i.tolist()]

    def batch(data: Any) -> Read:
        return lambda i: data.__getitems__(i.tolist())

    with tempfile.TemporaryDirectory() as name:
        cache = filled_cache(Path(name), images)
        cache.read(range(len(cache)))
        found = {}
        for kind, plain in (
            ("LabeledImages", LabeledImages(torch.from_numpy(images), cache.labels, CLASSES)),
            ("as CIFAR10", Arrays(images, cache.labels, None)),
            ("as CIFAR10, augmented", Arrays(images, cache.labels, augment)),
        ):
            data = MixedDataset(plain, cache, audit=None, fraction=0.5)
            whole = batch if hasattr(plain, "__getitems__") else items
            runs = {
                "plain, items": timed(items(plain), len(images)),
                "mixed, items": timed(items(data), len(images)),
                "plain, batches": timed(whole(plain), len(images)),
                "mixed, batches": timed(batch(data), len(images)),
            }
            times = interleave(runs, rounds)
            found[kind] = {
                form: {
                    "plain": summary(times[f"plain, {form}"]),
                    "mixed": summary(times[f"mixed, {form}"]),
                    "ratio": summary(
                        [
                            a / b
                            for a, b in zip(
                                times[f"mixed, {form}"], times[f"plain, {form}"], strict=True
                            )
                        ]
                    ),
                }
                for form in ("items", "batches")
            }
    return found


def show(title: str, ways: Mapping[str, Any]) -> None:
    print(f"\n{title}")
    for name, numbers in ways.items():
        seconds, ratio = numbers["seconds"]["median"], numbers["ratio"]["median"]
        print(f"  {name:40} {seconds * 1e6:10,.0f} us a batch {ratio:8.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 256])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--loader", action="store_true", help="also through a DataLoader")
    parser.add_argument("--mixed", action="store_true", help="also a MixedDataset")
    parser.add_argument("--skip-alone", action="store_true", help="only those")
    parser.add_argument("--name", default="cache_read", help="of the file with the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"batch": BATCH, "rounds": arguments.rounds, "sizes": {}}
    for size in arguments.sizes:
        found: dict[str, Any] = {}
        if not arguments.skip_alone:
            found["alone"] = alone(size, arguments.rounds)
            show(f"{size} x {size}, alone", found["alone"]["ways"])
            print("".join(f"  {line}\n" for line in found["alone"]["missing"]), end="")
        if arguments.loader:
            for workers in (0, 1, 2):
                found[f"loader_{workers}"] = loader(size, min(5, arguments.rounds), workers)
                show(f"{size} x {size}, {workers} workers", found[f"loader_{workers}"]["ways"])
        if arguments.mixed:
            found["mixed"] = mixed(size, arguments.rounds)
            print(f"\n{size} x {size}, MixedDataset beside what it wraps")
            for kind, forms in found["mixed"].items():
                shown = [f"{form} {x['ratio']['median']:.2f} x" for form, x in forms.items()]
                print(f"  {kind:40} {', '.join(shown)}")
        results["sizes"][str(size)] = found
        write(arguments.name, results)


if __name__ == "__main__":
    main()
