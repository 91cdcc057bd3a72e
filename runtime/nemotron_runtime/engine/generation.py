"""The one generation loop, over an engine.

Shapes: B sequences of one micro-batch, V vocabulary.
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

from nemotron_runtime.engine.engine import Engine, as_token_ids
from nemotron_runtime.engine.results import FinishReason, Generation, StreamDecoder, Timings, TokenEvent
from nemotron_runtime.executors.batch import Outputs
from nemotron_runtime.sampling.device import GREEDY, Sampling, TopCandidates
from nemotron_runtime.sampling.params import GenerationParams
from nemotron_runtime.sampling.sequence import SequenceSampler
from nemotron_runtime.text.stopping import StopMatcher

__all__ = ["Cancelled", "GenerationParams", "GenerationRun", "MakeDecoder", "generate"]

Cancelled = Callable[[], bool] | threading.Event
MakeDecoder = Callable[[Sequence[int]], StreamDecoder]


@dataclass
class _Sequence:
    """One answer under way."""

    number: int
    prompt: npt.NDArray[np.int64]
    sampler: SequenceSampler
    decoder: StreamDecoder | None
    matcher: StopMatcher
    token_ids: list[int] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0

    def choose(self, outputs: Outputs, k: int) -> int:
        """The next token, by the outputs at index ``k``."""
        step = len(self.token_ids)
        if outputs.tokens is not None:
            return int(outputs.tokens[k])
        if (top := outputs.candidates) is not None:
            token = self.sampler.choose_among(top.ids[k], top.logits[k], float(top.log_sum[k]), step)
            if token is not None:
                return token
        return self.sampler.choose(outputs.logits[k], step)

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
        """Ends the answer without a token."""
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
        engine: what runs the model; its cache is replaced.
        prompts: token ids of each prompt. More answers than the engine takes at a time run in micro-batches.
        params: how to choose tokens and when to stop.
        decoder: makes one answer's :class:`StreamDecoder` from the prompt's ids; without it there is no text and there
            can be no stop string.
        cancelled: asked before every step.

    Raises:
        RequestError: no prompt, an empty one, ids outside the vocabulary, stop strings without a decoder.
        LimitError: a prompt and max_new_tokens past max_seq_len.
    """

    def __init__(
        self,
        engine: Engine,
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
        self._engine = engine
        self._cancelled = _as_callable(cancelled)
        self._params = params if params.seed is not None else replace(params, seed=secrets.randbits(64))
        params.check_vocabulary(engine.vocab_size)
        # an executor that gives candidates gives them faster than all logits
        self._takes_candidates = params.draws_from_candidates and engine.executor.candidate_count > 0
        self._sequences: list[_Sequence] = []
        for i, prompt in enumerate(prompts):
            ids = as_token_ids(prompt, engine.vocab_size, f"prompt {i}")
            self._check_length(i, len(ids))
            for _ in range(params.num_return_sequences):
                number = len(self._sequences)
                sampler = SequenceSampler(self._params, number, ids, engine.vocab_size)
                matcher = StopMatcher(params.stop)
                made = decoder(ids.tolist()) if decoder else None
                self._sequences.append(_Sequence(number, ids, sampler, made, matcher))

    def __iter__(self) -> Iterator[TokenEvent]:
        """Runs the request. Answers that the caller leaves unfinished count as cancelled."""
        size = self._engine.limits.max_batch
        for first in range(0, len(self._sequences), size):
            yield from self._micro_batch(self._sequences[first : first + size])

    def results(self) -> list[Generation]:
        """The answers, in the order of the prompts."""
        assert self._params.seed is not None
        return [
            Generation(
                tuple(sequence.token_ids),
                "".join(sequence.text),
                sequence.finish_reason or "cancelled",
                tuple(sequence.prompt.tolist()),
                self._params.seed,
                Timings(
                    sequence.prefill_seconds, sequence.decode_seconds, len(sequence.prompt), len(sequence.token_ids)
                ),
            )
            for sequence in self._sequences
        ]

    def _micro_batch(self, sequences: list[_Sequence]) -> Iterator[TokenEvent]:
        """Runs sequences that step together, each to its end."""
        if self._cancelled():
            yield from (sequence.cancel() for sequence in sequences)
            return
        started = time.perf_counter()
        longest = max(len(sequence.prompt) for sequence in sequences)
        self._engine.reset(len(sequences), longest + self._params.max_new_tokens)
        prefill_BV = self._engine.prefill([sequence.prompt for sequence in sequences])
        outputs = Outputs(lambda: prefill_BV)
        prefilled = time.perf_counter()
        for sequence in sequences:
            sequence.prefill_seconds = prefilled - started
        tokens_B = np.zeros(len(sequences), np.int64)
        # the sequences that the outputs are of
        going = list(range(len(sequences)))
        for step in range(1, self._params.max_new_tokens + 1):
            events = []
            for k, b in enumerate(going):
                tokens_B[b] = sequences[b].choose(outputs, k)
                events.append(sequences[b].accept(int(tokens_B[b]), self._params))
                sequences[b].decode_seconds = time.perf_counter() - prefilled
            yield from events
            going = [b for b in going if sequences[b].finish_reason is None]
            if not going:
                return
            if self._cancelled():
                yield from (sequences[b].cancel() for b in going)
                return
            advancing_B = None
            if len(going) < len(sequences):
                advancing_B = np.zeros(len(sequences), np.bool_)
                advancing_B[going] = True
            outputs = self._engine.decode(tokens_B, advancing_B, self._sampling(step))

    def _sampling(self, step: int) -> Sampling | None:
        """What an executor may choose of token number ``step``."""
        if self._params.is_argmax:
            return GREEDY
        if self._takes_candidates and step >= self._params.min_new_tokens:
            return TopCandidates(self._params.temperature)
        return None

    def _check_length(self, number: int, length: int) -> None:
        most, new = self._engine.limits.max_seq_len, self._params.max_new_tokens
        if length + new > most:
            raise LimitError(
                f"{length} prompt tokens and {new} new ones, {length + new} together",
                f"at most {most} tokens",
                "shorten the prompt, lower max_new_tokens, or build with a larger --max-seq-len",
                where=f"prompt {number}",
            )


def generate(
    engine: Engine,
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
    run = GenerationRun(engine, prompts, params, decoder=decoder, cancelled=cancelled)
    for event in run:
        if on_token is not None:
            on_token(event)
    return run.results()


def _as_callable(cancelled: Cancelled | None) -> Callable[[], bool]:
    if cancelled is None:
        return lambda: False
    return cancelled.is_set if isinstance(cancelled, threading.Event) else cancelled
