"""Backends run in processes of their own, one at a time, and none of them outlives the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path

import psutil
import pytest
from nemotron_errors import LimitError, MissingDependencyError, NemotronError, ResourceError
from support.bench_backends import FakeBackend, fake_spec

from nemotron_export.bench.backends import BACKENDS
from nemotron_export.bench.backends.base import Description
from nemotron_export.bench.options import Shape
from nemotron_export.bench.process import BackendProcess
from nemotron_export.bench.schedule import run_rounds

SHAPE = Shape(4, 3, 1)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(BACKENDS, "fake", FakeBackend)
    # other tests of this process may keep one for all of them
    before = psutil.Process().children()
    yield
    assert psutil.Process().children() == before, "no child is left, not even a zombie"


def events(log: Path) -> list[tuple[str, int, str]]:
    rows = (line.split() for line in log.read_text(encoding="utf-8").splitlines())
    return [(name, int(pid), event) for name, pid, event, _ in rows]


def test_each_has_its_own_process_and_they_never_compute_together(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ExitStack() as stack:
        started = [stack.enter_context(BackendProcess(fake_spec(name, log), 1)) for name in "abc"]
        for process in started:
            process.wait_ready()
        described = [process.load()[1] for process in started]
        times, _ = run_rounds(started, [SHAPE], rounds=2, warmup=1, probe=lambda: 1.0, rest=0)
        pids = {process.name: process.pid for process in started}
        peaks = [process.close() for process in started]
    assert described == [Description("float32", 10, 1000, 8)] * 3
    assert len({*pids.values(), os.getpid()}) == 4
    found = events(log)
    assert all(pids[name] == pid for name, pid, _ in found)
    # a measurement is one block of events: nobody else's step is inside it
    measured = [(name, event) for name, _, event in found if event in ("begin", "step")]
    blocks = [name for name, _ in groupby(measured, key=lambda item: item[0])]
    assert blocks == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert [event for _, event in measured] == (["begin"] + ["step"] * SHAPE.new_tokens) * 9
    assert sum(event == "load" for _, _, event in found) == 3
    assert [event for _, _, event in found][-3:] == ["close"] * 3
    assert all(len(rounds) == 2 for rounds in times.values())
    for t in (t for rounds in times.values() for t in rounds):
        assert 0 < t.prefill < t.first_token
        assert t.decode > 0
    assert all(peak > 1 << 20 for peak in peaks)


@pytest.mark.parametrize(
    ("fault", "error", "text"),
    [
        ("limit", LimitError, "here: found too much; expected less; take less"),
        ("killed", ResourceError, "memory for all backends"),
        ("bug", RuntimeError, "x: its process ended with code 1"),
    ],
)
def test_what_goes_wrong_in_a_backend_is_raised_here(
    tmp_path: Path, fault: str, error: type[Exception], text: str
) -> None:
    with BackendProcess(fake_spec("x", tmp_path / "log", fault), 1) as process:
        process.wait_ready()
        process.load()
        with pytest.raises(error, match=text) as caught:
            process.measure(SHAPE)
    assert type(caught.value) is error
    assert isinstance(caught.value, NemotronError) is (fault != "bug")


def test_a_package_that_its_process_lacks_is_named_with_its_extra(tmp_path: Path) -> None:
    with (
        BackendProcess(fake_spec("x", tmp_path / "log", "no package"), 1) as process,
        pytest.raises(MissingDependencyError, match=r'pip install "nemotron-export\[build\]"'),
    ):
        process.wait_ready()


def test_an_exception_ends_a_process_that_computes(tmp_path: Path) -> None:
    def raise_in_the_middle() -> None:
        with BackendProcess(fake_spec("x", tmp_path / "log", "hang"), 1) as process:
            process.wait_ready()
            process.load()
            process._send({"call": "measure", "prompt_tokens": 4, "new_tokens": 3, "batch": 1})
            wait_for(tmp_path / "log", "begin")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        raise_in_the_middle()


def wait_for(log: Path, event: str) -> None:
    deadline = time.monotonic() + 60
    while not (log.exists() and event in log.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, f"no {event}"
        time.sleep(0.02)


PROGRAM = """
import sys
import typer
sys.path[:0] = [{tests!r}]
from pathlib import Path
from support.bench_backends import FakeBackend, fake_spec
from nemotron_export.bench import BenchOptions, run
from nemotron_export.bench.backends import BACKENDS
from nemotron_export.cli.guard import guarded
BACKENDS["fake"] = FakeBackend
log = Path({log!r})
app = typer.Typer()
@app.command()
@guarded
def measure() -> None:
    specs = [fake_spec("a", log), fake_spec("b", log, "hang"), fake_spec("c", log)]
    run.measure_specs(specs, BenchOptions(4, 3, threads=1))
app()
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_no_child_outlives_an_interrupted_run(tmp_path: Path, number: signal.Signals, code: int) -> None:
    log = tmp_path / "log"
    program = PROGRAM.format(tests=str(Path(__file__).parents[1]), log=str(log))
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (log.exists() and any(name == "b" and event == "begin" for name, _, event in events(log))):
        assert parent.poll() is None, parent.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    children = psutil.Process(parent.pid).children()
    assert {child.pid for child in children} == {pid for _, pid, _ in events(log)}
    assert len(children) == 3
    parent.send_signal(number)
    if number == signal.SIGKILL:
        assert parent.wait(60) == code
        # the idle ones end with their stdin; the one that hangs would end with its measurement
        hanging = next(pid for name, pid, _ in events(log) if name == "b")
        idle = [child for child in children if child.pid != hanging]
        psutil.wait_procs(idle, timeout=60)
        os.kill(hanging, signal.SIGKILL)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == code
    assert "Traceback" not in err
    _, alive = psutil.wait_procs(children, timeout=60)
    assert alive == []
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
