"""Drops graph inputs that nothing reads."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["DropUnusedInputsPass"]


class DropUnusedInputsPass(ir.passes.InPlacePass):
    """Rule: an input with no reader that is no output either is removed. The session feeds what the graph declares."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        outputs = set(model.graph.outputs)
        unused = [v for v in model.graph.inputs if not v.uses() and v not in outputs]
        for value in unused:
            model.graph.inputs.remove(value)
        return ir.passes.PassResult(model, bool(unused))
