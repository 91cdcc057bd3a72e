"""A plot's axes and shapes, ready for the template: places are in the units of the drawing's viewBox."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nemotron_export.parity.report.numbers import finite, number

__all__ = [
    "BOTTOM", "HEIGHT", "LEFT", "RIGHT", "TOP", "WIDTH", "Bar", "Chart", "Dot", "Mark", "Rule", "Scale", "Series",
    "Tick", "error_axis", "level", "series", "ticks",
]  # fmt: skip

WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 66, WIDTH - 18, 16, HEIGHT - 50
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_MOST_TICKS = 7
_TRANSFORMS = {"linear": float, "log": math.log10, "log1p": math.log1p}


@dataclass(frozen=True)
class Scale:
    """An axis: [low, high], with low < high, to the places [start, end]; "log1p" is the logarithm of 1 + value."""

    low: float
    high: float
    start: float
    end: float
    kind: Literal["linear", "log", "log1p"] = "linear"

    def __call__(self, value: float) -> float:
        """The place of a value; values outside are put on the edge."""
        of = _TRANSFORMS[self.kind]
        low, high = of(self.low), of(self.high)
        share = (of(max(value, self.low)) - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


class Tick(NamedTuple):
    """A place on an axis and its label."""

    at: float
    text: str


class Dot(NamedTuple):
    """One value; a cross where it is not finite."""

    x: float
    y: float
    title: str
    cross: bool = False


class Series(NamedTuple):
    """Values joined by a line; ``style`` is a class of the stylesheet."""

    name: str
    style: str
    path: str
    dots: tuple[Dot, ...] = ()


class Rule(NamedTuple):
    """A straight line with a label: a tolerance."""

    x1: float
    y1: float
    x2: float
    y2: float
    text: str = ""
    style: str = "tolerance"


class Bar(NamedTuple):
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    title: str


class Mark(NamedTuple):
    """A ring around a value, and what is said of it: towards the middle of the drawing."""

    x: float
    y: float
    text: str

    @property
    def label(self) -> tuple[float, float, str]:
        """x, y and anchor of the text; under a ring in the upper half: errors rise to a ring and stay there."""
        y = self.y + 24 if self.y < HEIGHT / 2 else self.y - 14
        return (self.x + 12, y, "start") if self.x < WIDTH / 2 else (self.x - 12, y, "end")


@dataclass(frozen=True)
class Chart:
    """One plot; ``key`` is its id on the page, ``cloud`` a path of many dots, "M x y h0" each."""

    key: str
    title: str
    caption: str
    x_label: str
    y_label: str
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    series: Sequence[Series] = ()
    rules: Sequence[Rule] = ()
    bars: Sequence[Bar] = ()
    cloud: str = ""
    marks: Sequence[Mark] = ()


def level(y: float, text: str = "", style: str = "tolerance") -> Rule:
    """A line across the whole drawing."""
    return Rule(LEFT, y, RIGHT, y, text, style)


def series(
    name: str, style: str, xs: Sequence[float], values: Sequence[float | None], y: Scale, labels: Sequence[str]
) -> Series:
    """A line through (place, value) pairs; a value that is not finite becomes a cross at the upper edge.

    A dashed line, whose style is "… own", has no dots.
    """
    path, dots, pen = [], [], "M"
    for at, value, label in zip(xs, values, labels, strict=True):
        known = finite([value])
        place = y(known[0]) if known else y.end
        if known:
            path.append(f"{pen}{at:.1f} {place:.1f}")
        pen = "L" if known else "M"
        dots.append(Dot(at, place, f"{label}: {number(value)}", not known))
    return Series(name, style, "".join(path), () if style.endswith("own") else tuple(dots))


def ticks(scale: Scale) -> list[Tick]:
    """About five round values, or the powers of ten of a logarithmic axis."""
    values = _decades(scale) if scale.kind == "log" else _round_values(scale.low, scale.high)
    return [Tick(scale(value), _axis_number(value)) for value in values]


def error_axis(values: Sequence[float | None], bounds: Iterable[float]) -> tuple[Scale, list[Tick]]:
    """The vertical axis around errors and their bounds.

    There is room below for exact zeros, where the lower end is called 0, and above for values that are not finite.
    """
    numbers = finite(values)
    all_finite = len(numbers) == len(values)
    positive = [value for value in (*numbers, *bounds) if value > 0] or [1.0]
    low = math.floor(math.log10(min(positive) * 0.9)) - (0.0 in numbers)
    high = math.log10(max(positive)) + (0.3 if all_finite else 1.0)
    scale = Scale(10.0**low, 10.0 ** max(high, low + 1), BOTTOM, TOP, "log")
    named = {BOTTOM: "0"} if 0.0 in numbers else {}
    if not all_finite:
        named[TOP] = "NaN, ∞"
    powers = [Tick(scale(value), _power_of_ten(round(math.log10(value)))) for value in _decades(scale)]
    kept = [tick for tick in powers if all(abs(tick.at - at) > 1 for at in named)]
    return scale, [*kept, *(Tick(at, text) for at, text in named.items())]


def _decades(scale: Scale) -> list[float]:
    """Powers of ten, thinned where there are many."""
    low, high = (math.floor(math.log10(value) + 1e-9) for value in (scale.low, scale.high))
    step = -(-(high - low + 1) // _MOST_TICKS)
    return [10.0**power for power in range(high, low - 1, -step)][::-1]


def _round_values(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def _power_of_ten(power: int) -> str:
    """10⁻¹; 1."""
    return f"10{str(power).translate(_SUPERSCRIPTS)}" if power else "1"


def _axis_number(value: float) -> str:
    """2×10⁻⁵, 0.5, 1200."""
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)) + 1e-9)
    if -4 < power < 5:
        return f"{value:g}" if power < 0 else f"{round(value, 4):g}"
    mantissa = f"{value / 10.0**power:.3g}"
    lead = {"1": "", "-1": "−"}.get(mantissa, f"{mantissa.replace('-', '−')}×")
    return lead + _power_of_ten(power)
