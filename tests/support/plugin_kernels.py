"""Random calls of the plugins' kernels, and the eager definitions of their ops.

Under Triton's interpreter the calls must run in a process whose environment asked for it before Triton was imported.

Shapes: B sequences, S new tokens, T cache capacity, H query heads, G key/value heads, D head_dim, R rotary_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from nemotron_graphs.ops import cached_attention, packed_rotary_cached_attention, packed_rotary_kv_cache_update

__all__ = [
    "AttentionCase",
    "RotaryCase",
    "attention_inputs",
    "reference_attention",
    "rotary_inputs",
    "run_attention",
    "run_fused",
    "run_fused_interpreted",
    "run_interpreted",
    "run_update",
]


@dataclass(frozen=True)
class RotaryCase:
    """Sizes of a rotation and update; ``starts`` holds each sequence's first position and slot."""

    H: int
    G: int
    D: int
    R: int
    S: int
    starts: tuple[int, ...]
    T: int

    @property
    def heads(self) -> dict[str, int]:
        """The ops' attributes."""
        return {"num_heads": self.H, "num_kv_heads": self.G}


@dataclass(frozen=True)
class AttentionCase:
    """Sizes of an attention; ``starts`` holds the tokens already in each sequence's cache."""

    H: int
    G: int
    D: int
    S: int
    starts: tuple[int, ...]
    T: int
    splits: int | None = None
    undefined: float = float("nan")


def rotary_inputs(case: RotaryCase, dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """The seven inputs of PackedRotaryKVCacheUpdate and PackedRotaryCachedAttention."""
    torch.manual_seed(0)
    B, start = len(case.starts), torch.tensor(case.starts)
    angles = torch.arange(case.T)[:, None] * 10000.0 ** -(torch.arange(case.R // 2) * 2 / case.R)
    tensors = (
        torch.randn(B, case.S, (case.H + 2 * case.G) * case.D),
        angles.cos(),
        angles.sin(),
        start[:, None] + torch.arange(case.S),
        torch.randn(B, case.G, case.T, case.D),
        torch.randn(B, case.G, case.T, case.D),
        start,
    )
    return tuple(_cast(tensor, dtype).to(device) for tensor in tensors)


def attention_inputs(case: AttentionCase, dtype: torch.dtype, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """The four inputs of CachedAttention. Every slot past a sequence's end holds ``case.undefined``."""
    torch.manual_seed(0)
    B, start = len(case.starts), torch.tensor(case.starts)
    q_BSHD = torch.randn(B, case.S, case.H, case.D)
    k_BGTD, v_BGTD = torch.randn(2, B, case.G, case.T, case.D).unbind(0)
    past_end_BT = torch.arange(case.T) >= (start + case.S)[:, None]
    for cache in (k_BGTD, v_BGTD):
        cache.masked_fill_(past_end_BT[:, None, :, None], case.undefined)
    return tuple(_cast(tensor, dtype).to(device) for tensor in (q_BSHD, k_BGTD, v_BGTD, start))


def reference_attention(inputs: tuple[torch.Tensor, ...], dtype: torch.dtype) -> torch.Tensor:
    """The eager definition in ``dtype``, on caches whose undefined slots are zero: zero times NaN is NaN."""
    q, k, v, start = (_cast(tensor, dtype) for tensor in inputs)
    # undefined is NaN or a value that no random normal reaches
    k, v = (torch.where(t.abs() < 1e3, t, 0.0) for t in (k, v))
    return cached_attention.eager(q, k, v, start)


def run_attention(inputs: tuple[torch.Tensor, ...], splits: int | None = None) -> torch.Tensor:
    """What the kernels of CachedAttention give."""
    from support.torch_kernels import run_op

    return run_op("CachedAttention", inputs, splits=splits)[0]


def run_update(
    case: RotaryCase, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Rotation and update: each output as (kernel, definition in the same dtype)."""
    from support.torch_kernels import run_op

    inputs = rotary_inputs(case, dtype, device)
    expected = packed_rotary_kv_cache_update.eager(*inputs, **case.heads)
    results = zip(run_op("PackedRotaryKVCacheUpdate", inputs, case.heads), expected, strict=True)
    return dict(zip(("q", "k_cache", "v_cache"), results, strict=True))


def run_fused(
    case: RotaryCase, dtype: torch.dtype, device: str = "cpu", splits: int | None = None
) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Rotation, update and attention in one launch; each output as (kernel, definition, definition in fp32).

    Slots after the new token, which nothing may read, hold NaN for the kernel.
    """
    from support.torch_kernels import run_op

    inputs = rotary_inputs(case, dtype, device)
    (out, *caches), exact = (
        packed_rotary_cached_attention.eager(*(_cast(tensor, kind) for tensor in inputs), **case.heads)
        for kind in (dtype, torch.float32)
    )
    for cache in inputs[4:6]:
        _spoil(case, cache, after=0)
    got = run_op("PackedRotaryCachedAttention", inputs, case.heads, splits=splits)
    for cache in caches:
        _spoil(case, cache, after=1)
    return dict(zip(("out", "k_cache", "v_cache"), zip(got, (out, *caches), exact, strict=True), strict=True))


def run_interpreted(case: RotaryCase | AttentionCase, dtype: torch.dtype) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Runs a case under the interpreter; returns each output as (kernel, definition in the same dtype)."""
    _check_interpreter()
    if isinstance(case, AttentionCase):
        inputs = attention_inputs(case, dtype)
        got = run_attention(inputs, case.splits)
        return {"out": (got.numpy(), reference_attention(inputs, dtype).numpy())}
    return {name: (got.numpy(), expected.numpy()) for name, (got, expected) in run_update(case, dtype).items()}


def run_fused_interpreted(
    case: RotaryCase, dtype: torch.dtype, splits: int | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Under the interpreter; returns each output as (kernel, definition in the same dtype)."""
    _check_interpreter()
    outputs = run_fused(case, dtype, splits=splits)
    return {name: (got.numpy(), expected.numpy()) for name, (got, expected, _) in outputs.items()}


def _check_interpreter() -> None:
    import triton

    assert triton.knobs.runtime.interpret, "Triton was imported without its interpreter"
    torch.set_num_threads(1)


def _spoil(case: RotaryCase, cache: torch.Tensor, after: int) -> None:
    """Puts NaN into every slot from so many after a sequence's new token on."""
    for b, at in enumerate(case.starts):
        cache[b, :, at + after :] = float("nan")


def _cast(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
