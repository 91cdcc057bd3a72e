"""Lowers the dialect's Linear with a quantized weight to ONNX Runtime's MatMulNBits."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.nodes import add_node
from nemotron_graphs.weights import QuantizedWeight

__all__ = ["LowerLinearToMatMulNBitsPass"]


class LowerLinearToMatMulNBitsPass(ir.passes.InPlacePass):
    """Replaces projections whose weights the bundle holds as codes and scales.

    Args:
        weights: name of a weight → its quantized parts.

    Precondition: a weight [O, I] has codes [O, groups, bytes], groups being I / group size, rounded up.

    Rules:
        1. ``Linear(x, w)`` → ``MatMulNBits(x, codes, scales)`` where ``w`` is a graph input that is quantized, or a
           Cast of it;
        2. ``Linear(x, w, b)`` → ``MatMulNBits(x, codes, scales, , , b)`` likewise;
        3. where x is no float32, the scales are cast to its dtype, which the node asks for;
        4. codes and scales become graph inputs, one of each however many nodes read them, to be bound like any weight.

    Postcondition: every weight of ``weights`` was found. What else reads such a weight (the lookup of a tied embedding)
    keeps it; any other Linear is left to the passes that follow.
    """

    def __init__(self, weights: Mapping[str, QuantizedWeight]) -> None:
        self.weights = weights

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        inputs: dict[str, tuple[ir.Value, ir.Value]] = {}
        for node in graph:
            if (node.domain, node.op_type) != (DOMAIN, "Linear"):
                continue
            x, weight, bias = (*node.inputs, None)[:3]
            assert weight is not None
            dtype, stored = weight.dtype, _stored(weight)
            name = stored.name or ""
            if not stored.is_graph_input() or name not in self.weights:
                continue
            quantized = self.weights[name]
            if name not in inputs:
                _check(weight, quantized)
                packed, scales = _parts(graph, quantized)
                inputs[name] = packed, _cast(graph, node, scales, dtype)
            _replace(graph, node, quantized, [x, *inputs[name], None, None, bias])
        if missing := sorted(set(self.weights) - set(inputs)):
            raise ir.passes.PostconditionError(
                f"quantized weights that no Linear reads: found {', '.join(missing)}; expected none; "
                "lower other passes' projections after this one"
            )
        if inputs:
            model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, bool(inputs))


def _check(weight: ir.Value, quantized: QuantizedWeight) -> None:
    assert weight.shape is not None
    rows, features = weight.shape
    assert isinstance(features, int)
    expected = (rows, -(-features // quantized.group_size), quantized.group_size * quantized.bits // 8)
    if quantized.packed_shape != expected:
        raise ir.passes.PreconditionError(
            f"weight '{weight.name}': found codes of shape {list(quantized.packed_shape)}; expected {list(expected)}; "
            "quantize it again"
        )


def _parts(graph: ir.Graph, quantized: QuantizedWeight) -> tuple[ir.Value, ir.Value]:
    packed = ir.Value(
        name=quantized.packed, shape=ir.Shape(quantized.packed_shape), type=ir.TensorType(ir.DataType.UINT8)
    )
    scales = ir.Value(
        name=quantized.scales, shape=ir.Shape(quantized.packed_shape[:2]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    graph.inputs.extend((packed, scales))
    return packed, scales


def _stored(weight: ir.Value) -> ir.Value:
    """What a weight that the graph casts is cast from."""
    node = weight.producer()
    source = node.inputs[0] if node is not None and (node.domain, node.op_type) == ("", "Cast") else None
    return weight if source is None else source


def _cast(graph: ir.Graph, before: ir.Node, scales: ir.Value, dtype: ir.DataType | None) -> ir.Value:
    assert dtype is not None
    if dtype == ir.DataType.FLOAT:
        return scales
    to = ir.AttrInt64("to", dtype)
    return add_node(graph, before, "Cast", [scales], [to], name=f"{scales.name}/cast", shape=scales.shape, dtype=dtype)


def _replace(graph: ir.Graph, node: ir.Node, quantized: QuantizedWeight, inputs: list[ir.Value | None]) -> None:
    weight, old = node.inputs[1], node.outputs[0]
    assert weight is not None
    assert weight.shape is not None
    rows, features = weight.shape
    assert isinstance(rows, int)
    assert isinstance(features, int)
    while inputs[-1] is None:
        inputs.pop()
    product = ir.Node(
        "com.microsoft",
        "MatMulNBits",
        inputs,
        [
            ir.AttrInt64("K", features),
            ir.AttrInt64("N", rows),
            ir.AttrInt64("bits", quantized.bits),
            ir.AttrInt64("block_size", quantized.group_size),
            ir.AttrInt64("accuracy_level", quantized.accuracy_level),
        ],
    )
    new = product.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product], [old], [new])
