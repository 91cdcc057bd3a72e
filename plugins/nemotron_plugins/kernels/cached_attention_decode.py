"""Cached attention of a few new tokens per sequence: its filled slots are split over blocks, then combined.

The query heads of a group are the rows of one tile, so a key or value is read once for all of them. Blocks whose
part of a sequence is empty return at once: what is read follows each sequence's own length, not the longest one.

Shapes: B sequences, S new tokens, T cache capacity, H query heads, G key/value heads, D head_dim, M query vectors
of a group (new tokens × heads), P splits.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nemotron_plugins.kernels.attention_split import attend_part, part_of, prefetch_part, skip_part

__all__ = ["cached_attention_combine_kernel", "cached_attention_decode_kernel"]


@triton.jit
def cached_attention_decode_kernel(
    q_ptr,  # [B, S, H, D]
    k_cache_ptr,  # [B, G, T, D]
    v_cache_ptr,  # [B, G, T, D]
    query_start_ptr,  # [B] int64
    out_ptr,  # [B, S, H, D], written where SPLITS is 1
    partial_ptr,  # [B, S, H, P, D] fp32, else
    partial_lse_ptr,  # [B, S, H, P] fp32, else: log2 of the sum of powers of two, -inf for an empty part
    tokens,  # S
    capacity,  # T
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE_LOG2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (sequence and key/value head, split).

    Before it waits for the previous kernel, it reads lengths, which nothing writes that launches its dependents early,
    and asks for the first PREFETCH slots of its part of the cache: what is written later is in the L2 cache, too.
    """
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    split = tl.program_id(1)
    start = tl.load(query_start_ptr + row).to(tl.int32)
    begin, end = part_of(tl.minimum(start + tokens, capacity), split, SPLITS, BLOCK_N)
    offset = (row.to(tl.int64) * KV_HEADS + kv_head) * capacity * HEAD_DIM
    if PREFETCH > 0:
        prefetch_part(k_cache_ptr + offset, v_cache_ptr + offset, begin, end, HEAD_DIM, BLOCK_DIM, PREFETCH)
    if PDL:
        gdc_wait()

    m_M = tl.arange(0, BLOCK_M)
    token_M = m_M // GROUP
    exists_M = token_M < tokens
    vector_M = (row * tokens + token_M).to(tl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + m_M % GROUP
    if begin < end:
        lane_1D = tl.arange(0, BLOCK_DIM)[None, :]
        exists_MD = exists_M[:, None] & (lane_1D < HEAD_DIM)
        q_MD = tl.load(q_ptr + vector_M[:, None] * HEAD_DIM + lane_1D, mask=exists_MD, other=0.0)
        attend_part(
            q_MD, k_cache_ptr + offset, v_cache_ptr + offset, begin, end, start + token_M, vector_M, exists_M, split,
            out_ptr, partial_ptr, partial_lse_ptr, SCALE_LOG2, HEAD_DIM, BLOCK_DIM, BLOCK_M, BLOCK_N, SPLITS,
        )  # fmt: skip
    else:
        skip_part(vector_M, exists_M, split, partial_lse_ptr, BLOCK_M, SPLITS)


@triton.jit
def cached_attention_combine_kernel(
    partial_ptr,  # [B, S, H, P, D] fp32
    partial_lse_ptr,  # [B, S, H, P] fp32
    out_ptr,  # [B, S, H, D]
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (query vector): the splits' results, weighted by their share of the whole sum."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    vector = tl.program_id(0).to(tl.int64)
    split_P = tl.arange(0, SPLITS)
    lane_D = tl.arange(0, BLOCK_DIM)
    lse_P = tl.load(partial_lse_ptr + vector * SPLITS + split_P)
    weight_P = tl.exp2(lse_P - tl.max(lse_P, 0))
    # an empty part's memory was never written
    exists_PD = (lse_P != float("-inf"))[:, None] & (lane_D < HEAD_DIM)[None, :]
    partial_PD = tl.load(
        partial_ptr + (vector * SPLITS + split_P)[:, None] * HEAD_DIM + lane_D[None, :], mask=exists_PD, other=0.0
    )
    out_D = tl.sum(partial_PD * weight_P[:, None], 0) / tl.sum(weight_P, 0)
    tl.store(out_ptr + vector * HEAD_DIM + lane_D, out_D.to(out_ptr.dtype.element_ty), mask=lane_D < HEAD_DIM)
