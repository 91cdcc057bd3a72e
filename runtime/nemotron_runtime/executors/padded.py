"""Executors whose graphs take rectangles: a batch is padded to [B, S], and a token of each sequence is a step.

Shapes: B sequences of the cache (Q of a batch), N new tokens in all, S new tokens of the longest sequence, K wanted
positions (in a rectangle: of one sequence), V values of an output.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from nemotron_runtime.executors.batch import Batch, Ids, Logits, Outputs
from nemotron_runtime.executors.executor import Executor
from nemotron_runtime.sampling.device import DeviceSampler, Greedy, HostSampler, Sampling

__all__ = ["PaddedExecutor"]


class PaddedExecutor(Executor):
    """A subclass gives :meth:`make_caches`, :meth:`forward` and ``close``, and :meth:`step` where it has a faster one.

    Attributes:
        sequences: B.
        capacity: tokens that the cache of a sequence can hold, as it was asked for. No padding runs past it.
    """

    sequences = capacity = 0
    _count_B1: Ids = np.arange(1)  # noqa: N815 (a shape-suffixed name)

    @abstractmethod
    def make_caches(self, sequences: int, capacity: int) -> None:
        """See :meth:`Executor.allocate`."""

    @abstractmethod
    def forward(self, input_ids_BS: Ids, query_start_B: Ids, query_length_B: Ids, logits_index_BK: Ids) -> Logits:
        """Feeds new tokens to every sequence and gives the outputs at chosen positions.

        Args:
            input_ids_BS: new tokens, right-padded with zeros.
            query_start_B: tokens already in each sequence's cache; the new ones take the positions after them.
            query_length_B: real new tokens of each sequence; 0 for one that sits this pass out (its outputs mean
                nothing). The cache after a sequence's end is undefined until overwritten; attention never reads it.
            logits_index_BK: which of the S positions get outputs, each below ``max(query_length, 1)``.

        Returns:
            Outputs [B, K, V], float32.
        """

    def step(
        self, tokens_B: Ids, query_start_B: Ids, advancing_B: npt.NDArray[np.bool_] | None, sampling: Sampling | None
    ) -> DeviceSampler:
        """Feeds one token to every sequence.

        Args:
            tokens_B: the tokens.
            query_start_B: their positions.
            advancing_B: the sequences that count; all where None.
            sampling: what will be asked for.

        Returns:
            What chooses among the logits [B, V].
        """
        B = len(tokens_B)
        index_B1 = np.zeros((B, 1), np.int64)
        logits_B1V = self.forward(tokens_B[:, None], query_start_B, np.ones(B, np.int64), index_B1)
        return HostSampler(logits_B1V[:, 0], self.candidate_count)

    def allocate(self, sequences: int, capacity: int) -> None:
        """See :meth:`Executor.allocate`."""
        self.sequences, self.capacity = sequences, capacity
        self._count_B1 = np.arange(sequences + 1)
        self.make_caches(sequences, capacity)

    def run(self, batch: Batch) -> Outputs:
        """See :meth:`Executor.run`."""
        B, N, K = len(batch.context_lengths), len(batch.token_ids), len(batch.wanted)
        assert self.sequences == B, "every sequence of the cache"
        assert batch.block_table is None, "contiguous caches"
        # this runs once per token: few array operations, and one token of one sequence needs no look
        if N == B == K == 1:
            return self._run_step(batch, None)
        if N == K <= B and (batch.wanted == self._count_B1[:N]).all():
            count_B = np.diff(batch.query_offsets)
            if count_B.max() <= 1:
                return self._run_step(batch, None if N == B else count_B > 0)
        return self._run_rectangle(batch, np.diff(batch.query_offsets))

    def _run_step(self, batch: Batch, advancing_B: npt.NDArray[np.bool_] | None) -> Outputs:
        """One token of each sequence; frozen ones are fed at their end, and nothing of theirs is used."""
        tokens_B, start_B, some = batch.token_ids, batch.context_lengths, None
        if advancing_B is not None:
            some = np.flatnonzero(advancing_B)
            tokens_B = np.zeros(self.sequences, np.int64)
            tokens_B[some] = batch.token_ids
            # a frozen sequence that is full has no place after its end; nothing reads its last one any more
            start_B = np.minimum(start_B, self.capacity - 1)
        return _choose(self.step(tokens_B, start_B, advancing_B, batch.sampling), batch.sampling, some)

    def _run_rectangle(self, batch: Batch, count_B: Ids) -> Outputs:
        B, offsets = len(count_B), batch.query_offsets
        input_ids_BS = np.zeros((B, int(count_B.max())), np.int64)
        input_ids_BS[np.arange(input_ids_BS.shape[1]) < count_B[:, None]] = batch.token_ids
        # which sequence a wanted position is of, and which of that sequence's it is
        owner_K = np.searchsorted(offsets, batch.wanted, side="right") - 1
        wanted_B = np.bincount(owner_K, minlength=B)
        rank_K = np.arange(len(owner_K)) - (np.cumsum(wanted_B) - wanted_B)[owner_K]
        index_BK = np.zeros((B, max(1, int(wanted_B.max()))), np.int64)
        index_BK[owner_K, rank_K] = batch.wanted - offsets[owner_K]
        logits_BKV = self.forward(input_ids_BS, batch.context_lengths, count_B, index_BK)
        logits_KV = logits_BKV[0, : len(owner_K)] if B == 1 else logits_BKV[owner_K, rank_K]
        return _choose(HostSampler(logits_KV, self.candidate_count), batch.sampling, None)


def _choose(sampler: DeviceSampler, sampling: Sampling | None, some: Ids | None) -> Outputs:
    """What was asked for, of all sequences (None) or of some."""
    fetch = sampler.logits if some is None else lambda: sampler.logits()[some]
    if sampling is None:
        return Outputs(fetch)
    if isinstance(sampling, Greedy):
        tokens = sampler.greedy()
        return Outputs(fetch, tokens=tokens if some is None else tokens[some])
    candidates = sampler.candidates(sampling.temperature)
    return Outputs(fetch, candidates=candidates if some is None else candidates.of(some))
