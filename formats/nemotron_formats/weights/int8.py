"""Eight bits: nothing worth smaller groups is lost (0.07 % of perplexity with groups of 128)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from nemotron_formats.weights.integers import GroupedIntegers
from nemotron_formats.weights.weight_format import Budget

__all__ = ["Int8"]


@dataclass(frozen=True)
class Int8(GroupedIntegers):
    """``int8-g32|64|128``, rounded to nearest, which is within 0.1 % of any search."""

    family: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8
    shares: ClassVar[tuple[float, ...]] = (1.0,)
    # measured, RMSE / deviation: 0.015 on the trained demo checkpoint, up to 0.08 on random weights; drift up to 0.06
    budget: ClassVar[Budget] = Budget(perplexity=1.01, rmse=0.2, drift=0.2, value=0.1)
