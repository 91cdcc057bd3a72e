"""Drift by position and by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron_runtime.checks.rules import RMSE_RATIO

from nemotron_export.parity.report.chart import LEFT, RIGHT, Chart, Mark, Scale, Tick, error_axis, level, series
from nemotron_export.parity.report.numbers import eager_rmse, logit_tolerance, number

__all__ = ["layer_plot", "position_plot"]

_MOST_STYLES = 6
_MOST_NAMES, _TICK_SPACE = 12, 34


def position_plot(document: dict[str, Any]) -> Chart | None:
    """Errors by position, a line for each prompt; in a lower precision with PyTorch's own."""
    prompts = document.get("drift", {}).get("prompts", [])
    if not prompts:
        return None
    dtype, own = document["dtype"], eager_rmse(document)
    if own is None:
        key, bound, y_label = "max_error", logit_tolerance(document), "max |Δ| / range"
        caption = "The largest difference from eager PyTorch fp32 among all outputs of a position, as a share of the "
        caption += "reference's range. Rotary errors vanish at position 0 and grow with the distance."
    else:
        key, bound, y_label = "rmse", RMSE_RATIO * own, "RMSE"
        caption = f"Root mean square difference from eager PyTorch fp32; dashed: eager PyTorch's own in {dtype}. "
        caption += f"Red: {RMSE_RATIO:g} × PyTorch's RMSE over all, {number(bound)}; it bounds all positions together."
    values = [value for prompt in prompts for shown in (key, "eager_rmse") for value in prompt[shown] or ()]
    x = Scale(0, max(1, *(max(prompt["positions"]) for prompt in prompts)), LEFT, RIGHT, "log1p")
    y, y_ticks = error_axis(values, [] if bound is None else [bound])
    lines = []
    for index, prompt in enumerate(prompts):
        xs, name = [x(position) for position in prompt["positions"]], f"{prompt['tokens']} tokens"
        labels = [f"{name}, position {position}" for position in prompt["positions"]]
        style = f"s{index % _MOST_STYLES + 1}"
        lines.append(series(name, style, xs, prompt[key], y, labels))
        if prompt["eager_rmse"] is not None:
            lines.append(series(f"{name}, PyTorch {dtype}", f"{style} own", xs, prompt["eager_rmse"], y, labels))
    # in a lower precision the line runs through the data, where a label would hide them
    text = f"tolerance, {number(bound)}" if own is None else ""
    steps = [0, *(first * 10**power for power in range(7) for first in (1, 3))]
    return Chart(
        "drift-by-position", "Drift by position", caption, "position in the prompt (logarithmic)", y_label,
        [Tick(x(step), str(step)) for step in steps if step <= x.high], y_ticks, lines,
        [] if bound is None else [level(y(bound), text)],
    )  # fmt: skip


def layer_plot(document: dict[str, Any]) -> Chart | None:
    """The bisection's coarse walk: errors of what leaves each layer, in prefill and in decode."""
    points = document.get("bisection", {}).get("layers", [])
    if not points:
        return None
    names = list(dict.fromkeys(point["point"] for point in points))
    x = Scale(0, max(len(names) - 1, 1), LEFT + 16, RIGHT - 16)
    tolerances = [point["tolerance"] for point in points]
    y, y_ticks = error_axis([point["error"] for point in points], tolerances)
    lines, rules = [], []
    if len(set(tolerances)) == 1:
        rules = [level(y(tolerances[0]), f"tolerance, {number(tolerances[0])}")]
    for style, stage in (("s1", "prefill"), ("s2", "decode")):
        walked = [point for point in points if point["stage"] == stage]
        if not walked:
            continue
        xs = [x(names.index(point["point"])) for point in walked]
        labels = [f"{stage}, {point['point']}" for point in walked]
        lines.append(series(stage, style, xs, [point["error"] for point in walked], y, labels))
        if not rules:
            bounds = [point["tolerance"] for point in walked]
            lines.append(series(f"{stage}, tolerance", f"{style} own", xs, bounds, y, labels))
    caption = "What leaves each decoder layer, compared with eager PyTorch: the largest difference at the chosen "
    caption += "positions, as a share of the value's range."
    marks = []
    first = next((point for point in points if not point["passed"]), None)
    if first is not None:
        module = first["point"].partition(": ")[0].removeprefix("model.")
        place = y.end if first["error"] is None else y(first["error"])
        text = f"first past the tolerance: {module}, {first['stage']}"
        marks = [Mark(x(names.index(first["point"])), place, text)]
    return Chart(
        "drift-by-layer", "Drift by layer", caption, "decoder layer", "max |Δ| / range of the value",
        _layer_ticks(points, names, x), y_ticks, lines, rules, marks=marks,
    )  # fmt: skip


def _layer_ticks(points: Sequence[dict[str, Any]], names: Sequence[str], x: Scale) -> list[Tick]:
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
    return ticks
