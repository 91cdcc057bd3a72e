"""Rotation, cache update and attention of one new token per sequence, in one launch.

Every block rotates the queries of its group anew, which are few; the block whose part of the sequence ends with the new
token rotates its key, writes key and value into the caches, and reads them back from there. What the splits leave is
put together by ``cached_attention_combine_kernel``.

Numbers: those of ``rotary_kv_cache_update_kernel`` and ``cached_attention_decode_kernel``, bit for bit.

Shapes: B sequences, T cache capacity, H query heads, G key/value heads, D head_dim, P positions in the table or
splits, R rotary_dim, M query vectors of a group.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nemotron_plugins.kernels.attention_split import attend_part, part_of, prefetch_part, skip_part

__all__ = ["rotary_cached_attention_decode_kernel"]


@triton.jit
def _partner(lane, HALF: tl.constexpr):
    """The lane that one is rotated with; itself after the rotated ones."""
    return tl.where(lane < HALF, lane + HALF, tl.where(lane < 2 * HALF, lane - HALF, lane))


@triton.jit
def _rotate(x, partner, cos, sin, lane, HALF: tl.constexpr):
    """x and its partner lanes, of the run dtype, rotated by cos and sin, fp32; lanes after 2 HALF stay as they are."""
    run_dtype: tl.constexpr = x.dtype
    x_cos = (x.to(tl.float32) * cos).to(run_dtype).to(tl.float32)
    partner_sin = (partner.to(tl.float32) * sin).to(run_dtype).to(tl.float32)
    rotated = tl.where(lane < HALF, x_cos - partner_sin, x_cos + partner_sin)
    return tl.where(lane < 2 * HALF, rotated.to(run_dtype), x)


@triton.jit
def rotary_cached_attention_decode_kernel(
    qkv_ptr,  # [B, 1, (H + 2G) D]
    cos_ptr,  # [P, R/2]
    sin_ptr,  # [P, R/2]
    position_ptr,  # [B, 1] int64
    query_start_ptr,  # [B] int64: the slot of the new token
    k_cache_ptr,  # [B, G, T, D], written in place
    v_cache_ptr,  # [B, G, T, D], written in place
    out_ptr,  # [B, 1, H, D], written where SPLITS is 1
    partial_ptr,  # [B, 1, H, P, D] fp32, else
    partial_lse_ptr,  # [B, 1, H, P] fp32, else: log2 of the sum of powers of two, -inf for an empty part
    capacity,  # T
    positions,  # P
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    SCALE_LOG2: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    SPLITS: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (sequence and key/value head, split). A slot that does not exist is not written.

    Before it waits for the previous kernel, it reads lengths, positions and angles, which nothing writes that launches
    its dependents early, and asks for the first PREFETCH slots of its part of the cache: what is written later is in
    the L2 cache, too.
    """
    if PDL:
        gdc_launch_dependents()
    row = tl.program_id(0) // KV_HEADS
    kv_head = tl.program_id(0) % KV_HEADS
    split = tl.program_id(1)
    start = tl.load(query_start_ptr + row).to(tl.int32)
    begin, end = part_of(tl.minimum(start + 1, capacity), split, SPLITS, BLOCK_N)
    offset = (row.to(tl.int64) * KV_HEADS + kv_head) * capacity * HEAD_DIM
    k_ptr, v_ptr = k_cache_ptr + offset, v_cache_ptr + offset
    lane_D = tl.arange(0, BLOCK_DIM)
    position = tl.load(position_ptr + row)
    # a position outside the table has no angle: NaN is seen, a wrong angle would not be
    has_angle_D = ((lane_D < 2 * HALF) & (position >= 0) & (position < positions)) != 0
    angle_D = position * HALF + tl.where(lane_D < HALF, lane_D, lane_D - HALF)
    cos_D = tl.load(cos_ptr + angle_D, mask=has_angle_D, other=float("nan")).to(tl.float32)
    sin_D = tl.load(sin_ptr + angle_D, mask=has_angle_D, other=float("nan")).to(tl.float32)
    if PREFETCH > 0:
        prefetch_part(k_ptr, v_ptr, begin, end, HEAD_DIM, BLOCK_DIM, PREFETCH)
    if PDL:
        gdc_wait()

    m_M = tl.arange(0, BLOCK_M)
    exists_M = m_M < GROUP
    vector_M = row.to(tl.int64) * (KV_HEADS * GROUP) + kv_head * GROUP + m_M
    if begin < end:
        partner_D = _partner(lane_D, HALF)
        token_ptr = qkv_ptr + row.to(tl.int64) * ((GROUP + 2) * KV_HEADS * HEAD_DIM)
        if (start >= begin) & (start < end):
            k_new_ptr = token_ptr + (KV_HEADS * GROUP + kv_head) * HEAD_DIM
            exists_D = lane_D < HEAD_DIM
            k_D = tl.load(k_new_ptr + lane_D, mask=exists_D, other=0.0)
            k_partner_D = tl.load(k_new_ptr + partner_D, mask=exists_D, other=0.0)
            v_D = tl.load(k_new_ptr + KV_HEADS * HEAD_DIM + lane_D, mask=exists_D, other=0.0)
            place_D = start * HEAD_DIM + lane_D
            tl.store(k_ptr + place_D, _rotate(k_D, k_partner_D, cos_D, sin_D, lane_D, HALF), mask=exists_D)
            tl.store(v_ptr + place_D, v_D, mask=exists_D)
            # other threads of the block read it
            tl.debug_barrier()
        q_M1 = token_ptr + (kv_head * GROUP + m_M)[:, None] * HEAD_DIM
        exists_MD = exists_M[:, None] & (lane_D < HEAD_DIM)[None, :]
        q_MD = tl.load(q_M1 + lane_D[None, :], mask=exists_MD, other=0.0)
        q_partner_MD = tl.load(q_M1 + partner_D[None, :], mask=exists_MD, other=0.0)
        q_MD = _rotate(q_MD, q_partner_MD, cos_D[None, :], sin_D[None, :], lane_D[None, :], HALF)
        attend_part(
            q_MD, k_ptr, v_ptr, begin, end, tl.zeros_like(m_M) + start, vector_M, exists_M, split,
            out_ptr, partial_ptr, partial_lse_ptr, SCALE_LOG2, HEAD_DIM, BLOCK_DIM, BLOCK_M, BLOCK_N, SPLITS,
        )  # fmt: skip
    else:
        skip_part(vector_M, exists_M, split, partial_lse_ptr, BLOCK_M, SPLITS)
