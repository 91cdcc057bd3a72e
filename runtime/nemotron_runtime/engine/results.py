"""What a generation run gives: events as they happen, answers and timings at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

__all__ = ["FinishReason", "Generation", "StreamDecoder", "TextChunk", "Timings", "TokenEvent"]

FinishReason = Literal["eos", "stop", "length", "cancelled"]


class StreamDecoder(Protocol):
    """Turns one answer's tokens into text, piece by piece."""

    def push(self, token_id: int) -> str:
        """The text that this token makes certain."""

    def flush(self) -> str:
        """What is left once no token follows."""


@dataclass(frozen=True)
class Timings:
    """How long an answer took; those of one micro-batch share their passes.

    Attributes:
        prefill_seconds: until the first new token's logits.
        decode_seconds: from then to the answer's last token.
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens of the answer.
    """

    prefill_seconds: float
    decode_seconds: float
    prompt_tokens: int
    new_tokens: int

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens per second of this answer's share; 0 where no time was measured."""
        return self.prompt_tokens / self.prefill_seconds if self.prefill_seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """New tokens after the first per second; 0 where there is none."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 and self.decode_seconds else 0.0


@dataclass(frozen=True)
class Generation:
    """One answer.

    Attributes:
        token_ids: the new tokens, with the token that ended the answer.
        text: what they add to the prompt's text, so that it reads right after the prompt; without end-of-sequence and
            stop tokens, cut before a stop string; empty without a decoder.
        finish_reason: ``eos``, ``stop`` (a stop string or stop token), ``length`` or ``cancelled``.
        prompt_token_ids: the prompt.
        seed: key of the noise.
        timings: see :class:`Timings`.
    """

    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    prompt_token_ids: tuple[int, ...]
    seed: int
    timings: Timings


@dataclass(frozen=True)
class TokenEvent:
    """One step of one answer.

    Attributes:
        sequence: number of the answer: prompt number times num_return_sequences, plus the answer's own number.
        token_id: the new token; None where an answer ends by being cancelled.
        text: text that became certain with it.
        finish_reason: set on the answer's last event.
    """

    sequence: int
    token_id: int | None
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class TextChunk:
    """A piece of a stream.

    Attributes:
        text: text that became certain; may be empty.
        token_id: the token that it came with; None where the stream was cancelled.
        finish_reason: set on the last piece.
    """

    text: str
    token_id: int | None
    finish_reason: FinishReason | None
