"""How numbers are written, and those that several parts of the page need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

__all__ = ["eager_rmse", "factor", "finite", "logit_tolerance", "number", "share"]


def number(value: float | None) -> str:
    """A measured number: 0, 3, 2.97e-07, 1.0312; "not finite" for None."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e6:
        return str(int(value))
    return f"{value:.2e}" if abs(value) < 0.01 or abs(value) >= 1e5 else f"{value:.4g}"


def factor(value: float) -> str:
    """A share in words: 0.3 %, 95 %, 1,200 times."""
    if not math.isfinite(value):
        return "not finite"
    if value > 1:
        return f"{value:,.0f} times" if value >= 10 else f"{value:.3g} times"
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 10 or percent == 0 else f"{percent:.1g} %"


def share(measured: float | None, tolerance: float) -> float:
    """A measured number as a share of its tolerance; infinite where none is allowed, or where it is not finite."""
    if measured is None:
        return math.inf
    if tolerance:
        return float(measured / tolerance)
    return math.inf if measured else 0.0


def finite(values: Iterable[float | None]) -> list[float]:
    """The values that are numbers."""
    return [value for value in values if value is not None and math.isfinite(value)]


def logit_tolerance(document: dict[str, Any]) -> float | None:
    """The tolerance of the fp32 checks; None in a lower precision, and where nothing was checked."""
    tolerances = [row["tolerance"] for row in document["rows"] if row["tolerance"] > 0]
    return max(tolerances) if tolerances and document["dtype"] == "float32" else None


def eager_rmse(document: dict[str, Any]) -> float | None:
    """PyTorch's own RMSE over all compared positions; None for fp32, or without drift."""
    prompts = document.get("drift", {}).get("prompts", [])
    values = finite(value for prompt in prompts for value in prompt["eager_rmse"] or ())
    return math.sqrt(sum(value * value for value in values) / len(values)) if values else None
