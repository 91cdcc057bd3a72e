"""Forms LinearResidual out of a projection and the sum behind it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN

__all__ = ["FormLinearResidualPass"]


class FormLinearResidualPass(ir.passes.InPlacePass):
    """Fuses a residual sum into the projection in front of it.

    Args:
        kernels: last part of a module's name → the node's attribute ``kernel``.

    Rules, per ``Add(residual, Linear(x, w[, b]))``, the operands in either order:
        1. the nodes become ``LinearResidual(x, w, residual[, b])``, whose weight's name gives ``kernel``;
        2. a ``Reshape`` that puts heads [B, S, H, D] in a row in front of it is left out: the op takes heads;
        3. where the projection has another reader, a weight that ``kernels`` does not name, or an operand of another
           shape, the nodes stay.
    """

    def __init__(self, kernels: Mapping[str, str]) -> None:
        self.kernels = kernels

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        sums = [n for n in model.graph if (n.domain, n.op_type) == ("", "Add")]
        formed = [self._form(model.graph, node) for node in sums]
        return ir.passes.PassResult(model, any(formed))

    def _form(self, graph: ir.Graph, add: ir.Node) -> bool:
        for index, value in enumerate(add.inputs):
            linear = None if value is None else value.producer()
            residual = add.inputs[1 - index]
            if linear is None or (linear.domain, linear.op_type) != (DOMAIN, "Linear") or residual is None:
                continue
            weight = linear.inputs[1]
            module = ((weight.name if weight else "") or "").removesuffix(".weight").rsplit(".", 1)[-1]
            old = linear.outputs[0]
            if module not in self.kernels or len(old.uses()) != 1 or residual.shape != old.shape:
                continue
            node = ir.Node(
                DOMAIN,
                "LinearResidual",
                [_heads(linear.inputs[0]), weight, residual, *linear.inputs[2:]],
                [ir.AttrString("kernel", self.kernels[module])],
            )
            total, new = add.outputs[0], node.outputs[0]
            new.name, new.shape, new.type = total.name, total.shape, total.type
            # at the sum's place: the residual may come behind the projection
            ir.convenience.replace_nodes_and_values(graph, add, [add, linear], [node], [total], [new])
            return True
        return False


def _heads(x: ir.Value | None) -> ir.Value | None:
    """What a Reshape of [B, S, H, D] to [B, S, H · D] had, else x."""
    node = None if x is None else x.producer()
    if x is None or node is None or (node.domain, node.op_type) != ("", "Reshape"):
        return x
    heads = node.inputs[0]
    if heads is None or heads.shape is None or x.shape is None or (len(heads.shape), len(x.shape)) != (4, 3):
        return x
    *outer, count, lanes = heads.shape
    same = list(x.shape[:2]) == outer and isinstance(count, int) and isinstance(lanes, int)
    return heads if same and x.shape[2] == count * lanes else x
