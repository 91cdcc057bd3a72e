"""Launch rule of the rotation and cache update, and what all rules share. Needs no Triton."""

from __future__ import annotations

from nemotron_plugins.launches.launch import GridAxis, Launch

__all__ = ["ITEM_BYTES", "next_power_of_two", "rotary_kv_cache_update_rule"]

# bytes per value of the dtypes that every kernel takes
ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
# up to here a launch is bound by latency: small blocks spread over more multiprocessors
_FEW_TOKENS = 64


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is at least n; 1 for n below 1."""
    return 1 << max(n - 1, 0).bit_length()


def rotary_kv_cache_update_rule(
    *,
    query_heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
    max_tokens: int,
    packed: bool = False,
    has_cache_row: bool = False,
    pdl: bool = False,
) -> Launch:
    """The launch of ``rotary_kv_cache_update_kernel``.

    ``max_tokens`` is the most B × S that it will see. With ``packed``, q, k and v of a token lie one behind another in
    one tensor [B, S, (H + 2G) × D], whose pointer is given three times.
    """
    block_heads = 2 if max_tokens <= _FEW_TOKENS else 8
    query_parts = -(-query_heads // block_heads)
    kv_parts = -(-kv_heads // block_heads)
    tail = head_dim - rotary_dim
    query, kv = query_heads * head_dim, kv_heads * head_dim
    pointers = ("q", "k", "v", "cos", "sin")
    return Launch(
        kernel="rotary_kv_cache_update_kernel",
        arguments=(
            *((f"{name}_ptr", "*T") for name in pointers),
            ("position_ptr", "*i64"),
            ("write_index_ptr", "*i64"),
            ("cache_row_ptr", "*i64"),
            ("q_out_ptr", "*T"),
            ("k_cache_ptr", "*T"),
            ("v_cache_ptr", "*T"),
            ("tokens", "i32"),
            ("cache_rows", "i32"),
            ("slots", "i32"),
            ("positions", "i32"),
        ),
        constexprs={
            "QUERY_HEADS": query_heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "Q_STRIDE": query + 2 * kv if packed else query,
            "KV_STRIDE": query + 2 * kv if packed else kv,
            "K_OFFSET": query if packed else 0,
            "V_OFFSET": query + kv if packed else 0,
            "HALF": rotary_dim // 2,
            "BLOCK_HEADS": block_heads,
            "BLOCK_HALF": next_power_of_two(rotary_dim // 2),
            "BLOCK_TAIL": next_power_of_two(tail) if tail else 0,
            "BLOCK_DIM": next_power_of_two(head_dim),
            "HAS_CACHE_ROW": has_cache_row,
            "PDL": pdl,
        },
        grid=(GridAxis(1, ("B", "S")), GridAxis(query_parts + 2 * kv_parts)),
        num_warps=1 if block_heads == 2 else 4,
        num_stages=1,
        # the definition rounds each product; a fused multiply-add would not
        fp_fusion=False,
        pdl=pdl,
    )
