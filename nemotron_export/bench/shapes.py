"""What is measured of each backend, and the times that one measurement gives."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Shape", "Times"]


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
