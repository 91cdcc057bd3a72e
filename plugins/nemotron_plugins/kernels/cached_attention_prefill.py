"""Cached attention of many new tokens per sequence, after any number of earlier ones: tiled and causal.

A tile holds BLOCK_M query vectors of one key/value head: the heads of a group side by side, token after token.
Slots that every token of the tile sees are taken without comparisons, the rest with them.

Shapes: B sequences, S new tokens, T cache capacity, H query heads, G key/value heads, D head_dim, M query
vectors.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nemotron_plugins.kernels.attention_tile import attend

__all__ = ["cached_attention_prefill_kernel"]


@triton.jit
def cached_attention_prefill_kernel(
    q_ptr,  # [B, S, H, D]
    k_cache_ptr,  # [B, G, T, D]
    v_cache_ptr,  # [B, G, T, D]
    query_start_ptr,  # [B] int64
    out_ptr,  # [B, S, H, D]
    tokens,  # S
    capacity,  # T
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SCALE_LOG2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (tile, sequence and key/value head). The last tiles read most and start first."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    row = tl.program_id(1) // KV_HEADS
    kv_head = tl.program_id(1) % KV_HEADS
    # never negative; an engine's builder, though, times its layers on memory that nobody wrote
    start = tl.maximum(tl.load(query_start_ptr + row).to(tl.int32), 0)
    first_token = tile * BLOCK_M // GROUP
    last_token = tl.minimum((tile * BLOCK_M + BLOCK_M - 1) // GROUP, tokens - 1)
    end = tl.minimum(start + last_token + 1, capacity)
    seen_by_all = tl.minimum(start + first_token + 1, end) // BLOCK_N * BLOCK_N

    m_M = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    token_M = m_M // GROUP
    head_M = kv_head * GROUP + m_M % GROUP
    vector_M = (row * tokens + token_M).to(tl.int64) * (KV_HEADS * GROUP) + head_M
    lane_1D = tl.arange(0, BLOCK_DIM)[None, :]
    exists_MD = (token_M < tokens)[:, None] & (lane_1D < HEAD_DIM)

    offset = (row.to(tl.int64) * KV_HEADS + kv_head) * capacity * HEAD_DIM
    q_MD = tl.load(q_ptr + vector_M[:, None] * HEAD_DIM + lane_1D, mask=exists_MD, other=0.0)
    max_M = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sum_M = tl.zeros((BLOCK_M,), tl.float32)
    acc_MD = tl.zeros((BLOCK_M, BLOCK_DIM), tl.float32)
    max_M, sum_M, acc_MD = attend(
        q_MD, k_cache_ptr + offset, v_cache_ptr + offset, max_M, sum_M, acc_MD, 0, seen_by_all, start + token_M,
        SCALE_LOG2, HEAD_DIM, BLOCK_DIM, BLOCK_N, False,
    )  # fmt: skip
    max_M, sum_M, acc_MD = attend(
        q_MD, k_cache_ptr + offset, v_cache_ptr + offset, max_M, sum_M, acc_MD, seen_by_all, end, start + token_M,
        SCALE_LOG2, HEAD_DIM, BLOCK_DIM, BLOCK_N, True,
    )  # fmt: skip
    out_MD = acc_MD / sum_M[:, None]
    tl.store(out_ptr + vector_M[:, None] * HEAD_DIM + lane_1D, out_MD.to(out_ptr.dtype.element_ty), mask=exists_MD)
