"""Rotation of queries and keys and the update of both caches, in one launch and in place.

Numbers: loads are widened to fp32, each product is rounded to the run dtype and then the sum or difference, which are
the rounding places of the op's definition. Compiled without multiply-add fusion the result equals the definition's bit
for bit.

Shapes: B sequences, S new tokens, H query heads, G key/value heads, D head_dim, T cache capacity, P positions in
the table, R rotary_dim. One block takes BLOCK_HEADS heads of q, of k or of v, of one token. q, k and v are three
tensors, or parts of one: their tokens lie Q_STRIDE or KV_STRIDE values apart, k's and v's after an offset.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["rotary_kv_cache_update_kernel"]


@triton.jit
def _angles(table_ptr, position, in_table, HALF: tl.constexpr, BLOCK_HALF: tl.constexpr):
    """A position's row of cos or sin as [1, R/2], fp32."""
    lane_h = tl.arange(0, BLOCK_HALF)
    # a position outside the table has no angle: NaN is seen, a wrong angle would not be
    # compared anew: the interpreter widens the conjunction with a scalar, and a mask must be boolean
    exists_h = ((lane_h < HALF) & in_table) != 0
    return tl.load(table_ptr + position * HALF + lane_h, mask=exists_h, other=float("nan")).to(tl.float32)[None, :]


@triton.jit
def _rotate_heads(
    src_ptr,
    dst_ptr,
    dst_stride,
    head_N,
    exists_N,
    cos_1h,
    sin_1h,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
):
    """Rotates heads of src into dst, whose heads lie dst_stride values apart."""
    run_dtype = dst_ptr.dtype.element_ty
    src_N1 = src_ptr + head_N[:, None] * HEAD_DIM
    dst_N1 = dst_ptr + head_N[:, None].to(tl.int64) * dst_stride
    lane_1h = tl.arange(0, BLOCK_HALF)[None, :]
    exists_Nh = (exists_N[:, None] & (lane_1h < HALF)) != 0
    first_Nh = tl.load(src_N1 + lane_1h, mask=exists_Nh, other=0.0).to(tl.float32)
    second_Nh = tl.load(src_N1 + HALF + lane_1h, mask=exists_Nh, other=0.0).to(tl.float32)
    first_cos = (first_Nh * cos_1h).to(run_dtype).to(tl.float32)
    second_sin = (second_Nh * sin_1h).to(run_dtype).to(tl.float32)
    second_cos = (second_Nh * cos_1h).to(run_dtype).to(tl.float32)
    first_sin = (first_Nh * sin_1h).to(run_dtype).to(tl.float32)
    tl.store(dst_N1 + lane_1h, (first_cos - second_sin).to(run_dtype), mask=exists_Nh)
    tl.store(dst_N1 + HALF + lane_1h, (second_cos + first_sin).to(run_dtype), mask=exists_Nh)
    if BLOCK_TAIL > 0:
        lane_1t = 2 * HALF + tl.arange(0, BLOCK_TAIL)[None, :]
        exists_Nt = (exists_N[:, None] & (lane_1t < HEAD_DIM)) != 0
        tl.store(dst_N1 + lane_1t, tl.load(src_N1 + lane_1t, mask=exists_Nt, other=0.0), mask=exists_Nt)


@triton.jit
def rotary_kv_cache_update_kernel(
    q_ptr,  # [B, S, H, D], or packed [B, S, (H + 2G) D]
    k_ptr,  # [B, S, G, D], or the packed tensor
    v_ptr,  # [B, S, G, D], or the packed tensor
    cos_ptr,  # [P, R/2]
    sin_ptr,  # [P, R/2]
    position_ptr,  # [B, S] int64
    write_index_ptr,  # [B] int64
    q_out_ptr,  # [B, S, H, D], may be a q of its own
    k_cache_ptr,  # [B, G, T, D], written in place
    v_cache_ptr,  # [B, G, T, D], written in place
    tokens,  # S
    capacity,  # T
    positions,  # P
    QUERY_HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    Q_STRIDE: tl.constexpr,
    KV_STRIDE: tl.constexpr,
    K_OFFSET: tl.constexpr,
    V_OFFSET: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
    BLOCK_TAIL: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    PDL: tl.constexpr,
):
    """A slot that does not exist is not written.

    Positions, indices and angles are read before it waits for the previous kernel: nothing that launches its dependents
    early writes them.
    """
    if PDL:
        gdc_launch_dependents()
    QUERY_PARTS: tl.constexpr = (QUERY_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    KV_PARTS: tl.constexpr = (KV_HEADS + BLOCK_HEADS - 1) // BLOCK_HEADS
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    position = tl.load(position_ptr + token)
    in_table = (position >= 0) & (position < positions)
    cos_1h = _angles(cos_ptr, position, in_table, HALF, BLOCK_HALF)
    sin_1h = _angles(sin_ptr, position, in_table, HALF, BLOCK_HALF)
    row = token // tokens
    slot = tl.load(write_index_ptr + row) + token % tokens
    if PDL:
        gdc_wait()
    if part < QUERY_PARTS:
        head_N = part * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
        _rotate_heads(
            q_ptr + token * Q_STRIDE, q_out_ptr + token * (QUERY_HEADS * HEAD_DIM), HEAD_DIM,
            head_N, head_N < QUERY_HEADS, cos_1h, sin_1h, HEAD_DIM, HALF, BLOCK_HALF, BLOCK_TAIL,
        )  # fmt: skip
    else:
        exists = (slot >= 0) & (slot < capacity)
        head_stride = capacity * HEAD_DIM
        k_src_ptr = k_ptr + K_OFFSET + token * KV_STRIDE
        v_src_ptr = v_ptr + V_OFFSET + token * KV_STRIDE
        dst_offset = row * KV_HEADS * head_stride + slot * HEAD_DIM
        if part < QUERY_PARTS + KV_PARTS:
            head_N = (part - QUERY_PARTS) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
            _rotate_heads(
                k_src_ptr, k_cache_ptr + dst_offset, head_stride, head_N, (head_N < KV_HEADS) & exists,
                cos_1h, sin_1h, HEAD_DIM, HALF, BLOCK_HALF, BLOCK_TAIL,
            )  # fmt: skip
        else:
            head_N = (part - QUERY_PARTS - KV_PARTS) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)
            lane_1D = tl.arange(0, BLOCK_DIM)[None, :]
            exists_ND = (((head_N < KV_HEADS) & exists)[:, None] & (lane_1D < HEAD_DIM)) != 0
            v_ND = tl.load(v_src_ptr + head_N[:, None] * HEAD_DIM + lane_1D, mask=exists_ND, other=0.0)
            dst_ND = v_cache_ptr + dst_offset + head_N[:, None].to(tl.int64) * head_stride + lane_1D
            tl.store(dst_ND, v_ND, mask=exists_ND)
