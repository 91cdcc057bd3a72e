"""From logits to the next token of a sequence: processors, filters, then Gumbel-max.

The argmax of log p + Gumbel noise is a draw from p, so a token needs noise for the surviving candidates alone and
no cumulative sum decides between host and device.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nemotron_runtime.sampling.candidates import filter_candidates
from nemotron_runtime.sampling.filters import filter_logits
from nemotron_runtime.sampling.params import GenerationParams
from nemotron_runtime.sampling.philox import gumbel_argmax
from nemotron_runtime.sampling.processors import make_processors

__all__ = ["SequenceSampler"]

Ids = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float32]


class SequenceSampler:
    """Chooses the tokens of one sequence.

    Args:
        params: how to choose; ``params.seed`` is set.
        number: of the answer in its request; part of the noise's key, so a sequence draws the same in any batch.
        prompt: the sequence's prompt, which logits processors look at.
        vocab_size: V.
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

        Args:
            ids_C: the candidates, for parameters of which :attr:`GenerationParams.draws_from_candidates` holds.
            logits_C: see :class:`~nemotron_runtime.sampling.candidates.Candidates`, as for ``log_sum``.
            log_sum: see there.
            step: number of the token, not below ``min_new_tokens``.
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
