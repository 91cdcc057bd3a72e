"""Logits processors: what changes a sequence's logits before the filters see them, by what the sequence holds so far.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from nemotron_runtime.sampling.params import GenerationParams

__all__ = ["LogitsProcessor", "make_processors"]

Scores = npt.NDArray[np.float32]


class LogitsProcessor(Protocol):
    """Changes the logits of one sequence; -inf is a token that may not be chosen."""

    def __call__(self, scores_V: Scores, tokens: Sequence[int], new_tokens: int) -> Scores:
        """The changed logits, in an array of their own where they differ.

        Args:
            scores_V: the logits.
            tokens: the prompt and the answer so far.
            new_tokens: how many of them are the answer's.
        """


class _BadWords:
    """Blocks each token that would complete a sequence of tokens; the prompt's count as the beginning of one."""

    def __init__(self, words: Sequence[Sequence[int]]) -> None:
        self._words = words

    def __call__(self, scores_V: Scores, tokens: Sequence[int], new_tokens: int) -> Scores:
        blocked = [
            last
            for *beginning, last in self._words
            if len(tokens) >= len(beginning) and list(tokens[len(tokens) - len(beginning) :]) == beginning
        ]
        return _without(scores_V, blocked)


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


class _MinNewTokens:
    """Blocks the tokens that end an answer until it has so many."""

    def __init__(self, count: int, ending_token_ids: Sequence[int]) -> None:
        self._count, self._ending = count, list(ending_token_ids)

    def __call__(self, scores_V: Scores, tokens: Sequence[int], new_tokens: int) -> Scores:
        return scores_V if new_tokens >= self._count else _without(scores_V, self._ending)


def make_processors(params: GenerationParams) -> list[LogitsProcessor]:
    """The processors of one sequence, in the order in which they are applied."""
    processors: list[LogitsProcessor] = []
    if params.bad_words_ids:
        processors.append(_BadWords(params.bad_words_ids))
    if params.repetition_penalty != 1:
        processors.append(_RepetitionPenalty(params.repetition_penalty))
    if params.min_new_tokens and params.ending_token_ids:
        processors.append(_MinNewTokens(params.min_new_tokens, params.ending_token_ids))
    return processors


def _without(scores_V: Scores, tokens: list[int]) -> Scores:
    if not tokens:
        return scores_V
    blocked_V = scores_V.copy()
    blocked_V[tokens] = -np.inf
    return blocked_V
