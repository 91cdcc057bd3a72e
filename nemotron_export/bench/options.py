"""How to measure: what the user chooses of a run, the shapes that follow, and the times that one measurement gives."""

from __future__ import annotations

import os
from dataclasses import dataclass

import psutil

__all__ = ["EAGER_CACHES", "BenchOptions", "Shape", "Times", "default_threads"]

EAGER_CACHES = ("dynamic", "static")


@dataclass(frozen=True, order=True)
class Shape:
    """Greedy generation of `batch` sequences: `prompt_tokens` of prefill each, then `new_tokens` decode steps."""

    prompt_tokens: int
    new_tokens: int
    batch: int

    @property
    def capacity(self) -> int:
        """Tokens that a sequence's KV cache must hold."""
        return self.prompt_tokens + self.new_tokens


@dataclass(frozen=True)
class Times:
    """Seconds of one measurement, by the wall clock of the backend's own process.

    Attributes:
        prefill: the prompts' forward passes, until the first new tokens are known on the host.
        first_token: the same, and the allocation of a fresh KV cache before it.
        decode: all decode steps.
    """

    prefill: float
    first_token: float
    decode: float


@dataclass(frozen=True)
class BenchOptions:
    """How to measure.

    Attributes:
        new_tokens: timed decode steps after it.
        batch: sequences, all of one length.
        contexts: more prompt lengths, to see decode against context length.
        rounds: rounds that count.
        warmup: rounds before them; see :meth:`warmup_of` where None.
        threads: CPU threads of every backend and of the bandwidth probe; one per physical core where None.
        eager_dtypes: of eager PyTorch; float32, the bundles' own and bfloat16 where empty.
        eager_device: of eager PyTorch: "cpu" or "cuda".
    """

    prompt_tokens: int = 128
    new_tokens: int = 64
    batch: int = 1
    contexts: tuple[int, ...] = ()
    rounds: int = 5
    warmup: int | None = None
    threads: int | None = None
    eager_dtypes: tuple[str, ...] = ()
    eager_caches: tuple[str, ...] = EAGER_CACHES
    eager_device: str = "cpu"

    def warmup_of(self, on_gpu: bool) -> int:
        """Rounds before those that count: as said, or one, or three where something computes on a GPU.

        There a session sets a prompt's length up at its first use and records it at its second, after a longer one may
        have moved its cache.
        """
        if self.warmup is not None:
            return self.warmup
        return 3 if on_gpu else 1

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """What is measured, shortest prompt first."""
        lengths = sorted({self.prompt_tokens, *self.contexts})
        return tuple(Shape(length, self.new_tokens, self.batch) for length in lengths)


def default_threads() -> int:
    """Physical cores, as far as this process may use them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, psutil.cpu_count(logical=False) or usable)
