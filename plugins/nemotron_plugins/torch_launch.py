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
from nemotron_plugins.kernels import KERNELS
from nemotron_plugins.launch import Launch
from nemotron_plugins.launch_rules import ITEM_BYTES, rotary_kv_cache_update_rule

__all__ = ["cached_attention", "rotary_kv_cache_update"]

# what the interpreter, which has no GPU, is given
_INTERPRETED_ARCHITECTURE = 80
_INTERPRETED_MULTIPROCESSORS = 8


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
    _check("q", q, (B, S, H, D), q)
    for name, tensor, shape in (
        ("k", k, (B, S, G, D)),
        ("v", v, (B, S, G, D)),
        ("cos", cos, (P, half)),
        ("sin", sin, (P, half)),
        ("k_cache", k_cache, (N, G, T, D)),
        ("v_cache", v_cache, (N, G, T, D)),
    ):
        _check(name, tensor, shape, q)
    _check("position_ids", position_ids, (B, S), q, torch.int64)
    _check_rows(q, B, N, write_index=write_index, cache_row=cache_row)
    launch = rotary_kv_cache_update_rule(
        query_heads=H,
        kv_heads=G,
        head_dim=D,
        rotary_dim=2 * half,
        max_tokens=B * S,
        has_cache_row=cache_row is not None,
        pdl=_has_pdl(q),
    )
    q_out = torch.empty_like(q)
    row = write_index if cache_row is None else cache_row
    inputs = (q, k, v, cos, sin, position_ids, write_index, row, q_out, k_cache, v_cache)
    _run(launch, *inputs, S, N, T, P, B=B, S=S)
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
    _check("q", q, (B, S, H, D), q)
    _check("k_cache", k_cache, (N, G, T, D), q)
    _check("v_cache", v_cache, (N, G, T, D), q)
    if H % G:
        raise RequestError(f"{H} query heads", f"a multiple of the {G} key/value heads", "reshape q", where="q")
    _check_rows(q, B, N, query_start=query_start, cache_row=cache_row)
    dtype = str(q.dtype).removeprefix("torch.")
    pdl, has_row = _has_pdl(q), cache_row is not None
    row = query_start if cache_row is None else cache_row
    out = torch.empty_like(q)
    heads = {"query_heads": H, "kv_heads": G, "head_dim": D}
    if S * H // G > MAX_DECODE_ROWS:
        launch = cached_attention_prefill_rule(
            **heads, dtype=dtype, architecture=_architecture(q), has_cache_row=has_row, pdl=pdl
        )
        _run(launch, q, k_cache, v_cache, query_start, row, out, S, T, B=B, S=S)
        return out
    if splits is None:
        splits = decode_splits(kv_heads=G, max_rows=B, slots=T, multiprocessors=_multiprocessors(q))
    launch = cached_attention_decode_rule(**heads, dtype=dtype, splits=splits, tokens=S, has_cache_row=has_row, pdl=pdl)
    # rubbish until written: the interpreter's and the GPU's alike
    partial = torch.empty((B, S, H, splits, D) if splits > 1 else (1,), dtype=torch.float32, device=q.device)
    partial_lse = torch.empty((B, S, H, splits) if splits > 1 else (1,), dtype=torch.float32, device=q.device)
    _run(launch, q, k_cache, v_cache, query_start, row, out, partial, partial_lse, S, T, B=B, S=S)
    if splits > 1:
        combine = cached_attention_combine_rule(query_heads=H, head_dim=D, splits=splits, pdl=pdl)
        _run(combine, partial, partial_lse, out, B=B, S=S)
    return out


def _run(launch: Launch, *arguments: torch.Tensor | int, **sizes: int) -> None:
    KERNELS[launch.kernel][launch.grid_of(**sizes)](
        *arguments,
        **launch.constexprs,
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
        enable_fp_fusion=launch.fp_fusion,
        launch_pdl=launch.pdl,
    )


def _architecture(q: torch.Tensor) -> int:
    if not q.is_cuda:
        return _INTERPRETED_ARCHITECTURE
    major, minor = torch.cuda.get_device_capability(q.device)
    return 10 * major + minor


def _multiprocessors(q: torch.Tensor) -> int:
    if not q.is_cuda:
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(q.device).multi_processor_count


def _has_pdl(q: torch.Tensor) -> bool:
    return _architecture(q) >= 90


def _check_rows(q: torch.Tensor, B: int, N: int, **indices: torch.Tensor | None) -> None:
    for name, tensor in indices.items():
        if tensor is not None:
            _check(name, tensor, (B,), q, torch.int64)
    if indices["cache_row"] is None and B > N:
        raise RequestError(f"{B} rows and {N} cache rows", "a cache row for each row", "pass cache_row", where="cache")


def _check(
    name: str, tensor: torch.Tensor, shape: tuple[int, ...], q: torch.Tensor, dtype: torch.dtype | None = None
) -> None:
    dtype = dtype or q.dtype
    if tensor is q and str(dtype).removeprefix("torch.") not in ITEM_BYTES:
        raise RequestError(f"{dtype}", "one of " + ", ".join(ITEM_BYTES), "cast the inputs", where=name)
    if tensor.shape != shape or tensor.dtype != dtype or tensor.device != q.device or not tensor.is_contiguous():
        found = f"{tensor.dtype} {list(tensor.shape)} with strides {tensor.stride()} on {tensor.device}"
        raise RequestError(found, f"contiguous {dtype} {list(shape)} on {q.device}", "pass such a tensor", where=name)
