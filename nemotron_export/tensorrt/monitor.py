"""Progress of a build, and its end on Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, TypeVar

from nemotron_export.progress import Progress

__all__ = ["BuildWatch", "run_cancellable"]

_STEPS = 1000
_Result = TypeVar("_Result")


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class BuildWatch:
    """Passes a builder's phases on as one number, and stops the builder when asked to.

    TensorRT calls it from threads of its own.

    Attributes:
        monitor: what the builder's config is given; keep this object as long as anything that was made with it.
        error: what the progress callback raised; the build is stopped then.
    """

    def __init__(self, trt: Any, stage: str, progress: Progress) -> None:
        self._stage, self._progress = stage, progress
        self._lock = threading.Lock()
        self._phases: dict[str, _Phase] = {}
        self._shown = -1
        self._stop = threading.Event()
        self.error: BaseException | None = None
        self.monitor: Any = _monitor_class(trt)(self)

    def cancel(self) -> None:
        """Ends the build at its next step."""
        self._stop.set()

    @property
    def cancelled(self) -> bool:
        """Whether the build was told to end."""
        return self._stop.is_set()

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[phase] = _Phase(parent or None, max(1, steps))
        self._show()

    def stepped(self, phase: str, step: int) -> bool:
        """A step (0, 1, …) of a phase is done; gives whether to go on."""
        with self._lock:
            if phase in self._phases:
                self._phases[phase].done = step + 1
        self._show()
        return not self.cancelled

    def finished(self, phase: str) -> None:
        """A phase ends."""
        with self._lock:
            self._phases.pop(phase, None)

    def _show(self) -> None:
        with self._lock:
            done = int(_STEPS * self._fraction(None))
            # phases may follow each other at the top: never back
            if done <= self._shown or self.cancelled:
                return
            self._shown = done
        try:
            self._progress(self._stage, done, _STEPS)
        except BaseException as error:  # must not reach TensorRT's own thread
            self.error = self.error or error
            self.cancel()

    def _fraction(self, parent: str | None) -> float:
        inner = [(name, phase) for name, phase in self._phases.items() if phase.parent == parent]
        return max((min(1.0, (phase.done + self._fraction(name)) / phase.steps) for name, phase in inner), default=0.0)


def run_cancellable(work: Callable[[], _Result], cancel: Callable[[], None]) -> _Result:
    """Runs ``work`` in a thread, so that Ctrl-C reaches this one while C++ code computes.

    An interrupt calls ``cancel``, waits for the thread's end and goes on.
    """
    # not begun, it is cancelled; begun, its end is waited for
    future: Future[_Result] = Future()

    def run() -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="engine build")
    interrupt: BaseException | None = None
    started = False
    while True:
        # an interrupt may come anywhere in here, while the thread is started too
        try:
            if not started:
                started = True
                thread.start()
            # a wait without an end cannot be interrupted everywhere
            while not future.done():
                wait([future], 0.1)
            break
        except BaseException as error:
            interrupt = interrupt or error
            cancel()
            if future.cancel():
                break
    if interrupt is not None:
        raise interrupt
    return future.result()


def _monitor_class(trt: Any) -> type:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self, watch: BuildWatch) -> None:
            trt.IProgressMonitor.__init__(self)
            self.watch = watch

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.watch.started(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self.watch.stepped(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            self.watch.finished(phase_name)

    return Monitor
