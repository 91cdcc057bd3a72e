"""Temperature, top-k, top-p and min-p, in the order of transformers: of all logits, or of the top-k candidates.

Shapes: V vocabulary, C candidates.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nemotron_runtime.sampling.params import GenerationParams

__all__ = ["Ids", "Scores", "filter_candidates", "filter_logits"]

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

# a few candidates mostly hold a nucleus' mass: so many are sorted first, then more, and all only where they do not
_SORTED_FIRST = (1024, 16384)
# log_sum comes out of float32 sums in another order than the host's: a nucleus that ends this close to a token's edge,
# as a share of all mass, is left to the host
_UNSURE = 1e-4


def filter_logits(scores_V: Scores, params: GenerationParams, *, processed: bool = False) -> tuple[Ids, Scores]:
    """What the filters leave of one sequence's logits, at a temperature above 0.

    Where logits processors made them (``processed``), -inf is a blocked token, which does not survive.

    Returns:
        The surviving tokens and their processed logits, in no particular order but for one: without top-k and top-p
        they ascend, so that ties go to the lowest id.
    """
    ids = np.arange(len(scores_V))
    scores = scores_V
    if processed and (allowed := np.flatnonzero(scores_V != -np.inf)).size:
        ids, scores = allowed, scores_V[allowed]
    scores = scores / np.float32(params.temperature)
    if 0 < params.top_k < len(scores):
        # ties with the k-th score survive, as in transformers
        threshold = np.partition(scores, -params.top_k)[-params.top_k]
        ids, scores = ids[scores >= threshold], scores[scores >= threshold]
    if params.top_p < 1:
        survivors = _nucleus(scores, params.top_p)
        ids, scores = ids[survivors], scores[survivors]
    if params.min_p > 0:
        # p >= min_p * max p, in logarithms
        likely = np.exp(scores.astype(np.float64) - scores.max()) >= params.min_p
        ids, scores = ids[likely], scores[likely]
    return ids, scores


def filter_candidates(
    ids_C: Ids, logits_C: Scores, log_sum: float, params: GenerationParams, vocab_size: int
) -> tuple[Ids, Scores] | None:
    """What temperature, top-k, top-p and min-p leave of a sequence, which is what ``filter_logits`` leaves.

    Args:
        ids_C: one sequence's part of :class:`~nemotron_runtime.sampling.device.Candidates`, like the next two.
        logits_C: descending.
        log_sum: at the temperature of ``params``, above 0.

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


def _nucleus(scores: Scores, top_p: float) -> Ids:
    """Indices of the likeliest candidates, up to the one whose probability takes the sum to ``top_p`` or past it."""
    weights = np.exp(scores.astype(np.float64) - scores.max())
    mass = top_p * weights.sum()
    top = np.arange(len(scores))
    for count in _SORTED_FIRST:
        if count < len(scores):
            likely = np.argpartition(scores, len(scores) - count)[len(scores) - count :]
            if weights[likely].sum() >= mass:
                top = likely
                break
    order = top[np.argsort(-scores[top], kind="stable")]
    before = np.concatenate(([0.0], np.cumsum(weights[order])[:-1]))
    return order[before < mass]
