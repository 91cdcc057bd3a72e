"""Streams, events and graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nemotron_plugins.driver.cuda import Driver

from nemotron_runtime.closing import Closing

__all__ = ["Event", "Graph", "Stream"]

# CU_STREAM_NON_BLOCKING: no order with the legacy default stream
_NON_BLOCKING = 1
# CU_EVENT_DISABLE_TIMING
_NO_TIMING = 2


class Event(Closing):
    """A point in a stream that the host or another stream can wait for."""

    def __init__(self, driver: Driver, *, timing: bool = False) -> None:
        self._driver = driver
        self.handle: Any = driver("EventCreate", 0 if timing else _NO_TIMING)

    def record(self, stream: Stream) -> None:
        """Marks what was given to the stream so far."""
        self._driver("EventRecord", self.handle, stream.handle)

    def wait(self) -> None:
        """Returns once the marked work is done; at once where nothing was ever marked."""
        self._driver("EventSynchronize", self.handle)

    def seconds_since(self, start: Event) -> float:
        """Device time between two events with timing that have happened."""
        return float(self._driver("EventElapsedTime", start.handle, self.handle)) / 1e3

    def close(self) -> None:
        if self.handle is not None:
            handle, self.handle = self.handle, None
            self._driver("EventDestroy", handle)


class Stream(Closing):
    """An order of device work. ``int(stream)`` is the handle as TensorRT takes it."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.handle: Any = driver("StreamCreate", _NON_BLOCKING)

    def __int__(self) -> int:
        return int(self.handle)

    def synchronize(self) -> None:
        """Returns once everything given to it is done; raises what went wrong meanwhile."""
        self._driver("StreamSynchronize", self.handle)

    def capture(self, work: Callable[[], None]) -> Graph:
        """Records what ``work`` gives to this stream, without running it, as a graph.

        The work must have run once before: what libraries and drivers load at their first call cannot be recorded.
        """
        mode = self._driver.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._driver("StreamBeginCapture", self.handle, mode)
        try:
            work()
        except BaseException:
            # leaves the stream usable; the first error is the one that matters
            error, graph = self._driver.try_call("StreamEndCapture", self.handle)
            if error is None and graph is not None and int(graph):
                self._driver.try_call("GraphDestroy", graph)
            raise
        graph = self._driver("StreamEndCapture", self.handle)
        try:
            return Graph(self._driver, self._driver("GraphInstantiate", graph, 0))
        finally:
            self._driver("GraphDestroy", graph)

    def close(self) -> None:
        """Waits for its work and frees it."""
        if self.handle is not None:
            handle, self.handle = self.handle, None
            # an error of the work was or will be raised where somebody waits for it
            self._driver.try_call("StreamSynchronize", handle)
            self._driver("StreamDestroy", handle)


class Graph(Closing):
    """Recorded work, launched as one; it holds the addresses that were used when it was recorded."""

    def __init__(self, driver: Driver, handle: Any) -> None:
        self._driver = driver
        self.handle: Any = handle

    def launch(self, stream: Stream) -> None:
        """Gives the work to a stream."""
        self._driver("GraphLaunch", self.handle, stream.handle)

    def close(self) -> None:
        if self.handle is not None:
            handle, self.handle = self.handle, None
            self._driver("GraphExecDestroy", handle)
