"""Kernels compiled in several processes: what comes back, what goes wrong, and that nothing is left running."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from nemotron_errors import GraphError, NemotronError, ResourceError
from nemotron_plugins import build
from nemotron_plugins.compiling import pool as compile_pool
from nemotron_plugins.compiling.pool import CompileJob, compile_in_processes, worker_count
from nemotron_plugins.launches.launch import Gpu
from nemotron_plugins.library import kernel_key
from support.kernel_requests import H100, TINY

pytest.importorskip("triton", reason="Triton, of the build extra, has no wheel for this platform")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="Triton is for Linux")

KEYS = ("Argmax.argmax_combine", "o.r1", "Argmax.argmax", "head.r1")


def jobs(*architectures: int) -> list[CompileJob]:
    return [
        CompileJob(key, TINY.launches(Gpu(number, 132))[key], TINY.dtype, number)
        for number in architectures
        for key in KEYS
    ]


class Call:
    """Becomes a call where it is unpickled, which is in the worker."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made = (function, arguments)

    def __reduce__(self) -> Any:
        return self.made


def broken(*call: Any) -> CompileJob:
    return dataclasses.replace(jobs(90)[0], key="broken", launch=Call(*call))  # type: ignore[arg-type]


def workers(of: int | None = None) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(of).children(recursive=True):
        # an assembler that a worker started may be gone by now
        with suppress(psutil.Error):
            if any("compiling.worker" in word for word in process.cmdline()):
                found.append(process)
    return found


def test_processes_give_the_bytes_that_this_one_gives_in_order() -> None:
    from nemotron_plugins.compiling.compiler import compile_kernel

    wanted, done = jobs(90, 80), []
    found = compile_in_processes(wanted, 3, done.append)
    assert done == list(range(1, len(wanted) + 1))
    assert workers() == []
    for job, kernel in zip(wanted, found, strict=True):
        expected = compile_kernel(job.launch, dtype=job.dtype, architecture=job.architecture)
        assert kernel.cubin == expected.cubin
        assert kernel.record.to_json() == expected.record.to_json()


@pytest.mark.parametrize("count", [1, 2])
def test_a_library_is_the_same_by_any_number_of_processes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "worker_count", lambda jobs: count)
    started: list[int] = []
    real = build.compile_in_processes
    monkeypatch.setattr(
        build, "compile_in_processes", lambda jobs, n, on_done: started.append(n) or real(jobs, n, on_done)
    )
    told: list[tuple[int, int]] = []
    requests = [TINY.requests[name] for name in ("head", "Argmax", "o")]
    gpus = [H100, Gpu(100, 148)]
    made = build.build_library(requests, gpus, lambda done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(9)]
    assert started == ([2] if count == 2 else [])
    keys = [kernel_key(request, variant) for request in requests for variant in build.launches_of(request, H100)]
    assert len(keys) == 4
    assert {number: (each.architecture, list(each)) for number, each in made.items()} == {
        90: ("sm_90", keys),
        100: ("sm_100", keys),
    }
    assert all(kernel.record.architecture == each.architecture for each in made.values() for kernel in each.values())


def test_equal_launches_are_compiled_once() -> None:
    up, down = TINY.requests["up"], TINY.requests["down"]
    wider = [dataclasses.replace(request, capacity=2 * request.capacity) for request in (up, down)]
    told: list[tuple[int, int]] = []
    (made,) = build.build_library([up, down, *wider], [H100], lambda *done: told.append(done)).values()
    assert told[-1] == (2, 2)
    assert len(made) == 4
    assert made.of(up) == made.of(wider[0])


def test_as_many_processes_as_cpus_jobs_and_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_pool.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert [worker_count(jobs) for jobs in (0, 1, 9, 99)] == [1, 1, 9, 16]
    monkeypatch.setattr(compile_pool.os, "sched_getaffinity", lambda pid: {5}, raising=False)
    assert worker_count(99) == 1
    monkeypatch.setattr(compile_pool.sys, "executable", "")
    monkeypatch.setattr(compile_pool.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert worker_count(99) == 1, "no interpreter to start"


def fail(error: type[Exception], match: str, *wanted: CompileJob) -> Exception:
    with pytest.raises(error, match=match) as caught:
        compile_in_processes(wanted, 2)
    assert workers() == []
    return caught.value


def test_an_error_of_the_compiler_keeps_its_parts() -> None:
    error = fail(GraphError, "sm_75", *jobs(90), dataclasses.replace(jobs(90)[0], architecture=75))
    assert isinstance(error, NemotronError)
    assert (error.where, error.remedy) == (jobs(90)[0].launch.kernel, "name one of them")
    assert error.found == "architecture sm_75"


def test_a_bug_in_a_worker_comes_with_its_traceback_whatever_was_printed() -> None:
    error = fail(RuntimeError, "kernel broken for sm_90: AttributeError", *jobs(90), broken(print, "noise on stdout"))
    (note,) = error.__notes__
    assert "in compile_kernel" in note


def test_a_worker_that_ends_is_named() -> None:
    error = fail(ResourceError, "kernel broken for sm_90: .*killed", broken(signal.raise_signal, signal.SIGKILL))
    assert "taskset" in str(error)
    fail(GraphError, "ended with SIGABRT", *jobs(90), broken(os.abort))
    fail(GraphError, "ended with exit code 7", broken(os._exit, 7), *jobs(90))


def test_an_interrupt_leaves_no_process() -> None:
    seen: list[list[psutil.Process]] = []

    def interrupt(done: int) -> None:
        seen.append(workers())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compile_in_processes(jobs(90), 2, interrupt)
    assert [len(each) for each in seen] == [2]
    assert workers() == []


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
print("begun", flush=True)
from nemotron_plugins import build
from nemotron_plugins.launches.launch import Gpu
from support.kernel_requests import MINITRON_4B
build.worker_count = lambda jobs: 2
gpus = [Gpu(number, 132) for number in (80, 90, 100)]
build.build_library(MINITRON_4B.requests.values(), gpus, lambda done, total: print(done, total, flush=True))
"""


def test_a_script_without_a_main_guard_compiles_and_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[1])))
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3)]
            assert [line.split()[0] for line in lines] == ["begun", "0", "1"], "once, and not again in each worker"
            left = workers(process.pid)
            assert len(left) == 2
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt")
    # its traceback alone: workers that heard of the interrupt would add theirs
    assert errors.count("Traceback") == 1
    gone, alive = psutil.wait_procs(left, timeout=30)
    assert (len(gone), alive) == (2, [])
