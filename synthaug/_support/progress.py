"""How far a job is: a bar on a terminal, a widget in a notebook, plain lines in a log.

The environment variable `SYNTHAUG_PROGRESS` chooses for a process and its children: `auto` (by
where standard error goes), `bar`, `lines` or `off`. Lines appear every 30 seconds, or every
`SYNTHAUG_PROGRESS_SECONDS`; a job that ends before the first one prints none. The clock goes on
while a step takes long, so that slow work can be told from none.
"""

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from synthaug._printable import printable_line

if TYPE_CHECKING:
    from tqdm import tqdm

MODES = ("auto", "bar", "lines", "off")
SECONDS = 30.0
_TICK = 2.0
"""Seconds after which a bar is drawn again, whether a step has ended or not."""
_DRAWING = threading.Lock()
"""Held while a bar is drawn between its updates. No bar ends then, and no process forks: tqdm's
lock, which the drawing holds, would stay locked in the child."""
if "register_at_fork" in vars(os):  # elsewhere nothing forks
    os.register_at_fork(
        before=_DRAWING.acquire,
        after_in_parent=_DRAWING.release,
        after_in_child=_DRAWING.release,
    )
_PART = ContextVar("_PART", default="")
"""What the names of bars begin with."""

T = TypeVar("T")
Bar: TypeAlias = "tqdm[Any] | Lines"


def bar(
    total: int,
    desc: str,
    unit: str,
    *,
    initial: int = 0,
    progress: bool | None = True,
    delay: float = 0,
    smoothing: float = 0.3,
) -> AbstractContextManager[Bar]:
    """Progress of one job, to be used in a `with` statement.

    Args:
        total: Size of the job, in units.
        desc: Names the job.
        unit: Unit of what there are `total`, in the singular: "image".
        initial: How many were done by an earlier run.
        progress: False shows nothing. `None` means True.
        delay: Seconds before a bar appears.
        smoothing: Smoothing of a bar's rate: 0 is the mean over the job, 1 the last moment.

    Raises:
        ValueError: If the environment variables hold something else than is listed above.
    """
    from tqdm import auto, autonotebook, std

    desc = printable_line(_PART.get() + desc)
    mode = os.environ.get("SYNTHAUG_PROGRESS", "auto")
    if mode not in MODES:
        raise ValueError(
            f"The environment variable SYNTHAUG_PROGRESS is {mode!r}, expected one of "
            f"{', '.join(MODES)}."
        )
    if mode == "auto":
        notebook = autonotebook.tqdm is not std.tqdm
        mode = "bar" if notebook or _is_watched() else "lines"
    one_speaks = os.environ.get("RANK", "0") == "0"  # for all processes
    if progress is False or not one_speaks or sys.stderr is None:
        mode = "off"
    if mode == "lines":
        return _ticking(Lines(total, desc, unit, initial))
    shown = auto.tqdm(
        total=total,
        desc=desc,
        unit=unit,
        initial=initial,
        delay=delay,
        smoothing=smoothing,
        disable=mode == "off",
    )
    shown.initial = initial  # a silent one has none
    return shown if shown.disable else _ticking(shown)


def _is_watched() -> bool:
    try:
        return sys.stderr.isatty()
    except AttributeError:  # of a logger in its place, or of none
        return False


@contextmanager
def _ticking(shown: Bar) -> Iterator[Bar]:
    """The same bar, whose clock goes on between its updates, which may be minutes apart."""
    ended = threading.Event()

    def tick() -> None:
        with suppress(OSError, ValueError):  # nobody reads any more, which the job finds out itself
            while not ended.wait(_TICK):
                with _DRAWING:
                    if ended.is_set():
                        break
                    shown.delay = 0  # it is seen now, and tqdm ends the line of such bars only
                    shown.refresh()

    with shown:
        threading.Thread(target=tick, name="synthaug-progress", daemon=True).start()
        try:
            yield shown
        finally:
            with _DRAWING:
                ended.set()


@contextmanager
def part(number: int, total: int, name: str) -> Iterator[None]:
    """Has the bars of the block say which part of a longer job they are of: "setting 2 of 9"."""
    token = _PART.set(f"{_PART.get()}{name} {number} of {total}, ")
    try:
        yield
    finally:
        _PART.reset(token)


def counted(items: Iterable[T], job: AbstractContextManager[Bar]) -> Iterator[T]:
    """The same items, each counted when the next one is asked for; ends the bar."""
    with job as shown:
        for item in items:
            yield item
            shown.update()


class Lines:
    """A bar as lines of text on standard error, every so many seconds and at the end."""

    delay: float = 0
    """Of no meaning; bars have one."""

    def __init__(self, total: int, desc: str, unit: str, initial: int = 0) -> None:
        self.total, self.desc, self.unit = total, desc, unit
        self.n = self.initial = self.printed = initial
        self.postfix = ""
        self.started = self.shown = time.monotonic()
        setting = os.environ.get("SYNTHAUG_PROGRESS_SECONDS", str(SECONDS))
        try:
            self.seconds = float(setting)
        except ValueError:
            raise ValueError(
                f"The environment variable SYNTHAUG_PROGRESS_SECONDS is {setting!r}, expected a "
                "number."
            ) from None

    def update(self, n: int = 1) -> None:
        """Counts, and prints a line if the last one is old."""
        self.n += n
        self.refresh()

    def refresh(self) -> None:
        """Prints a line if the last one is old."""
        now = time.monotonic()
        if now - self.shown >= self.seconds:
            self._print(now)

    def set_postfix(self, *, refresh: bool = False, **values: Any) -> None:
        """Values to show at the end of the next line."""
        del refresh
        self.postfix = "".join(f", {name} {value}" for name, value in values.items())

    def set_description(self, desc: str) -> None:
        """Names the job from here on."""
        self.desc = desc

    def __enter__(self) -> "Lines":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.shown > self.started and self.n > self.printed:  # nothing is said twice
            self._print(time.monotonic())

    def _print(self, now: float) -> None:
        self.shown, self.printed = now, self.n
        passed = now - self.started
        rate = (self.n - self.initial) / passed if passed else 0.0
        text = f"{self.desc}: {self.n:,} of {self.total:,} {self.unit}s"
        text += f" ({100 * self.n / max(1, self.total):.0f} %), {rate:.3g} a second, "
        text += f"{_clock(passed)} so far"
        if self.n - self.initial > 0 and self.n < self.total:
            text += f", {_clock((self.total - self.n) / rate)} left"
        print(f"synthaug: {text}{self.postfix}", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds: 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
