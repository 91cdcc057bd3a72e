"""How long a tokenizer's rows become: truncation and padding with transformers' names and defaults."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

from nemotron_errors import RequestError

__all__ = ["UNBOUNDED", "Lengths", "Padding", "Truncation", "side", "truncate"]

Padding = bool | Literal["longest", "max_length", "do_not_pad"]
Truncation = bool | Literal["longest_first", "only_first", "do_not_truncate"]

# what stands for "no limit" as a tokenizer's model_max_length; files hold other numbers of that size, too
UNBOUNDED = int(1e30)
_LARGE = int(1e20)


@dataclass(frozen=True)
class Lengths:
    """What one call asks for.

    Attributes:
        longest: tokens that a row keeps; None where nothing is cut.
        width: tokens that rows are filled up to; "longest" for those of the longest row, None for no padding.
    """

    longest: int | None
    width: int | Literal["longest"] | None

    @classmethod
    def of(cls, padding: Padding, truncation: Truncation | None, max_length: int | None, limit: int) -> Lengths:
        """Reads the arguments of a call.

        ``max_length`` alone cuts. Where a length is needed and not given it is the model's; a model without one
        neither cuts nor pads to it.

        Args:
            padding, truncation, max_length: as the call has them.
            limit: the tokenizer's ``model_max_length``.

        Raises:
            RequestError: an unknown value.
        """
        _one_of(padding, (True, False, "longest", "max_length", "do_not_pad"), "padding")
        _one_of(truncation, (True, False, "longest_first", "only_first", "do_not_truncate", None), "truncation")
        if max_length is not None and (type(max_length) is not int or max_length < 1):
            raise RequestError(repr(max_length), "a whole number of 1 or more", "give one", where="max_length")
        cuts = truncation not in (None, False, "do_not_truncate")
        if max_length is not None and truncation is None and padding is False:
            cuts = True
        if padding in (True, "longest") and max_length is not None and not cuts:
            warnings.warn("max_length without truncation does nothing with padding to the longest row", stacklevel=3)
        bound = max_length if max_length is not None else limit if limit <= _LARGE else None
        if cuts and bound is None:
            warnings.warn("truncation without max_length, and the model has none: nothing is cut", stacklevel=3)
        width = "longest" if padding in (True, "longest") else bound if padding == "max_length" else None
        return cls(bound if cuts else None, width)  # type: ignore[arg-type]


def truncate(whole: list[int], plain: list[int], longest: int, cut: str) -> list[int]:
    """Cuts a text's tokens and keeps what the tokenizer puts around them.

    Args:
        whole: token ids, special ones included.
        plain: those of the text alone, a run of ``whole``.
        longest: tokens to keep in all.
        cut: the side that loses tokens, "left" or "right".

    Raises:
        RequestError: no room for the special tokens.
    """
    if len(whole) <= longest:
        return whole
    added = len(whole) - len(plain)
    kept = longest - added
    if kept < 0:
        found, expected = f"max_length {longest}", f"at least {added}, for the special tokens"
        raise RequestError(found, expected, "give more, or add_special_tokens=False", where="max_length")
    at = next((at for at in range(added + 1) if whole[at : at + len(plain)] == plain), None)
    assert at is not None, "special tokens stand around a text, not in it"
    inner = plain[len(plain) - kept :] if cut == "left" else plain[:kept]
    return [*whole[:at], *inner, *whole[at + len(plain) :]]


def side(value: object, where: str) -> str:
    """The side of a row, "left" or "right".

    Raises:
        RequestError: anything else.
    """
    _one_of(value, ("left", "right"), where)
    return str(value)


def _one_of(value: Any, known: tuple[Any, ...], where: str) -> None:
    # 1 is no True here
    if not any(type(value) is type(each) and value == each for each in known):
        names = [repr(each) for each in known]
        expected = f"{', '.join(names[:-1])} or {names[-1]}"
        raise RequestError(repr(value), expected, "choose one of them", where=where)
