"""Computes what depends on constants alone."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

__all__ = ["FoldConstantsPass"]

# shapes, axes and scalars are worth folding; a table is not
_MOST_ELEMENTS = 1024


class FoldConstantsPass(ir.passes.InPlacePass):
    """Evaluates small nodes whose inputs are all constants, by ONNX's reference.

    Rules:
        1. a node of the default domain with one output, at least one input, and constants of at most 1,024 elements as
           its inputs becomes an initializer, where the output is as small;
        2. nodes with subgraphs, and Constant itself, stay.

    Precondition: weights are graph inputs still, or this pass would read them.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        opset = model.opset_imports[""]
        modified = False
        for node in model.graph:
            if not _foldable(node):
                continue
            array = _evaluate(node, opset)
            if array.size > _MOST_ELEMENTS:
                continue
            old = node.outputs[0]
            new = ir.Value(name=old.name, shape=ir.Shape(array.shape), type=ir.TensorType(ir.tensor(array).dtype))
            new.const_value = ir.tensor(array, name=old.name)
            ir.convenience.replace_all_uses_with(old, new)
            model.graph.remove(node, safe=True)
            model.graph.register_initializer(new)
            modified = True
        return ir.passes.PassResult(model, modified)


def _foldable(node: ir.Node) -> bool:
    if node.domain or node.op_type == "Constant" or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return False
    if any(
        attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()
    ):
        return False
    values = [value for value in node.inputs if value is not None]
    return bool(values) and all(
        value.const_value is not None and math.prod(value.const_value.shape.numpy()) <= _MOST_ELEMENTS
        for value in values
    )


def _evaluate(node: ir.Node, opset: int) -> np.ndarray:
    names = [f"in_{index}" if value is not None else "" for index, value in enumerate(node.inputs)]
    feed = {
        name: value.const_value.numpy()
        for name, value in zip(names, node.inputs, strict=True)
        if value is not None and value.const_value is not None
    }
    alone = ir.serde.serialize_node(node)
    alone.input[:], alone.output[:] = names, ["out"]
    types = [
        onnx.helper.make_tensor_value_info(name, int(ir.tensor(array).dtype), list(array.shape))
        for name, array in feed.items()
    ]
    graph = onnx.helper.make_graph([alone], "fold", types, [onnx.ValueInfoProto(name="out")])
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    (result,) = onnx.reference.ReferenceEvaluator(made).run(None, feed)
    return np.asarray(result)
