"""Outputs of the bundle next to eager PyTorch's, their differences, and the margins of its choices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nemotron_runtime.checks.rules import FLIP_MARGIN

from nemotron_export.parity.report.chart import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Bar,
    Chart,
    Dot,
    Rule,
    Series,
    Tick,
    line_ticks,
)  # fmt: skip
from nemotron_export.parity.report.drift_plots import eager_rmse, logit_tolerance
from nemotron_export.parity.report.numbers import count, factor, number
from nemotron_export.parity.report.scales import Scale, axis_number, decade_ticks, finite

__all__ = ["difference_plot", "margin_plot", "scatter_plot"]

_BINS = 36


def scatter_plot(document: dict[str, Any]) -> Chart | None:
    """Measured outputs over the reference's."""
    pairs, lost = _pairs(document)
    if not pairs:
        return None
    low, high = _padded([value for pair in pairs for value in pair])
    x, y = Scale(low, high, LEFT, RIGHT), Scale(low, high, BOTTOM, TOP)
    caption = f"{count(len(pairs))} sampled outputs, each prompt's largest and smallest among them; on the diagonal, "
    caption += "both are equal." + (f" {count(lost)} more are not finite." if lost else "")
    return Chart(
        "scatter", "Bundle against PyTorch", caption, "eager PyTorch fp32", "bundle", line_ticks(x), line_ticks(y),
        rules=(Rule(LEFT, BOTTOM, RIGHT, TOP, style="diagonal"),), cloud=_cloud(pairs, x, y), cloud_points=len(pairs),
    )  # fmt: skip


def difference_plot(document: dict[str, Any]) -> Chart | None:
    """Measured minus reference, over the reference: what the scatter is too coarse to show."""
    pairs, _ = _pairs(document)
    if not pairs:
        return None
    differences = [(reference, measured - reference) for reference, measured in pairs]
    largest = max(abs(difference) for _, difference in differences) or 1.0
    tolerance, own = logit_tolerance(document), eager_rmse(document)
    bound = tolerance * document["logit_range"] if tolerance is not None else own
    name = "tolerance" if tolerance is not None else "PyTorch's own RMSE"
    # a line far outside would flatten the dots, one far inside would hide behind them
    shown = bound is not None and largest / 25 < bound < 4 * largest
    extent = 1.1 * max(largest, bound if shown and bound is not None else 0.0)
    x = Scale(*_padded([reference for reference, _ in differences]), LEFT, RIGHT)
    y = Scale(-extent, extent, BOTTOM, TOP)
    rules = [Rule(LEFT, y(0), RIGHT, y(0), style="diagonal")]
    caption = "The same outputs, as differences in their own unit."
    if bound is not None and shown:
        above, below = y(bound), y(-bound)
        rules += [Rule(LEFT, above, RIGHT, above, f"± {name}, {number(bound)}"), Rule(LEFT, below, RIGHT, below)]
    elif bound is not None:
        part = factor(bound / largest)
        caption += f" The {name}, ±{number(bound)}, is {part}{' of' * (bound <= largest)} the largest one."
    return Chart(
        "differences", "Differences", caption, "eager PyTorch fp32", "bundle − PyTorch", line_ticks(x), line_ticks(y),
        rules=tuple(rules), cloud=_cloud(differences, x, y), cloud_points=len(differences),
    )  # fmt: skip


def margin_plot(document: dict[str, Any]) -> Chart | None:
    """How decided the reference was at the compared positions, and where the bundle chose otherwise."""
    drift = document.get("drift", {})
    margins = finite(drift.get("margins", {}).get("compared", []))
    flips = [flip for flip in drift.get("flips", []) if finite([flip["margin"]])]
    own = eager_rmse(document)
    bound = None if own is None else FLIP_MARGIN * own
    positive = [value for value in (*margins, *(flip["margin"] for flip in flips), bound) if value]
    if not positive:
        return None
    low, high = math.floor(math.log10(min(positive) * 0.999)), math.ceil(math.log10(max(positive) * 1.001))
    x = Scale(10.0**low, 10.0 ** max(high, low + 1), LEFT, RIGHT, "log")
    counts = [0] * _BINS
    for margin in margins:
        counts[min(int((x(margin) - LEFT) / (RIGHT - LEFT) * _BINS), _BINS - 1)] += 1
    y = Scale(0, max(*counts, 4) * 1.35, BOTTOM, TOP)
    rules = () if bound is None else (
        Rule(x(bound), BOTTOM, x(bound), TOP, f"flips allowed up to {number(bound)}"),
    )  # fmt: skip
    made = tuple(made for allowed in (True, False) if (made := _flip_dots(flips, allowed, x)).dots)
    caption = f"The reference's margin between its two best tokens at {count(len(margins))} positions. "
    caption += "No token differs." if not flips else "Dots: what PyTorch loses by the token that the bundle chose."
    return Chart(
        "margins", "Margins and token flips", caption, "margin (logits)", "positions",
        tuple(Tick(x(value), axis_number(value)) for value in decade_ticks(x)), _count_ticks(y), made, rules,
        _bars(counts, y),
    )  # fmt: skip


def _pairs(document: dict[str, Any]) -> tuple[list[tuple[float, float]], int]:
    scatter = document.get("drift", {}).get("scatter", {"reference": [], "measured": []})
    pairs = list(zip(scatter["reference"], scatter["measured"], strict=True))
    known = [(reference, measured) for reference, measured in pairs if len(finite((reference, measured))) == 2]
    return known, len(pairs) - len(known)


def _padded(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    space = 0.04 * (high - low) or 1.0
    return low - space, high + space


def _cloud(pairs: Sequence[tuple[float, float]], x: Scale, y: Scale) -> str:
    return "".join(f"M{x(reference):.1f} {y(value):.1f}h0" for reference, value in pairs)


def _count_ticks(y: Scale) -> tuple[Tick, ...]:
    return tuple(tick for tick in line_ticks(y) if "." not in tick.text)


def _bars(counts: Sequence[int], y: Scale) -> tuple[Bar, ...]:
    width = (RIGHT - LEFT) / len(counts)
    return tuple(
        Bar(LEFT + index * width + 0.75, y(number_of), width - 1.5, BOTTOM - y(number_of), f"{number_of} positions")
        for index, number_of in enumerate(counts)
        if number_of
    )


def _flip_dots(flips: Sequence[dict[str, Any]], allowed: bool, x: Scale) -> Series:
    level = TOP + (44 if allowed else 20)
    chosen = [flip for flip in flips if flip["allowed"] is allowed]
    dots = tuple(
        Dot(
            x(flip["margin"]),
            level + 5 * (index % 3),
            f"prompt of {flip['prompt']} tokens, position {flip['position']}: {number(flip['margin'])}",
        )
        for index, flip in enumerate(chosen)
    )
    word = "within the margin" if allowed else "past it"
    return Series(f"flips, {word} ({len(dots)})", "allowed" if allowed else "refused", "", dots)
