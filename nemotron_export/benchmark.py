"""Decode speed of a bundle beside eager PyTorch, in one process, by interleaved rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from nemotron_export.checkpoint import Checkpoint
from nemotron_export.environment import environment
from nemotron_export.model import DynamicCache, NemotronForCausalLM, StaticCache
from nemotron_export.model.load import load_model
from nemotron_export.progress import Progress, silent

if TYPE_CHECKING:
    from nemotron_runtime import Model
    from nemotron_runtime.sessions.base import Session

__all__ = ["DecodeBenchmark", "DecodeRow", "decode_benchmark"]

_REST_SECONDS = 0.1

# One round of a contender: prefill outside the clock, then so many decode steps inside it; returns seconds.
Round = Callable[[np.ndarray, int], float]


@dataclass(frozen=True)
class DecodeRow:
    """One contender: median tokens per second, and that over the fp32 eager median."""

    name: str
    tokens_per_second: float
    ratio: float
    rounds: tuple[float, ...]


@dataclass(frozen=True)
class DecodeBenchmark:
    """Greedy decode of one row behind `prompt_tokens`, timed over `new_tokens` steps."""

    rows: tuple[DecodeRow, ...]
    prompt_tokens: int
    new_tokens: int
    rounds: int
    machine: str
    versions: str


def decode_benchmark(
    checkpoint: Checkpoint,
    model: Model,
    *,
    prompt_tokens: int = 128,
    new_tokens: int = 64,
    rounds: int = 5,
    threads: int | None = None,
    progress: Progress = silent,
) -> DecodeBenchmark:
    """Measures the bundle and eager PyTorch (fp32 and bf16, sdpa, dynamic and static cache).

    Of the two caches the faster one stands for PyTorch. The contenders take turns within each round, beginning with
    another one each time, so that a machine that slows down slows all of them.

    Args:
        checkpoint: what the bundle was built from.
        model: the loaded bundle.
        prompt_tokens: tokens before the first timed step.
        new_tokens: timed steps a round.
        rounds: timed rounds; one more warms up.
        threads: CPU threads of PyTorch; unchanged where None.
        progress: told (stage, done, total).
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        contenders: dict[str, Round] = {"bundle": lambda ids, steps: _session_round(model.session, ids, steps)}
        for dtype in (torch.float32, torch.bfloat16):
            eager = load_model(checkpoint, dtype)
            for cache in ("dynamic", "static"):
                contenders[f"{dtype}/{cache}"] = _eager_contender(eager, cache)
        ids = np.random.Generator(np.random.Philox(7)).integers(0, checkpoint.config.vocab_size, prompt_tokens)
        speeds: dict[str, list[float]] = {name: [] for name in contenders}
        for number in range(rounds + 1):
            progress("measure decode", number, rounds + 1)
            names = list(contenders)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                # thread pools spin for a while after their last task, and would take a core from the next contender
                time.sleep(_REST_SECONDS)
                seconds = contenders[name](ids, new_tokens)
                if number:
                    speeds[name].append(new_tokens / seconds)
        used = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    return _summary(speeds, model, prompt_tokens, new_tokens, rounds, used)


def _summary(
    speeds: dict[str, list[float]], model: Model, prompt_tokens: int, new_tokens: int, rounds: int, threads: int
) -> DecodeBenchmark:
    median = {name: statistics.median(values) for name, values in speeds.items()}
    manifest = model.bundle.manifest
    chosen = {f"bundle {manifest.target} {manifest.dtype}": "bundle"}
    for dtype in (torch.float32, torch.bfloat16):
        cache = max(("dynamic", "static"), key=lambda c, d=dtype: median[f"{d}/{c}"])  # type: ignore[misc]
        chosen[f"PyTorch eager {str(dtype).removeprefix('torch.')}, sdpa, {cache} cache"] = f"{dtype}/{cache}"
    fp32 = max(value for name, value in median.items() if name.startswith("torch.float32/"))
    rows = tuple(
        DecodeRow(label, median[name], median[name] / fp32, tuple(speeds[name])) for label, name in chosen.items()
    )
    found = environment(threads)
    return DecodeBenchmark(
        rows,
        prompt_tokens,
        new_tokens,
        rounds,
        machine=f"{found['cpu']}, {found['cores']} cores, {threads} threads, {found['system']}",
        versions=", ".join(f"{name} {version}" for name, version in found["versions"].items()),
    )


def _session_round(session: Session, ids: np.ndarray, steps: int) -> float:
    session.reset(1, len(ids) + steps)
    token_B = np.argmax(session.prefill([ids]), axis=-1)
    started = time.perf_counter()
    for _ in range(steps):
        token_B = np.argmax(session.decode(token_B), axis=-1)
    return time.perf_counter() - started


def _eager_contender(model: NemotronForCausalLM, cache: str) -> Round:
    @torch.inference_mode()
    def run(ids: np.ndarray, steps: int) -> float:
        past = DynamicCache() if cache == "dynamic" else StaticCache(len(ids) + steps)
        logits = model(torch.from_numpy(ids)[None], past_key_values=past, use_cache=True, logits_to_keep=1).logits
        token_BS = logits[:, -1:].argmax(-1)
        started = time.perf_counter()
        for _ in range(steps):
            logits = model(token_BS, past_key_values=past, use_cache=True).logits
            token_BS = logits[:, -1:].argmax(-1)
        return time.perf_counter() - started

    return run
