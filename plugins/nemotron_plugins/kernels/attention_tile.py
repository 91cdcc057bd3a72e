"""One tile of query vectors over a stretch of one cache head: what the decode and the prefill kernel share.

Numbers: scores, softmax and sums are fp32; the weights are cast to the run dtype for the second product, as in the op's
definition, but before their division by the sum. fp32 inputs are multiplied in full precision, not in TF32.

Shapes: M query vectors, N cache slots of a block, D head_dim.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["attend", "load_tile", "prefetch"]

_LINE_BYTES: tl.constexpr = tl.constexpr(128)


@triton.jit
def prefetch(base_ptr, values, MOST: tl.constexpr):
    """Asks for so many values from base_ptr on, MOST at most, to be brought into the L2 cache; none where below 1."""
    LINE: tl.constexpr = _LINE_BYTES // (base_ptr.dtype.element_ty.primitive_bitwidth // 8)
    value_L = tl.arange(0, MOST // LINE) * LINE
    tl.inline_asm_elementwise(
        """{
            .reg .pred wanted;
            setp.ne.u32 wanted, $2, 0;
            @wanted prefetch.global.L2 [$1];
            mov.u32 $0, 0;
        }""",
        "=r,l,r",
        [(base_ptr + value_L).to(tl.int64), (value_L < values).to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def load_tile(base_ptr, slot_N, end, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BOUNDED: tl.constexpr):
    """Slots of one cache head as [N, D]; zeros from slot ``end`` on, whose memory is not read, where BOUNDED."""
    lane_1D = tl.arange(0, BLOCK_DIM)[None, :]
    pointers_ND = base_ptr + slot_N[:, None] * HEAD_DIM + lane_1D
    if BOUNDED:
        tile_ND = tl.load(pointers_ND, mask=(slot_N < end)[:, None] & (lane_1D < HEAD_DIM), other=0.0)
    elif BLOCK_DIM != HEAD_DIM:
        tile_ND = tl.load(pointers_ND, mask=lane_1D < HEAD_DIM, other=0.0)
    else:
        tile_ND = tl.load(pointers_ND)
    return tile_ND


@triton.jit
def attend(
    q_MD,
    k_ptr,
    v_ptr,
    max_M,
    sum_M,
    acc_MD,
    begin,
    end,
    last_slot_M,
    SCALE_LOG2: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BOUNDED: tl.constexpr,
):
    """Takes slots begin to end into the running softmax: maximum (of scores in powers of two), sum and weighted values.

    Where BOUNDED, query m sees slots up to last_slot_M[m]; else ``end - begin`` is a multiple of BLOCK_N and all
    of them are seen by every query.
    """
    for block in range(begin, end, BLOCK_N):
        slot_N = block + tl.arange(0, BLOCK_N)
        k_ND = load_tile(k_ptr, slot_N, end, HEAD_DIM, BLOCK_DIM, BOUNDED)
        scores_MN = tl.dot(q_MD, tl.trans(k_ND), input_precision="ieee") * SCALE_LOG2
        if BOUNDED:
            visible_MN = (slot_N[None, :] <= last_slot_M[:, None]) & (slot_N < end)[None, :]
            scores_MN = tl.where(visible_MN, scores_MN, float("-inf"))
        new_max_M = tl.maximum(max_M, tl.max(scores_MN, 1))
        # a query that has seen no slot yet has no maximum: -inf - -inf would be NaN
        base_M = tl.where(new_max_M == float("-inf"), 0.0, new_max_M) if BOUNDED else new_max_M
        weights_MN = tl.exp2(scores_MN - base_M[:, None])
        shrink_M = tl.exp2(max_M - base_M)
        sum_M = sum_M * shrink_M + tl.sum(weights_MN, 1)
        v_ND = load_tile(v_ptr, slot_N, end, HEAD_DIM, BLOCK_DIM, BOUNDED)
        acc_MD = acc_MD * shrink_M[:, None]
        acc_MD = tl.dot(weights_MN.to(v_ND.dtype), v_ND, acc_MD, input_precision="ieee")
        max_M = new_max_M
    return max_M, sum_M, acc_MD
