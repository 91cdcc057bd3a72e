"""From logits to the next token: the filters in the order of transformers, then Gumbel-max.

The argmax of log p + Gumbel noise is a draw from p, so a token needs noise for the surviving candidates alone and
no cumulative sum decides between host and device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from nemotron_runtime.sampling.candidates import filter_candidates
from nemotron_runtime.sampling.params import GenerationParams
from nemotron_runtime.sampling.philox import gumbel_argmax

__all__ = ["RowSampler", "filter_logits"]

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]

# a few candidates mostly hold a nucleus' mass: so many are sorted first, then more, and all only where they do not
_SORTED_FIRST = (1024, 16384)


class RowSampler:
    """Chooses the tokens of one row.

    Args:
        params: how to choose; ``params.seed`` is set.
        row: number of the answer in its request; part of the noise's key, so a row draws the same in any batch.
        prompt: the row's prompt, which the repetition penalty looks at.
        vocab_size: V.
    """

    def __init__(self, params: GenerationParams, row: int, prompt: Ids, vocab_size: int) -> None:
        assert params.seed is not None, "the loop draws a seed where the request has none"
        self._params = params
        self._seed = params.seed
        self._row = row
        self._vocab_size = vocab_size
        self._seen_V: npt.NDArray[np.bool_] | None = None
        if params.repetition_penalty != 1.0:
            self._seen_V = np.zeros(vocab_size, np.bool_)
            self._seen_V[prompt] = True

    def choose(self, logits_V: Scores, step: int) -> int:
        """The row's token number ``step``, counted from 0."""
        params = self._params
        blocked = () if step >= params.min_new_tokens else params.ending_token_ids
        ids, scores = filter_logits(logits_V, params, seen_V=self._seen_V, blocked=blocked)
        token = int(ids[scores.argmax()]) if params.temperature == 0 else self._draw(ids, scores, step)
        if self._seen_V is not None:
            self._seen_V[token] = True
        return token

    def choose_among(self, ids_C: Ids, logits_C: Scores, log_sum: float, step: int) -> int | None:
        """:meth:`choose` from the likeliest tokens alone: the same token, or None where these do not decide it.

        Args:
            ids_C: the candidates, for parameters of which :attr:`GenerationParams.keeps_few` holds.
            logits_C: see :class:`~nemotron_runtime.sampling.candidates.Candidates`, as for ``log_sum``.
            log_sum: see there.
            step: number of the token, not below ``min_new_tokens``.
        """
        assert self._params.keeps_few
        assert step >= self._params.min_new_tokens, "some tokens are still blocked"
        kept = filter_candidates(ids_C, logits_C, log_sum, self._params, self._vocab_size)
        return None if kept is None else self._draw(*kept, step)

    def _draw(self, ids: Ids, scores: Scores, step: int) -> int:
        return int(ids[gumbel_argmax(scores, self._seed, self._row, step, ids)])


def filter_logits(
    logits_V: Scores,
    params: GenerationParams,
    *,
    seen_V: npt.NDArray[np.bool_] | None = None,
    blocked: Sequence[int] = (),
) -> tuple[Ids, Scores]:
    """Applies repetition penalty, blocked tokens, temperature, top-k, top-p and min-p, in this order.

    Args:
        logits_V: logits of one row.
        params: the parameters; a temperature of 0 keeps every token.
        seen_V: tokens of the prompt and the answer so far.
        blocked: tokens that may not be chosen.

    Returns:
        The surviving tokens and their processed logits, in no particular order but for one: without top-k and top-p
        they ascend, so that ties go to the lowest id.
    """
    scores = np.asarray(logits_V, np.float32)
    if seen_V is not None:
        penalty = np.float32(params.repetition_penalty)
        scores = np.where(seen_V, np.where(scores < 0, scores * penalty, scores / penalty), scores)
    ids = np.arange(len(scores))
    if blocked:
        allowed = np.ones(len(scores), np.bool_)
        allowed[[token for token in blocked if token < len(scores)]] = False
        ids, scores = ids[allowed], scores[allowed]
    if params.temperature == 0:
        return ids, scores
    scores = scores / np.float32(params.temperature)
    if 0 < params.top_k < len(scores):
        # ties with the k-th score survive, as in transformers
        threshold = np.partition(scores, -params.top_k)[-params.top_k]
        ids, scores = ids[scores >= threshold], scores[scores >= threshold]
    if params.top_p < 1:
        kept = _nucleus(scores, params.top_p)
        ids, scores = ids[kept], scores[kept]
    if params.min_p > 0:
        # p >= min_p * max p, in logarithms
        kept = np.exp(scores.astype(np.float64) - scores.max()) >= params.min_p
        ids, scores = ids[kept], scores[kept]
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
