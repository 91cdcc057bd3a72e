"""Logits processors: what changes a sequence's logits before the filters see them, by what the sequence holds so far.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from nemotron_runtime.sampling.filters import Scores
from nemotron_runtime.sampling.params import GenerationParams

__all__ = ["LogitsProcessor", "make_processors"]

# Changes the logits [V] of one sequence, given its tokens (the prompt and the answer so far) and how many of them are
# the answer's. Changed logits are in an array of their own; -inf is a token that may not be chosen.
LogitsProcessor = Callable[[Scores, Sequence[int], int], Scores]


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
