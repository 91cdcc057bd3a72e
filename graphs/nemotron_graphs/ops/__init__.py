"""The ops of the ``nemotron`` dialect (ONNX domain ``nemotron``, version 1), one file each."""

from __future__ import annotations

import onnx

from nemotron_graphs.ops.cached_attention import cached_attention
from nemotron_graphs.ops.definition import DOMAIN, DOMAIN_VERSION, OpAttribute, OpDefinition, OpInput
from nemotron_graphs.ops.kv_cache_update import kv_cache_update
from nemotron_graphs.ops.layernorm_linear import layernorm_linear
from nemotron_graphs.ops.linear import linear
from nemotron_graphs.ops.linear_residual import linear_residual
from nemotron_graphs.ops.packed_rotary_cached_attention import packed_rotary_cached_attention
from nemotron_graphs.ops.packed_rotary_kv_cache_update import packed_rotary_kv_cache_update
from nemotron_graphs.ops.partial_rotary_embedding import partial_rotary_embedding
from nemotron_graphs.ops.rotary_kv_cache_update import rotary_kv_cache_update

__all__ = [
    "DOMAIN",
    "DOMAIN_VERSION",
    "OPS",
    "OpAttribute",
    "OpDefinition",
    "OpInput",
    "cached_attention",
    "kv_cache_update",
    "layernorm_linear",
    "linear",
    "linear_residual",
    "packed_rotary_cached_attention",
    "packed_rotary_kv_cache_update",
    "partial_rotary_embedding",
    "register_schemas",
    "rotary_kv_cache_update",
]

OPS: dict[str, OpDefinition] = {
    op.name: op
    for op in (
        partial_rotary_embedding,
        kv_cache_update,
        cached_attention,
        rotary_kv_cache_update,
        packed_rotary_kv_cache_update,
        packed_rotary_cached_attention,
        linear,
        layernorm_linear,
        linear_residual,
    )
}

# torch.export needs the ops registered before it meets them
for _op in OPS.values():
    _ = _op.torch_op


def register_schemas() -> None:
    """Makes the dialect's schemas known to ONNX, so that the checker and the exporter accept its nodes."""
    for op in OPS.values():
        if not onnx.defs.has(op.name, DOMAIN):
            onnx.defs.register_schema(op.schema)
