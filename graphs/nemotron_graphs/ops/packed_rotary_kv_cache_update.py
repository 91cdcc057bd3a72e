"""``PackedRotaryKVCacheUpdate``: the rotation and cache update of queries, keys and values packed in one tensor.

Shapes: B sequences, S new tokens, H query heads, G key/value heads, D head_dim, T capacity of a cache, P positions in
the table, R rotary_dim.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from nemotron_graphs.ops.definition import OpAttribute, OpDefinition, OpInput, contiguous_like
from nemotron_graphs.ops.rotary_kv_cache_update import rotary_kv_cache_update

__all__ = ["packed_rotary_kv_cache_update"]


def _eager(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    write_index: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    heads_BSD = qkv.unflatten(-1, (num_heads + 2 * num_kv_heads, -1))
    q, k, v = heads_BSD.split((num_heads, num_kv_heads, num_kv_heads), dim=2)
    return rotary_kv_cache_update.eager(q, k, v, cos, sin, position_ids, k_cache, v_cache, write_index)


def _fake(
    qkv: torch.Tensor, *others: torch.Tensor, num_heads: int, num_kv_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    *_, k_cache, v_cache, _ = others
    q_rotated = qkv.new_empty((*qkv.shape[:2], num_heads, k_cache.shape[-1]))
    return q_rotated, contiguous_like(k_cache), contiguous_like(v_cache)


def _body(present: Collection[str], num_heads: int, num_kv_heads: int) -> str:
    return f"""
  shape_BSnD = Constant<value_ints=[0, 0, {num_heads + 2 * num_kv_heads}, -1]>()
  heads_BSnD = Reshape(qkv, shape_BSnD)
  parts = Constant<value_ints=[{num_heads}, {num_kv_heads}, {num_kv_heads}]>()
  q, k, v = Split<axis=2>(heads_BSnD, parts)
  q_rotated, k_updated, v_updated = nemotron.RotaryKVCacheUpdate(
    q, k, v, cos, sin, position_ids, k_cache, v_cache, write_index)"""


packed_rotary_kv_cache_update = OpDefinition(
    name="PackedRotaryKVCacheUpdate",
    inputs=(
        OpInput("qkv", "T", "[B, S, (H+2G)*D]"),
        *rotary_kv_cache_update.inputs[3:],
    ),
    outputs=rotary_kv_cache_update.outputs,
    eager=_eager,
    fake=_fake,
    body=_body,
    doc="RotaryKVCacheUpdate of the heads in qkv, one after another: H of q, G of k, G of v.",
    attributes=(OpAttribute("num_heads", 1, required=True), OpAttribute("num_kv_heads", 1, required=True)),
)
