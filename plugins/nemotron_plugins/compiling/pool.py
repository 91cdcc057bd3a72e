"""Compiles kernels in worker processes, one kernel at a time each. Needs no Triton: the workers import it.

Workers are plain ``python -c`` processes that pickles go to and come from. The caller may hold a CUDA context and
threads, so it is never forked; multiprocessing's spawn and forkserver import the caller's ``__main__`` again, which
runs a script without a main guard twice and fails.
"""

from __future__ import annotations

import os
import pickle
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice

import nemotron_errors
from nemotron_errors import GraphError, ResourceError

from nemotron_plugins.launches.launch import CompiledKernel, Launch

__all__ = ["CompileJob", "compile_in_processes", "worker_count"]

_MOST_WORKERS = 16
# the caller's sys.path first, which may name places that no environment variable does
_START = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from nemotron_plugins.compiling.worker import serve; serve()"
)


@dataclass(frozen=True)
class CompileJob:
    """One kernel for one architecture (90, …), in activations of ``dtype``; ``key`` names it in messages."""

    key: str
    launch: Launch
    dtype: str
    architecture: int

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"kernel {self.key} for sm_{self.architecture}"


def worker_count(jobs: int) -> int:
    """Processes worth starting for so many jobs, by the CPUs that this process may use; 1 means none."""
    if os.name != "posix" or not sys.executable:
        return 1
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, jobs, _MOST_WORKERS))


def compile_in_processes(
    jobs: Sequence[CompileJob], workers: int, on_done: Callable[[int], None] = lambda done: None
) -> list[CompiledKernel]:
    """Compiles the jobs in so many processes, which are gone when this returns or raises.

    Args:
        jobs: what is compiled; each goes to the next idle process.
        workers: number of processes.
        on_done: told how many are compiled, after each.

    Returns:
        The kernels, in the jobs' order.

    Raises:
        NemotronError: what compiling a kernel raised; the other kernels are given up.
        ResourceError: the system killed a process.
        GraphError: a process ended by itself: the compiler crashed.
        RuntimeError: any other exception in a worker; its traceback is a note.
    """
    found: dict[int, CompiledKernel] = {}
    left = iter(enumerate(jobs))
    with ExitStack() as held:
        selector = held.enter_context(selectors.DefaultSelector())
        for number, job in islice(left, workers):
            worker = _Worker(held)
            worker.send(number, job)
            selector.register(worker.answers, selectors.EVENT_READ, worker)
        while selector.get_map():
            for ready, _ in selector.select():
                worker = ready.data
                found[worker.number] = worker.receive()
                on_done(len(found))
                following = next(left, None)
                if following is None:
                    selector.unregister(worker.answers)
                else:
                    worker.send(*following)
    return [found[number] for number in range(len(jobs))]


class _Worker:
    """A process that ends with ``held``, and the job that it has. Its death is noticed by a missing answer."""

    def __init__(self, held: ExitStack) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # a group of its own: Ctrl-C is for the caller alone, and its end takes the assembler that it started along
            process_group=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._jobs, self.answers = self._process.stdin, self._process.stdout
        self.number, self._where = -1, ""
        held.callback(self.kill)
        self._write(sys.path)

    def send(self, number: int, job: CompileJob) -> None:
        self.number, self._where = number, job.where
        self._write(job)

    def receive(self) -> CompiledKernel:
        try:
            kind, content = pickle.load(self.answers)
        except (EOFError, pickle.UnpicklingError):
            # an answer that breaks off says what none does
            raise self._ended(self._process.wait()) from None
        if kind == "kernel":
            assert isinstance(content, CompiledKernel)
            return content
        if kind == "error":
            raise getattr(nemotron_errors, content.pop("kind"))(**content)
        summary, traceback = content
        error = RuntimeError(f"{self._where}: {summary}")
        error.add_note(f"In the process that compiled it:\n{traceback}")
        raise error

    def kill(self) -> None:
        """Ends it and what it started, at once."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._jobs, self.answers):
            with suppress(BrokenPipeError):
                pipe.close()

    def _write(self, content: object) -> None:
        with suppress(BrokenPipeError):
            pickle.dump(content, self._jobs)
            self._jobs.flush()

    def _ended(self, code: int) -> Exception:
        if code == -signal.SIGKILL:
            return ResourceError(
                "its compiler's process was killed, as systems do where memory runs out",
                "memory for as many compilers as this process may use CPUs",
                "free some memory, or allow fewer CPUs (`taskset -c 0-3 nemotron-export …`)",
                where=self._where,
            )
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return GraphError(
            f"a compiler that ended with {how}", "a compiled kernel",
            "see what it wrote above; try another version of Triton, and report it", where=self._where,
        )  # fmt: skip
