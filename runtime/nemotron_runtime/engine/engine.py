"""The engine: sequences that step together over one executor, and the length of each.

Shapes: B sequences, k positions of one, V values of an output (the vocabulary; classes or hidden_size where the
bundle's task has another head), S tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from nemotron_errors import LimitError, RequestError

from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.closing import Closing
from nemotron_runtime.executors.batch import Batch, Ids, Logits, Outputs
from nemotron_runtime.executors.executor import Executor
from nemotron_runtime.sampling.device import Sampling

__all__ = ["Engine", "as_token_ids"]


def as_token_ids(ids: Sequence[int] | np.ndarray, vocab_size: int, where: str = "prompt") -> Ids:
    """The token ids of one prompt as int64 [S].

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


class Engine(Closing):
    """Feeds sequences to an executor: :meth:`reset` first, then :meth:`prefill`, then :meth:`decode` once per token.

    Outputs hold until the next call; copy what must live longer.

    Args:
        executor: what runs the model; the engine closes it.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._capacity = 0
        self._lengths_B = np.zeros(0, np.int64)
        # of a step of all sequences
        self._offsets_B1 = np.arange(1)
        self._each_B = self._offsets_B1[:-1]

    @property
    def vocab_size(self) -> int:
        """Token ids are below it."""
        return self.executor.vocab_size

    @property
    def output_size(self) -> int:
        """V."""
        return self.executor.output_size

    @property
    def limits(self) -> Limits:
        """What a request may ask for at most."""
        return self.executor.limits

    @property
    def lengths_B(self) -> Ids:  # noqa: N802 (a shape-suffixed name)
        """Tokens in each sequence's cache."""
        return self._lengths_B.copy()

    def reset(self, sequences: int, capacity: int) -> None:
        """Starts over with empty caches.

        Args:
            sequences: B.
            capacity: tokens that each of them can hold.

        Raises:
            LimitError: more than the limits allow.
            ResourceError: too little memory; there is no cache then.
        """
        limits = self.limits
        if not 1 <= sequences <= limits.max_batch:
            remedy = "send fewer at a time, or build with a larger --max-batch"
            raise LimitError(f"{sequences} sequences", f"1 to {limits.max_batch} sequences", remedy, where="batch")
        if not 1 <= capacity <= limits.max_seq_len:
            expected = f"1 to {limits.max_seq_len} tokens per sequence"
            remedy = "shorten the prompt or max_new_tokens, or build with a larger --max-seq-len"
            raise LimitError(f"{capacity} tokens", expected, remedy, where="sequence")
        self._forget()
        self.executor.allocate(sequences, capacity)
        self._capacity = capacity
        self._lengths_B = np.zeros(sequences, np.int64)
        self._offsets_B1 = np.arange(sequences + 1)
        self._each_B = self._offsets_B1[:-1]

    def prefill(self, prompts: Sequence[npt.ArrayLike]) -> Logits:
        """Feeds one prompt per sequence, in chunks, after what the sequences hold already.

        Returns:
            Logits of each prompt's last token [B, V].
        """
        last = [np.array([np.size(prompt) - 1]) for prompt in prompts]
        return np.concatenate(self.prefill_at(prompts, last))

    def prefill_at(
        self, prompts: Sequence[npt.ArrayLike], positions: Sequence[npt.ArrayLike], *, chunk: int | None = None
    ) -> list[Logits]:
        """Feeds one prompt per sequence and gives the outputs at chosen positions of each.

        Args:
            prompts: token ids, one array per sequence.
            positions: for each prompt, indices into it.
            chunk: new tokens of a sequence in one pass, at most ``limits.prefill_chunk`` (the default).

        Returns:
            For each prompt its outputs [k, V], in the order of ``positions``.

        Raises:
            RequestError: not one prompt per sequence, or ids outside the vocabulary.
            LimitError: more tokens than a sequence can hold.
        """
        ids = [as_token_ids(np.asarray(p), self.vocab_size, f"prompt {b}") for b, p in enumerate(prompts)]
        if (B := len(self._lengths_B)) != len(ids):
            remedy = "reset for as many sequences as prompts"
            raise RequestError(f"{len(ids)} prompts", f"{B}, one per sequence", remedy)
        length_B = np.array([len(prompt) for prompt in ids])
        longest = int((self._lengths_B + length_B).max())
        if longest > self._capacity:
            remedy = "reset with a larger capacity"
            raise LimitError(f"{longest} tokens in a sequence", f"at most {self._capacity}", remedy, where="sequence")
        wanted = [np.asarray(p, np.int64) for p in positions]
        results = [np.empty((len(p), self.output_size), np.float32) for p in wanted]
        width = min(chunk or self.limits.prefill_chunk, self.limits.prefill_chunk)
        offset, end = 0, int(length_B.max())
        while offset < end:
            # an executor may pad short sequences, inside the cache; where all start empty this never binds
            width = min(width, self._capacity - int(self._lengths_B.max()))
            if width < 1:
                found, remedy = "a full sequence next to one with tokens left", "reset with a larger capacity"
                raise LimitError(found, "room to pad", f"{remedy}, or prefill equal lengths", where="sequence")
            self._prefill_chunk(ids, wanted, results, offset, width)
            offset += width
        return results

    def _prefill_chunk(self, ids: list[Ids], wanted: list[Ids], results: list[Logits], offset: int, width: int) -> None:
        """Feeds positions ``offset`` to ``offset + width`` of every prompt, and fills the results that lie there."""
        parts = [prompt[offset : offset + width] for prompt in ids]
        count_B = np.array([len(part) for part in parts])
        offsets_B1 = np.concatenate(([0], np.cumsum(count_B)))
        here = [np.flatnonzero((p >= offset) & (p < offset + width)) for p in wanted]
        index = [wanted[b][which] - offset + offsets_B1[b] for b, which in enumerate(here)]
        batch = Batch(np.concatenate(parts), offsets_B1, self._lengths_B.copy(), np.concatenate(index))
        logits_KV = self.executor.run(batch).logits
        first = 0
        for result, which in zip(results, here, strict=True):
            result[which] = logits_KV[first : first + len(which)]
            first += len(which)
        self._lengths_B += count_B

    def decode(
        self,
        tokens_B: npt.ArrayLike,
        advancing_B: npt.NDArray[np.bool_] | None = None,
        sampling: Sampling | None = None,
    ) -> Outputs:
        """Feeds one token to every sequence that goes on.

        Args:
            tokens_B: a token for every sequence, inside the vocabulary.
            advancing_B: False freezes a sequence, whose token is not fed; all go on where None.
            sampling: what to choose where the logits are.

        Returns:
            The outputs of the sequences that go on, in order.

        Raises:
            LimitError: a sequence that goes on and is full.
        """
        tokens, length_B = np.asarray(tokens_B, np.int64), self._lengths_B
        assert tokens.shape == length_B.shape, "one token per sequence"
        # this runs once per token: few array operations
        if advancing_B is None:
            most = length_B.max()
            batch = Batch(tokens, self._offsets_B1, length_B, self._each_B, None, sampling)
        else:
            most = length_B[advancing_B].max(initial=0)
            offsets_B1 = np.concatenate(([0], np.cumsum(advancing_B)))
            batch = Batch(tokens[advancing_B], offsets_B1, length_B, self._each_B[: offsets_B1[-1]], None, sampling)
        if most >= self._capacity:
            found, expected = f"a full sequence of {self._capacity} tokens", "room for another token"
            raise LimitError(found, expected, "reset with a larger capacity", where="sequence")
        outputs = self.executor.run(batch)
        length_B += 1 if advancing_B is None else advancing_B
        return outputs

    def logits(self, ids: npt.ArrayLike) -> Logits:
        """Outputs at every position of one prompt, float32 [S, V]. Replaces the present cache.

        Raises:
            RequestError: no ids, or ids outside the vocabulary.
            LimitError: more ids than max_seq_len.
        """
        prompt = as_token_ids(np.asarray(ids), self.vocab_size)
        self.reset(1, len(prompt))
        return self.prefill_at([prompt], [np.arange(len(prompt))])[0]

    def close(self) -> None:
        """Frees the executor. Twice is allowed."""
        self._forget()
        self.executor.close()

    def _forget(self) -> None:
        """There is no cache: nothing may be fed before a reset that succeeds."""
        self._capacity = 0
        self._lengths_B = np.zeros(0, np.int64)
