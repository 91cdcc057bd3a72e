"""From logits to the next token of a sequence: processors, filters, then Gumbel-max.

The argmax of log p + Gumbel noise is a draw from p, so a token needs noise for the surviving candidates alone and
no cumulative sum decides between host and device.

Shapes: V vocabulary, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from nemotron_runtime.sampling.filters import Ids, Scores, filter_candidates, filter_logits
from nemotron_runtime.sampling.params import GenerationParams
from nemotron_runtime.sampling.philox import gumbel_argmax

__all__ = ["LogitsProcessor", "SequenceSampler", "make_processors"]

# Changes the logits [V] of one sequence, given its tokens (the prompt and the answer so far) and how many of them are
# the answer's. Changed logits are in an array of their own; -inf is a token that may not be chosen.
LogitsProcessor = Callable[[Scores, Sequence[int], int], Scores]


class SequenceSampler:
    """Chooses the tokens of one sequence, by ``params`` with a seed.

    The answer's number in its request is part of the noise's key, so a sequence draws the same in any batch.
    """

    def __init__(self, params: GenerationParams, number: int, prompt: Ids, vocab_size: int) -> None:
        assert params.seed is not None, "the loop draws a seed where the request has none"
        self._params = params
        self._seed = params.seed
        self._number = number
        self._vocab_size = vocab_size
        self._processors = make_processors(params)
        self._prompt_length = len(prompt)
        self._tokens: list[int] = prompt.tolist()

    def choose(self, logits_V: Scores, step: int) -> int:
        """The answer's token number ``step``, counted from 0."""
        scores_V = np.asarray(logits_V, np.float32)
        for process in self._processors:
            scores_V = process(scores_V, self._tokens, len(self._tokens) - self._prompt_length)
        if self._params.temperature == 0:
            token = int(scores_V.argmax())
        else:
            token = self._draw(*filter_logits(scores_V, self._params, processed=bool(self._processors)), step)
        if self._processors:
            self._tokens.append(token)
        return token

    def choose_among(self, ids_C: Ids, logits_C: Scores, log_sum: float, step: int) -> int | None:
        """:meth:`choose` from the top-k candidates alone: the same token, or None where these do not decide it.

        See :class:`~nemotron_runtime.sampling.device.Candidates`, of which the arguments are one sequence's part.
        """
        assert self._params.draws_from_candidates
        assert step >= self._params.min_new_tokens, "some tokens are still blocked"
        survivors = filter_candidates(ids_C, logits_C, log_sum, self._params, self._vocab_size)
        if survivors is None:
            return None
        token = self._draw(*survivors, step)
        if self._processors:
            self._tokens.append(token)
        return token

    def _draw(self, ids: Ids, scores: Scores, step: int) -> int:
        return int(ids[gumbel_argmax(scores, self._seed, self._number, step, ids)])


def make_processors(params: GenerationParams) -> list[LogitsProcessor]:
    """The processors of one sequence, in the order in which they are applied."""
    processors: list[LogitsProcessor] = []
    if params.bad_words_ids:
        processors.append(partial(_block_bad_words, params.bad_words_ids))
    if params.repetition_penalty != 1:
        processors.append(_RepetitionPenalty(params.repetition_penalty))
    if params.min_new_tokens and params.ending_token_ids:
        processors.append(partial(_block_ends, params.min_new_tokens, list(params.ending_token_ids)))
    return processors


def _block_bad_words(
    words: Sequence[Sequence[int]], scores_V: Scores, tokens: Sequence[int], new_tokens: int
) -> Scores:
    """Blocks each token that would complete a sequence of tokens; the prompt's count as the beginning of one."""
    blocked = [
        last
        for *beginning, last in words
        if len(tokens) >= len(beginning) and list(tokens[len(tokens) - len(beginning) :]) == beginning
    ]
    return _without(scores_V, blocked)


def _block_ends(count: int, ends: list[int], scores_V: Scores, tokens: Sequence[int], new_tokens: int) -> Scores:
    """Blocks the tokens that end an answer until it has so many."""
    return scores_V if new_tokens >= count else _without(scores_V, ends)


class _RepetitionPenalty:
    """Makes every token of the prompt and the answer less likely."""

    def __init__(self, penalty: float) -> None:
        self._penalty = np.float32(penalty)
        self._seen_V: npt.NDArray[np.bool_] | None = None

    def __call__(self, scores_V: Scores, tokens: Sequence[int], new_tokens: int) -> Scores:
        if self._seen_V is None:
            self._seen_V = np.zeros(len(scores_V), np.bool_)
            self._seen_V[list(tokens)] = True
        self._seen_V[tokens[-1]] = True
        penalized_V = np.where(scores_V < 0, scores_V * self._penalty, scores_V / self._penalty)
        return np.where(self._seen_V, penalized_V, scores_V)


def _without(scores_V: Scores, tokens: list[int]) -> Scores:
    if not tokens:
        return scores_V
    blocked_V = scores_V.copy()
    blocked_V[tokens] = -np.inf
    return blocked_V
