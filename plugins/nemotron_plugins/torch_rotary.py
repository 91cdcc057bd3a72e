"""Launches rotation and cache update on PyTorch tensors, with the meaning of the dialect's ops.

Shapes: B rows, N cache rows, S new tokens, T cache slots, H query heads, G key/value heads, D head_dim, P positions in
the table, R rotary_dim.
"""

from __future__ import annotations

import torch

from nemotron_plugins.launches.rotary import rotary_kv_cache_update_rule
from nemotron_plugins.torch_call import check_rows, check_tensor, has_pdl, run_launch

__all__ = ["check_packed", "packed_rotary_kv_cache_update", "rotary_kv_cache_update"]


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
    check_packed(qkv, cos, sin, position_ids, k_cache, v_cache, write_index, cache_row, num_heads, num_kv_heads)
    B, S, _ = qkv.shape
    D = k_cache.shape[-1]
    q_out = qkv.new_empty((B, S, num_heads, D))
    return _rotate_and_update(
        (qkv,) * 3, q_out, num_kv_heads, cos, sin, position_ids, k_cache, v_cache, write_index, cache_row
    )


def check_packed(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    write_index: torch.Tensor,
    cache_row: torch.Tensor | None,
    num_heads: int,
    num_kv_heads: int,
) -> None:
    """Checks the inputs of a packed rotation and update: see :func:`packed_rotary_kv_cache_update`."""
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
