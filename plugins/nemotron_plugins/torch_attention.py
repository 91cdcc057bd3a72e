"""Launches attention over the cache on PyTorch tensors, with the meaning of the dialect's ops.

Shapes: B rows, N cache rows, S new tokens, T cache slots, H query heads, G key/value heads, D head_dim, P positions in
the table, R rotary_dim.
"""

from __future__ import annotations

import torch
from nemotron_errors import RequestError

from nemotron_plugins.launches.attention import (
    MAX_DECODE_ROWS,
    cached_attention_combine_rule,
    cached_attention_decode_rule,
    cached_attention_prefill_rule,
    decode_splits,
    rotary_cached_attention_decode_rule,
)
from nemotron_plugins.torch_call import (
    architecture_of,
    check_rows,
    check_tensor,
    has_pdl,
    multiprocessors_of,
    run_launch,
)
from nemotron_plugins.torch_rotary import check_packed

__all__ = ["cached_attention", "packed_rotary_cached_attention"]


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
    partial, partial_lse = _partials(out, splits)
    run_launch(launch, q, k_cache, v_cache, query_start, row, out, partial, partial_lse, S, T, B=B, S=S)
    _combine(out, partial, partial_lse, splits)
    return out


def packed_rotary_cached_attention(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    query_start: torch.Tensor,
    cache_row: torch.Tensor | None = None,
    *,
    num_heads: int,
    num_kv_heads: int,
    splits: int | None = None,
) -> torch.Tensor:
    """Rotation, cache update and :func:`cached_attention` of one new token per row, in one launch.

    Args:
        qkv: [B, 1, (H + 2G) × D]: the heads of q, then of k, then of v.
        cos: [P, R/2], of qkv's dtype.
        sin: [P, R/2], of qkv's dtype.
        position_ids: [B, 1], int64.
        k_cache: [N, G, T, D], written in place.
        v_cache: [N, G, T, D], written in place.
        query_start: [B], int64: the slot of each row's new token.
        cache_row: [B], int64: the cache row of each row; without it, row b.
        num_heads: H.
        num_kv_heads: G.
        splits: parts that each row's cache is split into, a power of two; by default what fills the GPU.

    Raises:
        RequestError: tensors of other shapes, dtypes or devices, or not contiguous; several tokens per row.
    """
    check_packed(qkv, cos, sin, position_ids, k_cache, v_cache, query_start, cache_row, num_heads, num_kv_heads)
    B, S, _ = qkv.shape
    N, G, T, D = k_cache.shape
    if S != 1:
        raise RequestError(f"{S} tokens per row", "one", "call the two ops one behind another", where="qkv")
    if splits is None:
        splits = decode_splits(kv_heads=G, max_rows=B, slots=T, multiprocessors=multiprocessors_of(qkv))
    launch = rotary_cached_attention_decode_rule(
        query_heads=num_heads, kv_heads=G, head_dim=D, rotary_dim=2 * cos.shape[1], splits=splits,
        dtype=str(qkv.dtype).removeprefix("torch."), has_cache_row=cache_row is not None, pdl=has_pdl(qkv),
    )  # fmt: skip
    out = qkv.new_empty((B, 1, num_heads, D))
    partial, partial_lse = _partials(out, splits)
    indices = (position_ids, query_start, query_start if cache_row is None else cache_row)
    arguments = (qkv, cos, sin, *indices, k_cache, v_cache, out, partial, partial_lse)
    run_launch(launch, *arguments, N, T, cos.shape[0], B=B, S=1)
    _combine(out, partial, partial_lse, splits)
    return out


def _partials(out_BSHD: torch.Tensor, splits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for what the splits leave; rubbish until written, the interpreter's and the GPU's alike."""
    B, S, H, D = out_BSHD.shape
    shapes = ((B, S, H, splits, D), (B, S, H, splits)) if splits > 1 else ((1,), (1,))
    partial, lse = (torch.empty(shape, dtype=torch.float32, device=out_BSHD.device) for shape in shapes)
    return partial, lse


def _combine(out_BSHD: torch.Tensor, partial: torch.Tensor, partial_lse: torch.Tensor, splits: int) -> None:
    B, S, H, D = out_BSHD.shape
    if splits > 1:
        launch = cached_attention_combine_rule(query_heads=H, head_dim=D, splits=splits, pdl=has_pdl(out_BSHD))
        run_launch(launch, partial, partial_lse, out_BSHD, B=B, S=S)
