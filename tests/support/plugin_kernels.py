"""Random calls of the plugins' kernels beside the eager definitions of their ops.

Under Triton's interpreter the calls must run in a process whose environment asked for it before Triton was imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nemotron_graphs.ops import cached_attention, packed_rotary_cached_attention, rotary_kv_cache_update

__all__ = [
    "AttentionCase",
    "RotaryCase",
    "attention_inputs",
    "reference_attention",
    "rotary_inputs",
    "run_fused",
    "run_fused_interpreted",
    "run_interpreted",
]


@dataclass(frozen=True)
class RotaryCase:
    """Sizes of a rotation and update; ``starts`` holds each row's first position and slot."""

    H: int
    G: int
    D: int
    R: int
    S: int
    starts: tuple[int, ...]
    T: int
    permuted: bool = False

    def packed(self, inputs: tuple[torch.Tensor | None, ...]) -> tuple[torch.Tensor | None, ...]:
        """The eight inputs of PackedRotaryKVCacheUpdate, of the ten of :func:`rotary_inputs`."""
        return torch.cat([t.flatten(2) for t in inputs[:3] if t is not None], -1), *inputs[3:]


@dataclass(frozen=True)
class AttentionCase:
    """Sizes of an attention; ``starts`` holds the tokens already in each row's cache."""

    H: int
    G: int
    D: int
    S: int
    starts: tuple[int, ...]
    T: int
    permuted: bool = False
    splits: int | None = None
    rubbish: float = float("nan")


def _cache_row(case: RotaryCase | AttentionCase) -> torch.Tensor | None:
    """Rows in another order, in a cache of two more rows; None where rows and cache rows are the same."""
    return torch.randperm(len(case.starts) + 2)[: len(case.starts)] if case.permuted else None


def rotary_inputs(case: RotaryCase, dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor | None, ...]:
    """The ten inputs of RotaryKVCacheUpdate, cache_row last."""
    torch.manual_seed(0)
    B, N = len(case.starts), len(case.starts) + 2 * case.permuted
    start = torch.tensor(case.starts)
    angles = torch.arange(case.T)[:, None] * 10000.0 ** -(torch.arange(case.R // 2) * 2 / case.R)
    tensors = [
        torch.randn(B, case.S, case.H, case.D),
        torch.randn(B, case.S, case.G, case.D),
        torch.randn(B, case.S, case.G, case.D),
        angles.cos(),
        angles.sin(),
        start[:, None] + torch.arange(case.S),
        torch.randn(N, case.G, case.T, case.D),
        torch.randn(N, case.G, case.T, case.D),
        start,
        _cache_row(case),
    ]
    return tuple(_to(t, dtype, device) for t in tensors)


def attention_inputs(case: AttentionCase, dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor | None, ...]:
    """The five inputs of CachedAttention, cache_row last. Every slot past a row's end holds ``case.rubbish``."""
    torch.manual_seed(0)
    B, N = len(case.starts), len(case.starts) + 2 * case.permuted
    q_BSHD = torch.randn(B, case.S, case.H, case.D)
    k_NGTD, v_NGTD = torch.randn(2, N, case.G, case.T, case.D).unbind(0)
    row_B = _cache_row(case)
    ends_N = torch.zeros(N, dtype=torch.int64)
    ends_N[torch.arange(B) if row_B is None else row_B] = torch.tensor(case.starts) + case.S
    past_end_NT = torch.arange(case.T) >= ends_N[:, None]
    for cache in (k_NGTD, v_NGTD):
        cache.masked_fill_(past_end_NT[:, None, :, None], case.rubbish)
    return tuple(_to(t, dtype, device) for t in (q_BSHD, k_NGTD, v_NGTD, torch.tensor(case.starts), row_B))


def reference_attention(inputs: tuple[torch.Tensor | None, ...], dtype: torch.dtype) -> torch.Tensor:
    """The eager definition in ``dtype``, on caches whose rubbish is zero: a weight of zero times NaN is NaN."""
    q, k, v, start, row = inputs
    assert q is not None
    assert k is not None
    assert v is not None
    q, k, v = (t.to(dtype) for t in (q, k, v))
    # rubbish is NaN or a value that no random normal reaches
    k, v = (torch.where(t.abs() < 1e3, t, 0.0) for t in (k, v))
    return cached_attention.eager(q, k, v, start, row)


def _to(tensor: torch.Tensor | None, dtype: torch.dtype, device: str) -> torch.Tensor | None:
    if tensor is None:
        return None
    return tensor.to(device, dtype) if tensor.is_floating_point() else tensor.to(device)


def run_interpreted(
    case: RotaryCase | AttentionCase, dtype: torch.dtype, *, packed: bool = False
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Runs a case under the interpreter; returns each output as (kernel, definition in the same dtype)."""
    import triton
    from nemotron_plugins import torch_attention, torch_rotary

    assert triton.knobs.runtime.interpret, "Triton was imported without its interpreter"
    torch.set_num_threads(1)
    inputs: Any
    if isinstance(case, AttentionCase):
        inputs = attention_inputs(case, dtype)
        got = torch_attention.cached_attention(*inputs, splits=case.splits)
        return {"out": (got.numpy(), reference_attention(inputs, dtype).numpy())}
    inputs = rotary_inputs(case, dtype)
    expected = rotary_kv_cache_update.eager(*inputs)
    if packed:
        q_out = torch_rotary.packed_rotary_kv_cache_update(*case.packed(inputs), num_heads=case.H, num_kv_heads=case.G)
    else:
        q_out = torch_rotary.rotary_kv_cache_update(*inputs)
    results = (q_out, inputs[6], inputs[7])
    return {
        name: (g.numpy(), e.numpy()) for name, g, e in zip(("q", "k_cache", "v_cache"), results, expected, strict=True)
    }


def run_fused(
    case: RotaryCase, dtype: torch.dtype, device: str = "cpu", splits: int | None = None
) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rotation, update and attention in one launch; each output as (kernel, definition, definition in fp32).

    Slots behind the new token, which nothing may read, hold NaN for the kernel.
    """
    from nemotron_plugins import torch_attention

    packed: Any = case.packed(rotary_inputs(case, dtype, device))
    heads = {"num_heads": case.H, "num_kv_heads": case.G}
    (out, *caches), exact = (
        packed_rotary_cached_attention.eager(*(_cast(t, kind) for t in packed), **heads)
        for kind in (dtype, torch.float32)
    )
    for cache in packed[4:6]:
        _spoil(case, cache, packed[7], behind=0)
    got = torch_attention.packed_rotary_cached_attention(*packed, **heads, splits=splits)
    for cache in caches:
        _spoil(case, cache, packed[7], behind=1)
    results = zip((got, *packed[4:6]), (out, *caches), exact, strict=True)
    return dict(zip(("out", "k_cache", "v_cache"), results, strict=True))


def _spoil(case: RotaryCase, cache: torch.Tensor, row: torch.Tensor | None, behind: int) -> None:
    """Puts NaN into every slot from so many behind a row's new token on."""
    for b, at in enumerate(case.starts):
        cache[b if row is None else int(row[b]), :, at + behind :] = float("nan")


def _cast(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return tensor.to(dtype) if tensor is not None and tensor.is_floating_point() else tensor


def run_fused_interpreted(
    case: RotaryCase, dtype: torch.dtype, splits: int | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Under the interpreter; returns each output as (kernel, definition in the same dtype)."""
    import triton

    assert triton.knobs.runtime.interpret, "Triton was imported without its interpreter"
    torch.set_num_threads(1)
    outputs = run_fused(case, dtype, splits=splits)
    return {name: (got.numpy(), expected.numpy()) for name, (got, expected, _) in outputs.items()}
