"""Forms the fused RotaryKVCacheUpdate out of rotations and cache updates."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.matching import FusionPass, only_reader, producer, require

__all__ = ["FormRotaryKVCacheUpdatePass"]


class FormRotaryKVCacheUpdatePass(FusionPass):
    """Fuses what a layer does between its projections and its attention into one node.

    Rules, per ``CachedAttention(PartialRotaryEmbedding(q), KVCacheUpdate(k_cache, PartialRotaryEmbedding(k)),
    KVCacheUpdate(v_cache, v))``:
        1. where both rotations read one pair of tables and one position_ids, both updates one write_index, and nothing
           else the rotated k (it is then in the cache alone), the four nodes become ``RotaryKVCacheUpdate``; its
           outputs keep their names;
        2. otherwise the nodes stay.
    """

    forms = "RotaryKVCacheUpdate"
    anchor = ("CachedAttention", DOMAIN)

    def fuse(self, graph: ir.Graph, node: ir.Node) -> None:
        q_rotary = producer(node.inputs[0], "PartialRotaryEmbedding", DOMAIN)
        k_update, v_update = (producer(value, "KVCacheUpdate", DOMAIN) for value in node.inputs[1:3])
        k_rotary = producer(k_update.inputs[1], "PartialRotaryEmbedding", DOMAIN)
        require(q_rotary.inputs[1:] == k_rotary.inputs[1:], "queries and keys are rotated by other tables or positions")
        require(k_update.inputs[2:] == v_update.inputs[2:], "keys and values are written to other positions")
        only_reader(k_rotary.outputs[0])
        new = ir.Node(
            DOMAIN,
            self.forms,
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
        graph.insert_before(node, new)
        old = [q_rotary, k_update, v_update]
        old_values = [each.outputs[0] for each in old]
        ir.convenience.replace_nodes_and_values(graph, new, [*old, k_rotary], [], old_values, new.outputs)
