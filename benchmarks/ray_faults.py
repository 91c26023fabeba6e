"""Tests what becomes of a job on Ray when parts of the cluster are lost.

    python benchmarks/ray_faults.py

Starts a cluster of three nodes on this machine, draws the same plan under one fault after the
other, and compares the result with the file that one process made. The driver is a process of its
own, which can be killed too. Writes results/ray_faults.json.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import write

import synthaug
from synthaug._noise import randn, streams

SHAPE = (3, 32, 32)
CLASSES = ("cat", "dog", "emu")
BATCH = 16


class Paced:
    """A user's own synthesizer, at a steady pace, that leaves a trace of what it draws.

    Args:
        trace: A folder; each process adds the seeds that it draws to a file of its own.
        fault: The faults to inject, by name.
        row_seconds: Time for one row.
    """

    classes = CLASSES
    image_shape = SHAPE

    def __init__(self, trace: Path, fault: str, row_seconds: float) -> None:
        self.trace, self.fault, self.row_seconds = trace, fault, row_seconds

    def draw(self, rows: synthaug.Plan) -> torch.Tensor:
        """Noise from each row's seed, float32 (n, 3, 32, 32) in [-1, 1]."""
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "none"
        slow = self.fault == "slow node" and node == (self.trace / "slow").read_text()
        with open(self.trace / f"{os.getpid()}.{node}.seeds", "a") as file:
            file.write("".join(f"{seed}\n" for seed in rows["seed"]))
        if self.fault == "out of memory, an error" and len(rows) > BATCH // 4:
            raise MemoryError
        if self.fault == "out of memory, killed" and self.first_times(3):
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel and Ray do
        if self.fault == "a row that ends its actor" and 5 in rows["variant"][rows["label"] == 1]:
            os._exit(1)
        images = randn(streams(rows["seed"]), SHAPE).clamp(-1, 1)
        if self.fault == "an image that is not finite" and 5 in rows["variant"]:
            images[0, 0, 0, 0] = torch.nan
        time.sleep(self.row_seconds * len(rows) * (20 if slow else 1))
        return images

    def first_times(self, count: int) -> bool:
        """True for the first `count` calls, in whichever processes."""
        for i in range(count):
            try:
                os.close(os.open(self.trace / f"time {i}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            return True
        return False

    def recipe(self) -> dict[str, Any]:
        """Returns the settings that determine an image besides its row."""
        return {"synthesizer": "Paced", "settings": {"version": 1}}


def plan(rows: int) -> synthaug.Plan:
    quota = np.full(3, rows // 3)
    return synthaug.Plan.build(quota, classes=CLASSES, settings={"version": 1}, seed=0)


def drive(folder: Path, fault: str, rows: int, row_seconds: float, address: str | None) -> None:
    """The job: what a user would run."""
    engine: Any = "local"
    if address:
        engine = synthaug.caches.RayEngine(address=address)
    synthaug.generate(
        Paced(folder, fault, row_seconds),
        plan(rows),
        folder / "a.h5",
        batch_size=BATCH,
        engine=engine,
        progress=False,
    )


def drawn(folder: Path) -> Counter[int]:
    """How often each seed was drawn so far."""
    seeds: Counter[int] = Counter()
    for file in folder.glob("*.seeds"):
        seeds.update(map(int, file.read_text().split()))
    return seeds


class Cluster:
    """Three nodes on this machine, of one processor each."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        store = 80 * 2**20  # bytes
        head = {"num_cpus": 1, "object_store_memory": store, "include_dashboard": False}
        self.cluster = RayCluster(initialize_head=True, head_node_args=head)
        self.address = self.cluster.address
        self.store = store
        self.others = [self.add(), self.add()]

    def add(self) -> Any:
        """One more node."""
        return self.cluster.add_node(num_cpus=1, object_store_memory=self.store)

    def lose_one(self) -> None:
        """A node goes down with all its processes."""
        self.cluster.remove_node(self.others.pop(), allow_graceful=False)

    def replace(self) -> None:
        """Nodes in the place of those that were lost."""
        while len(self.others) < 2:
            self.others.append(self.add())
        self.cluster.wait_for_nodes()


class Job:
    """One driver, and what can happen to it."""

    def __init__(self, folder: Path, fault: str, arguments: argparse.Namespace, address: str):
        self.folder, self.fault = folder, fault
        self.command = [
            sys.executable,
            __file__,
            "--drive",
            str(folder),
            "--fault",
            fault,
            "--rows",
            str(arguments.rows),
            "--row-seconds",
            str(arguments.row_seconds),
            "--address",
            address,
        ]
        self.start()

    def start(self) -> None:
        """Runs the driver; again, if it was killed."""
        self.process = subprocess.Popen(self.command, stderr=subprocess.PIPE, text=True)

    def wait_until(self, share: float, rows: int) -> None:
        """Waits until a share of the rows was drawn, or the driver has ended."""
        while len(drawn(self.folder)) < share * rows and self.process.poll() is None:
            time.sleep(0.05)

    def actor(self) -> int:
        """The process of an actor, the one that drew last."""
        files = sorted(self.folder.glob("*.seeds"), key=lambda file: file.stat().st_mtime)
        return int(files[-1].name.split(".")[0])

    def end(self) -> tuple[int, str | None]:
        """Exit code, and the last line of standard error if that is not 0."""
        _, text = self.process.communicate(timeout=900)
        line = text.strip().rpartition("\n")[2].replace(str(self.folder), "FOLDER")
        return self.process.returncode, line if self.process.returncode else None


def nothing(job: Job, cluster: Cluster, rows: int) -> None:
    pass


def kill_actors(job: Job, cluster: Cluster, rows: int) -> None:
    for share in (0.2, 0.5):
        job.wait_until(share, rows)
        os.kill(job.actor(), signal.SIGKILL)


def lose_node(job: Job, cluster: Cluster, rows: int) -> None:
    job.wait_until(0.3, rows)
    cluster.lose_one()


def kill_driver(job: Job, cluster: Cluster, rows: int) -> None:
    for share in (0.2, 0.5):
        job.wait_until(share, rows)
        job.process.kill()
        job.process.wait()
        job.start()


FAULTS: dict[str, Callable[[Job, Cluster, int], None]] = {
    "none": nothing,
    "two actors killed": kill_actors,
    "a node lost": lose_node,
    "the driver killed twice, and run again": kill_driver,
    "out of memory, an error": nothing,
    "out of memory, killed": nothing,
    "slow node": nothing,
    "a row that ends its actor": nothing,
    "an image that is not finite": nothing,
}
FAILS = {"a row that ends its actor", "an image that is not finite"}
"""Faults of the synthesizer, which end the job with an error."""


def suffer(fault: str, cluster: Cluster, arguments: argparse.Namespace, root: Path) -> Any:
    """Runs the job under one fault, and looks at what is left."""
    folder = root / fault
    folder.mkdir()
    (folder / "slow").write_text(cluster.others[0].node_id)
    started = time.monotonic()
    job = Job(folder, fault, arguments, cluster.address)
    FAULTS[fault](job, cluster, arguments.rows)
    code, message = job.end()
    seconds = time.monotonic() - started
    trace = drawn(folder)
    by_node = Counter[str]()
    for file in folder.glob("*.seeds"):
        by_node[file.name.split(".")[1][:8]] += len(file.read_text().split())
    if fault in FAILS:  # what was kept must be enough to go on from, without the fault
        drive(folder, "none", arguments.rows, 0.0, None)
    cache = synthaug.SynthCache(folder / "a.h5")
    expected = (root / "expected" / "a.h5").read_bytes()
    total = drawn(folder)
    return {
        "exit_code": code,
        "message": message,
        "seconds": round(seconds, 1),
        "rows": len(cache),
        "rows_drawn_by_the_job": len(trace),
        "rows_done": int(cache.done.sum()),
        "rows_damaged": len(cache.verify()),
        "file_equals_that_of_one_process": cache.path.read_bytes() == expected,
        "parts_left": (folder / "a.h5.parts").exists(),
        "rows_drawn_again": sum(n - 1 for n in total.values()),
        "processes": len(list(folder.glob("*.seeds"))),
        "rows_drawn_by_node": dict(by_node),
        "slow_node": cluster.others[0].node_id[:8] if fault == "slow node" else None,
    }


def results(arguments: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "expected").mkdir()
        drive(root / "expected", "none", arguments.rows, 0.0, None)
        cluster = Cluster()
        try:
            for fault in arguments.faults or FAULTS:
                cluster.replace()
                result = suffer(fault, cluster, arguments, root)
                print(fault, json.dumps(result), flush=True)
                yield fault, result
        finally:
            cluster.cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1800)
    parser.add_argument("--row-seconds", type=float, default=0.02)
    parser.add_argument("--faults", nargs="*", choices=[*FAULTS])
    for name in ("drive", "fault", "address"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    # As equals of other processes: else other work here would keep actors waiting.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    if arguments.drive:
        drive(
            Path(arguments.drive),
            arguments.fault,
            arguments.rows,
            arguments.row_seconds,
            arguments.address,
        )
        return
    started = os.getloadavg()[0]
    found = dict(results(arguments))
    if not arguments.faults:
        setting = {"nodes": 3, "rows": arguments.rows, "batch_size": BATCH}
        setting |= {"load_at_start": round(started, 1)}
        print(write("ray_faults", {**setting, "faults": found}))


if __name__ == "__main__":
    main()
