"""``PackedRotaryCachedAttention``: the rotation and cache update of packed heads, and attention over both caches.

The fused form of a decode step: one node between a layer's packed projection and its output projection.

Shapes: B sequences, S new tokens, H query heads, G key/value heads, D head_dim, T capacity of a cache, P positions in
the table, R rotary_dim.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from nemotron_graphs.ops.cached_attention import cached_attention
from nemotron_graphs.ops.definition import OpDefinition, OpInput
from nemotron_graphs.ops.packed_rotary_kv_cache_update import packed_rotary_kv_cache_update

__all__ = ["packed_rotary_cached_attention"]


def _eager(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    query_start: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q_rotated, k_updated, v_updated = packed_rotary_kv_cache_update.eager(
        qkv, cos, sin, position_ids, k_cache, v_cache, query_start,
        num_heads=num_heads, num_kv_heads=num_kv_heads,
    )  # fmt: skip
    return cached_attention.eager(q_rotated, k_updated, v_updated, query_start), k_updated, v_updated


def _body(present: Collection[str], num_heads: int, num_kv_heads: int) -> str:
    return f"""
  q_rotated, k_updated, v_updated = nemotron.PackedRotaryKVCacheUpdate<
    num_heads={num_heads}, num_kv_heads={num_kv_heads}>(
    qkv, cos, sin, position_ids, k_cache, v_cache, query_start)
  out = nemotron.CachedAttention(q_rotated, k_updated, v_updated, query_start)"""


packed_rotary_cached_attention = OpDefinition(
    name="PackedRotaryCachedAttention",
    inputs=(*packed_rotary_kv_cache_update.inputs[:-1], OpInput("query_start", "I", "[B]")),
    outputs=(("out", "[B, S, H, D]"), *packed_rotary_kv_cache_update.outputs[1:]),
    eager=_eager,
    # the attention has the shape of the rotated queries
    fake=packed_rotary_kv_cache_update.fake,
    body=_body,
    doc="PackedRotaryKVCacheUpdate at positions query_start[b] and following, then CachedAttention of the rotated "
    "queries over the updated caches.",
    attributes=packed_rotary_kv_cache_update.attributes,
)
