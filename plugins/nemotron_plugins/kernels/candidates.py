"""The C largest logits of each sequence, as a tournament: the C largest of each part, then of so many parts together.

A logit and its index are one key, an int64 whose order is the choice: in its high half the logit's bits, made to order
as integers do; in its low half the distance of the index from the largest 32-bit number, so that of equal logits the
lowest index comes first. NaN counts as infinity.

Shapes: B sequences, V vocabulary, P parts, N keys of a part or row, C candidates.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["candidates_kernel", "candidates_merge_kernel"]


@triton.jit
def _exchange(key_H, axis: tl.constexpr, descending):
    """Orders each pair along one axis of a hypercube: the larger first where ``descending`` is 1."""
    # Triton's own sort and topk find the partner by a reduction that the interpreter runs one number at a time; a sum
    # of two, which wraps, does as well
    partner_H = tl.sum(key_H, axis, keep_dims=True) - key_H
    AFTER: tl.constexpr = len(key_H.shape) - 1 - axis
    second_H = tl.reshape(tl.arange(0, 2), [1] * axis + [2] + [1] * AFTER)
    return tl.where((key_H > partner_H) != ((descending ^ second_H) != 0), partner_H, key_H)


@triton.jit
def _merge(key_H, STAGE: tl.constexpr):
    """Sorts bitonic runs of 2^STAGE: alternately descending and ascending, all descending where there is one run."""
    DIMS: tl.constexpr = len(key_H.shape)
    descending = 1 if DIMS == STAGE else 1 - tl.reshape(tl.arange(0, 2), [1] * (DIMS - 1 - STAGE) + [2] + [1] * STAGE)
    for i in tl.static_range(STAGE):
        key_H = _exchange(key_H, DIMS - STAGE + i, descending)
    return key_H


@triton.jit
def _largest(key_N, LOG_BLOCK: tl.constexpr, LOG_COUNT: tl.constexpr):
    """The 2^LOG_COUNT largest of 2^LOG_BLOCK keys, descending."""
    key_H = tl.reshape(key_N, [2] * LOG_BLOCK)
    for stage in tl.static_range(1, LOG_COUNT + 1):
        key_H = _merge(key_H, stage)
    # of a descending run next to an ascending one, the larger of each pair are the largest of both, and bitonic
    for _ in tl.static_range(LOG_BLOCK - LOG_COUNT):
        key_H = _merge(tl.max(key_H, len(key_H.shape) - 1 - LOG_COUNT), LOG_COUNT)
    return tl.reshape(key_H, [1 << LOG_COUNT])


@triton.jit
def candidates_kernel(
    logits_ptr,  # [B, V] fp32
    temperature_ptr,  # [1] fp32
    key_ptr,  # [B, P, C] int64: descending; the smallest int64 where a part has fewer logits
    mass_ptr,  # [B, P, 2] fp32: the largest logit / temperature, and the sum of exp(logit / temperature - largest)
    VOCAB: tl.constexpr,
    LOG_BLOCK: tl.constexpr,
    LOG_COUNT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (sequence, part)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    at_N = part * (1 << LOG_BLOCK) + tl.arange(0, 1 << LOG_BLOCK)
    inside_N = at_N < VOCAB
    logit_N = tl.load(logits_ptr + row * VOCAB + at_N, mask=inside_N, other=float("-inf"))
    logit_N = tl.where(logit_N != logit_N, float("inf"), logit_N)
    # -0 is equal to 0, and the lower index comes first
    bits_N = tl.where(logit_N == 0, 0.0, logit_N).to(tl.int32, bitcast=True)
    # of negative numbers the larger bits are the smaller number
    order_N = tl.where(bits_N < 0, bits_N ^ 0x7FFFFFFF, bits_N).to(tl.int64)
    key_N = (order_N << 32) | (0xFFFFFFFF - at_N.to(tl.int64))
    key_C = _largest(tl.where(inside_N, key_N, -(1 << 63)), LOG_BLOCK, LOG_COUNT)
    block = row * tl.num_programs(1) + part
    tl.store(key_ptr + (block << LOG_COUNT) + tl.arange(0, 1 << LOG_COUNT), key_C)

    # rounded as the host rounds it: at a low temperature the rounding of a score weighs more than that of the sum
    score_N = tl.div_rn(logit_N, tl.load(temperature_ptr))
    largest = tl.max(score_N, 0)
    # infinity less infinity is no number
    weight_N = tl.where(score_N == largest, 1.0, tl.exp(score_N - largest))
    tl.store(mass_ptr + 2 * block, largest)
    tl.store(mass_ptr + 2 * block + 1, tl.sum(tl.where(inside_N, weight_N, 0.0), 0))


@triton.jit
def candidates_merge_kernel(
    key_ptr,  # [B, N] int64
    largest_key_ptr,  # [B, P, C] int64: of each 2^LOG_BLOCK of the N, descending
    keys,  # N
    LOG_BLOCK: tl.constexpr,
    LOG_COUNT: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (sequence, part)."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    at_N = part * (1 << LOG_BLOCK) + tl.arange(0, 1 << LOG_BLOCK)
    key_N = tl.load(key_ptr + row * keys + at_N, mask=at_N < keys, other=-(1 << 63))
    key_C = _largest(key_N, LOG_BLOCK, LOG_COUNT)
    block = row * tl.num_programs(1) + part
    tl.store(largest_key_ptr + (block << LOG_COUNT) + tl.arange(0, 1 << LOG_COUNT), key_C)
