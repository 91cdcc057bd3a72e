"""Shapes that an engine is built for: the least, the best and the most of every dynamic dim.

Dims: batch B, tokens S, positions K whose logits are wanted, cache_len T.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from nemotron_runtime.bundle.limits import Limits

__all__ = ["MAX_LOGITS", "InputShapes", "Range", "decode_ranges", "input_shapes", "pass_ranges", "prefill_ranges"]

# positions of a sequence whose logits one pass of a prefill engine gives
MAX_LOGITS = 16
# of all sequences of a pass together, where they are more than one: new tokens, and positions whose logits are given,
# which take a vector of the vocabulary's length each
_PASS_TOKENS, _PASS_LOGITS = 8192, 128
Shape = tuple[int, ...]
# name of an input → its least, best and largest shape
InputShapes = dict[str, tuple[Shape, Shape, Shape]]


class Range(NamedTuple):
    """Sizes that a dim may have, and the one that kernels are chosen for."""

    least: int
    best: int
    most: int


def decode_ranges(limits: Limits) -> dict[str, Range]:
    """One new token per sequence."""
    return {"batch": Range(1, 1, limits.max_batch), "cache_len": Range(1, limits.max_seq_len, limits.max_seq_len)}


def prefill_ranges(limits: Limits, max_logits: int = MAX_LOGITS) -> dict[str, Range]:
    """Several new tokens per sequence; a full chunk of one sequence is what kernels are chosen for."""
    return {
        **decode_ranges(limits),
        "tokens": Range(1, limits.prefill_chunk, limits.prefill_chunk),
        "positions": Range(1, 1, max_logits),
    }


def pass_ranges(limits: Limits) -> dict[str, Range]:
    """Sizes of one pass of a session's prefill engine; a session splits more sequences into micro-batches.

    A pass of several thousand tokens takes no less time per token than one of all sequences would, whose activations
    would be many times as large. One optimization profile for few sequences and another for many would serve too, but
    TensorRT 10.6 cannot free contexts of an engine that has plugins and two profiles: the process dies.
    """
    sequences = max(1, min(limits.max_batch, _PASS_TOKENS // limits.prefill_chunk))
    ranges = prefill_ranges(limits, min(MAX_LOGITS, max(1, _PASS_LOGITS // sequences)))
    return {**ranges, "batch": Range(1, 1, sequences)}


def input_shapes(inputs: Iterable[Any], ranges: Mapping[str, Range]) -> InputShapes:
    """Shapes of the inputs that have a symbolic dim; the others, weights among them, need none."""
    found: InputShapes = {}
    for value in inputs:
        assert value.name
        assert value.shape is not None
        if all(isinstance(dim, int) for dim in value.shape):
            continue
        sizes = [Range(dim, dim, dim) if isinstance(dim, int) else ranges[str(dim.value)] for dim in value.shape]
        least, best, most = zip(*sizes, strict=True)
        found[value.name] = (least, best, most)
    return found
