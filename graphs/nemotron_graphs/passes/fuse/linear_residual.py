"""Forms LinearResidual out of a projection and the sum that follows it."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.matching import FusionPass, input_of, is_op, only_reader, produced_by, require, shape_of

__all__ = ["FormLinearResidualPass"]


class FormLinearResidualPass(FusionPass):
    """Fuses a residual sum into the projection before it.

    Rules, per ``Add(residual, Linear(x, w[, b]))``, the operands in either order:
        1. the nodes become ``LinearResidual(x, w, residual[, b])``;
        2. a ``Reshape`` of x from heads [B, S, H, D] to [B, S, H · D] is skipped: the op takes heads;
        3. where the projection has another reader, or the other operand another shape, the nodes stay.

    Precondition: :class:`FormLayerNormLinearPass` came before, whose projections are no candidates any more.
    """

    forms = "LinearResidual"
    anchor = ("Linear", DOMAIN)

    def fuse(self, graph: ir.Graph, node: ir.Node) -> None:
        product = node.outputs[0]
        add = only_reader(product)
        require(is_op(add, "Add"), f"its result is read by {add.op_type}, not by Add")
        residual = input_of(add, 1 if add.inputs[0] is product else 0)
        require(residual.shape == product.shape, f"{product.shape} is added to {residual.shape}")
        x, weight, *bias = node.inputs
        new = ir.Node(DOMAIN, self.forms, [_heads(x), weight, residual, *bias])
        # at the sum's place: the residual may be computed after the projection
        ir.convenience.replace_nodes_and_values(graph, add, [add, node], [new], add.outputs, new.outputs)


def _heads(x: ir.Value | None) -> ir.Value | None:
    """What a Reshape from [B, S, H, D] to [B, S, H · D] reads, else x."""
    reshape = produced_by(x, "Reshape")
    if x is None or reshape is None:
        return x
    heads = input_of(reshape, 0)
    if heads.shape is None or x.shape is None or (len(heads.shape), len(x.shape)) != (4, 3):
        return x
    *outer, count, lanes = shape_of(heads)
    same = list(x.shape[:2]) == outer and isinstance(count, int) and isinstance(lanes, int)
    return heads if same and x.shape[2] == count * lanes else x
