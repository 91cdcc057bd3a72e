"""Ctrl-C and SIGTERM: how a command unwinds, and with which exit code its process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nemotron_export.cli.guard import INTERRUPTED, TERMINATED


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED)])
def test_signals_unwind_and_end_with_their_code(tmp_path: Path, number: signal.Signals, code: int) -> None:
    program = f"""
import time, typer
from pathlib import Path
from nemotron_export.cli.guard import guarded
app = typer.Typer()
@app.command()
@guarded
def wait() -> None:
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        Path({str(tmp_path / "unwound")!r}).touch()
app()
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, number)
    _, err = child.communicate(timeout=60)
    assert child.returncode == code
    assert (tmp_path / "unwound").exists()
    assert "Traceback" not in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, TERMINATED), (signal.SIGINT, INTERRUPTED)])
def test_signals_wait_for_the_end_of_an_import(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """A library's start in C++ takes no exception: the process would abort."""
    (tmp_path / "slow.py").write_text(
        "import time\nprint('ready', flush=True)\nuntil = time.monotonic() + 1\n"
        "while time.monotonic() < until:\n    time.sleep(0.01)\nprint('loaded', flush=True)\n"
    )
    program = f"""
import sys, time, typer
from nemotron_export.cli.guard import guarded
sys.path.insert(0, {str(tmp_path)!r})
app = typer.Typer()
@app.command()
@guarded
def load() -> None:
    import slow
    time.sleep(60)
app()
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, number)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out) == (code, "loaded\n"), err
    assert "Traceback" not in err


def test_a_signal_that_a_finalizer_drops_comes_again_and_cleaning_up_is_left_alone(tmp_path: Path) -> None:
    program = f"""
import time, typer
from pathlib import Path
from nemotron_export.cli.guard import guarded
app = typer.Typer()
class Dropping:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(60)
@app.command()
@guarded
def wait() -> None:
    try:
        dropping = Dropping()
        del dropping
        print("dropped", flush=True)
        time.sleep(60)
    finally:
        try:
            raise OSError
        except OSError:
            # longer than it takes to raise again
            time.sleep(1.5)
        Path({str(tmp_path / "unwound")!r}).touch()
app()
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGTERM)
    out, err = child.communicate(timeout=50)
    assert (child.returncode, out) == (TERMINATED, "dropped\n"), err
    assert (tmp_path / "unwound").exists()


def test_an_interrupted_process_does_not_wait_for_its_threads() -> None:
    program = """
import sys, threading, time, typer
from nemotron_export.cli import interrupts, main
from nemotron_export.cli.guard import guarded
app = typer.Typer()
@app.command()
@guarded
def wait() -> None:
    threading.Thread(target=time.sleep, args=(100,)).start()
    print("ready", flush=True)
    time.sleep(100)
interrupts._EXIT_SECONDS = 0.5
sys.modules["nemotron_export.cli.app"].app = app
main()
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    os.kill(child.pid, signal.SIGTERM)
    _, err = child.communicate(timeout=50)
    assert (child.returncode, err) == (TERMINATED, "terminated\n")
