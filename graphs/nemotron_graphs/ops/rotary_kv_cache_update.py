"""``RotaryKVCacheUpdate``: rotation of queries and keys and the update of both caches, in one op.

The fused form that kernels run: q, k and v are read once, and k and v are written straight into their caches.

Shapes: B sequences, S new tokens, H query heads, G key/value heads, D head_dim, T capacity of a cache, P positions in
the table, R rotary_dim.
"""

from __future__ import annotations

import torch

from nemotron_graphs.ops.definition import OpDefinition, OpInput
from nemotron_graphs.ops.kv_cache_update import kv_cache_update
from nemotron_graphs.ops.partial_rotary_embedding import partial_rotary_embedding

__all__ = ["rotary_kv_cache_update"]


def _eager(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    position_ids: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    write_index: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rotate, update = partial_rotary_embedding.eager, kv_cache_update.eager
    return (
        rotate(q, cos, sin, position_ids),
        update(k_cache, rotate(k, cos, sin, position_ids), write_index),
        update(v_cache, v, write_index),
    )


_BODY = """
  q_rotated = nemotron.PartialRotaryEmbedding(q, cos, sin, position_ids)
  k_rotated = nemotron.PartialRotaryEmbedding(k, cos, sin, position_ids)
  k_updated = nemotron.KVCacheUpdate(k_cache, k_rotated, write_index)
  v_updated = nemotron.KVCacheUpdate(v_cache, v, write_index)"""


rotary_kv_cache_update = OpDefinition(
    name="RotaryKVCacheUpdate",
    inputs=(
        OpInput("q", "T", "[B, S, H, D]"),
        OpInput("k", "T", "[B, S, G, D]"),
        OpInput("v", "T", "[B, S, G, D]"),
        *partial_rotary_embedding.inputs[1:],
        OpInput("k_cache", "T", "[B, G, T, D]"),
        OpInput("v_cache", "T", "[B, G, T, D]"),
        OpInput("write_index", "I", "[B]"),
    ),
    outputs=(("q_rotated", "[B, S, H, D]"), ("k_updated", "[B, G, T, D]"), ("v_updated", "[B, G, T, D]")),
    eager=_eager,
    body=_BODY,
    doc="PartialRotaryEmbedding of q and k, then KVCacheUpdate of the rotated k and of v.",
)
