"""The process of one backend: calls come as lines of JSON on stdin, answers go back on stdout.

It starts with `{"path": sys.path, "backend": "module:Class", "options": {...}, "threads": n}` and ends when stdin
does, so that no worker outlives its parent.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import nemotron_errors
import numpy as np
from nemotron_errors import NemotronError

from nemotron_export.bench.backends.base import Backend, Description, Ids
from nemotron_export.bench.options import Shape, Times
from nemotron_export.installation.extras import missing_dependency

__all__ = ["main", "measure", "peak_memory", "prompt_ids"]


def prompt_ids(shape: Shape, vocab_size: int) -> Ids:
    """Random token ids [B, S]; the same for every backend of one vocabulary."""
    noise = np.random.Generator(np.random.Philox(7))
    return noise.integers(0, vocab_size, (shape.batch, shape.prompt_tokens))


def measure(backend: Backend, vocab_size: int, shape: Shape) -> Times:
    """One prefill and its decode steps, timed."""
    ids_BS = prompt_ids(shape, vocab_size)
    gc.collect()
    began = time.perf_counter()
    backend.reset(shape.batch, shape.capacity)
    ready = time.perf_counter()
    tokens_B = backend.prefill(ids_BS)
    first = time.perf_counter()
    for _ in range(shape.new_tokens):
        tokens_B = backend.decode(tokens_B)
    done = time.perf_counter()
    return Times(prefill=first - ready, first_token=first - began, decode=done - first)


def peak_memory() -> int:
    """High-water mark of this process's resident memory in bytes; mapped files that were read count."""
    try:
        # not getrusage: on Linux its mark outlives exec, and would show the parent's
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import psutil

    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Worker:
    def __init__(self, start: dict[str, Any]) -> None:
        module, _, name = start["backend"].partition(":")
        self._backend: Backend = getattr(importlib.import_module(module), name)(start["options"], start["threads"])
        self._description: Description | None = None

    def prepare(self) -> dict[str, Any]:
        self._backend.prepare()
        return {}

    def load(self) -> dict[str, Any]:
        began = time.perf_counter()
        self._description = self._backend.load()
        return {"seconds": time.perf_counter() - began, "description": asdict(self._description)}

    def measure(self, **shape: int) -> dict[str, Any]:
        assert self._description is not None, "load comes first"
        return asdict(measure(self._backend, self._description.vocab_size, Shape(**shape)))

    def close(self) -> dict[str, Any]:
        peaks = {"peak_bytes": peak_memory(), "device_peak_bytes": self._backend.device_peak_bytes()}
        self._backend.close()
        return peaks


def _answer(call: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"ok": call()}
    except (NemotronError, ModuleNotFoundError) as error:
        mistake = error if isinstance(error, NemotronError) else missing_dependency(error)
        if mistake is None:
            raise
    # a subclass from elsewhere goes as the nearest one that the parent knows
    kind = next(cls.__name__ for cls in type(mistake).__mro__ if cls.__name__ in nemotron_errors.__all__)
    parts = {name: getattr(mistake, name) for name in ("found", "expected", "remedy", "where")}
    return {"error": {"kind": kind, **parts}}


def _serve(calls: TextIO, answers: TextIO) -> None:
    def send(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    start = json.loads(calls.readline())
    sys.path[:] = start.pop("path")
    worker = _Worker(start)
    answer = _answer(worker.prepare)
    send(answer)
    if "error" in answer:
        return
    for line in calls:
        arguments = json.loads(line)
        send(_answer(functools.partial(getattr(worker, arguments.pop("call")), **arguments)))


def main() -> None:
    """Serves until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # what a library prints must not get between the answers
    os.dup2(2, 1)
    _serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
