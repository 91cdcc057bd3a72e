"""Projection, bias and residual sum of few rows in one launch.

Numbers: product and sums are fp32, rounded once when they are stored.

Shapes: O outputs of a block, I input features of a tile; rows are [I] or [R, I], see ``row_tiles``.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

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

__all__ = ["linear_residual_kernel"]


@triton.jit
def linear_residual_kernel(
    x_ptr,  # [rows, INPUTS]
    weight_ptr,  # [OUTPUTS, INPUTS]
    bias_ptr,  # [OUTPUTS], read where HAS_BIAS
    residual_ptr,  # [rows, OUTPUTS]
    out_ptr,  # [rows, OUTPUTS]
    rows,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    PREFETCH: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (outputs, group of ROWS rows). Before it waits for the previous kernel, it reads the weight alone."""
    out_O = tl.program_id(0) * BLOCK_OUT + tl.arange(0, BLOCK_OUT)
    first_row = tl.program_id(1) * ROWS
    weight_OI = weight_tile(weight_ptr, out_O, 0, INPUTS, OUTPUTS, BLOCK_OUT, BLOCK_IN)
    if PREFETCH > 0:
        prefetch_weight(weight_ptr, out_O, BLOCK_IN, INPUTS, OUTPUTS, PREFETCH)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    x = rows_tile(x_ptr, first_row, rows, 0, INPUTS, ROWS, BLOCK_ROWS, BLOCK_IN)
    acc = accumulate(new_accumulator(BLOCK_ROWS, BLOCK_OUT, BLOCK_IN), weight_OI, x, BLOCK_ROWS)
    for first in range(BLOCK_IN, INPUTS, BLOCK_IN):
        weight_OI = weight_tile(weight_ptr, out_O, first, INPUTS, OUTPUTS, BLOCK_OUT, BLOCK_IN)
        x = rows_tile(x_ptr, first_row, rows, first, INPUTS, ROWS, BLOCK_ROWS, BLOCK_IN)
        acc = accumulate(acc, weight_OI, x, BLOCK_ROWS)
    y = totals(acc, BLOCK_ROWS)
    if HAS_BIAS:
        bias_O = tl.load(bias_ptr + out_O, mask=out_O < OUTPUTS, other=0.0).to(tl.float32)
        y += align_outputs(bias_O, BLOCK_ROWS)
    places, exists = output_places(out_O, first_row, rows, OUTPUTS, ROWS, BLOCK_ROWS)
    y += tl.load(residual_ptr + places, mask=exists, other=0.0).to(tl.float32)
    tl.store(out_ptr + places, y.to(out_ptr.dtype.element_ty), mask=exists)
