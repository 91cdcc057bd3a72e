"""The parameters of a generation request."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

from nemotron_errors import RequestError

__all__ = ["GenerationParams"]

_MAX_SEED = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class GenerationParams:
    """How to choose new tokens and when to stop.

    Attributes:
        max_new_tokens: new tokens at most, at least 1.
        min_new_tokens: tokens that end the answer are not chosen before that many new tokens.
        temperature: 0 is greedy; else logits are divided by it.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the most likely tokens whose probabilities add up to top_p; 1 keeps all.
        min_p: drop tokens less likely than min_p times the most likely one; 0 keeps all.
        repetition_penalty: above 1 makes tokens of the prompt and the answer less likely; 1 is off.
        seed: 64-bit key of the noise; None draws one, which the result tells.
        stop: strings that end the answer; the text is cut before them.
        stop_token_ids: tokens that end the answer besides the end-of-sequence ones.
        eos_token_ids: the model's end-of-sequence tokens.
        ignore_eos: go on past end-of-sequence tokens.
        num_return_sequences: answers per prompt, each with noise of its own.
        bad_words_ids: token sequences that the answer may not complete; the prompt counts as the beginning of one.

    Raises:
        RequestError: a value of the wrong type or outside its range.
    """

    max_new_tokens: int = 128
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    eos_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    num_return_sequences: int = 1
    bad_words_ids: Sequence[Sequence[int]] | None = None

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids", "eos_token_ids"):
            object.__setattr__(self, name, _as_tuple(getattr(self, name)))
        for name, low, high in (
            ("max_new_tokens", 1, None),
            ("min_new_tokens", 0, self.max_new_tokens),
            ("top_k", 0, None),
            ("num_return_sequences", 1, None),
        ):
            _check_integer(name, getattr(self, name), low, high)
        if self.seed is not None:
            _check_integer("seed", self.seed, 0, _MAX_SEED)
        _check_real("temperature", self.temperature, lambda x: x >= 0, "a finite number of at least 0")
        _check_real("top_p", self.top_p, lambda x: 0 < x <= 1, "a number above 0 and at most 1")
        _check_real("min_p", self.min_p, lambda x: 0 <= x <= 1, "a number from 0 to 1")
        _check_real("repetition_penalty", self.repetition_penalty, lambda x: x > 0, "a finite number above 0")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError(repr(text), "strings that are not empty", "drop or correct it", where="stop")
        for name in ("stop_token_ids", "eos_token_ids"):
            for token in getattr(self, name):
                _check_integer(name, token, 0, None)
        if not isinstance(self.ignore_eos, bool):
            raise RequestError(repr(self.ignore_eos), "True or False", "correct it", where="ignore_eos")
        if self.bad_words_ids is not None:
            _check_words(self.bad_words_ids)
            object.__setattr__(self, "bad_words_ids", tuple(map(tuple, self.bad_words_ids)))

    def check_vocabulary(self, vocab_size: int) -> None:
        """Refuses token ids that a model of ``vocab_size`` tokens does not have.

        Raises:
            RequestError: naming the parameter.
        """
        for name in ("stop_token_ids", "eos_token_ids"):
            for token in getattr(self, name):
                if token >= vocab_size:
                    raise RequestError(f"token id {token}", f"ids from 0 to {vocab_size - 1}", "correct it", where=name)
        if self.bad_words_ids is not None:
            _check_words(self.bad_words_ids, vocab_size)

    @property
    def ending_token_ids(self) -> tuple[int, ...]:
        """The tokens that end the answer."""
        return (() if self.ignore_eos else self.eos_token_ids) + self.stop_token_ids

    @property
    def is_argmax(self) -> bool:
        """Whether each token is the likeliest one, whatever came before: nothing changes or blocks a logit."""
        return self.temperature == 0 and self._keeps_logits and self.min_new_tokens == 0

    @property
    def draws_from_candidates(self) -> bool:
        """Whether, from ``min_new_tokens`` on, the top-k candidates may decide a token: the others are filtered out."""
        filters = self.top_k > 0 or self.top_p < 1 or self.min_p > 0
        return self.temperature > 0 and self._keeps_logits and filters

    @property
    def _keeps_logits(self) -> bool:
        return self.repetition_penalty == 1 and self.bad_words_ids is None

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The parameters' names."""
        return tuple(field.name for field in fields(cls))


def _as_tuple(value: object) -> tuple[object, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        return (value,)
    return tuple(value)


def _check_words(words: object, vocab_size: int | None = None) -> None:
    valid = isinstance(words, (list, tuple)) and len(words) > 0
    for word in words if valid else ():  # type: ignore[attr-defined]
        valid = valid and isinstance(word, (list, tuple)) and len(word) > 0
        valid = valid and all(
            type(token) is int and token >= 0 and (vocab_size is None or token < vocab_size) for token in word
        )
    if not valid:
        bound = "of at least 0" if vocab_size is None else f"from 0 to {vocab_size - 1}"
        expected = f"a list of token sequences, each of ids {bound}"
        raise RequestError(repr(words), expected, "correct it", where="bad_words_ids")


def _check_integer(name: str, value: object, low: int, high: int | None) -> None:
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or int(value) < low or (high is not None and int(value) > high):  # type: ignore[call-overload]
        bound = f"at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(repr(value), f"an integer {bound}", "correct it", where=name)


def _check_real(name: str, value: object, inside: Callable[[float], bool], expected: str) -> None:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not inside(float(value)):  # type: ignore[arg-type]
        raise RequestError(repr(value), expected, "correct it", where=name)
