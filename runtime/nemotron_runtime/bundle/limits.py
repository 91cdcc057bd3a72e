"""What a session can take at most."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Limits that a bundle was built for.

    Attributes:
        max_seq_len: tokens of one row, prompt and new ones together.
        max_batch: rows at a time.
        prefill_chunk: new tokens of one row in one forward pass; longer prompts are fed in chunks.
    """

    max_seq_len: int
    max_batch: int
    prefill_chunk: int
