"""Measures a group of backends that may fail: what fails is named, and the others go on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
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
        self.process = BackendProcess(entry.spec, threads)

    def attempt(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """What a method of the process gives; None where it, or one before it, failed."""
        if self.failed:
            return None
        try:
            return call(*arguments)
        except Exception as error:  # a library's own, or the end of its process: the other backends go on
            self.failed = f"{type(error).__name__}: {error}"
            self.process.kill()
            return None

    def measure(self, shape: Shape) -> Times:
        """For `run_rounds`."""
        return self.attempt(self.process.measure, shape) or Times(math.nan, math.nan, math.nan)


def measure(
    group: Sequence[Entry], shapes: Sequence[Shape], rounds: int, warmup: int, threads: int, say: Say
) -> list[dict[str, Any]]:
    """One group of backends: a record of each."""
    loaded: dict[str, float | None] = {}
    peaks: dict[str, int | None] = {}
    members = [TolerantProcess(entry, threads) for entry in group]
    try:
        for member in members:
            member.attempt(member.process.wait_ready)
        for member in members:
            found = member.attempt(member.process.load)
            loaded[member.name] = found[0] if found else None
            say(f"loaded {member.name}" if found else f"not loaded {member.name}: {member.failed}")
        times: dict[tuple[str, Shape], list[Times]] = {}
        for shape in shapes:
            alive = [member for member in members if not member.failed]
            found, _ = run_rounds(alive, [shape], rounds=rounds, warmup=warmup, probe=lambda: 0.0)
            times |= found
        memory = {int(pid): int(used) for pid, used in gpu_query("compute-apps", "pid,used_memory") if used.isdigit()}
        used = {member.name: memory.get(member.process.pid) for member in members}
    finally:
        # it writes its tokens then
        for member in members:
            peaks[member.name] = member.attempt(member.process.close)
    records = []
    for member in members:
        name, entry = member.name, member.entry
        record: dict[str, Any] = {
            "name": name, "folder": entry.folder, "group": entry.group, "failed": member.failed,
            "load_seconds": loaded[name], "peak_bytes": peaks[name], "gpu_mib": used[name],
        }  # fmt: skip
        if member.failed:
            say(f"FAILED {name}: {member.failed}")
        else:
            for shape in shapes:
                found, count = times[name, shape], shape.prompt_tokens
                speeds, waits = [shape.new_tokens / each.decode for each in found], [each.prefill for each in found]
                record.setdefault("decode_tokens_per_second", {})[count] = asdict(Spread.of(speeds))
                record.setdefault("prefill_seconds", {})[count] = asdict(Spread.of(waits))
            record["tokens"] = json.loads(Path(entry.spec.options["tokens"]).read_text(encoding="utf-8"))
        records.append(record)
    return records
