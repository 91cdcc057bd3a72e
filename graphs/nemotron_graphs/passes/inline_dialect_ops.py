"""Replaces the dialect's ops by their portable bodies of standard ops."""

from __future__ import annotations

from collections.abc import Collection

import onnx.parser
import onnx_ir as ir
import onnx_ir.passes.common as common

from nemotron_graphs.ops import DOMAIN, OPS

__all__ = ["InlineDialectOpsPass"]


class InlineDialectOpsPass(ir.passes.InPlacePass):
    """Inlines dialect nodes.

    Rules:
        1. a node of an op in ``ops`` (all of the dialect where None) is replaced by the op's function body for the
           optional inputs that the node has;
        2. dialect nodes of that body are replaced in turn;
        3. its outputs keep their names and shapes.
    """

    def __init__(self, ops: Collection[str] | None = None) -> None:
        self.ops = frozenset(OPS if ops is None else ops)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        wanted = [n for n in model.graph if n.domain == DOMAIN and n.op_type in self.ops]
        for node in wanted:
            _provide(model, node)
        if wanted:
            common.InlinePass()(model)
        return ir.passes.PassResult(model, bool(wanted))


def _provide(model: ir.Model, node: ir.Node) -> None:
    """Puts the function of a dialect node, and those that it uses, into the model."""
    op = OPS[node.op_type]
    present = {i.name for i, value in zip(op.inputs, node.inputs, strict=False) if i.optional and value is not None}
    # a function has a fixed list of inputs, so each set of present inputs is an overload of its own
    node.overload = "_".join(sorted(present))
    key = (DOMAIN, op.name, node.overload)
    if key in model.functions:
        return
    text = op.function_text(model.opset_imports[""], present)
    function = ir.serde.deserialize_function(onnx.parser.parse_function(text))
    function.overload = node.overload
    model.functions[key] = function
    for inner in function:
        if inner.domain == DOMAIN:
            _provide(model, inner)
