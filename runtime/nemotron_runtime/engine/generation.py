"""The one generation loop, over any session.

Shapes: B rows of one turn, V vocabulary.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from nemotron_errors import LimitError, RequestError

from nemotron_runtime.engine.results import FinishReason, Generation, StreamDecoder, Timings, TokenEvent
from nemotron_runtime.executors.base import Logits, Session, as_token_ids
from nemotron_runtime.sampling.candidates import Candidates
from nemotron_runtime.sampling.params import GenerationParams
from nemotron_runtime.sampling.sampler import RowSampler
from nemotron_runtime.text.stopping import StopMatcher

__all__ = ["Cancelled", "GenerationParams", "GenerationRun", "MakeDecoder", "generate"]

Cancelled = Callable[[], bool] | threading.Event
MakeDecoder = Callable[[Sequence[int]], StreamDecoder]


@dataclass
class _Row:
    """One answer under way."""

    number: int
    prompt: npt.NDArray[np.int64]
    sampler: RowSampler
    decoder: StreamDecoder | None
    matcher: StopMatcher
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def accept(self, token: int, params: GenerationParams) -> TokenEvent:
        """Takes the next token and says what came of it."""
        self.token_ids.append(token)
        text = ""
        if token in params.eos_token_ids and not params.ignore_eos:
            self.finish_reason = "eos"
        elif token in params.stop_token_ids:
            self.finish_reason = "stop"
        else:
            text, stopped = self.matcher.push(self.decoder.push(token) if self.decoder else "")
            if stopped:
                self.finish_reason = "stop"
                return self._event(token, text)
            if len(self.token_ids) == params.max_new_tokens:
                self.finish_reason = "length"
        if self.finish_reason:
            tail, stopped = self._tail()
            text += tail
            self.finish_reason = "stop" if stopped else self.finish_reason
        return self._event(token, text)

    def cancel(self) -> TokenEvent:
        """Ends the row without a token."""
        self.finish_reason = "cancelled"
        return self._event(None, self._tail()[0])

    def _tail(self) -> tuple[str, bool]:
        text, stopped = self.matcher.push(self.decoder.flush() if self.decoder else "")
        return (text, True) if stopped else (text + self.matcher.flush(), False)

    def _event(self, token: int | None, text: str) -> TokenEvent:
        self.text.append(text)
        return TokenEvent(self.number, token, text, self.finish_reason)


class GenerationRun:
    """One request: iterate over it for its events, then ask for its :meth:`results`.

    Args:
        session: what runs the model; its cache is replaced.
        prompts: token ids of each prompt. More rows than the session takes at a time run in turns.
        params: how to choose tokens and when to stop.
        decoder: makes one row's :class:`StreamDecoder` from the prompt's ids; without it there is no text and there can
            be no stop string.
        cancelled: asked before every step.

    Raises:
        RequestError: no prompt, an empty one, ids outside the vocabulary, stop strings without a decoder.
        LimitError: a prompt and max_new_tokens past max_seq_len.
    """

    def __init__(
        self,
        session: Session,
        prompts: Sequence[Sequence[int] | npt.NDArray[np.int64]],
        params: GenerationParams,
        *,
        decoder: MakeDecoder | None = None,
        cancelled: Cancelled | None = None,
    ) -> None:
        if not len(prompts):
            raise RequestError("no prompts", "at least one", "give a prompt")
        if params.stop and decoder is None:
            remedy = "use stop_token_ids, or a bundle with a tokenizer"
            raise RequestError("stop strings without a tokenizer", "a tokenizer", remedy, where="stop")
        self._session = session
        self._cancelled = _as_callable(cancelled)
        self._params = params if params.seed is not None else replace(params, seed=secrets.randbits(64))
        self._check_tokens()
        self._argmax = self._params.is_argmax
        # a session that has a way of its own to give the likeliest tokens
        self._few = self._params.keeps_few and session.candidates > 0
        self._rows: list[_Row] = []
        for i, prompt in enumerate(prompts):
            ids = as_token_ids(prompt, session.vocab_size, f"prompt {i}")
            self._check_length(i, len(ids))
            for _ in range(params.num_return_sequences):
                number = len(self._rows)
                sampler = RowSampler(self._params, number, ids, session.vocab_size)
                matcher = StopMatcher(params.stop)
                made = decoder(ids.tolist()) if decoder else None
                self._rows.append(_Row(number, ids, sampler, made, matcher))

    def __iter__(self) -> Iterator[TokenEvent]:
        """Runs the request. Rows that the caller leaves unfinished count as cancelled."""
        size = self._session.limits.max_batch
        for first in range(0, len(self._rows), size):
            yield from self._turn(self._rows[first : first + size])

    def results(self) -> list[Generation]:
        """The answers, in the order of the prompts."""
        assert self._params.seed is not None
        return [
            Generation(
                tuple(row.token_ids),
                "".join(row.text),
                row.finish_reason or "cancelled",
                tuple(row.prompt.tolist()),
                self._params.seed,
                Timings(row.prefill_seconds, row.decode_seconds, len(row.prompt), len(row.token_ids)),
            )
            for row in self._rows
        ]

    def _turn(self, rows: list[_Row]) -> Iterator[TokenEvent]:
        if self._cancelled():
            yield from (row.cancel() for row in rows)
            return
        started = time.perf_counter()
        self._session.reset(len(rows), max(len(row.prompt) for row in rows) + self._params.max_new_tokens)
        logits_BV: Logits | None = self._session.prefill([row.prompt for row in rows])
        few: Candidates | None = None
        prefilled = time.perf_counter()
        for row in rows:
            row.prefill_seconds = prefilled - started
        tokens_B = np.zeros(len(rows), np.int64)
        for step in range(self._params.max_new_tokens):
            events = []
            for b, row in enumerate(rows):
                if row.finish_reason is None:
                    if few is not None:
                        chosen = row.sampler.choose_among(few.ids[b], few.logits[b], float(few.log_sum[b]), step)
                        if chosen is None:
                            logits_BV = self._session.candidate_logits() if logits_BV is None else logits_BV
                            chosen = row.sampler.choose(logits_BV[b], step)
                        tokens_B[b] = chosen
                    elif logits_BV is not None:
                        tokens_B[b] = row.sampler.choose(logits_BV[b], step)
                    events.append(row.accept(int(tokens_B[b]), self._params))
                    row.decode_seconds = time.perf_counter() - prefilled
            yield from events
            going_B = np.array([row.finish_reason is None for row in rows])
            if not going_B.any():
                return
            if self._cancelled():
                yield from (row.cancel() for row in rows if row.finish_reason is None)
                return
            if self._argmax:
                # the session may choose where the logits are
                logits_BV, tokens_B = None, self._session.greedy_decode(tokens_B, going_B)
            elif self._few and step + 1 >= self._params.min_new_tokens:
                logits_BV, few = None, self._session.candidate_decode(tokens_B, self._params.temperature, going_B)
            else:
                logits_BV = self._session.decode(tokens_B, going_B)

    def _check_tokens(self) -> None:
        vocab = self._session.vocab_size
        for name in ("stop_token_ids", "eos_token_ids"):
            for token in getattr(self._params, name):
                if token >= vocab:
                    raise RequestError(f"token id {token}", f"ids from 0 to {vocab - 1}", "correct it", where=name)

    def _check_length(self, number: int, length: int) -> None:
        most, new = self._session.limits.max_seq_len, self._params.max_new_tokens
        if length + new > most:
            raise LimitError(
                f"{length} prompt tokens and {new} new ones, {length + new} together",
                f"at most {most} tokens",
                "shorten the prompt, lower max_new_tokens, or build with a larger --max-seq-len",
                where=f"prompt {number}",
            )


def generate(
    session: Session,
    prompts: Sequence[Sequence[int] | npt.NDArray[np.int64]],
    params: GenerationParams,
    *,
    on_token: Callable[[TokenEvent], None] | None = None,
    decoder: MakeDecoder | None = None,
    cancelled: Cancelled | None = None,
) -> list[Generation]:
    """Runs one request to its end; see :class:`GenerationRun` for the arguments and the errors.

    Args:
        on_token: called with every event as it happens.

    Returns:
        num_return_sequences answers for each prompt, in the order of the prompts.
    """
    run = GenerationRun(session, prompts, params, decoder=decoder, cancelled=cancelled)
    for event in run:
        if on_token is not None:
            on_token(event)
    return run.results()


def _as_callable(cancelled: Cancelled | None) -> Callable[[], bool]:
    if cancelled is None:
        return lambda: False
    return cancelled.is_set if isinstance(cancelled, threading.Event) else cancelled
