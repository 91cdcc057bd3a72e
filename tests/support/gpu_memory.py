"""The GPU memory that this process holds, whatever others do on the same GPU."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

__all__ = ["memory_of_this_process"]


def memory_of_this_process() -> int:
    """Bytes, in steps of 1 MiB, as the driver counts them; skips the test where it does not count by process."""
    program = shutil.which("nvidia-smi")
    if program is None:
        pytest.skip("nvidia-smi, which tells a process's memory, is not there")
    command = [program, "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines()]
    found = [row[1] for row in rows if row[0] == str(os.getpid())]
    if not found or not found[0].isdigit():
        pytest.skip(f"the driver does not tell this process's memory: {listed!r}")
    return int(found[0]) << 20
