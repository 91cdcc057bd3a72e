"""Launches the kernels on PyTorch tensors, with the meaning of the dialect's ops.

Shapes: B rows, N cache rows, S new tokens, T cache slots, H query heads, G key/value heads, D head_dim, P positions in
the table, R rotary_dim.
"""

from __future__ import annotations

import torch
from nemotron_errors import RequestError

from nemotron_plugins.attention_rules import (
    MAX_DECODE_ROWS,
    cached_attention_combine_rule,
    cached_attention_decode_rule,
    cached_attention_prefill_rule,
    decode_splits,
)
from nemotron_plugins.launch_rules import rotary_kv_cache_update_rule
from nemotron_plugins.torch_call import (
    architecture_of,
    check_rows,
    check_tensor,
    has_pdl,
    multiprocessors_of,
    run_launch,
)

__all__ = ["cached_attention", "packed_rotary_kv_cache_update", "rotary_kv_cache_update"]


def rotary_kv_cache_update(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    write_index: torch.Tensor,
    cache_row: torch.Tensor | None = None,
) -> torch.Tensor:
    """Writes rotated k, and v, into the caches in place and returns rotated q.

    Args:
        q: [B, S, H, D].
        k: [B, S, G, D].
        v: [B, S, G, D].
        cos: [P, R/2], of q's dtype.
        sin: [P, R/2], of q's dtype.
        position_ids: [B, S], int64.
        k_cache: [N, G, T, D].
        v_cache: [N, G, T, D].
        write_index: [B], int64: the slot of each row's first new token. Slots that do not exist are not written.
        cache_row: [B], int64: the cache row of each row; without it, row b.

    Raises:
        RequestError: tensors of other shapes, dtypes or devices, or not contiguous.
    """
    B, S, H, D = q.shape
    G, N, T = k.shape[2], k_cache.shape[0], k_cache.shape[2]
    P, half = cos.shape
    check_tensor("q", q, (B, S, H, D), q)
    for name, tensor, shape in (
        ("k", k, (B, S, G, D)),
        ("v", v, (B, S, G, D)),
        ("cos", cos, (P, half)),
        ("sin", sin, (P, half)),
        ("k_cache", k_cache, (N, G, T, D)),
        ("v_cache", v_cache, (N, G, T, D)),
    ):
        check_tensor(name, tensor, shape, q)
    check_tensor("position_ids", position_ids, (B, S), q, torch.int64)
    check_rows(q, B, N, write_index=write_index, cache_row=cache_row)
    return _rotate_and_update(
        (q, k, v), torch.empty_like(q), G, cos, sin, position_ids, k_cache, v_cache, write_index, cache_row
    )


def packed_rotary_kv_cache_update(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    write_index: torch.Tensor,
    cache_row: torch.Tensor | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
) -> torch.Tensor:
    """:func:`rotary_kv_cache_update` of heads that lie in one tensor; returns rotated q [B, S, H, D].

    Args:
        qkv: [B, S, (H + 2G) × D]: the heads of q, then of k, then of v.
        cos: [P, R/2], of qkv's dtype.
        sin: [P, R/2], of qkv's dtype.
        position_ids: [B, S], int64.
        k_cache: [N, G, T, D].
        v_cache: [N, G, T, D].
        write_index: [B], int64.
        cache_row: [B], int64: the cache row of each row; without it, row b.
        num_heads: H.
        num_kv_heads: G.

    Raises:
        RequestError: tensors of other shapes, dtypes or devices, or not contiguous.
    """
    B, S, _ = qkv.shape
    N, _, T, D = k_cache.shape
    for name, tensor, shape in (
        ("qkv", qkv, (B, S, (num_heads + 2 * num_kv_heads) * D)),
        ("cos", cos, tuple(sin.shape)),
        ("sin", sin, tuple(cos.shape)),
        ("k_cache", k_cache, (N, num_kv_heads, T, D)),
        ("v_cache", v_cache, (N, num_kv_heads, T, D)),
    ):
        check_tensor(name, tensor, shape, qkv)
    check_tensor("position_ids", position_ids, (B, S), qkv, torch.int64)
    check_rows(qkv, B, N, write_index=write_index, cache_row=cache_row)
    q_out = qkv.new_empty((B, S, num_heads, D))
    return _rotate_and_update(
        (qkv,) * 3, q_out, num_kv_heads, cos, sin, position_ids, k_cache, v_cache, write_index, cache_row
    )


def _rotate_and_update(
    qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    q_out: torch.Tensor,
    kv_heads: int,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    write_index: torch.Tensor,
    cache_row: torch.Tensor | None,
) -> torch.Tensor:
    B, S, H, D = q_out.shape
    N, _, T, _ = k_cache.shape
    launch = rotary_kv_cache_update_rule(
        query_heads=H,
        kv_heads=kv_heads,
        head_dim=D,
        rotary_dim=2 * cos.shape[1],
        max_tokens=B * S,
        packed=qkv[0] is qkv[1],
        has_cache_row=cache_row is not None,
        pdl=has_pdl(q_out),
    )
    row = write_index if cache_row is None else cache_row
    inputs = (*qkv, cos, sin, position_ids, write_index, row, q_out, k_cache, v_cache)
    run_launch(launch, *inputs, S, N, T, cos.shape[0], B=B, S=S)
    return q_out


def cached_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    query_start: torch.Tensor,
    cache_row: torch.Tensor | None = None,
    *,
    splits: int | None = None,
) -> torch.Tensor:
    """Causal grouped-query attention of q [B, S, H, D] over the filled part of the caches [N, G, T, D].

    Token s of row b sees slots 0 to ``query_start[b] + s`` of its cache row; later slots are not read, whatever they
    hold. Few tokens run split over the cache, many run tiled.

    Args:
        q: [B, S, H, D].
        k_cache: [N, G, T, D].
        v_cache: [N, G, T, D].
        query_start: [B], int64.
        cache_row: [B], int64: the cache row of each row; without it, row b.
        splits: parts that each row's cache is split into, a power of two; by default what fills the GPU.

    Raises:
        RequestError: tensors of other shapes, dtypes or devices, or not contiguous.
    """
    B, S, H, D = q.shape
    N, G, T, _ = k_cache.shape
    check_tensor("q", q, (B, S, H, D), q)
    check_tensor("k_cache", k_cache, (N, G, T, D), q)
    check_tensor("v_cache", v_cache, (N, G, T, D), q)
    if H % G:
        raise RequestError(f"{H} query heads", f"a multiple of the {G} key/value heads", "reshape q", where="q")
    check_rows(q, B, N, query_start=query_start, cache_row=cache_row)
    dtype = str(q.dtype).removeprefix("torch.")
    pdl, has_row = has_pdl(q), cache_row is not None
    row = query_start if cache_row is None else cache_row
    out = torch.empty_like(q)
    heads = {"query_heads": H, "kv_heads": G, "head_dim": D}
    if S * H // G > MAX_DECODE_ROWS:
        launch = cached_attention_prefill_rule(
            **heads, dtype=dtype, architecture=architecture_of(q), has_cache_row=has_row, pdl=pdl
        )
        run_launch(launch, q, k_cache, v_cache, query_start, row, out, S, T, B=B, S=S)
        return out
    if splits is None:
        splits = decode_splits(kv_heads=G, max_rows=B, slots=T, multiprocessors=multiprocessors_of(q))
    launch = cached_attention_decode_rule(**heads, dtype=dtype, splits=splits, tokens=S, has_cache_row=has_row, pdl=pdl)
    # rubbish until written: the interpreter's and the GPU's alike
    partial = torch.empty((B, S, H, splits, D) if splits > 1 else (1,), dtype=torch.float32, device=q.device)
    partial_lse = torch.empty((B, S, H, splits) if splits > 1 else (1,), dtype=torch.float32, device=q.device)
    run_launch(launch, q, k_cache, v_cache, query_start, row, out, partial, partial_lse, S, T, B=B, S=S)
    if splits > 1:
        combine = cached_attention_combine_rule(query_heads=H, head_dim=D, splits=splits, pdl=pdl)
        run_launch(combine, partial, partial_lse, out, B=B, S=S)
    return out
