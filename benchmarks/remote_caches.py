"""Caches in an object store: what the store costs, beside the same file on this machine.

    pip install 'synthaug[remote]' boto3 'moto[server]'
    python benchmarks/remote_caches.py

A server of S3's protocol (moto's) in another process holds a raw cache: no network is measured,
only what asking, copying and comparing add. All take turns in every round, by the clock.
"""

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import torch
from _machine import interleave, summary, write
from moto.server import ThreadedMotoServer

from synthaug import SynthCache, caches, generate
from synthaug.synthesizers import Constant

OBJECT = ("bucket", "cache.h5")
URL = "s3://" + "/".join(OBJECT)
PAIRS = {  # each way, and what it is compared with
    "open a URL again": "open a path",
    "open a URL, first": "download by boto3",
    "open it in two at once": "open it in one process",
    "read from a URL": "read from a path",
    "generate to a URL": "generate to a path",
}


def serve(told: Any) -> None:
    logging.getLogger("werkzeug").disabled = True  # which prints each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    told.send(server.get_host_and_port())
    told.recv()


def opened(place: object, folder: Path | None = None) -> None:
    SynthCache(str(place), local_dir=folder)


def ways(folder: Path, pool: ProcessPoolExecutor, images: int) -> dict[str, Callable[[], float]]:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, 32, 32), np.uint8)
    constant = Constant(torch.from_numpy(pixels), np.zeros(images, np.int64), classes=("a",))
    plan, path, copies = constant.plan(per_class=images, seed=0), folder / "c.h5", folder / "copies"
    generate(constant, plan, path, progress=False)
    caches.upload(path, URL)
    client, order = boto3.client("s3"), np.random.default_rng(1).permutation(images)

    def read(place: object) -> None:
        cache = SynthCache(str(place), local_dir=copies)
        for rows in order.reshape(-1, 128):
            cache.read(rows)

    def timed(work: Callable[[Path], object]) -> Callable[[], float]:
        """Works in a new folder each time, which is empty."""

        def run() -> float:
            new = Path(tempfile.mkdtemp(dir=folder))
            os.environ["SYNTHAUG_REMOTE_DIR"] = str(new)
            began = time.perf_counter()
            work(new)
            return time.perf_counter() - began

        return run

    draw = partial(generate, constant, plan, progress=False)
    return {
        "open a path": timed(lambda _: opened(path)),
        "open a URL again": timed(lambda _: opened(URL, copies)),
        "download by boto3": timed(lambda new: client.download_file(*OBJECT, str(new / "c.h5"))),
        "open a URL, first": timed(lambda new: opened(URL, new)),
        "open it in one process": timed(lambda new: [*pool.map(opened, [URL], [new])]),
        "open it in two at once": timed(lambda new: [*pool.map(opened, [URL] * 2, [new] * 2)]),
        "read from a path": timed(lambda _: read(path)),
        "read from a URL": timed(lambda _: read(URL)),
        "generate to a path": timed(lambda new: draw(f"{new}/drawn.h5")),
        "generate to a URL": timed(lambda new: draw(f"s3://bucket/{new.name}.h5")),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=8192, help="of 3 KB, a multiple of 128")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spawn, (here, there) = get_context("spawn"), get_context("spawn").Pipe()
    spawn.Process(target=serve, args=(there,), daemon=True).start()
    access = {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "DEFAULT_REGION": "us-east-1"}
    os.environ |= {f"AWS_{name}": value for name, value in access.items()}
    os.environ["AWS_ENDPOINT_URL"] = "http://{}:{}".format(*here.recv())
    boto3.client("s3").create_bucket(Bucket="bucket")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, spawn) as pool:
        times = interleave(ways(Path(folder), pool, options.images), options.rounds)
    pairs = {}
    for way, base in PAIRS.items():
        ratio = summary([a / b for a, b in zip(times[way], times[base], strict=True)])
        seconds = {name: summary(times[name]) for name in (way, base)}
        pairs[way] = {"compared_with": base, "seconds": seconds, "ratio": ratio}
        print(f"{way:24} {seconds[way]['median']:8.4f} s {ratio['median']:8.2f} times {base}")
    print(write("remote_caches", {**vars(options), "pairs": pairs}))
    here.send("end")


if __name__ == "__main__":
    main()
