"""Shapes that an engine is built for: the least, the best and the most of every dynamic dim.

Dims: batch B, tokens S, positions K whose logits are wanted, cache_len T.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron_runtime.limits import Limits

__all__ = ["MAX_LOGITS", "InputShapes", "Range", "decode_ranges", "input_shapes", "prefill_profiles", "prefill_ranges"]

# positions of a row whose logits one pass of a prefill engine gives
MAX_LOGITS = 16
# positions of all rows together, at most, whose logits one pass gives: each takes a vector of the vocabulary's length
_ALL_LOGITS = 128
# tokens of a row that is not alone: at least so many, and a multiple, which kernels' tiles are filled by
_ROW_TOKENS, _TOKENS_STEP = 64, 16
Shape = tuple[int, ...]
# name of an input → its least, best and largest shape
InputShapes = dict[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class Range:
    """Sizes that a dim may have, and the one that kernels are chosen for."""

    least: int
    best: int
    most: int


def decode_ranges(limits: Limits) -> dict[str, Range]:
    """One new token per row."""
    return {"batch": Range(1, 1, limits.max_batch), "cache_len": Range(1, limits.max_seq_len, limits.max_seq_len)}


def prefill_ranges(limits: Limits, max_logits: int = MAX_LOGITS) -> dict[str, Range]:
    """Several new tokens per row; a full chunk of one row is what kernels are chosen for."""
    return {
        **decode_ranges(limits),
        "tokens": Range(1, limits.prefill_chunk, limits.prefill_chunk),
        "positions": Range(1, 1, max_logits),
    }


def prefill_profiles(limits: Limits) -> tuple[dict[str, Range], ...]:
    """Sizes of the prefill engine's optimization profiles, which bound its activations.

    One row takes up to a chunk of tokens; several rows take about as many together, in more passes. Without that bound
    activations would be ``max_batch`` times as large, and a pass would take no less time per token.
    """
    rows = limits.max_batch
    each = max(_ROW_TOKENS, limits.prefill_chunk // rows // _TOKENS_STEP * _TOKENS_STEP)
    several = prefill_ranges(limits, min(MAX_LOGITS, max(1, _ALL_LOGITS // rows)))
    if rows == 1 or each >= limits.prefill_chunk:
        return (several,)
    several |= {"batch": Range(1, rows, rows), "tokens": Range(1, each, each)}
    return {**prefill_ranges(limits), "batch": Range(1, 1, 1)}, several


def input_shapes(inputs: Iterable[Any], ranges: Mapping[str, Range]) -> InputShapes:
    """Shapes of the inputs that have a symbolic dim; the others, weights among them, need none.

    Args:
        inputs: values of an ONNX graph.
        ranges: of every symbolic dim.
    """
    found: InputShapes = {}
    for value in inputs:
        assert value.name
        assert value.shape is not None
        if all(isinstance(dim, int) for dim in value.shape):
            continue
        sizes = [Range(dim, dim, dim) if isinstance(dim, int) else ranges[str(dim.value)] for dim in value.shape]
        found[value.name] = (
            tuple(size.least for size in sizes),
            tuple(size.best for size in sizes),
            tuple(size.most for size in sizes),
        )
    return found
