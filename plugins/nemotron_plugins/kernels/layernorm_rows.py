"""LayerNorm1P of several rows, before a projection: there each block would compute the norm of all rows again.

Numbers: those of ``layernorm_tile``, as in the projection of one row.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from nemotron_plugins.kernels.layernorm_tile import norm_parameters, normalised, row_statistics

__all__ = ["layernorm_rows_kernel"]


@triton.jit
def layernorm_rows_kernel(
    x_ptr,  # [rows, INPUTS]
    norm_weight_ptr,  # [INPUTS]: gamma - 1
    norm_bias_ptr,  # [INPUTS]
    out_ptr,  # [rows, INPUTS]
    INPUTS: tl.constexpr,
    EPSILON: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    PDL: tl.constexpr,
):
    """Block (row). Before it waits for the previous kernel, it reads parameters alone."""
    run_dtype: tl.constexpr = x_ptr.dtype.element_ty
    offset = tl.program_id(0).to(tl.int64) * INPUTS
    gamma_I, beta_I = norm_parameters(norm_weight_ptr, norm_bias_ptr, 0, run_dtype, INPUTS, BLOCK_IN)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    mean, scale = row_statistics(x_ptr + offset, INPUTS, EPSILON, BLOCK_IN)
    lane_I = tl.arange(0, BLOCK_IN)
    normed_I = normalised(x_ptr + offset, 0, mean, scale, gamma_I, beta_I, run_dtype, INPUTS, BLOCK_IN)
    tl.store(out_ptr + offset + lane_I, normed_I, mask=lane_I < INPUTS)
    for first in range(BLOCK_IN, INPUTS, BLOCK_IN):
        gamma_I, beta_I = norm_parameters(norm_weight_ptr, norm_bias_ptr, first, run_dtype, INPUTS, BLOCK_IN)
        normed_I = normalised(x_ptr + offset, first, mean, scale, gamma_I, beta_I, run_dtype, INPUTS, BLOCK_IN)
        tl.store(out_ptr + offset + first + lane_I, normed_I, mask=first + lane_I < INPUTS)
