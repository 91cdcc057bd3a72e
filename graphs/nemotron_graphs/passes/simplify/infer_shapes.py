"""Shapes and dtypes for every value."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

__all__ = ["InferShapesPass"]


class InferShapesPass(ir.passes.InPlacePass):
    """Runs ONNX's shape inference and checks what it leaves.

    Rules:
        1. a value without a shape or dtype gets what ONNX infers; what is there already stays.

    Postcondition: every value has a dtype and a known rank, those of other domains' ops included (their passes say).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        known = {
            id(value): (value.shape, value.type)
            for node in model.graph
            for value in node.outputs
            if value.shape is not None and value.type is not None
        }
        result = common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=False)(model)
        unknown = []
        for node in result.model.graph:
            for value in node.outputs:
                if id(value) in known:
                    # a symbol of the graph's inputs says more than one that inference made up
                    value.shape, value.type = known[id(value)]
                if value.shape is None or value.dtype is None:
                    unknown.append(f"'{value.name}' of {node.op_type}")
        if unknown:
            raise ir.passes.PostconditionError(
                f"{len(unknown)} values without shape or dtype: {', '.join(unknown[:3])}; expected none; "
                "let the pass that makes the node set them"
            )
        return ir.passes.PassResult(result.model, result.modified)
