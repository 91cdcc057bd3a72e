"""Lowers cache updates to ONNX's TensorScatter, which TensorRT has a layer for."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.lower.native_nodes import heads_first
from nemotron_graphs.passes.nodes import add_node, take_place

__all__ = ["LowerKVCacheUpdatePass"]


class LowerKVCacheUpdatePass(ir.passes.InPlacePass):
    """Needs opset 24 or later.

    Rule: ``KVCacheUpdate(cache, new, write_index)``, cache [B, G, T, D] and new [B, S, G, D], becomes
    ``TensorScatter<axis=2>(cache, Transpose(new), write_index)``.

    Precondition: no cache_row, which TensorScatter does not know.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, "KVCacheUpdate")]
        for node in nodes:
            _lower(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    cache, new, write_index = node.inputs[:3]
    assert new is not None
    if len(node.inputs) > 3 and node.inputs[3] is not None:
        raise ir.passes.PreconditionError(
            f"'{node.outputs[0].name}': found a cache_row; expected rows in the cache's order; trace it without"
        )
    inputs = [cache, heads_first(graph, node, new), write_index]
    name = f"{node.outputs[0].name}/scattered"
    take_place(graph, node, add_node(graph, node, "TensorScatter", inputs, [ir.AttrInt64("axis", 2)], name=name))
