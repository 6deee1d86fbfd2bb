"""Ctrl-C as a request: the work in progress is finished first, so that its results can be kept."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Stop:
    """A request to stop; ``signal`` is the first one that has made it."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        """Returns True once the work should stop."""
        return self.signal is not None

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """Remembers a signal; a second Ctrl-C raises KeyboardInterrupt."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or number


_current: list[Stop] = []  # the requests that Ctrl-C makes, the innermost last
_passed_on = False  # to another process, which decides


def pass_on(handler: Callable[[int, FrameType | None], None]) -> None:
    """Has ``handler`` get every Ctrl-C from now on: no request to stop is made in this process."""
    global _passed_on
    _passed_on = True
    signal.signal(signal.SIGINT, handler)


def request() -> None:
    """Makes the request that Ctrl-C would make now, from any thread; nothing happens where there is none to make."""
    if _current and not _current[-1]():
        _current[-1].signal = signal.SIGINT


@contextmanager
def stop_on_interrupt(*signals: int) -> Iterator[Stop]:
    """Yields a request to stop that the signals make, by default Ctrl-C alone.

    A second Ctrl-C raises KeyboardInterrupt; repeated other signals are ignored. Outside the main thread, where Python
    delivers no signals, and after :func:`pass_on` nothing makes the request.
    """
    stop = Stop()
    if _passed_on or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.handle) for number in signals or (signal.SIGINT,)}
    _current.append(stop)
    try:
        yield stop
    finally:
        _current.remove(stop)
        for number, handler in before.items():
            signal.signal(number, handler)
