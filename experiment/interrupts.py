"""What asks a program to stop: Ctrl-C, SIGTERM, a closed terminal."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(Exception):
    """The training was asked to stop, and saved first; holds the number of steps."""


@contextlib.contextmanager
def asked_to_stop(ask: Callable[[], None]) -> Iterator[None]:
    """Within it, Ctrl-C, SIGTERM and a closed terminal call ``ask``; a second one ends the process at once."""

    def heard(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        ask()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # else started with nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, heard) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
