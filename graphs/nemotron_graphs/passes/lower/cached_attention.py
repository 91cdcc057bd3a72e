"""Lowers attention over caches to ONNX's Attention, which TensorRT has a layer for."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.lower.native_nodes import HEADS_FIRST, heads_first
from nemotron_graphs.passes.nodes import add_node, take_place

__all__ = ["LowerCachedAttentionPass"]


class LowerCachedAttentionPass(ir.passes.InPlacePass):
    """Needs opset 24 or later.

    Rules, per ``CachedAttention(q, k_cache, v_cache, query_start)``, q [B, S, H, D] and caches [B, G, T, D]:
        1. it becomes ``Transpose(Attention(Transpose(q), k_cache, v_cache, visible))``; its scale is the op's own
           default, D^-0.5;
        2. ``visible`` bool [B, 1, S, T] says that token s of row b sees slots 0 to query_start[b] + s; nodes that read
           one query_start share it.

    Precondition: no cache_row.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, "CachedAttention")]
        masks: dict[ir.Value, ir.Value] = {}
        for node in nodes:
            _lower(model.graph, node, masks)
        return ir.passes.PassResult(model, bool(nodes))


def _lower(graph: ir.Graph, node: ir.Node, masks: dict[ir.Value, ir.Value]) -> None:
    q, k_cache, v_cache, query_start = node.inputs[:4]
    assert q is not None
    assert k_cache is not None
    assert query_start is not None
    name = node.outputs[0].name
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        raise ir.passes.PreconditionError(
            f"'{name}': found a cache_row; expected rows in the cache's order; trace it without"
        )
    if query_start not in masks:
        masks[query_start] = _visible(graph, node, q, k_cache, query_start)
    q_BHSD = heads_first(graph, node, q)
    attended = add_node(
        graph, node, "Attention", [q_BHSD, k_cache, v_cache, masks[query_start]],
        name=f"{name}/attended", shape=q_BHSD.shape, dtype=q.dtype,
    )  # fmt: skip
    perm = ir.AttrInt64s("perm", HEADS_FIRST)
    take_place(graph, node, add_node(graph, node, "Transpose", [attended], [perm], name=f"{name}/tokens_first"))


def _visible(graph: ir.Graph, before: ir.Node, q: ir.Value, k_cache: ir.Value, query_start: ir.Value) -> ir.Value:
    def constant(name: str, value: object) -> ir.Value:
        tensor = ir.AttrTensor("value", ir.tensor(np.array(value, np.int64)))
        return add_node(graph, before, "Constant", [], [tensor], name=f"visible/{name}")

    def count(name: str, value: ir.Value, axis: int) -> ir.Value:
        dims = [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)]
        size = add_node(graph, before, "Shape", [value], dims, name=f"visible/{name}_1")
        number = add_node(graph, before, "Squeeze", [size], name=f"visible/{name}")
        return add_node(graph, before, "Range", [zero, number, one], name=f"visible/{name}_range")

    zero, one = constant("zero", 0), constant("one", 1)
    token_S, slot_T = count("tokens", q, 1), count("slots", k_cache, 2)
    token_S1 = add_node(graph, before, "Unsqueeze", [token_S, constant("token_axis", [1])], name="visible/token")
    start_B111 = add_node(
        graph, before, "Unsqueeze", [query_start, constant("row_axes", [1, 2, 3])], name="visible/start"
    )
    position_B1S1 = add_node(graph, before, "Add", [start_B111, token_S1], name="visible/position")
    return add_node(graph, before, "LessOrEqual", [slot_T, position_B1S1], name="visible", dtype=ir.DataType.BOOL)
