"""Top-k candidates: the likeliest tokens of a step, which a GPU gives in place of all logits, and what a filter leaves.

Shapes: B sequences, C candidates, V vocabulary, P parts of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from nemotron_runtime.sampling.params import GenerationParams

__all__ = ["Candidates", "filter_candidates", "find_candidates", "log_of_sums"]

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

# log_sum comes out of float32 sums in another order than the host's: a nucleus that ends this close to a token's edge,
# as a share of all mass, is left to the host
_UNSURE = 1e-4


@dataclass(frozen=True)
class Candidates:
    """The largest logits of each sequence.

    Attributes:
        ids: their tokens [B, C].
        logits: the logits [B, C], float32, descending; tokens that equal the last one may be missing.
        log_sum: log of the sum over all V tokens of exp(logit / temperature), float64 [B].
    """

    ids: Ids
    logits: Scores
    log_sum: npt.NDArray[np.float64]

    def of(self, sequences: Ids) -> Candidates:
        """Those of some sequences."""
        return Candidates(self.ids[sequences], self.logits[sequences], self.log_sum[sequences])


def find_candidates(logits_BV: Scores, count: int, temperature: float) -> Candidates:
    """The ``count`` largest of each sequence, the lowest of equal tokens first; NaN counts as infinity.

    Args:
        logits_BV: the logits.
        count: C, at most V.
        temperature: of ``log_sum``.
    """
    known_BV = np.where(np.isnan(logits_BV), np.float32(np.inf), logits_BV)
    ids_BC = np.argsort(-known_BV, axis=-1, kind="stable")[:, :count]
    log_sum_B = log_of_sums(known_BV / np.float32(temperature))
    return Candidates(ids_BC, np.take_along_axis(known_BV, ids_BC, -1), log_sum_B)


def log_of_sums(largest_BP: npt.NDArray[np.floating[Any]], sum_BP: npt.ArrayLike = 1.0) -> npt.NDArray[np.float64]:
    """Log of the sum over all tokens of exp(score), float64 [B], out of parts of the vocabulary.

    Args:
        largest_BP: each part's largest score.
        sum_BP: each part's sum of exp(score - largest); 1 where a part is a token.
    """
    wide_BP = largest_BP.astype(np.float64)
    most_B1 = wide_BP.max(-1, keepdims=True)
    # infinity less infinity is no number
    less_BP = np.subtract(wide_BP, most_B1, out=np.zeros_like(wide_BP), where=wide_BP != most_B1)
    log_sum_B: npt.NDArray[np.float64] = most_B1[:, 0] + np.log((sum_BP * np.exp(less_BP)).sum(-1))
    return log_sum_B


def filter_candidates(
    ids_C: Ids, logits_C: Scores, log_sum: float, params: GenerationParams, vocab_size: int
) -> tuple[Ids, Scores] | None:
    """What temperature, top-k, top-p and min-p leave of a sequence, which is what ``filter_logits`` leaves.

    Args:
        ids_C: the candidates.
        logits_C: their logits, descending.
        log_sum: see :class:`Candidates`, at the temperature of ``params``.
        params: temperature above 0.
        vocab_size: V.

    Returns:
        The surviving tokens and their processed logits; None where they may not all be among the candidates.
    """
    scores_C = logits_C / np.float32(params.temperature)
    # of tokens that score no more than the last candidate some may be missing
    last = -np.inf if len(ids_C) == vocab_size else scores_C[-1]
    count, closed = len(ids_C), last == -np.inf
    weights_C = np.exp(scores_C.astype(np.float64) - scores_C[0])
    mass = np.exp(log_sum - np.float64(scores_C[0]))
    if 0 < params.top_k < vocab_size:
        if params.top_k > count or scores_C[params.top_k - 1] <= last:
            return None
        # ties with the k-th score survive
        count, closed = int((scores_C >= scores_C[params.top_k - 1]).sum()), True
        mass = weights_C[:count].sum()
    if params.top_p < 1:
        sums_C = np.cumsum(weights_C[:count])
        wanted = params.top_p * mass
        nucleus = int(np.searchsorted(sums_C, wanted)) + 1
        if nucleus > count or (not closed and scores_C[nucleus - 1] <= last):
            return None
        edges = sums_C[max(nucleus - 2, 0) : nucleus]
        if not closed and (np.abs(edges - wanted) <= _UNSURE * mass).any():
            return None
        # which of equal scores at the edge survive is the host's to say
        if nucleus < count and scores_C[nucleus] == scores_C[nucleus - 1]:
            return None
        count, closed = nucleus, True
    if params.min_p > 0:
        likely_C = weights_C[:count] >= params.min_p
        if not closed and likely_C[-1]:
            return None
        count, closed = int(likely_C.sum()), True
    return (ids_C[:count], scores_C[:count]) if closed else None
