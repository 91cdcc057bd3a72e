"""LayerNorm1P, projection, bias and relu² of one row in one launch; of several rows without the norm.

Numbers: the norm's are those of ``layernorm_tile``; the product is fp32; bias and activation follow on fp32 numbers,
rounded once when they are stored.

Shapes: O outputs of a block, I input features of a tile; rows are [I] or [R, I], see ``row_tiles``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nemotron_plugins.kernels.layernorm_tile import norm_parameters, normalised, row_statistics
from nemotron_plugins.kernels.row_tiles import (
    accumulate,
    align_outputs,
    new_accumulator,
    output_places,
    prefetch_weight,
    rows_tile,
    totals,
    weight_tile,
)

__all__ = ["layernorm_linear_kernel"]


@triton.jit
def layernorm_linear_kernel(
    x_ptr,  # [rows, INPUTS]; normalised where not HAS_NORM
    norm_weight_ptr,  # [INPUTS]: gamma - 1, read where HAS_NORM: then ROWS is 1
    norm_bias_ptr,  # [INPUTS], likewise
    weight_ptr,  # [OUTPUTS, INPUTS]
    bias_ptr,  # [OUTPUTS], read where HAS_BIAS
    out_ptr,  # [rows, OUTPUTS], of the run dtype or fp32
    rows,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    EPSILON: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_STATISTICS: tl.constexpr,
    HAS_NORM: tl.constexpr,
    RELU_SQUARED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (outputs, group of ROWS rows). Before it waits for the previous kernel, it reads parameters alone.

    With the norm, a tile of the weight is always on its way while one is multiplied: the statistics take as long as
    the memory does, and the second tile is asked for before them.
    """
    run_dtype: tl.constexpr = x_ptr.dtype.element_ty
    out_O = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    first_row = tl.program_id(1) * ROWS
    weight_OI = weight_tile(weight_ptr, out_O, 0, INPUTS, OUTPUTS, BLOCK_OUT, BLOCK_IN)
    if PREFETCH > 0:
        prefetch_weight(weight_ptr, out_O, BLOCK_IN, INPUTS, OUTPUTS, PREFETCH)
    if HAS_NORM:
        gamma, beta = norm_parameters(norm_weight_ptr, norm_bias_ptr, 0, run_dtype, INPUTS, BLOCK_IN)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    acc = new_accumulator(BLOCK_ROWS, BLOCK_OUT, BLOCK_IN)
    if HAS_NORM:
        row_ptr = x_ptr + first_row.to(tl.int64) * INPUTS
        following_OI = weight_OI
        if BLOCK_IN < INPUTS:
            following_OI = weight_tile(weight_ptr, out_O, BLOCK_IN, INPUTS, OUTPUTS, BLOCK_OUT, BLOCK_IN)
        mean, scale = row_statistics(row_ptr, INPUTS, EPSILON, BLOCK_STATISTICS)
        for first in tl.static_range(0, INPUTS, BLOCK_IN):
            if first > 0:
                gamma, beta = norm_parameters(norm_weight_ptr, norm_bias_ptr, first, run_dtype, INPUTS, BLOCK_IN)
            x = normalised(row_ptr, first, mean, scale, gamma, beta, run_dtype, INPUTS, BLOCK_IN)
            acc = accumulate(acc, weight_OI, x, BLOCK_ROWS)
            weight_OI = following_OI
            if first + 2 * BLOCK_IN < INPUTS:
                following_OI = weight_tile(
                    weight_ptr, out_O, first + 2 * BLOCK_IN, INPUTS, OUTPUTS, BLOCK_OUT, BLOCK_IN
                )
    else:
        x = rows_tile(x_ptr, first_row, rows, 0, INPUTS, ROWS, BLOCK_ROWS, BLOCK_IN)
        acc = accumulate(acc, weight_OI, x, BLOCK_ROWS)
        for first in range(BLOCK_IN, INPUTS, BLOCK_IN):
            weight_OI = weight_tile(weight_ptr, out_O, first, INPUTS, OUTPUTS, BLOCK_OUT, BLOCK_IN)
            x = rows_tile(x_ptr, first_row, rows, first, INPUTS, ROWS, BLOCK_ROWS, BLOCK_IN)
            acc = accumulate(acc, weight_OI, x, BLOCK_ROWS)
    y = totals(acc, BLOCK_ROWS)
    if HAS_BIAS:
        bias_O = tl.load(bias_ptr + out_O, mask=out_O < OUTPUTS, other=0.0).to(tl.float32)
        y += align_outputs(bias_O, BLOCK_ROWS)
    if RELU_SQUARED:
        # a comparison, so that NaN stays
        y = tl.where(y < 0.0, 0.0, y)
        y = y * y
    places, exists = output_places(out_O, first_row, rows, OUTPUTS, ROWS, BLOCK_ROWS)
    tl.store(out_ptr + places, y.to(out_ptr.dtype.element_ty), mask=exists)
