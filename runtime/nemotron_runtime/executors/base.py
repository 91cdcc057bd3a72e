"""The session interface, and prefill, decode and logits in terms of one forward pass.

Shapes: B rows, S new tokens, K positions whose logits are wanted, V values per position (the vocabulary; classes or
hidden_size where the bundle's task has another head).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
from nemotron_errors import LimitError, RequestError

from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.sampling.candidates import Candidates, find_candidates

__all__ = ["Session", "as_token_ids"]

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


def as_token_ids(ids: Sequence[int] | np.ndarray, vocab_size: int, where: str = "prompt") -> Ids:
    """The token ids of one prompt as int64 [n].

    Raises:
        RequestError: empty, not integers, or outside the vocabulary.
    """
    array = np.asarray(ids)
    if array.size == 0:
        raise RequestError("no tokens", "at least one token id", "give a prompt that is not empty", where=where)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        found = f"{array.dtype} values of shape {list(array.shape)}"
        raise RequestError(found, "a flat list of integer token ids", "give the ids of one prompt", where=where)
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest >= vocab_size:
        bad = lowest if lowest < 0 else highest
        remedy = "encode the text with the tokenizer of this model"
        raise RequestError(f"token id {bad}", f"ids from 0 to {vocab_size - 1}", remedy, where=where)
    return array.astype(np.int64)


class Session(ABC):
    """Rows of a KV cache and the forward pass over them.

    A subclass gives :meth:`allocate`, :meth:`forward` and :meth:`close`; the rest follows from these.
    :meth:`reset` comes first, then :meth:`prefill`, then :meth:`decode` once per new token. The arrays that are
    returned hold until the session's next call; copy what must live longer.

    Attributes:
        vocab_size: token ids are below it.
        limits: what the session can take at most.
        output_size: V; vocab_size for a language model.
    """

    def __init__(self, vocab_size: int, limits: Limits, output_size: int | None = None) -> None:
        self.vocab_size = vocab_size
        self.limits = limits
        self.output_size = vocab_size if output_size is None else output_size
        self._slots = 0
        self._lengths_B: Ids = np.zeros(0, np.int64)
        self._stepped_BV: Logits = np.zeros((0, 0), np.float32)

    @abstractmethod
    def allocate(self, rows: int, slots: int) -> None:
        """Makes a fresh cache of finite values (zeros) for ``rows`` rows of ``slots`` tokens each.

        No padding runs past ``slots``, see :meth:`prefill_at`.
        """

    @abstractmethod
    def forward(self, input_ids_BS: Ids, query_start_B: Ids, query_length_B: Ids, logits_index_BK: Ids) -> Logits:
        """Feeds new tokens to every row and gives the logits at chosen positions.

        Args:
            input_ids_BS: new tokens, right-padded with zeros.
            query_start_B: tokens already in each row's cache; the new ones take the slots and positions after them.
            query_length_B: real new tokens of each row; 0 for a row that sits this pass out (its logits mean
                nothing). Slots past a row's end hold rubbish that later writes replace and attention never reads.
            logits_index_BK: which of the S positions get logits, each below ``max(query_length, 1)``.

        Returns:
            Logits [B, K, V], float32.
        """

    @abstractmethod
    def close(self) -> None:
        """Frees what the session holds. Closing twice is allowed."""

    @property
    def device_memory_peak(self) -> int | None:
        """The most bytes that it allocated of a GPU's memory; None where it knows of none."""
        return None

    @property
    def lengths_B(self) -> Ids:  # noqa: N802 (a shape-suffixed name)
        """Tokens in each row's cache."""
        return self._lengths_B.copy()

    @property
    def rows(self) -> int:
        """Rows of the present cache."""
        return len(self._lengths_B)

    @property
    def slots(self) -> int:
        """Tokens that each row of the present cache can hold."""
        return self._slots

    def reset(self, rows: int, slots: int) -> None:
        """Starts over with a fresh cache of ``rows`` rows able to hold ``slots`` tokens each.

        Raises:
            LimitError: more rows or slots than the limits allow.
        """
        limits = self.limits
        if not 1 <= rows <= limits.max_batch:
            remedy = "send fewer rows, or build with a larger --max-batch"
            raise LimitError(f"{rows} rows", f"1 to {limits.max_batch} rows", remedy, where="batch")
        if not 1 <= slots <= limits.max_seq_len:
            remedy = "shorten the prompt or max_new_tokens, or build with a larger --max-seq-len"
            raise LimitError(f"{slots} tokens", f"1 to {limits.max_seq_len} tokens per row", remedy, where="sequence")
        self._lengths_B = np.zeros(rows, np.int64)
        self._slots = slots
        self.allocate(rows, slots)

    def prefill(self, prompts: Sequence[npt.ArrayLike]) -> Logits:
        """Feeds one prompt per row, in chunks, after what the rows hold already.

        Returns:
            Logits of each row's last token [B, V].
        """
        last = [np.array([np.size(prompt) - 1]) for prompt in prompts]
        return np.concatenate(self.prefill_at(prompts, last))

    def prefill_at(
        self, prompts: Sequence[npt.ArrayLike], positions: Sequence[npt.ArrayLike], *, chunk: int | None = None
    ) -> list[Logits]:
        """Feeds one prompt per row and gives the logits at chosen positions of each.

        Args:
            prompts: token ids, one array per row.
            positions: for each row, indices into its prompt.
            chunk: new tokens per forward pass, at most ``limits.prefill_chunk`` (the default).

        Returns:
            For each row its logits [k, V], in the order of ``positions``.

        Raises:
            RequestError: not one prompt per row, or ids outside the vocabulary.
            LimitError: more tokens than the rows have slots.
        """
        ids = [as_token_ids(np.asarray(p), self.vocab_size, f"prompt {b}") for b, p in enumerate(prompts)]
        if len(ids) != self.rows:
            raise RequestError(f"{len(ids)} prompts", f"{self.rows}, one per row", "reset for as many rows as prompts")
        wanted = [np.asarray(p, np.int64) for p in positions]
        length_B = np.array([len(row) for row in ids])
        longest = int((self._lengths_B + length_B).max())
        if longest > self._slots:
            remedy = "reset with more slots"
            raise LimitError(f"{longest} tokens in a row", f"at most {self._slots}", remedy, where="sequence")
        width = min(chunk or self.limits.prefill_chunk, self.limits.prefill_chunk)
        results = [np.empty((len(p), self.output_size), np.float32) for p in wanted]
        offset, end = 0, int(length_B.max())
        while offset < end:
            # padding of short rows stays inside the cache; rows that start empty never need the bound
            width = min(width, self._slots - int(self._lengths_B.max()))
            if width < 1:
                remedy = "reset with more slots, or prefill rows of equal length"
                raise LimitError("a full row beside one with tokens left", "room to pad", remedy, where="sequence")
            count_B = np.clip(length_B - offset, 0, width)
            input_ids_BS = np.zeros((self.rows, int(count_B.max())), np.int64)
            for b, row in enumerate(ids):
                input_ids_BS[b, : count_B[b]] = row[offset : offset + count_B[b]]
            here = [np.flatnonzero((p >= offset) & (p < offset + width)) for p in wanted]
            logits_index_BK = np.zeros((self.rows, max(1, *map(len, here))), np.int64)
            for b, which in enumerate(here):
                logits_index_BK[b, : len(which)] = wanted[b][which] - offset
            logits_BKV = self.forward(input_ids_BS, self._lengths_B.copy(), count_B, logits_index_BK)
            for b, which in enumerate(here):
                results[b][which] = logits_BKV[b, : len(which)]
            self._lengths_B += count_B
            offset += width
        return results

    def decode(self, tokens_B: npt.ArrayLike, advance_B: npt.NDArray[np.bool_] | None = None) -> Logits:
        """Feeds one token to every row.

        Args:
            tokens_B: the tokens, inside the vocabulary.
            advance_B: False freezes a finished row: it is fed at its end, its slot and logits are rubbish and its
                length stays.

        Returns:
            Logits [B, V].

        Raises:
            LimitError: an advancing row whose cache is full.
        """
        tokens, start_B = self._next(tokens_B, advance_B)
        logits_BV = self.step(tokens, start_B)
        self._lengths_B += 1 if advance_B is None else advance_B
        return logits_BV

    def greedy_decode(self, tokens_B: npt.ArrayLike, advance_B: npt.NDArray[np.bool_] | None = None) -> Ids:
        """:meth:`decode` that gives the likeliest next tokens [B] in place of the logits.

        The lowest of equally likely tokens is taken, as ``numpy.argmax`` does; a frozen row's token means nothing.
        """
        if type(self).greedy_step is Session.greedy_step:
            # nothing is gained by a way of its own, and a subclass's decode may do more than a step
            likeliest_B: Ids = np.argmax(self.decode(tokens_B, advance_B), axis=-1)
            return likeliest_B
        tokens, start_B = self._next(tokens_B, advance_B)
        chosen_B = self.greedy_step(tokens, start_B, advance_B)
        self._lengths_B += 1 if advance_B is None else advance_B
        return chosen_B

    @property
    def candidates(self) -> int:
        """How many tokens :meth:`candidate_decode` gives of each row; 0 where it has no way of its own."""
        return 0

    def candidate_decode(
        self, tokens_B: npt.ArrayLike, temperature: float, advance_B: npt.NDArray[np.bool_] | None = None
    ) -> Candidates:
        """:meth:`decode` that gives the likeliest next tokens of each row; the other logits stay where they are.

        Args:
            tokens_B: as for :meth:`decode`.
            temperature: above 0, of the candidates' ``log_sum``.
            advance_B: as for :meth:`decode`; a frozen row's candidates mean nothing.

        Raises:
            LimitError: an advancing row whose cache is full.
        """
        assert self.candidates > 0, "a session that has none"
        tokens, start_B = self._next(tokens_B, advance_B)
        found = self.candidate_step(tokens, start_B, temperature)
        self._lengths_B += 1 if advance_B is None else advance_B
        return found

    def candidate_step(self, tokens_B: Ids, query_start_B: Ids, temperature: float) -> Candidates:
        """:meth:`step` that gives the likeliest tokens; a subclass finds them where the logits are.

        Args:
            tokens_B: one token for every row.
            query_start_B: its slot and position.
            temperature: of the candidates' ``log_sum``.
        """
        self._stepped_BV = self.step(tokens_B, query_start_B)
        return find_candidates(self._stepped_BV, self.candidates, temperature)

    def candidate_logits(self) -> Logits:
        """Logits [B, V] of the last :meth:`candidate_decode`, where its candidates did not decide."""
        return self._stepped_BV

    def _next(self, tokens_B: npt.ArrayLike, advance_B: npt.NDArray[np.bool_] | None) -> tuple[Ids, Ids]:
        tokens = np.asarray(tokens_B, np.int64)
        assert tokens.shape == (self.rows,), "one token per row"
        start_B = self._lengths_B
        advancing_B = start_B if advance_B is None else start_B[advance_B]
        # this runs once per token: few array operations
        if len(advancing_B) and advancing_B.max() >= self._slots:
            found = f"a row with {self._slots} tokens in {self._slots} slots"
            raise LimitError(found, "a free slot", "reset with more slots", where="sequence")
        if advance_B is not None:
            # a frozen row that is full has no slot after its end; nothing reads its last one any more
            start_B = np.minimum(start_B, self._slots - 1)
        return tokens, start_B

    def step(self, tokens_B: Ids, query_start_B: Ids) -> Logits:
        """One token for every row at ``query_start_B``; a subclass may give a faster way. Logits [B, V]."""
        one_B = np.ones(len(tokens_B), np.int64)
        return self.forward(tokens_B[:, None], query_start_B, one_B, np.zeros((len(tokens_B), 1), np.int64))[:, 0]

    def greedy_step(self, tokens_B: Ids, query_start_B: Ids, advance_B: npt.NDArray[np.bool_] | None = None) -> Ids:
        """:meth:`step` that gives the likeliest tokens [B]; a subclass may choose them where the logits are.

        Args:
            tokens_B: one token for every row.
            query_start_B: its slot and position.
            advance_B: rows whose result counts; all where None.
        """
        chosen_B: Ids = np.argmax(self.step(tokens_B, query_start_B), axis=-1)
        return chosen_B

    def logits(self, ids: npt.ArrayLike) -> Logits:
        """Logits of every position of one prompt, float32 [S, V]. Replaces the present cache.

        Raises:
            RequestError: no ids, or ids outside the vocabulary.
            LimitError: more ids than max_seq_len.
        """
        prompt = as_token_ids(np.asarray(ids), self.vocab_size)
        self.reset(1, len(prompt))
        return self.prefill_at([prompt], [np.arange(len(prompt))])[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
