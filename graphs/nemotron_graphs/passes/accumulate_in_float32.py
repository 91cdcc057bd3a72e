"""Asks for products of 16-bit numbers that are summed in float32."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

__all__ = ["AccumulateInFloat32Pass"]


class AccumulateInFloat32Pass(ir.passes.InPlacePass):
    """Says that matrix products of 16-bit operands sum in float32.

    An engine builder may choose kernels that sum in the operands' own type: in float16 that costs most of the accuracy
    of a long sum. Builders read float32 products of widened operands as what they mean, a 16-bit product with float32
    sums, and run that; one that does not computes in float32, which is right too.

    Rules, for ``Gemm`` whose operands are of one of ``dtypes``:
        1. every operand is cast to float32 in front of it;
        2. its output is cast back behind it, under the old output's name.

    Args:
        dtypes: of the operands.
    """

    def __init__(self, dtypes: Collection[ir.DataType] = (ir.DataType.FLOAT16,)) -> None:
        super().__init__()
        self._dtypes = frozenset(dtypes)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        products = [node for node in model.graph if (node.domain, node.op_type) == ("", "Gemm")]
        products = [node for node in products if node.inputs[0] is not None and node.inputs[0].dtype in self._dtypes]
        for node in products:
            _widen(model.graph, node)
        return ir.passes.PassResult(model, modified=bool(products))


def _widen(graph: ir.Graph, node: ir.Node) -> None:
    (output,) = node.outputs
    narrow = output.dtype
    assert narrow is not None
    for index, value in enumerate(node.inputs):
        if value is not None:
            cast = _cast(value, ir.DataType.FLOAT)
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])
    back = _cast(output, narrow)
    ir.convenience.replace_all_uses_with(output, back.outputs[0], replace_graph_outputs=True)
    back.replace_input_with(0, output)
    output.type, output.name, back.outputs[0].name = (
        ir.TensorType(ir.DataType.FLOAT), f"{output.name}/float32", output.name
    )  # fmt: skip
    graph.insert_after(node, back)


def _cast(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype)])
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    return node
