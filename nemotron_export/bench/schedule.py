"""Rounds: within each, every backend is measured once per shape, one at a time, each round beginning with another."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from nemotron_export.bench.options import Shape, Times
from nemotron_export.bench.process import BackendProcess
from nemotron_export.progress import Progress, silent

__all__ = ["Probe", "run_rounds"]

# thread pools spin for a while after their last task, and would take a core from the next backend
_REST_SECONDS = 0.1

# Measured once per round before the backends: bytes per second.
Probe = Callable[[], float]


def run_rounds(
    backends: Sequence[BackendProcess],
    shapes: Sequence[Shape],
    *,
    rounds: int,
    warmup: int,
    probe: Probe,
    progress: Progress = silent,
    rest: float = _REST_SECONDS,
) -> tuple[dict[tuple[str, Shape], list[Times]], list[float]]:
    """Measures everything, interleaved, so that a machine that slows down slows all of them.

    Args:
        backends: loaded and idle, with distinct names.
        probe: measured at the start of each round.
        rest: seconds of silence before each measurement.

    Returns:
        Times by backend's name and shape, one per round, and the probe's values.
    """
    times: dict[tuple[str, Shape], list[Times]] = {(c.name, shape): [] for c in backends for shape in shapes}
    assert len(times) == len(backends) * len(shapes), "distinct names"
    probed: list[float] = []
    total = (warmup + rounds) * len(times)
    done = 0
    for number in range(warmup + rounds):
        counts = number >= warmup
        time.sleep(rest)
        value = probe()
        if counts:
            probed.append(value)
        first = number % max(1, len(backends))
        for shape in shapes:
            for backend in (*backends[first:], *backends[:first]):
                progress("measure", done, total)
                time.sleep(rest)
                found = backend.measure(shape)
                if counts:
                    times[backend.name, shape].append(found)
                done += 1
    return times, probed
