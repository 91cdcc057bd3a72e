"""Launch rules of the projections of a decode step, for few rows at once. Needs no Triton."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nemotron_formats.dtypes import item_bytes

from nemotron_plugins.launches.launch import Constant, GridAxis, Launch, declared, next_power_of_two

__all__ = [
    "ROW_BUCKETS",
    "layernorm_linear_rule",
    "layernorm_rows_rule",
    "linear_residual_rule",
    "row_bucket",
    "row_buckets",
]

# rows that one block computes; more rows take more blocks, which read the weight again
ROW_BUCKETS = (1, 2, 4, 8)
# tensor cores multiply tiles of at least 16
_MIN_TILE = 16
# a projection of so many outputs takes blocks of more of them, one of so many inputs of fewer
_LONG = 8192
# input features after the first tile that a block asks the L2 cache for while it waits for the kernel before it
_PREFETCH = 512
# bytes that the address and the size of such a request are multiples of
_PREFETCH_ALIGNMENT = 16
# of a value of any run dtype, at least
_LEAST_ITEM_BYTES = 2
# values of x of one row that a block holds at once for a norm's statistics
_STATISTICS_TILE = 4096


@dataclass(frozen=True)
class _Blocks:
    outputs: int
    inputs: int
    num_warps: int
    num_stages: int


def row_bucket(rows: int) -> int:
    """The bucket for so many rows: the smallest that holds them, or the largest, whose grid takes any number."""
    return min(next_power_of_two(rows), ROW_BUCKETS[-1])


def row_buckets(rows: int) -> tuple[int, ...]:
    """The buckets of every number of rows up to ``rows``, ascending."""
    return tuple(bucket for bucket in ROW_BUCKETS if bucket <= row_bucket(rows))


def _blocks(rows: int, inputs: int, outputs: int, dtype: str, *, normed: bool) -> _Blocks:
    """Block sizes, as measured on an H100; several rows have no norm and fit 99 KB of shared memory everywhere."""
    if rows > 1:
        chosen = _Blocks(_MIN_TILE, 32, 4, 4) if item_bytes(dtype) == 4 else _Blocks(_MIN_TILE, 256, 2, 5)
        tile = min(chosen.inputs, max(_MIN_TILE, next_power_of_two(inputs)))
        return _Blocks(chosen.outputs, tile, chosen.num_warps, chosen.num_stages)
    if normed:
        chosen = _Blocks(8 if outputs >= _LONG else 4, 1024, 4, 1)
    else:
        chosen = _Blocks(2, 1024, 8, 1) if inputs >= _LONG else _Blocks(4, 1024, 2, 1)
    return _Blocks(chosen.outputs, min(chosen.inputs, next_power_of_two(inputs)), chosen.num_warps, chosen.num_stages)


def _prefetch(blocks: _Blocks, rows: int, inputs: int, *, normed: bool, pdl: bool) -> int:
    """Input features for the L2 cache: a row with a norm reads ahead by itself; only a kernel that waits has time."""
    if not pdl or (normed and rows == 1) or inputs * _LEAST_ITEM_BYTES % _PREFETCH_ALIGNMENT:
        return 0
    return max(0, min(_PREFETCH, inputs - blocks.inputs))


def _launch(
    kernel: str, arguments: str, *, inputs: int, outputs: int, dtype: str, rows: int, has_bias: bool, pdl: bool,
    norm: dict[str, Constant] | None = None,
) -> Launch:  # fmt: skip
    """The launch of a projection, with the constants of its norm where it has one."""
    normed = norm is not None
    blocks = _blocks(rows, inputs, outputs, dtype, normed=normed)
    return Launch(
        kernel=kernel,
        arguments=declared(f"{arguments}, i32 rows"),
        constexprs={
            "INPUTS": inputs,
            "OUTPUTS": outputs,
            "ROWS": rows,
            "BLOCK_ROWS": 1 if rows == 1 else _MIN_TILE,
            "BLOCK_OUT": blocks.outputs,
            "BLOCK_IN": blocks.inputs,
            "HAS_BIAS": has_bias,
            "PREFETCH": _prefetch(blocks, rows, inputs, normed=normed, pdl=pdl),
            "PDL": pdl,
            **(norm or {}),
        },
        grid=(GridAxis(outputs, (), blocks.outputs), GridAxis(1, ("B", "S"), rows)),
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
        pdl=pdl,
    )


def layernorm_linear_rule(
    *, inputs: int, epsilon: float, activation: str, output: str, rows: int, **projection: Any
) -> Launch:
    """The launch of ``layernorm_linear_kernel``; for several rows, after that of :func:`layernorm_rows_rule`.

    Args:
        inputs: width of x.
        epsilon: of the norm.
        activation: ``none`` or ``relu_squared``.
        output: ``same`` (the run dtype) or ``float32``.
        rows: of :data:`ROW_BUCKETS`; see :func:`row_bucket`.
        projection: the other arguments of :func:`linear_residual_rule`.
    """
    norm: dict[str, Constant] = {
        "EPSILON": epsilon,
        "BLOCK_STATISTICS": min(next_power_of_two(inputs), _STATISTICS_TILE),
        "HAS_NORM": rows == 1,
        "RELU_SQUARED": activation == "relu_squared",
    }
    out = "*fp32" if output == "float32" else "*T"
    arguments = f"*T x_ptr norm_weight_ptr norm_bias_ptr weight_ptr bias_ptr, {out} out_ptr"
    kernel = "layernorm_linear.layernorm_linear_kernel"
    return _launch(kernel, arguments, inputs=inputs, rows=rows, norm=norm, **projection)


def layernorm_rows_rule(*, inputs: int, epsilon: float, pdl: bool = False) -> Launch:
    """The launch of ``layernorm_rows_kernel``, for any number of rows; see :func:`layernorm_linear_rule`."""
    return Launch(
        kernel="layernorm_rows.layernorm_rows_kernel",
        arguments=declared("*T x_ptr norm_weight_ptr norm_bias_ptr out_ptr"),
        constexprs={
            "INPUTS": inputs,
            "EPSILON": epsilon,
            "BLOCK_IN": min(next_power_of_two(inputs), _STATISTICS_TILE),
            "PDL": pdl,
        },
        grid=(GridAxis(1, ("B", "S")),),
        num_warps=8,
        pdl=pdl,
    )


def linear_residual_rule(
    *, inputs: int, outputs: int, dtype: str, rows: int, has_bias: bool = False, pdl: bool = False
) -> Launch:
    """The launch of ``linear_residual_kernel``.

    Args:
        inputs: width of x.
        outputs: rows of the weight.
        dtype: run dtype.
        rows: of :data:`ROW_BUCKETS`; see :func:`row_bucket`.
        has_bias: whether there is a bias; its pointer is null otherwise.
        pdl: programmatic dependent launch.
    """
    return _launch(
        "linear_residual.linear_residual_kernel", "*T x_ptr weight_ptr bias_ptr residual_ptr out_ptr",
        inputs=inputs, outputs=outputs, dtype=dtype, rows=rows, has_bias=has_bias, pdl=pdl,
    )  # fmt: skip
