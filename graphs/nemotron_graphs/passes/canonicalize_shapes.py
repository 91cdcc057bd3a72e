"""Reads every dynamic dim from a graph input, so that equal shape computations become one."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["CanonicalizeShapesPass"]


class CanonicalizeShapesPass(ir.passes.InPlacePass):
    """Rewrites Shape nodes that look at one dim.

    Rules, for ``y = Shape<start, end>(x)`` with end = start + 1 and x's shape known:
        1. a dim that is a number becomes a Constant;
        2. a dim that is a symbol is read from the first graph input that has it, where that is not x already.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        homes: dict[str, tuple[ir.Value, int]] = {}
        for value in model.graph.inputs:
            for axis, dim in enumerate(value.shape or ()):
                if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                    homes.setdefault(dim.value, (value, axis))
        modified = False
        for node in model.graph:
            if node.op_type == "Shape" and not node.domain:
                modified |= _rewrite(model.graph, node, homes)
        return ir.passes.PassResult(model, modified)


def _rewrite(graph: ir.Graph, node: ir.Node, homes: dict[str, tuple[ir.Value, int]]) -> bool:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return False
    rank = len(source.shape)
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", rank)
    start, end = (max(0, i + rank) if i < 0 else i for i in (start, end))
    if end != start + 1:
        return False
    dim = source.shape[start]
    if isinstance(dim, int):
        new = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.array([dim], np.int64)))])
    elif dim.value in homes:
        home, axis = homes[dim.value]
        if home is source:
            return False
        new = ir.Node("", "Shape", [home], [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + 1)])
    else:
        return False
    old = node.outputs[0]
    new.outputs[0].name, new.outputs[0].shape, new.outputs[0].type = old.name, old.shape, old.type
    graph.insert_before(node, new)
    ir.convenience.replace_all_uses_with(old, new.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
    return True
