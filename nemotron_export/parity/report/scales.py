"""Axes: from values to places on the page, and where their ticks are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

__all__ = ["Scale", "axis_number", "decade_ticks", "error_scale", "even_ticks", "finite", "power_of_ten"]

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_TICKS = 7


@dataclass(frozen=True)
class Scale:
    """A mapping of [low, high] to [start, end].

    Attributes:
        low: the least value.
        high: the largest; larger than ``low``.
        start: place of ``low``, in the plot's units.
        end: place of ``high``.
        kind: "linear", "log" (values up to 0 are at ``start``) or "log1p" (of 1 + value).
    """

    low: float
    high: float
    start: float
    end: float
    kind: Literal["linear", "log", "log1p"] = "linear"

    def __call__(self, value: float) -> float:
        """The place of a value; values outside are put on the edge."""
        low, high = self._of(self.low), self._of(self.high)
        share = (self._of(max(value, self.low)) - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def _of(self, value: float) -> float:
        if self.kind == "linear":
            return value
        return math.log10(value) if self.kind == "log" else math.log1p(value)


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]


def error_scale(values: Iterable[float | None], bounds: Iterable[float], start: float, end: float) -> Scale:
    """Around the values and their bounds; room for exact zeros below, and above for values that are not finite."""
    shown = list(values)
    numbers = finite(shown)
    positive = [value for value in (*numbers, *bounds) if value > 0] or [1.0]
    low = math.floor(math.log10(min(positive) * 0.9)) - (0.0 in numbers)
    high = math.log10(max(positive)) + (1.0 if len(numbers) < len(shown) else 0.3)
    return Scale(10.0**low, 10.0 ** max(high, low + 1), start, end, "log")


def decade_ticks(scale: Scale) -> list[float]:
    """Powers of ten on a logarithmic axis, thinned where there are many."""
    low, high = (math.floor(math.log10(value) + 1e-9) for value in (scale.low, scale.high))
    step = -(-(high - low + 1) // _MOST_TICKS)
    return [10.0**power for power in range(high, low - 1, -step)][::-1]


def even_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round values within [low, high]."""
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def power_of_ten(value: float) -> str:
    """A tick's label on an axis of errors: 10⁻¹; 1."""
    power = round(math.log10(value))
    return f"10{str(power).translate(_SUPERSCRIPTS)}" if power else "1"


def axis_number(value: float) -> str:
    """A tick's label: 2×10⁻⁵, 0.5, 1200."""
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    if -4 < power < 5:
        return f"{value:g}" if power < 0 else f"{round(value, 4):g}"
    mantissa = f"{value / 10.0**power:.3g}"
    lead = {"1": "", "-1": "−"}.get(mantissa, f"{mantissa.replace('-', '−')}×")
    return f"{lead}10{str(power).translate(_SUPERSCRIPTS)}"
