"""New tokens step by step, to a function or to an object such as transformers' TextStreamer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from nemotron_errors import RequestError
from nemotron_runtime.engine.results import TokenEvent

__all__ = ["StepStream"]


class StepStream:
    """Gathers the loop's events into steps of all sequences.

    Args:
        streamer: called with int64 [B] per step; or an object whose ``put`` gets the prompt [B, S] first and then
            [B] per step, and whose ``end`` is called after the last one. Sequences that ended get ``filler``.
        sequences: B.
        filler: the token of sequences that ended.

    Raises:
        RequestError: neither a function nor such an object.
    """

    def __init__(self, streamer: Any, sequences: int, filler: int) -> None:
        self._object = streamer if hasattr(streamer, "put") and hasattr(streamer, "end") else None
        if self._object is None and not callable(streamer):
            found = f"an object of {type(streamer).__name__}"
            raise RequestError(found, "a function, or an object with put and end", "give one", where="streamer")
        self._put: Callable[[torch.Tensor], Any] = self._object.put if self._object is not None else streamer
        self._going = set(range(sequences))
        self._seen: set[int] = set()
        self._ended: set[int] = set()
        self._sequences, self._filler = sequences, filler
        self._step = self._empty()

    def begin(self, input_ids_BS: torch.Tensor) -> None:
        """Shows the prompt to an object."""
        if self._object is not None:
            self._put(input_ids_BS.cpu())

    def __call__(self, event: TokenEvent) -> None:
        """Takes an event; the last one of a step passes the step on."""
        if event.token_id is not None:
            self._step[event.sequence] = event.token_id
        self._seen.add(event.sequence)
        if event.finish_reason is not None:
            self._ended.add(event.sequence)
        if self._seen == self._going:
            self._put(self._step)
            self._going -= self._ended
            self._seen, self._step = set(), self._empty()

    def end(self) -> None:
        """Tells an object that no token follows."""
        if self._object is not None:
            self._object.end()

    def _empty(self) -> torch.Tensor:
        return torch.full((self._sequences,), self._filler, dtype=torch.int64)
