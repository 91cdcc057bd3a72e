"""Cuts a rectangle of new tokens into passes that want few enough outputs.

Shapes: B sequences, S new tokens, K positions whose outputs are wanted (k of one pass), V values of an output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from nemotron_runtime.executors.batch import Ids, Logits

__all__ = ["run_in_sub_chunks", "sub_chunks"]


def run_in_sub_chunks(
    run: Callable[[Ids, Ids, Ids], Logits], input_ids_BS: Ids, query_start_B: Ids, logits_index_BK: Ids, most: int
) -> Logits:
    """Passes of at most ``most`` outputs of a sequence, one after the other: all outputs [B, K, V].

    Args:
        run: one pass, of arguments like these three.
        input_ids_BS: new tokens.
        query_start_B: tokens that each sequence has already.
        logits_index_BK: the positions whose outputs are wanted.
        most: outputs of a sequence in a pass.
    """
    if logits_index_BK.shape[1] <= most:
        return run(input_ids_BS, query_start_B, logits_index_BK)
    logits_BKV: Logits = np.zeros(0, np.float32)
    for first, last in sub_chunks(logits_index_BK, input_ids_BS.shape[1], most):
        inside_BK = (logits_index_BK >= first) & (logits_index_BK < last)
        wanted = [np.unique(row[inside]) for row, inside in zip(logits_index_BK, inside_BK, strict=True)]
        index_Bk = np.zeros((len(wanted), max(map(len, wanted))), np.int64)
        for b, positions in enumerate(wanted):
            index_Bk[b, : len(positions)] = positions - first
        found_BkV = run(input_ids_BS[:, first:last], query_start_B + first, index_Bk)
        if not logits_BKV.size:
            logits_BKV = np.zeros((*logits_index_BK.shape, found_BkV.shape[-1]), np.float32)
        for b, positions in enumerate(wanted):
            logits_BKV[b, inside_BK[b]] = found_BkV[b, np.searchsorted(positions, logits_index_BK[b, inside_BK[b]])]
    return logits_BKV


def sub_chunks(logits_index_BK: Ids, tokens: int, most: int) -> Iterator[tuple[int, int]]:
    """Cuts a pass of ``tokens`` positions so that no sequence wants more than ``most`` outputs of a piece.

    Args:
        logits_index_BK: the positions whose outputs are wanted.
        tokens: positions in all.
        most: outputs of a sequence and piece.

    Returns:
        (first, last) of each piece, the last one excluded; they cover all positions, in order.
    """
    rows = [np.unique(row) for row in logits_index_BK]
    first = 0
    while first < tokens:
        last = tokens
        for positions in rows:
            ahead = positions[positions >= first]
            if len(ahead) > most:
                last = min(last, int(ahead[most]))
        yield first, last
        first = last
