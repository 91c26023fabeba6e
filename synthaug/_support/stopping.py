"""Stopping a long job when it is asked to: Ctrl-C, and SIGTERM, which batch systems send first.

A job that changes its state in place finishes its step and saves (`stop_requests`). Every job that
keeps something says what that is (`kept_at_stop`), so that nobody has to guess.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn


class Terminated(KeyboardInterrupt):
    """Ends a command on SIGTERM, as if Ctrl-C had been pressed."""


def terminate(*_: object) -> NoReturn:
    """Handles SIGTERM in a command."""
    raise Terminated


_STOPPING = (signal.SIG_DFL, signal.default_int_handler, terminate)
"""Handlers that end the job. A user's own may set a flag, and expect that the job goes on."""


@dataclass
class StopRequest:
    """Whether the process was asked to stop."""

    signal: int | None = None
    """The signal that asked for it."""

    @property
    def made(self) -> bool:
        """Whether there was such a signal."""
        return self.signal is not None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Holds the first SIGINT or SIGTERM back until the block has ended; a second one acts at once.

    The block looks at `made` after each of its steps, saves, and ends. The signal then does what it
    would have done: it raises KeyboardInterrupt, or ends the process. Signals that are ignored, or
    have a handler of somebody else, are left alone; outside of the main thread, which alone
    receives signals, all are.
    """
    request = StopRequest()
    usual: dict[int, Any] = {}

    def restore() -> None:
        while usual:
            number, handler = usual.popitem()
            signal.signal(number, handler)

    def remember(number: int, _: object) -> None:
        request.signal = number
        restore()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) in _STOPPING:
                usual[number] = signal.signal(number, remember)
    except ValueError:  # not the main thread
        usual.clear()
    try:
        yield request
    finally:
        if usual:
            restore()
    if request.signal is not None:
        signal.raise_signal(request.signal)


@contextmanager
def nothing_kept(text: str) -> Iterator[None]:
    """Puts a sentence in the place of what inner jobs say is kept: their folder is temporary."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.args = (text,)
        raise


@contextmanager
def kept_at_stop(describe: Callable[[], str]) -> Iterator[None]:
    """Adds what is kept to a KeyboardInterrupt that leaves the block: `describe` says it in a
    sentence, or returns "" for nothing."""
    try:
        yield
    except KeyboardInterrupt as stop:
        text = describe()
        stop.args = (*stop.args, text) if text else stop.args
        raise
