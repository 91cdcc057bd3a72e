"""LayerNorm1P of one row, a tile of features at a time.

Numbers: gamma, which is the stored weight plus one, is rounded to the run dtype, and so is the normalised x; statistics
are fp32.

Shapes: I input features of a tile, K those of a tile of statistics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from nemotron_plugins.kernels.row_tiles import features

__all__ = ["norm_parameters", "normalised", "row_statistics"]


@triton.jit
def row_statistics(row_ptr, INPUTS: tl.constexpr, EPSILON: tl.constexpr, BLOCK_STATISTICS: tl.constexpr):
    """Mean and reciprocal of the standard deviation of a row [INPUTS], fp32."""
    lane_K = tl.arange(0, BLOCK_STATISTICS)
    if INPUTS <= BLOCK_STATISTICS:
        x_K = features(row_ptr, 0, INPUTS, BLOCK_STATISTICS).to(tl.float32)
        mean = tl.sum(x_K, 0) / INPUTS
        deviation_K = tl.where(lane_K < INPUTS, x_K - mean, 0.0)
        squares = tl.sum(deviation_K * deviation_K, 0)
    else:
        total_K = features(row_ptr, 0, INPUTS, BLOCK_STATISTICS).to(tl.float32)
        for first in range(BLOCK_STATISTICS, INPUTS, BLOCK_STATISTICS):
            total_K += features(row_ptr, first, INPUTS, BLOCK_STATISTICS).to(tl.float32)
        mean = tl.sum(total_K, 0) / INPUTS
        total_K = tl.zeros_like(total_K)
        for first in range(0, INPUTS, BLOCK_STATISTICS):
            x_K = features(row_ptr, first, INPUTS, BLOCK_STATISTICS).to(tl.float32)
            deviation_K = tl.where(first + lane_K < INPUTS, x_K - mean, 0.0)
            total_K += deviation_K * deviation_K
        squares = tl.sum(total_K, 0)
    return mean, 1.0 / tl.sqrt(squares / INPUTS + EPSILON)


@triton.jit
def norm_parameters(
    norm_weight_ptr, norm_bias_ptr, first, RUN_DTYPE: tl.constexpr, INPUTS: tl.constexpr, BLOCK_IN: tl.constexpr
):
    """gamma and beta [I] of input features from ``first`` on, fp32."""
    weight_I = features(norm_weight_ptr, first, INPUTS, BLOCK_IN).to(tl.float32)
    gamma_I = (weight_I + 1.0).to(RUN_DTYPE).to(tl.float32)
    return gamma_I, features(norm_bias_ptr, first, INPUTS, BLOCK_IN).to(tl.float32)


@triton.jit
def normalised(
    row_ptr, first, mean, scale, gamma_I, beta_I, RUN_DTYPE: tl.constexpr, INPUTS: tl.constexpr, BLOCK_IN: tl.constexpr
):
    """Input features from ``first`` on of a row [INPUTS], normalised, as [I] of the run dtype."""
    x_I = features(row_ptr, first, INPUTS, BLOCK_IN).to(tl.float32)
    return ((x_I - mean) * scale * gamma_I + beta_I).to(RUN_DTYPE)
