"""Tiles of a product of few rows with a weight that is read once: what the projections' kernels share.

The weight is what costs: a step is bound by its bytes. One row multiplies and adds in fp32, element by element, and is
summed up at the end; several rows are padded to a tile of the tensor cores. Both accumulate in fp32.

One row is a vector [I] everywhere, several are a matrix [R, I]: a matrix of one row would move the weight, which is
the larger, through shared memory to the row's layout.

Shapes: R rows of a block (padded), O outputs of a block, I input features of a tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "accumulate",
    "align_outputs",
    "features",
    "new_accumulator",
    "output_places",
    "prefetch_weight",
    "rows_tile",
    "totals",
    "weight_tile",
]


@triton.jit
def weight_tile(
    weight_ptr,
    out_O,
    first,
    INPUTS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Input features from ``first`` on of the rows out_O of a weight [OUTPUTS, INPUTS], as [O, I]; zeros outside."""
    in_I = first + tl.arange(0, BLOCK_IN)
    pointers_OI = weight_ptr + out_O[:, None].to(tl.int64) * INPUTS + in_I[None, :]
    if INPUTS % BLOCK_IN != 0:
        exists_OI = (out_O < OUTPUTS)[:, None] & (in_I < INPUTS)[None, :]
        tile_OI = tl.load(pointers_OI, mask=exists_OI, other=0.0, eviction_policy="evict_first")
    elif OUTPUTS % BLOCK_OUT != 0:
        tile_OI = tl.load(pointers_OI, mask=(out_O < OUTPUTS)[:, None], other=0.0, eviction_policy="evict_first")
    else:
        tile_OI = tl.load(pointers_OI, eviction_policy="evict_first")
    return tile_OI


@triton.jit
def prefetch_weight(weight_ptr, out_O, first, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, COUNT: tl.constexpr):
    """Asks for COUNT input features from ``first`` on of the rows out_O of a weight to be brought into the L2 cache.

    One request a row: its bytes and its address must be multiples of 16. Architectures from sm_90 on.
    """
    BYTES: tl.constexpr = COUNT * (weight_ptr.dtype.element_ty.primitive_bitwidth // 8)
    pointers_O = weight_ptr + tl.minimum(out_O, OUTPUTS - 1).to(tl.int64) * INPUTS + first
    # every thread holds some row, and several the same: those of the first threads are all of them
    rows_O = tl.zeros_like(out_O) + out_O.shape[0]
    tl.inline_asm_elementwise(
        """{
            .reg .pred first;
            .reg .u32 thread;
            mov.u32 thread, %tid.x;
            setp.lt.u32 first, thread, $2;
            @first cp.async.bulk.prefetch.L2.global [$1], $3;
            mov.u32 $0, 0;
        }""",
        "=r,l,r,r",
        [pointers_O.to(tl.int64), rows_O, tl.zeros_like(out_O) + BYTES],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def features(vector_ptr, first, INPUTS: tl.constexpr, BLOCK_IN: tl.constexpr):
    """Values from ``first`` on of a vector [INPUTS], as [I]; zeros outside."""
    in_I = first + tl.arange(0, BLOCK_IN)
    if INPUTS % BLOCK_IN != 0:
        tile_I = tl.load(vector_ptr + in_I, mask=in_I < INPUTS, other=0.0)
    else:
        tile_I = tl.load(vector_ptr + in_I)
    return tile_I


@triton.jit
def rows_tile(
    x_ptr,
    first_row,
    rows,
    first,
    INPUTS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Features from ``first`` on of ROWS rows of x [rows, INPUTS] from ``first_row`` on, as [I] or [R, I]."""
    if BLOCK_ROWS == 1:
        tile = features(x_ptr + first_row.to(tl.int64) * INPUTS, first, INPUTS, BLOCK_IN)
    else:
        lane_R = tl.arange(0, BLOCK_ROWS)
        in_1I = first + tl.arange(0, BLOCK_IN)[None, :]
        exists_R1 = ((lane_R < ROWS) & (first_row + lane_R < rows))[:, None]
        pointers_RI = x_ptr + (first_row + lane_R)[:, None].to(tl.int64) * INPUTS + in_1I
        tile = tl.load(pointers_RI, mask=exists_R1 & (in_1I < INPUTS), other=0.0)
    return tile


@triton.jit
def new_accumulator(BLOCK_ROWS: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr):
    """Zeros: [O, I] for one row, which is summed at the end, else [O, R]."""
    COLUMNS: tl.constexpr = BLOCK_IN if BLOCK_ROWS == 1 else BLOCK_ROWS
    return tl.zeros((BLOCK_OUT, COLUMNS), tl.float32)


@triton.jit
def accumulate(acc, weight_OI, x, BLOCK_ROWS: tl.constexpr):
    """The accumulator with one more tile of the product; x, [I] or [R, I], has the weight's dtype."""
    if BLOCK_ROWS == 1:
        acc += weight_OI.to(tl.float32) * x.to(tl.float32)[None, :]
    else:
        acc = tl.dot(weight_OI, tl.trans(x), acc, input_precision="ieee")
    return acc


@triton.jit
def totals(acc, BLOCK_ROWS: tl.constexpr):
    """The finished product: [O] or [O, R]."""
    if BLOCK_ROWS == 1:
        acc = tl.sum(acc, 1)
    return acc


@triton.jit
def align_outputs(vector_O, BLOCK_ROWS: tl.constexpr):
    """A vector [O] in the layout of the finished product, to be added to it."""
    if BLOCK_ROWS > 1:
        vector_O = vector_O[:, None]
    return vector_O


@triton.jit
def output_places(out_O, first_row, rows, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Where the finished product lies in [rows, OUTPUTS], and which of it exists."""
    if BLOCK_ROWS == 1:
        places = first_row.to(tl.int64) * OUTPUTS + out_O
        exists = out_O < OUTPUTS
    else:
        lane_R = tl.arange(0, BLOCK_ROWS)
        places = (first_row + lane_R)[None, :].to(tl.int64) * OUTPUTS + out_O[:, None]
        exists = (out_O < OUTPUTS)[:, None] & ((lane_R < ROWS) & (first_row + lane_R < rows))[None, :]
    return places, exists
