"""Drift by position and by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nemotron_runtime.checks.rules import RMSE_RATIO

from nemotron_export.parity.report.chart import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Chart,
    Mark,
    Rule,
    Series,
    Tick,
    error_ticks,
    series,
)  # fmt: skip
from nemotron_export.parity.report.numbers import number, within
from nemotron_export.parity.report.scales import Scale, error_scale, finite

__all__ = ["eager_rmse", "layer_plot", "logit_tolerance", "position_plot"]

_MOST_STYLES = 6
_MOST_NAMES, _TICK_SPACE = 12, 34


def position_plot(document: dict[str, Any]) -> Chart | None:
    """Errors by position, a line for each prompt; in a lower precision with PyTorch's own."""
    prompts = document.get("drift", {}).get("prompts", [])
    if not prompts:
        return None
    dtype, own = document["dtype"], eager_rmse(document)
    key = "max_error" if own is None else "rmse"
    bound = logit_tolerance(document) if own is None else RMSE_RATIO * own
    values = [value for prompt in prompts for value in prompt[key]]
    if own is not None:
        values += [value for prompt in prompts for value in prompt["eager_rmse"] or ()]
    x = Scale(0, max(max(max(prompt["positions"]) for prompt in prompts), 1), LEFT, RIGHT, "log1p")
    y = error_scale(values, [] if bound is None else [bound], BOTTOM, TOP)
    lines = []
    for index, prompt in enumerate(prompts):
        lines += _prompt_lines(prompt, key, f"s{index % _MOST_STYLES + 1}", dtype, x, y)
    rules: tuple[Rule, ...] = ()
    if bound is not None:
        # in a lower precision the line runs through the data, where a label would hide them
        rules = (Rule(LEFT, y(bound), RIGHT, y(bound), f"tolerance, {number(bound)}" if own is None else ""),)
    if own is None:
        caption = "The largest difference from eager PyTorch fp32 among all outputs of a position, as a share of the "
        caption += "reference's range. Rotary errors vanish at position 0 and grow with the distance."
        y_label = "max |Δ| / range"
    else:
        caption = f"Root mean square difference from eager PyTorch fp32; dashed: eager PyTorch's own in {dtype}. "
        caption += f"Red: {RMSE_RATIO:g} × PyTorch's RMSE over all, {number(bound)}; it bounds all positions together."
        y_label = "RMSE"
    return Chart(
        "drift-by-position", "Drift by position", caption, "position in the prompt (logarithmic)", y_label,
        _position_ticks(x), error_ticks(y, values), tuple(lines), rules,
    )  # fmt: skip


def layer_plot(document: dict[str, Any]) -> Chart | None:
    """The bisection's coarse walk: errors of what leaves each layer, in prefill and in decode."""
    bisection = document.get("bisection")
    points = [] if bisection is None else bisection["layers"]
    if not points:
        return None
    names = list(dict.fromkeys(point["point"] for point in points))
    x = Scale(0, max(len(names) - 1, 1), LEFT + 16, RIGHT - 16)
    errors = [point["error"] for point in points]
    y = error_scale(errors, [point["tolerance"] for point in points], BOTTOM, TOP)
    lines: list[Series] = []
    constant = len({point["tolerance"] for point in points}) == 1
    for style, stage in (("s1", "prefill"), ("s2", "decode")):
        walked = [point for point in points if point["stage"] == stage]
        if not walked:
            continue
        xs = [x(names.index(point["point"])) for point in walked]
        labels = [f"{stage}, {point['point']}" for point in walked]
        lines.append(series(stage, style, xs, [point["error"] for point in walked], y, labels))
        if not constant:
            bounds = [point["tolerance"] for point in walked]
            lines.append(series(f"{stage}, tolerance", f"{style} own", xs, bounds, y, labels, dots=False))
    level = y(points[0]["tolerance"])
    rules = (Rule(LEFT, level, RIGHT, level, f"tolerance, {number(points[0]['tolerance'])}"),) if constant else ()
    caption = "What leaves each decoder layer, compared with eager PyTorch: the largest difference at the chosen "
    caption += "positions, as a share of the value's range."
    return Chart(
        "drift-by-layer", "Drift by layer", caption, "decoder layer", "max |Δ| / range of the value",
        _layer_ticks(points, names, x), error_ticks(y, errors), tuple(lines), rules,
        marks=_first_bad(points, names, x, y),
    )  # fmt: skip


def logit_tolerance(document: dict[str, Any]) -> float | None:
    """The tolerance of the fp32 checks; None in a lower precision, and where nothing was checked."""
    tolerances = [row["tolerance"] for row in document["rows"] if row["tolerance"] > 0]
    return max(tolerances) if tolerances and document["dtype"] == "float32" else None


def eager_rmse(document: dict[str, Any]) -> float | None:
    """PyTorch's own RMSE over all compared positions; None for fp32, or without drift."""
    prompts = document.get("drift", {}).get("prompts", [])
    values = finite(value for prompt in prompts for value in prompt["eager_rmse"] or ())
    return math.sqrt(sum(value * value for value in values) / len(values)) if values else None


def _prompt_lines(prompt: dict[str, Any], key: str, style: str, dtype: str, x: Scale, y: Scale) -> list[Series]:
    xs = [x(position) for position in prompt["positions"]]
    name = f"{prompt['tokens']} tokens"
    labels = [f"{name}, position {position}" for position in prompt["positions"]]
    lines = [series(name, style, xs, prompt[key], y, labels)]
    if prompt["eager_rmse"] is not None:
        own = f"{name}, PyTorch {dtype}"
        lines.append(series(own, f"{style} own", xs, prompt["eager_rmse"], y, labels, dots=False))
    return lines


def _position_ticks(x: Scale) -> tuple[Tick, ...]:
    steps = [0, *(factor * 10**power for power in range(7) for factor in (1, 3))]
    return tuple(Tick(x(step), str(step)) for step in steps if step <= x.high)


def _layer_ticks(points: Sequence[dict[str, Any]], names: Sequence[str], x: Scale) -> tuple[Tick, ...]:
    layers = {point["point"]: point["layer"] for point in points}
    numbered = [name for name in names if layers[name] is not None]
    every = -(-max(len(numbered), 1) // _MOST_NAMES)
    ticks: list[Tick] = []
    # the ends first: where there is no room for all, their neighbours go unnamed
    for index in sorted(range(len(names)), key=lambda index: index not in (0, len(names) - 1)):
        layer, module = layers[names[index]], names[index].partition(": ")[0].rpartition(".")[2]
        roomy = all(abs(x(index) - tick.at) >= _TICK_SPACE for tick in ticks)
        if roomy and (layer is None or layer % every == 0):
            ticks.append(Tick(x(index), {"embed_tokens": "embed", "lm_head": "head"}.get(module, module)))
    return tuple(ticks)


def _first_bad(points: Sequence[dict[str, Any]], names: Sequence[str], x: Scale, y: Scale) -> tuple[Mark, ...]:
    for point in points:
        if not within(point):
            error = point["error"]
            place = y.end if error is None else y(error)
            module = point["point"].partition(": ")[0].removeprefix("model.")
            text = f"first past the tolerance: {module}, {point['stage']}"
            return (Mark(x(names.index(point["point"])), place, text),)
    return ()
