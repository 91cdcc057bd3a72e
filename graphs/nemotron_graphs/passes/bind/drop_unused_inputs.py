"""Drops graph inputs that nothing reads."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["DropUnusedInputsPass"]


class DropUnusedInputsPass(ir.passes.InPlacePass):
    """Rule: an input with no reader that is no output either is removed. A caller feeds what the graph declares."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        unused = [value for value in model.graph.inputs if not value.uses() and not value.is_graph_output()]
        for value in unused:
            model.graph.inputs.remove(value)
        return ir.passes.PassResult(model, bool(unused))
