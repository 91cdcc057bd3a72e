"""Launch rules of cached attention: decode (split over the cache), the combination of its splits, and prefill."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from nemotron_formats.dtypes import item_bytes

from nemotron_plugins.launches.launch import Constant, GridAxis, Launch, declared, next_power_of_two

__all__ = [
    "MAX_DECODE_ROWS",
    "cached_attention_combine_rule",
    "cached_attention_decode_rule",
    "cached_attention_prefill_rule",
    "decode_splits",
    "rotary_cached_attention_decode_rule",
]

# the decode kernel takes up to so many query vectors per key/value head: new tokens × heads of the group
MAX_DECODE_ROWS = 32
# tensor cores multiply tiles of at least 16
_MIN_TILE = 16
_MAX_SPLITS = 64
_MANY_SPLITS = 16
# architectures whose blocks have about 100 KB of shared memory; the others have 163 KB or more
_SMALL_SHARED_MEMORY = (86, 89, 120)
_INPUTS = "*T q_ptr k_cache_ptr v_cache_ptr, *i64 query_start_ptr"
_PARTIALS = "*fp32 partial_ptr partial_lse_ptr"
_SIZES = "i32 tokens capacity"


def _constexprs(query_heads: int, kv_heads: int, head_dim: int, pdl: bool) -> dict[str, Constant]:
    return {
        "KV_HEADS": kv_heads,
        "GROUP": query_heads // kv_heads,
        "HEAD_DIM": head_dim,
        # softmax runs on powers of two: exp(x) = 2 ** (x · log2 e)
        "SCALE_LOG2": head_dim**-0.5 * math.log2(math.e),
        "BLOCK_DIM": max(_MIN_TILE, next_power_of_two(head_dim)),
        "PDL": pdl,
    }


def decode_splits(*, kv_heads: int, sequences: int, capacity: int, multiprocessors: int) -> int:
    """Into how many parts each sequence's cache is split: a power of two that gives every
    multiprocessor several blocks at ``sequences``."""
    # as measured on an H100: blocks that wait for the memory let others run
    wanted = multiprocessors * (4 if sequences == 1 else 2) // (kv_heads * sequences)
    useful = -(-capacity // 32)
    return max(1, min(_MAX_SPLITS, next_power_of_two(wanted + 1) // 2, next_power_of_two(useful)))


def cached_attention_decode_rule(
    *, query_heads: int, kv_heads: int, head_dim: int, dtype: str, splits: int, pdl: bool = False
) -> Launch:
    """The launch of ``cached_attention_decode_kernel`` for as many new tokens as its tile has place for.

    A tile holds ``BLOCK_M`` query vectors: new tokens × heads of a group. ``splits`` is a power of two.
    """
    constexprs = _constexprs(query_heads, kv_heads, head_dim, pdl)
    vector_bytes = item_bytes(dtype) * int(constexprs["BLOCK_DIM"])
    # as measured on an H100: parts that are long, as few are, are read faster in larger tiles
    long_parts = splits < _MANY_SPLITS and item_bytes(dtype) == 2
    if vector_bytes <= 256:
        block_n, stages = (64, 3) if long_parts else (32, 2)
    else:
        block_n, stages = (32, 3) if vector_bytes <= 512 else (16, 2)
    constexprs |= {
        "BLOCK_M": max(_MIN_TILE, next_power_of_two(query_heads // kv_heads)),
        "BLOCK_N": block_n,
        "SPLITS": splits,
        "PREFETCH": block_n if pdl else 0,
    }
    return Launch(
        kernel="cached_attention_decode.cached_attention_decode_kernel",
        arguments=declared(f"{_INPUTS}, *T out_ptr, {_PARTIALS}, {_SIZES}"),
        constexprs=constexprs,
        grid=(GridAxis(kv_heads, ("B",)), GridAxis(splits)),
        num_warps=4,
        num_stages=stages,
        pdl=pdl,
    )


def rotary_cached_attention_decode_rule(*, rotary_dim: int, **attention_sizes: Any) -> Launch:
    """The launch of ``rotary_cached_attention_decode_kernel``: attention's, for one new token per sequence.

    The other arguments are those of :func:`cached_attention_decode_rule`.
    """
    attention = cached_attention_decode_rule(**attention_sizes)
    return dataclasses.replace(
        attention,
        kernel="rotary_cached_attention_decode.rotary_cached_attention_decode_kernel",
        arguments=declared(
            "*T qkv_ptr cos_ptr sin_ptr, *i64 position_ptr query_start_ptr, *T k_cache_ptr v_cache_ptr out_ptr, "
            f"{_PARTIALS}, i32 capacity positions"
        ),
        constexprs=attention.constexprs | {"HALF": rotary_dim // 2},
    )


def cached_attention_combine_rule(*, query_heads: int, head_dim: int, splits: int, pdl: bool = False) -> Launch:
    """The launch of ``cached_attention_combine_kernel`` after a decode of the same ``splits``, where they pass 1."""
    return Launch(
        kernel="cached_attention_decode.cached_attention_combine_kernel",
        arguments=declared(f"{_PARTIALS}, *T out_ptr"),
        constexprs={
            "HEAD_DIM": head_dim,
            "BLOCK_DIM": max(_MIN_TILE, next_power_of_two(head_dim)),
            "SPLITS": splits,
            "PDL": pdl,
        },
        grid=(GridAxis(query_heads, ("B", "S")),),
        num_warps=max(1, splits // 32),
        pdl=pdl,
    )


def cached_attention_prefill_rule(
    *, query_heads: int, kv_heads: int, head_dim: int, dtype: str, architecture: int, pdl: bool = False
) -> Launch:
    """The launch of ``cached_attention_prefill_kernel``; tiles fit the shared memory of ``architecture`` (90, …)."""
    constexprs = _constexprs(query_heads, kv_heads, head_dim, pdl)
    small = architecture in _SMALL_SHARED_MEMORY
    wide = int(constexprs["BLOCK_DIM"]) > 128
    if dtype == "float32":
        block_m, block_n, warps, stages = 32, 32, 4, 1
    elif wide:
        block_m, block_n, warps, stages = (64, 32, 4, 1) if small else (64, 32, 4, 2)
    else:
        block_m, block_n, warps, stages = (64, 64, 4, 2) if small else (128, 64, 8, 2)
    return Launch(
        kernel="cached_attention_prefill.cached_attention_prefill_kernel",
        arguments=declared(f"{_INPUTS}, *T out_ptr, {_SIZES}"),
        constexprs=constexprs | {"BLOCK_M": block_m, "BLOCK_N": block_n},
        grid=(GridAxis(query_heads // kv_heads, ("S",), block_m), GridAxis(kv_heads, ("B",))),
        num_warps=warps,
        num_stages=stages,
        pdl=pdl,
    )
