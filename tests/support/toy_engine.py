"""A small deterministic executor in numpy that checks the contract it is driven by, and an engine over it."""

from __future__ import annotations

import numpy as np
from nemotron_runtime.bundle.limits import Limits
from nemotron_runtime.engine.engine import Engine
from nemotron_runtime.executors.padded import PaddedExecutor

__all__ = ["ToyEngine", "ToyExecutor"]


class ToyExecutor(PaddedExecutor):
    """Logits at position p are a fixed random vector chosen by the tokens 0 to p of the sequence's cache.

    Args:
        script: tokens to make the likeliest, by step after the prompt; the same for all sequences.
        error: size of a deterministic disturbance of the logits.
    """

    def __init__(self, vocab_size=32, *, max_seq_len=64, max_batch=4, prefill_chunk=8, script=None, error=0.0):
        super().__init__(vocab_size, Limits(max_seq_len, max_batch, prefill_chunk))
        self.script, self.error = script, error
        self.tokens_BT = np.zeros((0, 0), np.int64)
        self.true_length_B = np.zeros(0, np.int64)
        self.calls: list[tuple[int, int]] = []
        self.prompt_length_B = None

    def make_caches(self, sequences, capacity):
        self.tokens_BT = np.full((sequences, capacity), -1, np.int64)
        self.true_length_B = np.zeros(sequences, np.int64)
        self.prompt_length_B = None

    def forward(self, input_ids_BS, query_start_B, query_length_B, logits_index_BK):
        B, S = input_ids_BS.shape
        self.calls.append((B, S))
        assert len(self.tokens_BT) == B, "every pass takes all rows"
        assert 1 <= S <= self.limits.prefill_chunk
        for array in (input_ids_BS, query_start_B, query_length_B, logits_index_BK):
            assert array.dtype == np.int64
        assert query_start_B.shape == query_length_B.shape == (B,)
        assert logits_index_BK.shape[0] == B
        assert logits_index_BK.shape[1] >= 1
        assert ((input_ids_BS >= 0) & (input_ids_BS < self.vocab_size)).all()
        assert ((query_length_B >= 0) & (query_length_B <= S)).all()
        assert (logits_index_BK < np.maximum(query_length_B, 1)[:, None]).all()
        assert (query_start_B <= self.capacity).all()
        if S > 1:
            assert (query_start_B == self.true_length_B).all(), "new tokens follow the old ones"
        logits_BKV = np.zeros((B, logits_index_BK.shape[1], self.vocab_size), np.float32)
        for b in range(B):
            start, count = query_start_B[b], query_length_B[b]
            assert start <= self.true_length_B[b], "no hole in a sequence"
            assert (input_ids_BS[b, count:] == 0).all(), "padding is zero"
            assert start + S <= self.tokens_BT.shape[1], "padding stays inside the cache"
            self.tokens_BT[b, start : start + S] = input_ids_BS[b]
            self.true_length_B[b] = max(self.true_length_B[b], start + count)
            for k, index in enumerate(logits_index_BK[b]):
                logits_BKV[b, k] = self.row_logits(self.tokens_BT[b, : start + index + 1], b)
        return logits_BKV

    def row_logits(self, history, row=0):
        """The logits after ``history``: what any correct way of feeding it must give."""
        seed = [int(token) for token in history]
        logits = np.random.default_rng(seed).normal(size=self.vocab_size).astype(np.float32)
        if self.script is not None and self.prompt_length_B is not None:
            step = len(history) - int(self.prompt_length_B[row])
            if 0 <= step < len(self.script):
                logits[self.script[step]] = 100.0
        if self.error:
            logits += self.error * np.random.default_rng([*seed, 1]).normal(size=self.vocab_size).astype(np.float32)
        return logits

    def close(self):
        self.tokens_BT = np.zeros((0, 0), np.int64)


class ToyEngine(Engine):
    """An engine over a :class:`ToyExecutor`, whose arguments it takes, or over another executor of toys."""

    def __init__(self, *arguments, executor=ToyExecutor, **options):
        super().__init__(executor(*arguments, **options))
        self.toy = self.executor

    def prefill_at(self, prompts, positions, *, chunk=None):
        self.toy.prompt_length_B = self.lengths_B + [len(prompt) for prompt in prompts]
        return super().prefill_at(prompts, positions, chunk=chunk)

    def row_logits(self, history, row=0):
        return self.toy.row_logits(history, row)

    @property
    def calls(self):
        return self.toy.calls
