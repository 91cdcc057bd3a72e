"""Temperature, top-k, top-p and min-p, in the order of transformers.

Shapes: V vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nemotron_runtime.sampling.params import GenerationParams

__all__ = ["filter_logits"]

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

# a few candidates mostly hold a nucleus' mass: so many are sorted first, then more, and all only where they do not
_SORTED_FIRST = (1024, 16384)


def filter_logits(scores_V: Scores, params: GenerationParams, *, processed: bool = False) -> tuple[Ids, Scores]:
    """What the filters leave of one sequence's logits.

    Args:
        scores_V: the logits.
        params: temperature above 0.
        processed: logits processors made them, which block tokens by -inf: these do not survive.

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
