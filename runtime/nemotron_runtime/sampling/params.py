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

    @property
    def ending_token_ids(self) -> tuple[int, ...]:
        """The tokens that end the answer."""
        return (() if self.ignore_eos else self.eos_token_ids) + self.stop_token_ids

    @property
    def is_argmax(self) -> bool:
        """Whether each token is the likeliest one, whatever came before: nothing changes or blocks a logit."""
        return self.temperature == 0 and self.repetition_penalty == 1 and self.min_new_tokens == 0

    @property
    def keeps_few(self) -> bool:
        """Whether a token is drawn from the likeliest ones, by their logits alone: the others need not be known."""
        filters = self.top_k > 0 or self.top_p < 1 or self.min_p > 0
        return self.temperature > 0 and self.repetition_penalty == 1 and filters

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


def _check_integer(name: str, value: object, low: int, high: int | None) -> None:
    integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not integer or int(value) < low or (high is not None and int(value) > high):  # type: ignore[call-overload]
        bound = f"at least {low}" if high is None else f"from {low} to {high}"
        raise RequestError(repr(value), f"an integer {bound}", "correct it", where=name)


def _check_real(name: str, value: object, inside: Callable[[float], bool], expected: str) -> None:
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not inside(float(value)):  # type: ignore[arg-type]
        raise RequestError(repr(value), expected, "correct it", where=name)
