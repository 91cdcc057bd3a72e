"""Removes sums with zero."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nemotron_graphs.passes.matching import nodes_of

__all__ = ["EliminateZeroSumsPass"]


class EliminateZeroSumsPass(ir.passes.InPlacePass):
    """Removes what a fixed dim leaves of sums over it: the position of a sequence's one new token is its start plus 0.

    Rule: ``Add(x, c)``, the operands in either order, becomes ``x`` where c is a constant of integer zeros and the sum
    has x's shape.

    Precondition: constants are folded and shapes known. A sum that is a graph output stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in nodes_of(model.graph, "Add"):
            if node.outputs[0].is_graph_output():
                continue
            for value, other in (node.inputs, reversed(node.inputs)):
                if value is not None and _is_zero(other) and value.shape == node.outputs[0].shape:
                    ir.convenience.replace_all_uses_with(node.outputs[0], value)
                    model.graph.remove(node, safe=True)
                    modified = True
                    break
        return ir.passes.PassResult(model, modified)


def _is_zero(value: ir.Value | None) -> bool:
    tensor = None if value is None else value.const_value
    # a float's zero has a sign, and an external tensor is a weight
    if tensor is None or isinstance(tensor, ir.ExternalTensor) or not tensor.dtype.is_integer():
        return False
    return not np.any(tensor.numpy())
