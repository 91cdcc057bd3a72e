"""Four bits, by a search among two scales for each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nemotron_formats.weights.integers import GroupedIntegers
from nemotron_formats.weights.weight_format import Budget

__all__ = ["Int4"]


@dataclass(frozen=True)
class Int4(GroupedIntegers):
    """``int4-g32|64|128``.

    By the demo checkpoint's held-out text perplexity grows by 3.0 % with groups of 32, 3.7 % with 64 and 4.2 % with
    128, at 5, 4.5 and 4.25 bits a weight; plain rounding costs 4.1 %, 5.6 % and 7.0 %. Four or seven scales in place of
    two gain nothing.
    """

    family: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4
    shares: ClassVar[tuple[float, ...]] = (1.0, 0.9)
    # measured, RMSE / deviation: 0.13 on the trained demo checkpoint; up to 0.55 on random weights, the worst case,
    # whose errors no training made small where they matter; drift up to 0.37
    budget: ClassVar[Budget] = Budget(perplexity=1.10, rmse=0.9, drift=0.6, value=0.5)
