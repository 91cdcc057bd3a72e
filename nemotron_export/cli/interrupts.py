"""Ctrl-C and SIGTERM: exceptions in the main thread, which unwind a command so that it leaves nothing behind."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Terminated", "end_soon", "interrupts"]

_RETRY_SECONDS = 0.02
# an import that hangs is interrupted all the same
_PATIENCE_SECONDS = 30.0
# by then an exception that was raised unwinds something, or was dropped
_CHECK_SECONDS = 0.5
# an interpreter waits for its threads, and one that was interrupted may have left them a lock
_EXIT_SECONDS = 10.0


class Terminated(KeyboardInterrupt):
    """SIGTERM."""


class _Handler:
    """Raises; but waits for the end of an import, and raises again what was dropped.

    A library that is being loaded may call Python from C++ that takes no exception: the process would abort, and leave
    its temporary folders. And where C or a finalizer called Python, an exception is dropped with a line on stderr.
    """

    def __init__(self) -> None:
        self._number = 0
        self._since = 0.0
        self._raised: KeyboardInterrupt | None = None

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Of several signals the last counts."""
        self._number, self._since, self._raised = number, time.monotonic(), None
        self._raise_or_wait(frame)

    def on_timer(self, number: int, frame: FrameType | None) -> None:
        """Raises what could not be raised before, or was dropped."""
        if self._raised is not None and _is_handled(self._raised):
            # what is being cleaned up must not be interrupted
            signal.setitimer(signal.ITIMER_REAL, _CHECK_SECONDS)
        else:
            self._raise_or_wait(frame)

    def _raise_or_wait(self, frame: FrameType | None) -> None:
        if _is_importing(frame) and time.monotonic() - self._since < _PATIENCE_SECONDS:
            signal.setitimer(signal.ITIMER_REAL, _RETRY_SECONDS)
            return
        self._raised = KeyboardInterrupt() if self._number == signal.SIGINT else Terminated()
        signal.setitimer(signal.ITIMER_REAL, _CHECK_SECONDS)
        raise self._raised


@contextmanager
def interrupts() -> Iterator[None]:
    """Makes both signals exceptions of the main thread while the block runs.

    Nothing changes in another thread, where the system has no timers, or for a Ctrl-C that is ignored.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    handler = _Handler()
    wanted = {signal.SIGTERM: handler.on_signal, signal.SIGINT: handler.on_signal, signal.SIGALRM: handler.on_timer}
    kept = {}
    for number, function in wanted.items():
        if number != signal.SIGINT or signal.getsignal(number) is not signal.SIG_IGN:
            kept[number] = signal.signal(number, function)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for number, before in kept.items():
            signal.signal(number, before)


def end_soon(code: int) -> None:
    """Ends the process with an exit code, should it not have ended by itself before; all was cleaned up already."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    timer = threading.Timer(_EXIT_SECONDS, os._exit, (code,))
    timer.daemon = True
    timer.start()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def _is_handled(raised: BaseException) -> bool:
    """Whether the main thread is in a block that handles the exception, or one that was raised meanwhile."""
    error = sys.exc_info()[1]
    while error is not None and error is not raised:
        error = error.__context__
    return error is raised
