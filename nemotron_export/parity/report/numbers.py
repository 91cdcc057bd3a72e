"""How numbers are written, and which check is the worst."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["count", "factor", "number", "share", "within"]


def number(value: float | None) -> str:
    """A measured number: 0, 3, 2.97e-07, 1.0312; "not finite" for None."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.2e}" if abs(value) < 0.01 or abs(value) >= 1e5 else f"{value:.4g}"


def count(value: int) -> str:
    """With commas: 4,202,496."""
    return f"{value:,}"


def share(row: dict[str, Any]) -> float:
    """A check's measured number as a share of its tolerance; infinite where none is allowed, or where it is NaN."""
    measured, tolerance = row["measured"], row["tolerance"]
    if measured is None:
        return math.inf
    if tolerance:
        return float(measured / tolerance)
    return math.inf if measured else 0.0


def factor(value: float) -> str:
    """A share in words: 0.3 %, 95 %, 1,200 times."""
    if not math.isfinite(value):
        return "not finite"
    if value > 1:
        return f"{value:,.0f} times" if value >= 10 else f"{value:.3g} times"
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.1g} %"


def within(point: dict[str, Any]) -> bool:
    """Whether a compared value is within its tolerance; one that is not finite is not."""
    return point["error"] is not None and point["error"] <= point["tolerance"]
