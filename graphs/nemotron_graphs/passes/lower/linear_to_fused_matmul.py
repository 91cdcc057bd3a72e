"""Lowers the dialect's Linear to ONNX Runtime's FusedMatMul."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.matching import CONTRIB, add_node, nodes_of, take_place

__all__ = ["LowerLinearToFusedMatMulPass"]


class LowerLinearToFusedMatMulPass(ir.passes.InPlacePass):
    """Keeps [out, in] weights and any number of leading dims, without a Reshape.

    Rules:
        1. ``Linear(x, w)`` → ``FusedMatMul<transB=1>(x, w)``;
        2. ``Linear(x, w, b)`` → ``Add(FusedMatMul<transB=1>(x, w), b)``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        nodes = nodes_of(graph, "Linear", DOMAIN)
        for node in nodes:
            x, weight, *bias = node.inputs
            old, transposed = node.outputs[0], ir.AttrInt64("transB", 1)
            result = add_node(
                graph, node, "FusedMatMul", [x, weight], [transposed],
                name=f"{old.name}/product", shape=old.shape, dtype=old.dtype, domain=CONTRIB,
            )  # fmt: skip
            if bias:
                result = add_node(graph, node, "Add", [result, *bias], name=f"{old.name}/sum")
            take_place(graph, node, result)
        if nodes:
            model.opset_imports[CONTRIB] = 1
        return ir.passes.PassResult(model, bool(nodes))
