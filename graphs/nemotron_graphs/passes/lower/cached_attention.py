"""Lowers attention over caches to ONNX's Attention, which TensorRT has a layer for."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.lower.native_nodes import heads_first, tokens_first
from nemotron_graphs.passes.matching import add_constant, add_node, input_of, nodes_of

__all__ = ["LowerCachedAttentionPass"]


class LowerCachedAttentionPass(ir.passes.InPlacePass):
    """Needs opset 24 or later.

    Rules, per ``CachedAttention(q, k_cache, v_cache, query_start)``, q [B, S, H, D] and caches [B, G, T, D]:
        1. it becomes ``Transpose(Attention(Transpose(q), k_cache, v_cache, visible))``; its scale is the op's own
           default, D^-0.5;
        2. ``visible`` bool [B, 1, S, T] says that token s of sequence b sees positions 0 to query_start[b] + s; nodes
           that read one query_start share it.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph, masks = model.graph, dict[ir.Value, ir.Value]()
        nodes = nodes_of(graph, "CachedAttention", DOMAIN)
        for node in nodes:
            q, k_cache, v_cache, query_start = (input_of(node, index) for index in range(4))
            if query_start not in masks:
                masks[query_start] = _visible(graph, node, q, k_cache, query_start)
            q_BHSD = heads_first(graph, node, q)
            attended = add_node(
                graph, node, "Attention", [q_BHSD, k_cache, v_cache, masks[query_start]],
                name=f"{node.outputs[0].name}/attended", shape=q_BHSD.shape, dtype=q.dtype,
            )  # fmt: skip
            tokens_first(graph, node, attended)
        return ir.passes.PassResult(model, bool(nodes))


def _visible(graph: ir.Graph, before: ir.Node, q: ir.Value, k_cache: ir.Value, query_start: ir.Value) -> ir.Value:
    def constant(name: str, value: int | list[int]) -> ir.Value:
        return add_constant(graph, before, value, name=f"visible/{name}")

    def count(name: str, value: ir.Value, axis: int) -> ir.Value:
        dims = [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)]
        size = add_node(graph, before, "Shape", [value], dims, name=f"visible/{name}_1")
        number = add_node(graph, before, "Squeeze", [size], name=f"visible/{name}")
        return add_node(graph, before, "Range", [zero, number, one], name=f"visible/{name}_range")

    zero, one = constant("zero", 0), constant("one", 1)
    token_S, cached_T = count("tokens", q, 1), count("capacity", k_cache, 2)
    token_S1 = add_node(graph, before, "Unsqueeze", [token_S, constant("token_axis", [1])], name="visible/token")
    axes = constant("sequence_axes", [1, 2, 3])
    start_B111 = add_node(graph, before, "Unsqueeze", [query_start, axes], name="visible/start")
    position_B1S1 = add_node(graph, before, "Add", [start_B111, token_S1], name="visible/position")
    return add_node(graph, before, "LessOrEqual", [cached_T, position_B1S1], name="visible", dtype=ir.DataType.BOOL)
