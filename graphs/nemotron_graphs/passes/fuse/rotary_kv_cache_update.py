"""Forms the fused RotaryKVCacheUpdate out of rotations and cache updates."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN

__all__ = ["FormRotaryKVCacheUpdatePass"]


class FormRotaryKVCacheUpdatePass(ir.passes.InPlacePass):
    """Fuses what a layer does between its projections and its attention into one node.

    Rules, per ``CachedAttention(PartialRotaryEmbedding(q), KVCacheUpdate(k_cache, PartialRotaryEmbedding(k)),
    KVCacheUpdate(v_cache, v))``:
        1. where both rotations read one pair of tables and one position_ids, and both updates one write_index and one
           cache_row (or none), the four nodes become ``RotaryKVCacheUpdate``; its outputs keep their names;
        2. otherwise the nodes stay.

    Precondition: nothing else reads the rotated k (it is then in the cache alone).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = [n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, "CachedAttention")]
        fused = [_fuse(model.graph, node) for node in attentions]
        return ir.passes.PassResult(model, any(fused))


def _fuse(graph: ir.Graph, attention: ir.Node) -> bool:
    q_rotary = _producer(attention.inputs[0], "PartialRotaryEmbedding")
    k_update, v_update = (_producer(value, "KVCacheUpdate") for value in attention.inputs[1:3])
    k_rotary = _producer(k_update.inputs[1], "PartialRotaryEmbedding") if k_update else None
    if q_rotary is None or k_rotary is None or k_update is None or v_update is None:
        return False
    if list(q_rotary.inputs[1:]) != list(k_rotary.inputs[1:]) or list(k_update.inputs[2:]) != list(v_update.inputs[2:]):
        return False
    if len(k_rotary.outputs[0].uses()) != 1:
        return False
    node = ir.Node(
        DOMAIN,
        "RotaryKVCacheUpdate",
        [
            q_rotary.inputs[0],
            k_rotary.inputs[0],
            v_update.inputs[1],
            *q_rotary.inputs[1:],
            k_update.inputs[0],
            v_update.inputs[0],
            *k_update.inputs[2:],
        ],
        num_outputs=3,
    )
    graph.insert_before(attention, node)
    for new, old in zip(node.outputs, (q_rotary, k_update, v_update), strict=True):
        previous = old.outputs[0]
        new.name, new.shape, new.type = previous.name, previous.shape, previous.type
        previous.name = f"{previous.name}/unfused"
        ir.convenience.replace_all_uses_with(previous, new, replace_graph_outputs=True)
    graph.remove([q_rotary, k_update, v_update, k_rotary], safe=True)
    return True


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == (DOMAIN, op_type) else None
