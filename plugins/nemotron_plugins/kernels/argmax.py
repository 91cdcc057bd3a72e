"""The index of the largest logit of each sequence: first of each part of the vocabulary, then of all.

Of equal logits the lowest index wins; NaN counts as infinity, so that an index is always one of the vocabulary.

Shapes: B sequences, V vocabulary, P parts.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["argmax_combine_kernel", "argmax_kernel"]


@triton.jit
def argmax_kernel(
    logits_ptr,  # [B, V] fp32
    partial_ptr,  # [B, P] fp32: the largest of the part, -inf for an empty one
    partial_index_ptr,  # [B, P] int64: its index, V for an empty part
    VOCAB: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (sequence, part)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    PART: tl.constexpr = ((VOCAB + PARTS - 1) // PARTS + BLOCK - 1) // BLOCK * BLOCK
    lane_K = tl.arange(0, BLOCK)
    best_K = tl.full((BLOCK,), float("-inf"), tl.float32)
    index_K = tl.full((BLOCK,), VOCAB, tl.int32)
    for first in range(0, PART, BLOCK):
        at_K = part * PART + first + lane_K
        logit_K = tl.load(logits_ptr + row * VOCAB + at_K, mask=at_K < VOCAB, other=float("-inf"))
        logit_K = tl.where(logit_K != logit_K, float("inf"), logit_K)
        # the first of a lane stays; an index of its own even where all are -inf
        better_K = ((logit_K > best_K) | ((index_K == VOCAB) & (at_K < VOCAB))) != 0
        best_K = tl.where(better_K, logit_K, best_K)
        index_K = tl.where(better_K, at_K, index_K)
    best = tl.max(best_K, 0)
    index = tl.min(tl.where(best_K == best, index_K, VOCAB), 0)
    tl.store(partial_ptr + row * PARTS + part, best)
    tl.store(partial_index_ptr + row * PARTS + part, index.to(tl.int64))


@triton.jit
def argmax_combine_kernel(
    partial_ptr,  # [B, P] fp32
    partial_index_ptr,  # [B, P] int64
    token_ptr,  # [B] int64
    PARTS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (sequence)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    part_P = tl.arange(0, PARTS)
    best_P = tl.load(partial_ptr + row * PARTS + part_P)
    index_P = tl.load(partial_index_ptr + row * PARTS + part_P)
    # parts lie in order and an empty one has an index past all others
    tl.store(token_ptr + row, tl.min(tl.where(best_P == tl.max(best_P, 0), index_P, 1 << 62), 0))
