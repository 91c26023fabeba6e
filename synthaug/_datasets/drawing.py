"""The thread that draws, and the images that it holds."""

import logging
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import ModuleType
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from synthaug._cache import State, SynthCache
from synthaug._cache.synthesizer import Declared
from synthaug._generate import Synthesizer, checked_draw
from synthaug._pixels import to_pixels
from synthaug._plan import Plan
from synthaug._support.memory import is_out_of_memory
from synthaug._types import Indices, Pixels

log = logging.getLogger(__name__)

_IN_A_WORKER = (
    "{name} draws on {device}, which the workers of a DataLoader, and other forked processes, "
    "cannot use. Draw in the process that trains: put it into a DataLoader with `num_workers=0`; "
    "or let the workers load real images alone, and replace some of every batch after the loader, "
    "with `synthaug.transforms.MixSynthetic`."
)


@final
class Drawing:
    """Images of rows, drawn by one thread: those that are asked for, and then those to come.

    Each process has its own thread. A fork begins with the images that its parent holds.
    """

    def __init__(
        self, synthesizer: Synthesizer, plan: Plan, cache: SynthCache | None, batch_size: int
    ) -> None:
        """Nothing is drawn yet."""
        self.synthesizer, self.plan, self.cache = synthesizer, plan, cache
        self.batch_size = batch_size
        self._home = os.getpid()
        self._images: dict[int, Tensor] = {}
        self._begin()
        self.follow([])

    def _begin(self) -> None:
        self.count = 0
        """Images that this process has drawn."""
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._thread: ThreadPoolExecutor | None = None
        self._ahead: Future[None] | None = None
        self._failed: BaseException | None = None

    def _check_process(self) -> None:
        if self._pid != os.getpid():  # a fork copies images, and a lock that may be taken
            self._begin()

    # What the process that trains calls

    def follow(self, order: list[int]) -> None:
        """Sets the rows to draw, the most urgent first, and drops all others."""
        self._check_process()
        with self._lock:
            self._order, self._kept = order, frozenset(order)
            self._position = 0  # so many of the order are held
            self._images = {r: image for r, image in self._images.items() if r in self._kept}

    def read(self, rows: Sequence[int], *, ahead: bool) -> list[Tensor]:
        """Images, uint8 (C, H, W), drawn if need be. Do not write to them.

        Args:
            rows: Rows of the plan, possibly repeated.
            ahead: Have the thread go on with what will be wanted.

        Raises:
            Exception: Whatever went wrong in the thread, also while it drew ahead.
        """
        self._check_process()
        with self._lock:
            failed, self._failed = self._failed, None
            if failed is not None:
                raise failed
            images = {row: self._images[row] for row in rows if row in self._images}
            missing = [row for row in dict.fromkeys(rows) if row not in images]
            waiting = self._submit(_obtain, missing) if missing else None
        if waiting is not None:
            images.update(waiting.result())
        if ahead and get_worker_info() is None:  # each worker would draw what all of them need
            self._go_on()
        return [images[row] for row in rows]

    def close(self) -> None:
        """Ends the thread after the batch at work, and drops all images."""
        self._check_process()
        if self._thread is not None:
            # It stays ours while it ends, so what it wants to do next is refused.
            self._thread.shutdown(wait=True, cancel_futures=True)
        self._images = {}
        self._position = 0
        self._thread = self._ahead = self._failed = None

    # The thread. It refers to us weakly, so that it ends with us.

    def _submit(self, work: Callable[..., Any], rows: list[int]) -> Future[Any]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="synthaug-on-the-fly")
        return self._thread.submit(work, weakref.ref(self), rows)

    def _go_on(self) -> None:
        """Has the thread draw the next batch that nobody asked for yet, unless it does already."""
        with self._lock:
            if self._failed is not None or not (self._ahead is None or self._ahead.done()):
                return
            while self._position < len(self._order):
                if self._order[self._position] not in self._images:
                    break
                self._position += 1
            batch = self._order[self._position : self._position + self.batch_size]
            rows = [row for row in batch if row not in self._images]
            if not rows:
                return
            try:
                self._ahead = self._submit(_draw_ahead, rows)
            except RuntimeError:  # the thread, or the program, is ending
                return
        self._ahead.add_done_callback(_then(weakref.ref(self)))

    def _obtain(self, rows: list[int]) -> dict[int, Tensor]:
        """Images by row; those that are not held are drawn, and held if they are still wanted."""
        obtained: dict[int, Tensor] = {}
        while len(obtained) < len(rows):
            batch = rows[len(obtained) : len(obtained) + self.batch_size]
            with self._lock:
                obtained.update({row: self._images[row] for row in batch if row in self._images})
            new = [row for row in batch if row not in obtained]
            if new:
                # Copies, since a view would hold the memory of its whole batch.
                images = map(torch.clone, self._fetch(np.array(new, np.int64)))
                drawn = dict(zip(new, images, strict=True))
                obtained.update(drawn)
                with self._lock:
                    self._images.update({r: x for r, x in drawn.items() if r in self._kept})
        return obtained

    def _fetch(self, rows: Indices) -> Pixels:
        if self.cache is None:
            return self._draw(rows)
        new = self.cache.state_of(rows) == State.PENDING
        if not new.any():
            return self.cache.read(rows)
        drawn = self._draw(rows[new])
        # Other workers may have been faster, and a row that they read is not written again.
        late = self.cache.state_of(rows[new]) == State.DONE
        self.cache.write(rows[new][~late], drawn[~late], on_withdrawn="skip")
        self.cache.read(rows[new])  # an error if one was withdrawn while it was drawn
        pixels = drawn.new_empty((len(rows), *drawn.shape[1:]))
        pixels[new], pixels[~new] = drawn, self.cache.read(rows[~new])
        return pixels

    def _draw(self, rows: Indices) -> Pixels:
        name = type(self.synthesizer).__name__
        forked = get_worker_info() is not None or self._home != os.getpid()
        device = _accelerator_of(self.synthesizer) if forked else None
        if device is not None:
            raise RuntimeError(_IN_A_WORKER.format(name=name, device=device))
        shape = Declared.by(self.synthesizer).image_shape
        try:
            with torch.no_grad():
                images = checked_draw(self.synthesizer, self.plan[rows], shape)
        except Exception as error:
            if forked and "forked subprocess" in str(error):  # a network that we did not find
                raise RuntimeError(_IN_A_WORKER.format(name=name, device="cuda")) from error
            if len(rows) == 1 or not is_out_of_memory(error):
                raise
        else:
            self.count += len(rows)
            return to_pixels(images)
        # Training takes some of the memory too. Out here what the failed batch held is freed.
        half = self.batch_size = len(rows) // 2
        log.warning("Out of memory: going on with batches of %d.", half)
        return torch.cat([self._draw(rows[:half]), self._draw(rows[half:])])

    def __getstate__(self) -> dict[str, Any]:
        names = ("synthesizer", "plan", "cache", "batch_size", "_order")
        return {name: vars(self)[name] for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        order = state.pop("_order")
        self.__init__(**state)
        self.follow(order)


def _obtain(ref: "weakref.ref[Drawing]", rows: list[int]) -> dict[int, Tensor]:
    drawing = ref()
    return {} if drawing is None else drawing._obtain(rows)


def _draw_ahead(ref: "weakref.ref[Drawing]", rows: list[int]) -> None:
    _obtain(ref, rows)


def _then(ref: "weakref.ref[Drawing]") -> Callable[[Future[Any]], None]:
    def go_on(done: Future[Any]) -> None:
        drawing = ref()
        if drawing is not None and not done.cancelled():
            drawing._failed = done.exception()
            drawing._go_on()

    return go_on


def _accelerator_of(synthesizer: Any) -> torch.device | None:
    """A device other than the CPU that networks or tensors inside an object are on."""
    seen: set[int] = set()
    level = [synthesizer]
    for _ in range(6):  # deeper than synthesizers nest each other
        below: list[Any] = []
        for value in level:
            if isinstance(value, Tensor | torch.nn.Module):
                tensors = [value] if isinstance(value, Tensor) else value.parameters()
                for tensor in tensors:
                    if tensor.device.type != "cpu":
                        return tensor.device
            elif id(value) not in seen:
                seen.add(id(value))
                parts = value if isinstance(value, list | tuple | dict) else _attributes(value)
                below += list(parts.values() if isinstance(parts, dict) else parts)[:64]
        level = below
    return None


def _attributes(value: Any) -> dict[str, Any]:
    try:
        return {} if isinstance(value, type | ModuleType) else vars(value)
    except TypeError:  # a number, or another object without attributes of its own
        return {}
