"""A record of what was loaded: which image stood at which position of which epoch."""

import os
from pathlib import Path
from typing import final

import numpy as np
from torch.utils.data import get_worker_info

from synthaug._support.reading import check_replaceable, open_regular
from synthaug._types import Array, StrPath
from synthaug.errors import DataError

_COLUMNS = ["run", "epoch", "worker", "batch", "index", "row"]
_HEADER = ",".join(_COLUMNS)
_FIELDS = ["run", "epoch", "position", "index", "row", "worker", "batch"]
_LONGEST = 200  # bytes, more than any line has


@final
class ServedLog:
    """Appends a line per item to a CSV file, from any number of worker processes.

    A batch is one write at the end of the file, which the operating system keeps whole, so nothing
    is held in memory or kept open.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = Path(path).absolute()
        self._run = self._start()
        self._counted = (-1, -1, 0)  # process, epoch, batches of it so far

    def write(self, epoch: int, indices: list[int], rows: list[int]) -> None:
        """Notes the items of a batch: index of each, and its row of the cache or -1."""
        process = os.getpid()
        count = self._counted[2] if self._counted[:2] == (process, epoch) else 0
        self._counted = process, epoch, count + 1
        info = get_worker_info()
        start = f"{self._run},{epoch},{-1 if info is None else info.id},{count},"
        lines = [f"{start}{i},{row}\n" for i, row in zip(indices, rows, strict=True)]
        self._append("".join(lines))

    def _start(self) -> int:
        """The number of this run: after those that the file has already."""
        check_replaceable(self.path)
        self._append("")
        with open(self.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _LONGEST))
            last = file.read().decode(errors="replace").splitlines()[-1:]
        if not last:
            self._append(f"{_HEADER}\n")
        if not last or last == [_HEADER]:
            return 0
        run = last[0].split(",")[0]
        if not run.isdecimal():
            raise DataError(f"{self.path} is not a log of served images. Name another file.")
        return int(run) + 1

    def _append(self, text: str) -> None:
        try:
            with open(self.path, "ab", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            raise DataError(f"Cannot write the log {self.path}: {error.strerror}.") from error


def read_log(path: StrPath) -> Array:
    """Reads a log that `MixedDataset.log_served` wrote.

        log = synthaug.mixing.read_log("served.csv")
        log[(log["epoch"] == 3) & (log["row"] >= 0)]     # the synthetic images of epoch 3
        pandas.DataFrame(log)

    Positions assume that `set_epoch` is called before each pass, and that a loader hands its
    batches to its workers in turn, as `DataLoader` does.

    Returns:
        One record per item, int64 fields, in the order in which a loader gives them out: `run`
        (calls of `log_served` for this file, from 0), `epoch`, `position` in the epoch as this run
        loaded it, `index` of the data set, `row` of the cache (-1 for a real image), `worker` (-1
        for the main process) and its `batch`.

    Raises:
        DataError: If the file is missing, or something else.
    """
    try:
        with open_regular(path) as file:
            if file.readline() != f"{_HEADER}\n".encode():
                raise ValueError("it does not begin with the header of a log")
            empty = not file.readline()
        values = np.empty((0, len(_COLUMNS)), np.int64)
        if not empty:
            values = np.loadtxt(path, np.int64, delimiter=",", skiprows=1, ndmin=2)
        columns = dict(zip(_COLUMNS, values.T, strict=True))
    except (OSError, ValueError) as error:
        raise DataError(f"{os.fspath(path)} is not a log of served images ({error}).") from error
    keys = [columns[name] for name in ("worker", "batch", "epoch", "run")]
    order = np.lexsort(keys)  # stable: a batch keeps its order
    log = np.zeros(len(order), [(name, np.int64) for name in _FIELDS])
    for name, column in columns.items():
        log[name] = column[order]
    passes = np.stack([log["run"], log["epoch"]], axis=1)
    first = np.any(np.diff(passes, axis=0, prepend=-1) != 0, axis=1)
    log["position"] = np.arange(len(log)) - np.maximum.accumulate(
        np.where(first, np.arange(len(log)), 0)
    )
    return log
