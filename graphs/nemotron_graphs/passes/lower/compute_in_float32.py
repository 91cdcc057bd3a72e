"""Makes ops of 16-bit numbers compute in float32, where an engine builder may choose to compute in 16 bits."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from nemotron_graphs.passes.matching import add_cast, cast_output

__all__ = ["ComputeInFloat32Pass"]

_SIXTEEN_BITS = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class ComputeInFloat32Pass(ir.passes.InPlacePass):
    """Says that an op's inner numbers are float32: one rounding, that of its result, as PyTorch's kernels have.

    A builder may sum products of float16 in float16, which costs most of the accuracy of a long sum, and may apply a
    norm's scale and shift to numbers that were rounded in between. Float32 ops between casts are read as what they
    mean: a product of 16-bit numbers with float32 sums, one kernel for a norm. A builder that does not read them so
    computes in float32, which is right too.

    Rules, for an op of ``ops`` whose first input is of one of the dtypes there:
        1. its 16-bit inputs are cast to float32 before it;
        2. its first output is cast back, under the old output's name.

    Args:
        ops: op type of ONNX → dtypes in which it is widened.
    """

    def __init__(self, ops: Mapping[str, Collection[ir.DataType]]) -> None:
        super().__init__()
        self._ops = {name: frozenset(dtypes) for name, dtypes in ops.items()}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [node for node in model.graph if node.domain == "" and self._widens(node)]
        for node in found:
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype in _SIXTEEN_BITS:
                    cast = add_cast(model.graph, node, value, ir.DataType.FLOAT, name=f"{node.outputs[0].name}/{index}")
                    node.replace_input_with(index, cast)
            cast_output(model.graph, node, ir.DataType.FLOAT, "float32")
        return ir.passes.PassResult(model, modified=bool(found))

    def _widens(self, node: ir.Node) -> bool:
        first = node.inputs[0] if node.inputs else None
        return first is not None and first.dtype in self._ops.get(node.op_type, ())
