"""Gives every Reshape a constant target where its symbolic shapes allow it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

__all__ = ["SimplifyReshapesPass"]


class SimplifyReshapesPass(ir.passes.InPlacePass):
    """Replaces computed Reshape targets by constants, so that Shape/Concat chains die.

    Rules, for ``y = Reshape(x, shape)`` with the shapes of x and y known up to symbols:
        1. a dim of y that is a number is written as it is;
        2. a dim of y that is the same symbol as x's dim on the same axis is written 0 (copy);
        3. one further dim at most is written -1 (infer).
        Otherwise the node stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        modified = False
        for node in model.graph:
            if node.op_type != "Reshape" or node.domain:
                continue
            source, target = node.inputs[0], node.inputs[1]
            if source is None or target is None or target.const_value is not None:
                continue
            dims = _constant_target(source.shape, node.outputs[0].shape)
            if dims is None:
                continue
            constant = ir.Node(
                "", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.array(dims, np.int64)))], num_outputs=1
            )
            constant.outputs[0].name = f"{node.outputs[0].name}/shape"
            model.graph.insert_before(node, constant)
            node.replace_input_with(1, constant.outputs[0])
            node.attributes.pop("allowzero", None)
            modified = True
        return ir.passes.PassResult(model, modified)


def _constant_target(source: ir.Shape | None, result: ir.Shape | None) -> list[int] | None:
    if source is None or result is None:
        return None
    dims: list[int] = []
    for axis, dim in enumerate(result):
        if isinstance(dim, int):
            if dim == 0:
                return None
            dims.append(dim)
        elif axis < len(source) and dim.value is not None and source[axis] == dim:
            dims.append(0)
        elif -1 not in dims:
            dims.append(-1)
        else:
            return None
    return dims
