"""Token sequences that an answer may not contain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from nemotron_errors import RequestError

from nemotron_export.model.pretrained import NemotronPreTrainedModel
from nemotron_export.model.session import EagerSession

__all__ = ["BadWordsSession"]


class BadWordsSession(EagerSession):
    """An eager session whose logits are -inf at every token that would complete one of the sequences.

    The tokens of the prompt count as the beginning of a sequence. The loop's filters keep -inf where it is.

    Raises:
        RequestError: no sequence, an empty one, ids outside the vocabulary.
    """

    def __init__(
        self, model: NemotronPreTrainedModel, max_batch: int, max_seq_len: int, bad_words_ids: Sequence[Sequence[int]]
    ) -> None:
        super().__init__(model, max_batch, max_seq_len)
        vocab = self.vocab_size
        valid = isinstance(bad_words_ids, (list, tuple)) and len(bad_words_ids) > 0
        for word in bad_words_ids if valid else ():
            valid = valid and isinstance(word, (list, tuple)) and len(word) > 0
            valid = valid and all(type(token) is int and 0 <= token < vocab for token in word)
        if not valid:
            expected = f"a list of token sequences, each of ids from 0 to {vocab - 1}"
            raise RequestError(repr(bad_words_ids), expected, "correct it", where="bad_words_ids")
        self._words = [tuple(word) for word in bad_words_ids]
        self._texts: list[list[int]] = []

    def prefill(self, prompts: Sequence[npt.ArrayLike]) -> npt.NDArray[np.float32]:
        logits_BV = super().prefill(prompts)
        self._texts = [np.asarray(prompt).tolist() for prompt in prompts]
        return self._masked(logits_BV)

    def decode(
        self, tokens_B: npt.ArrayLike, advance_B: npt.NDArray[np.bool_] | None = None
    ) -> npt.NDArray[np.float32]:
        logits_BV = super().decode(tokens_B, advance_B)
        for text, token in zip(self._texts, np.asarray(tokens_B).tolist(), strict=True):
            text.append(token)
        return self._masked(logits_BV)

    def _masked(self, logits_BV: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        masked_BV = logits_BV.copy()
        for row_V, text in zip(masked_BV, self._texts, strict=True):
            for *beginning, last in self._words:
                if text[len(text) - len(beginning) :] == beginning and len(text) >= len(beginning):
                    row_V[last] = -np.inf
        return masked_BV
