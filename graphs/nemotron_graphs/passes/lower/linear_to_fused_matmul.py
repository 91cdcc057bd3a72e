"""Lowers the dialect's Linear to ONNX Runtime's FusedMatMul."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN

__all__ = ["LowerLinearToFusedMatMulPass"]


class LowerLinearToFusedMatMulPass(ir.passes.InPlacePass):
    """Keeps [out, in] weights and any number of leading dims, without a Reshape.

    Rules:
        1. ``Linear(x, w)`` → ``FusedMatMul<transB=1>(x, w)``;
        2. ``Linear(x, w, b)`` → ``Add(FusedMatMul<transB=1>(x, w), b)``.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if (node.domain, node.op_type) != (DOMAIN, "Linear"):
                continue
            bias = node.inputs[2] if len(node.inputs) > 2 else None
            old = node.outputs[0]
            product = ir.Node("com.microsoft", "FusedMatMul", node.inputs[:2], [ir.AttrInt64("transB", 1)])
            nodes = [product]
            if bias is not None:
                product.outputs[0].name = f"{old.name}/product"
                product.outputs[0].shape, product.outputs[0].type = old.shape, old.type
                nodes.append(ir.Node("", "Add", [product.outputs[0], bias]))
            new = nodes[-1].outputs[0]
            new.name, new.shape, new.type = old.name, old.shape, old.type
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, [old], [new])
            modified = True
        if modified:
            model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified)
