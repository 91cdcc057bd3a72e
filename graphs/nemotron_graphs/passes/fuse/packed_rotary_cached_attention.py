"""Forms PackedRotaryCachedAttention: a rotation and cache update together with the attention behind it."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN

__all__ = ["FormPackedRotaryCachedAttentionPass"]


class FormPackedRotaryCachedAttentionPass(ir.passes.InPlacePass):
    """Fuses attention with the packed rotation and cache update in front of it.

    Rules, per ``CachedAttention(q_rotated, k_updated, v_updated, query_start[, cache_row])`` of the three outputs of
    one ``PackedRotaryKVCacheUpdate(qkv, ..., write_index[, cache_row])``:
        1. where write_index is query_start, both have one cache_row (or none), and q_rotated has no other reader and is
           no graph output, the nodes become ``PackedRotaryCachedAttention``, with the update's inputs and attributes;
        2. its outputs keep the names, shapes and dtypes of the attention's output and of both updated caches;
        3. otherwise both nodes stay.

    Precondition: :class:`FormPackedRotaryKVCacheUpdatePass` came before.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        attentions = [n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, "CachedAttention")]
        formed = [_form(model.graph, node) for node in attentions]
        return ir.passes.PassResult(model, any(formed))


def _form(graph: ir.Graph, attention: ir.Node) -> bool:
    q = attention.inputs[0]
    update = None if q is None else q.producer()
    if q is None or update is None or (update.domain, update.op_type) != (DOMAIN, "PackedRotaryKVCacheUpdate"):
        return False
    # values compare by identity
    if attention.inputs[:3] != update.outputs or _starts_and_rows(attention, 3) != _starts_and_rows(update, 6):
        return False
    if len(q.uses()) != 1 or q.is_graph_output():
        return False
    new = ir.Node(DOMAIN, "PackedRotaryCachedAttention", update.inputs, update.attributes.values(), num_outputs=3)
    replaced = (attention.outputs[0], *update.outputs[1:])
    for value, old in zip(new.outputs, replaced, strict=True):
        value.name, value.shape, value.type = old.name, old.shape, old.type
    # at the update's place: its inputs are there, and readers of the caches may stand in front of the attention
    ir.convenience.replace_nodes_and_values(graph, update, [attention, update], [new], replaced, new.outputs)
    return True


def _starts_and_rows(node: ir.Node, index: int) -> tuple[ir.Value | None, ir.Value | None]:
    """The input at ``index``, and the optional one behind it."""
    start, *row = node.inputs[index:]
    return start, row[0] if row else None
