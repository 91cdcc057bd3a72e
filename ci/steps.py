"""Commands in processes of their own: exit code, seconds and peak memory of each, and its output in a log."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Outcome", "Step", "run"]

_ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Step:
    """A command, the seconds that it may take, and a folder that stands for the user's home, and so for all caches."""

    name: str
    command: list[str]
    seconds: int = 300
    home: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a step; `peak_bytes` is the resident memory of its largest process."""

    name: str
    command: str
    code: int
    seconds: float
    peak_bytes: int


def run(step: Step, output: Path) -> Outcome:
    """Runs a step, its output in a log of its own."""
    log = output / ("".join(c if c.isalnum() else "-" for c in step.name) + ".log")
    environment = dict(os.environ)
    if step.home is not None:
        shutil.rmtree(step.home, ignore_errors=True)
        step.home.mkdir(parents=True)
        environment["HOME"] = str(step.home)
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(step.command, stdout=file, stderr=subprocess.STDOUT, cwd=_ROOT, env=environment)
        timer = threading.Timer(step.seconds, process.kill)
        timer.start()
        # of this step alone: getrusage would give the largest of all steps so far
        _, status, usage = os.wait4(process.pid, 0)
        timed_out = not timer.is_alive()
        timer.cancel()
    code = 124 if timed_out else os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * 1024
    outcome = Outcome(step.name, shlex.join(step.command), code, round(time.monotonic() - began, 1), peak)
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-(6 if code == 0 else 30) :]
    head = f"{'ok  ' if code == 0 else 'FAIL'} {outcome.seconds:6.1f} s  {step.name}"
    print("\n".join([head, *(f"      {line[:220]}" for line in lines)]), flush=True)
    return outcome
