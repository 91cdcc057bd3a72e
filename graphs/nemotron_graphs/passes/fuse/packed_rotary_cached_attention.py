"""Forms PackedRotaryCachedAttention: a rotation and cache update together with the attention that follows."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.matching import FusionPass, only_reader, producer, require

__all__ = ["FormPackedRotaryCachedAttentionPass"]


class FormPackedRotaryCachedAttentionPass(FusionPass):
    """Fuses attention with the packed rotation and cache update before it.

    Rules, per ``CachedAttention(q_rotated, k_updated, v_updated, query_start)`` of the three outputs of one
    ``PackedRotaryKVCacheUpdate(qkv, ..., write_index)``:
        1. where write_index is query_start, and q_rotated has no other reader and is no graph output, the nodes become
           ``PackedRotaryCachedAttention``, with the update's inputs and attributes;
        2. its outputs keep the names, shapes and dtypes of the attention's output and of both updated caches;
        3. otherwise both nodes stay.

    Precondition: :class:`FormPackedRotaryKVCacheUpdatePass` came before.
    """

    forms = "PackedRotaryCachedAttention"
    anchor = ("CachedAttention", DOMAIN)

    def fuse(self, graph: ir.Graph, node: ir.Node) -> None:
        update = producer(node.inputs[0], "PackedRotaryKVCacheUpdate", DOMAIN)
        # values compare by identity
        require(node.inputs[:3] == update.outputs, "its caches are not those of the update of its queries")
        require(node.inputs[3] is update.inputs[6], "query_start is not the update's write_index")
        only_reader(update.outputs[0])
        new = ir.Node(DOMAIN, self.forms, update.inputs, update.attributes.values(), num_outputs=3)
        old = (*node.outputs, *update.outputs[1:])
        # at the update's place: its inputs are there, and readers of the caches may come before the attention
        ir.convenience.replace_nodes_and_values(graph, update, [node, update], [new], old, new.outputs)
