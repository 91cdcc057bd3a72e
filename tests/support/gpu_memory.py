"""What the driver says of GPUs and of the memory that processes hold there."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

__all__ = ["gpu_query", "memory_of_this_process"]


def gpu_query(what: str, fields: str) -> list[list[str]]:
    """Rows that nvidia-smi prints; none without it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    done = subprocess.run([program, f"--query-{what}={fields}", "--format=csv,noheader,nounits"],
                          capture_output=True, text=True, check=False)  # fmt: skip
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def memory_of_this_process() -> int:
    """Bytes, in steps of 1 MiB, whatever others hold; skips the test where the driver does not count by process."""
    rows = gpu_query("compute-apps", "pid,used_memory")
    found = [used for pid, used in rows if pid == str(os.getpid())]
    if not found or not found[0].isdigit():
        pytest.skip(f"nvidia-smi does not tell this process's memory: {rows}")
    return int(found[0]) << 20
