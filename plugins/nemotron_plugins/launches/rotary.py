"""Launch rule of the rotation and cache update. Needs no Triton."""

from __future__ import annotations

from nemotron_plugins.launches.launch import GridAxis, Launch, declared, next_power_of_two

__all__ = ["rotary_kv_cache_update_rule"]

# up to here a launch is bound by latency: small blocks spread over more multiprocessors
_FEW_TOKENS = 64


def rotary_kv_cache_update_rule(
    *, query_heads: int, kv_heads: int, head_dim: int, rotary_dim: int, max_tokens: int, pdl: bool = False
) -> Launch:
    """The launch of ``rotary_kv_cache_update_kernel``.

    ``max_tokens`` is the most B × S that it will see. q, k and v of a token follow each other in one tensor
    [B, S, (H + 2G) × D], whose pointer is given three times.
    """
    block_heads = 2 if max_tokens <= _FEW_TOKENS else 8
    query_parts = -(-query_heads // block_heads)
    kv_parts = -(-kv_heads // block_heads)
    tail = head_dim - rotary_dim
    query, kv = query_heads * head_dim, kv_heads * head_dim
    return Launch(
        kernel="rotary_kv_cache_update.rotary_kv_cache_update_kernel",
        arguments=declared(
            "*T q_ptr k_ptr v_ptr cos_ptr sin_ptr, *i64 position_ptr write_index_ptr, "
            "*T q_out_ptr k_cache_ptr v_cache_ptr, i32 tokens capacity positions"
        ),
        constexprs={
            "QUERY_HEADS": query_heads,
            "KV_HEADS": kv_heads,
            "HEAD_DIM": head_dim,
            "Q_STRIDE": query + 2 * kv,
            "KV_STRIDE": query + 2 * kv,
            "K_OFFSET": query,
            "V_OFFSET": query + kv,
            "HALF": rotary_dim // 2,
            "BLOCK_HEADS": block_heads,
            "BLOCK_HALF": next_power_of_two(rotary_dim // 2),
            "BLOCK_TAIL": next_power_of_two(tail) if tail else 0,
            "BLOCK_DIM": next_power_of_two(head_dim),
            "PDL": pdl,
        },
        grid=(GridAxis(1, ("B", "S")), GridAxis(query_parts + 2 * kv_parts)),
        num_warps=1 if block_heads == 2 else 4,
        # the definition rounds each product; a fused multiply-add would not
        fp_fusion=False,
        pdl=pdl,
    )
