"""Measures a group of backends that may fail: what fails is named, and the others go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cuda_peers_backends import Entry
from support.gpu_memory import gpu_query

from nemotron_export.bench.options import Shape, Times
from nemotron_export.bench.process import BackendProcess
from nemotron_export.bench.results import Spread
from nemotron_export.bench.schedule import run_rounds

__all__ = ["Say", "TolerantProcess", "measure"]

Say = Callable[[str], None]


class TolerantProcess:
    """A backend's process in the rounds; once it failed it is passed over, and `failed` says why."""

    def __init__(self, entry: Entry, threads: int) -> None:
        self.entry, self.name, self.failed = entry, entry.spec.name, ""
        self.load_seconds: float | None = None
        self.peak_bytes: int | None = None
        self._process = BackendProcess(entry.spec, threads)

    def attempt(self, call: Callable[[BackendProcess], Any]) -> Any:
        """What the call gives; None where it, or one before it, failed."""
        if self.failed:
            return None
        try:
            return call(self._process)
        except Exception as error:  # a library's own, or the end of its process: the other backends go on
            self.failed = f"{type(error).__name__}: {error}"
            self._process.kill()
            return None

    def measure(self, shape: Shape) -> Times:
        """For `run_rounds`."""
        return self.attempt(lambda process: process.measure(shape)) or Times(math.nan, math.nan, math.nan)

    def finish(self) -> None:
        """Ends the process, which writes its tokens."""
        self.peak_bytes = self.attempt(lambda process: process.close())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid


def measure(
    group: Sequence[Entry], shapes: Sequence[Shape], rounds: int, warmup: int, threads: int, say: Say
) -> list[dict[str, Any]]:
    """One group of backends: a record of each."""
    with ExitStack() as stack:
        members = [TolerantProcess(entry, threads) for entry in group]
        for member in members:
            stack.callback(member.finish)
            member.attempt(lambda process: process.wait_ready())
        for member in members:
            loaded = member.attempt(lambda process: process.load())
            member.load_seconds = loaded[0] if loaded else None
            say(f"loaded {member.name}" if loaded else f"not loaded {member.name}: {member.failed}")
        times: dict[tuple[str, Shape], list[Times]] = {}
        for shape in shapes:
            alive = [member for member in members if not member.failed]
            found, _ = run_rounds(alive, [shape], rounds=rounds, warmup=warmup, probe=lambda: 0.0)
            times |= found
        memory = {int(pid): int(used) for pid, used in gpu_query("compute-apps", "pid,used_memory") if used.isdigit()}
        used = {member.name: memory.get(member.pid) for member in members}
    records = []
    for member in members:
        record: dict[str, Any] = {"name": member.name, "folder": member.entry.folder, "group": member.entry.group}
        record |= {"failed": member.failed, "load_seconds": member.load_seconds, "peak_bytes": member.peak_bytes}
        record["gpu_mib"] = used[member.name]
        if member.failed:
            say(f"FAILED {member.name}: {member.failed}")
        else:
            at = {shape.prompt_tokens: times[member.name, shape] for shape in shapes}
            record["decode_tokens_per_second"] = {
                count: asdict(Spread.of([shapes[0].new_tokens / t.decode for t in found]))
                for count, found in at.items()
            }
            record["prefill_seconds"] = {c: asdict(Spread.of([t.prefill for t in found])) for c, found in at.items()}
            record["tokens"] = json.loads(Path(member.entry.spec.options["tokens"]).read_text(encoding="utf-8"))
        records.append(record)
    return records
