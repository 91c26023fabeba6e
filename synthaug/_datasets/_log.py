"""A record of what was loaded: which image stood at which position of which epoch."""

import os
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from synthaug._errors import DataError

_HEADER = "epoch,worker,batch,index,row"
_FIELDS = ["run", "epoch", "position", "index", "row", "worker", "batch"]


@final
class ServedLog:
    """Appends a line per item to a CSV file, from any number of worker processes.

    A batch is one write at the end of the file, which the operating system keeps whole, so nothing
    is held in memory or kept open. A header line marks the start of each run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()
        self._append(f"{_HEADER}\n")
        self._counted = (-1, -1, 0)  # process, epoch, batches of it so far

    def write(self, epoch: int, indices: list[int], rows: list[int]) -> None:
        """Notes the items of a batch: index of each, and its row of the cache or -1."""
        process = os.getpid()
        count = self._counted[2] if self._counted[:2] == (process, epoch) else 0
        self._counted = process, epoch, count + 1
        info = get_worker_info()
        start = f"{epoch},{-1 if info is None else info.id},{count},"
        lines = [f"{start}{i},{row}\n" for i, row in zip(indices, rows, strict=True)]
        self._append("".join(lines))

    def _append(self, text: str) -> None:
        try:
            with open(self.path, "ab", buffering=0) as file:
                file.write(text.encode())
        except OSError as error:
            raise DataError(f"Cannot write the log {self.path}: {error.strerror}.") from error


def read_log(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Reads what `MixedDataset.log_served` had written.

        log = synthaug.mixing.read_log("served.csv")
        log[(log["epoch"] == 3) & (log["row"] >= 0)]     # the synthetic images of epoch 3
        pandas.DataFrame(log)

    Positions assume that `set_epoch` is called before each pass, and that a loader hands its
    batches to its workers in turn, as `DataLoader` does.

    Returns:
        One record per item, int64 fields, in the order in which a loader gives them out: `run`
        (starts of the log, from 0), `epoch`, `position` in the epoch as this run loaded it, `index`
        of the data set, `row` of the cache (-1 for a real image), `worker` (-1 for the main
        process) and its `batch`.

    Raises:
        DataError: If the file is missing, or something else.
    """
    try:
        lines = Path(path).read_text().splitlines()
        if not lines or lines[0] != _HEADER:
            raise ValueError("it does not begin with the header of a log")
        starts = [i for i, line in enumerate(lines) if line == _HEADER]
        runs = np.repeat(np.arange(len(starts)), np.diff([*starts, len(lines)]) - 1)
        body = [line for line in lines if line != _HEADER]
        values = np.loadtxt(body or ["0,0,0,0,0"], np.int64, delimiter=",", ndmin=2)[: len(body)]
        epoch, worker, batch, index, row = values.T
    except (OSError, ValueError) as error:
        raise DataError(f"{os.fspath(path)} is not a log of served images ({error}).") from error
    order = np.lexsort((worker, batch, epoch, runs))  # stable: a batch keeps its order
    log = np.empty(len(order), [(name, np.int64) for name in _FIELDS])
    columns = {"run": runs, "epoch": epoch, "index": index, "row": row}
    for name, column in {**columns, "worker": worker, "batch": batch}.items():
        log[name] = column[order]
    new = np.flatnonzero(
        (np.diff(log["run"], prepend=-1) != 0) | (np.diff(log["epoch"], prepend=-1) != 0)
    )
    lengths = np.diff([*new, len(log)])
    log["position"] = np.arange(len(log)) - np.repeat(new, lengths)
    return log
