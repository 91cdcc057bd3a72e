"""Where a decode step's time goes on the GPU: every kernel's share, of any executor that computes there.

    python ci/benchmarks/step_profile.py BUNDLE [--context 512] [--batch 1] [--steps 16] [--json profile.json]

The kernels are those that PyTorch's profiler (CUPTI) sees in this process, whoever launched them, CUDA graphs' too;
PyTorch computes nothing here. What is left of a step between the kernels' times is launches and waiting. Being watched
costs a step some of its speed: times of whole steps are taken before.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import typer
from document import JsonFile, write_json
from nemotron_runtime.bundle.folder import Bundle
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.open import open_executor
from nemotron_runtime.sampling.device import GREEDY

from nemotron_export.cli.console import print_table

_WARMUP = 8


def decode(engine: Any, tokens_B: np.ndarray, steps: int) -> tuple[np.ndarray, float]:
    """So many greedy steps; the last tokens, and seconds of a step."""
    began = time.perf_counter()
    for _ in range(steps):
        tokens_B = engine.decode(tokens_B, sampling=GREEDY).tokens
    return tokens_B, (time.perf_counter() - began) / steps


def shares(events: Iterable[tuple[str, float]], steps: int) -> list[dict[str, Any]]:
    """Kernels by name, the longest first, with launches and microseconds per step; events are (name, µs)."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, microseconds in events:
        found[name].append(microseconds)
    rows = [
        {"kernel": name, "per_step": len(times) / steps, "microseconds": sum(times) / steps, "each": median(times)}
        for name, times in found.items()
    ]
    return sorted(rows, key=lambda row: -row["microseconds"])


def main(bundle: Path, context: int = 512, batch: int = 1, steps: int = 16, json_file: JsonFile = None) -> None:
    """Measures and prints; the exit code is 1 where no kernel was seen."""
    if not torch.cuda.is_available():
        raise typer.BadParameter("PyTorch sees no NVIDIA GPU to watch")
    rng = np.random.default_rng(0)
    with Engine(open_executor(Bundle.open(bundle, allow_unverified=True))) as engine:
        engine.reset(batch, context + _WARMUP + 2 * steps + 2)
        prompts = [rng.integers(0, engine.vocab_size, context) for _ in range(batch)]
        tokens_B = engine.prefill(prompts).argmax(-1)
        tokens_B, _ = decode(engine, tokens_B, _WARMUP)
        tokens_B, alone = decode(engine, tokens_B, steps)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            decode(engine, tokens_B, steps)
    events = [
        (event.name, float(event.device_time_total))
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    ]
    rows = shares(events, steps)
    total = sum(row["microseconds"] for row in rows)
    print(f"A step: {1e6 * alone:.1f} µs, {batch / alone:.1f} tok/s; kernels and copies {total:.1f} µs of it")
    cells = [
        [row["kernel"][:90], f"{row['per_step']:.1f}", f"{row['each']:.2f}", f"{row['microseconds']:.1f}"]
        for row in rows
    ]
    print_table("Per step", ["kernel", "launches", "median µs", "µs in all"], cells)
    write_json(json_file, {"bundle": bundle.name, "step_microseconds": 1e6 * alone, "kernels": rows})
    raise typer.Exit(0 if rows else 1)


if __name__ == "__main__":
    typer.run(main)
