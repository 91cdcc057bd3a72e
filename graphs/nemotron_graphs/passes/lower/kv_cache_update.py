"""Lowers cache updates to ONNX's TensorScatter, which TensorRT has a layer for."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.lower.native_nodes import heads_first
from nemotron_graphs.passes.matching import add_node, input_of, nodes_of, take_place

__all__ = ["LowerKVCacheUpdatePass"]


class LowerKVCacheUpdatePass(ir.passes.InPlacePass):
    """Needs opset 24 or later.

    Rule: ``KVCacheUpdate(cache, new, write_index)``, cache [B, G, T, D] and new [B, S, G, D], becomes
    ``TensorScatter<axis=2>(cache, Transpose(new), write_index)``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model.graph, "KVCacheUpdate", DOMAIN)
        for node in nodes:
            cache, new, write_index = (input_of(node, index) for index in range(3))
            inputs = [cache, heads_first(model.graph, node, new), write_index]
            name, axis = f"{node.outputs[0].name}/scattered", ir.AttrInt64("axis", 2)
            take_place(model.graph, node, add_node(model.graph, node, "TensorScatter", inputs, [axis], name=name))
        return ir.passes.PassResult(model, bool(nodes))
