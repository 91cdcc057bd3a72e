"""A sequence's filled slots split over blocks: what the decode kernels share.

Shapes: M query vectors of a group, D head_dim, P splits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nemotron_plugins.kernels.attention_tile import attend, prefetch

__all__ = ["attend_part", "part_of", "prefetch_part", "skip_part"]


@triton.jit
def part_of(filled, split, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr):
    """First slot of a part of the filled ones, and the one after its last; equal or less where it is empty."""
    part = (filled + SPLITS * BLOCK_N - 1) // (SPLITS * BLOCK_N) * BLOCK_N
    begin = split * part
    return begin, tl.minimum(begin + part, filled)


@triton.jit
def prefetch_part(k_ptr, v_ptr, begin, end, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, SLOTS: tl.constexpr):
    """Asks the L2 cache for the first SLOTS, a power of two, of a part of one cache head."""
    values = tl.minimum(end - begin, SLOTS) * HEAD_DIM
    prefetch(k_ptr + begin * HEAD_DIM, values, SLOTS * BLOCK_DIM)
    prefetch(v_ptr + begin * HEAD_DIM, values, SLOTS * BLOCK_DIM)


@triton.jit
def attend_part(
    q_MD,
    k_ptr,
    v_ptr,
    begin,
    end,
    last_slot_M,
    vector_M,
    exists_M,
    split,
    out_ptr,
    partial_ptr,
    partial_lse_ptr,
    SCALE_LOG2: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Attention of the query vectors over one part, into the output where it is the only one, else into partial."""
    lane_1D = tl.arange(0, BLOCK_DIM)[None, :]
    exists_MD = exists_M[:, None] & (lane_1D < HEAD_DIM)
    max_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    acc_MD = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
    max_M, sum_M, acc_MD = attend(
        q_MD, k_ptr, v_ptr, max_M, sum_M, acc_MD, begin, end, last_slot_M, SCALE_LOG2, HEAD_DIM, BLOCK_DIM, BLOCK_N,
        True,
    )  # fmt: skip
    if SPLITS == 1:
        out_MD = acc_MD / sum_M[:, None]
        tl.store(out_ptr + vector_M[:, None] * HEAD_DIM + lane_1D, out_MD.to(out_ptr.dtype.element_ty), mask=exists_MD)
    else:
        # the first of several new tokens may see nothing of the last part
        sum_M = tl.where(max_M == float("-inf"), 1.0, sum_M)
        out_MD = acc_MD / sum_M[:, None]
        split_M = vector_M * SPLITS + split
        tl.store(partial_ptr + split_M[:, None] * HEAD_DIM + lane_1D, out_MD, mask=exists_MD)
        tl.store(partial_lse_ptr + split_M, max_M + tl.log2(sum_M), mask=exists_M)


@triton.jit
def skip_part(vector_M, exists_M, split, partial_lse_ptr, BLOCK_M: tl.constexpr, SPLITS: tl.constexpr):
    """Notes that a part is empty."""
    if SPLITS > 1:
        empty_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        tl.store(partial_lse_ptr + vector_M * SPLITS + split, empty_M, mask=exists_M)
