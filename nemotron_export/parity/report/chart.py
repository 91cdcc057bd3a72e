"""A plot's geometry, ready for the template: everything is in the units of the drawing's viewBox."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nemotron_export.parity.report.numbers import number
from nemotron_export.parity.report.scales import Scale, axis_number, decade_ticks, even_ticks, finite, power_of_ten

__all__ = [
    "BOTTOM", "HEIGHT", "LEFT", "RIGHT", "TOP", "WIDTH", "Bar", "Chart", "Dot", "Mark", "Rule", "Series", "Tick",
    "error_ticks", "line_ticks", "series",
]  # fmt: skip

WIDTH, HEIGHT = 620, 340
LEFT, RIGHT, TOP, BOTTOM = 66, WIDTH - 18, 16, HEIGHT - 50


@dataclass(frozen=True)
class Tick:
    """A place on an axis and its label."""

    at: float
    text: str


@dataclass(frozen=True)
class Dot:
    """One value; ``kind`` is "dot", or "cross" for one that is not finite."""

    x: float
    y: float
    title: str
    kind: str = "dot"


@dataclass(frozen=True)
class Series:
    """Values joined by a line; ``style`` is a class of the stylesheet."""

    name: str
    style: str
    path: str
    dots: tuple[Dot, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A straight line with a label: a tolerance."""

    x1: float
    y1: float
    x2: float
    y2: float
    text: str = ""
    style: str = "tolerance"


@dataclass(frozen=True)
class Bar:
    """A bar of a histogram."""

    x: float
    y: float
    width: float
    height: float
    title: str


@dataclass(frozen=True)
class Mark:
    """A ring around a value, and what is said of it."""

    x: float
    y: float
    text: str

    @property
    def anchor(self) -> str:
        """Towards the middle of the drawing."""
        return "start" if self.x < WIDTH / 2 else "end"

    @property
    def label_x(self) -> float:
        """Where the text begins or ends."""
        return self.x + (12 if self.anchor == "start" else -12)

    @property
    def label_y(self) -> float:
        """Under a ring in the upper half, above one in the lower: errors rise to a ring and stay there."""
        return self.y + 24 if self.y < HEIGHT / 2 else self.y - 14


@dataclass(frozen=True)
class Chart:
    """One plot.

    Attributes:
        key: its id on the page.
        title: its heading.
        caption: what it shows, in a sentence or two.
        x_label: name of the horizontal axis.
        y_label: name of the vertical axis.
        x_ticks: ticks of the horizontal axis.
        y_ticks: ticks of the vertical axis.
        series: lines and dots.
        rules: straight lines.
        bars: bars of a histogram.
        cloud: a path of many dots, "M x y h0" each.
        cloud_points: how many.
        marks: what is pointed at.
    """

    key: str
    title: str
    caption: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...] = ()
    rules: tuple[Rule, ...] = ()
    bars: tuple[Bar, ...] = ()
    cloud: str = ""
    cloud_points: int = 0
    marks: tuple[Mark, ...] = ()


def line_ticks(scale: Scale) -> tuple[Tick, ...]:
    """Ticks of a linear axis."""
    return tuple(Tick(scale(value), axis_number(value)) for value in even_ticks(scale.low, scale.high))


def error_ticks(scale: Scale, values: Iterable[float | None]) -> tuple[Tick, ...]:
    """Ticks of an axis of errors; its lower end is called 0 where there are zeros, its upper one NaN."""
    shown = list(values)
    numbers = finite(shown)
    ticks = [Tick(scale(value), power_of_ten(value)) for value in decade_ticks(scale)]
    named = {scale.start: "0"} if 0.0 in numbers else {}
    if len(numbers) < len(shown):
        named[scale.end] = "NaN, ∞"
    kept = [tick for tick in ticks if all(abs(tick.at - at) > 1 for at in named)]
    return (*kept, *(Tick(at, text) for at, text in named.items()))


def series(
    name: str,
    style: str,
    xs: Sequence[float],
    values: Sequence[float | None],
    y: Scale,
    labels: Sequence[str],
    *,
    dots: bool = True,
) -> Series:
    """A line through (place, value) pairs; a value that is not finite becomes a cross at the upper edge."""
    path, made, pen = [], [], "M"
    for at, value, label in zip(xs, values, labels, strict=True):
        known = bool(finite([value]))
        place = y(value) if value is not None and known else y.end
        if known:
            path.append(f"{pen}{at:.1f} {place:.1f}")
        pen = "L" if known else "M"
        made.append(Dot(at, place, f"{label}: {number(value)}", "dot" if known else "cross"))
    return Series(name, style, "".join(path), tuple(made) if dots else ())
