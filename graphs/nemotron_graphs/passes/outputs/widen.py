"""Gives the first output in float32."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.matching import produced_by

__all__ = ["WidenOutputPass"]


class WidenOutputPass(ir.passes.InPlacePass):
    """Makes the model's answer float32, whatever it computes in.

    Args:
        only: of this dtype; another stays as it is.

    Rules, for the graph's first output:
        1. a ``LayerNormLinear`` without activation gives it in float32 itself, unrounded;
        2. anything else is cast;
        3. a float32 output stays. The output keeps its name.
    """

    def __init__(self, only: ir.DataType | None = None) -> None:
        self.only = only

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        output = graph.outputs[0]
        if output.dtype == ir.DataType.FLOAT or self.only not in (None, output.dtype):
            return ir.passes.PassResult(model, modified=False)
        fused = produced_by(output, "LayerNormLinear", DOMAIN)
        if fused is not None and not output.uses() and fused.attributes.get_string("activation", "none") == "none":
            fused.attributes["output"] = ir.AttrString("output", "float32")
            output.type = ir.TensorType(ir.DataType.FLOAT)
            return ir.passes.PassResult(model, modified=True)
        cast = ir.Node("", "Cast", [output], [ir.AttrInt64("to", ir.DataType.FLOAT)])
        new = cast.outputs[0]
        new.name, new.shape, new.type = output.name, output.shape, ir.TensorType(ir.DataType.FLOAT)
        output.name = f"{output.name}/narrow"
        graph.append(cast)
        graph.outputs[0] = new
        return ir.passes.PassResult(model, modified=True)
