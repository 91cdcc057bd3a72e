"""Gives every token its logits, as ONNX Runtime GenAI and TensorRT's decode graph expect."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from nemotron_graphs.passes.matching import input_of, is_op, shape_of

__all__ = ["FullLogitsPass"]


class FullLogitsPass(ir.passes.InPlacePass):
    """Removes ``logits_index``: norm and head run on all tokens.

    Rules:
        1. ``GatherElements<axis=1>(hidden, Expand(Unsqueeze(logits_index)))`` becomes ``hidden``;
        2. the dim of the chosen positions becomes the dim of the tokens wherever it occurs;
        3. the input vanishes.

    Precondition: that GatherElements alone reads logits_index, through Unsqueeze and Expand.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        inputs = {value.name: value for value in graph.inputs}
        index = inputs["logits_index"]
        positions, tokens = shape_of(index)[1], shape_of(inputs["input_ids"])[1]
        unsqueeze = _only_reader(index, "Unsqueeze", 0)
        gather = _only_reader(_only_reader(unsqueeze.outputs[0], "Expand", 0).outputs[0], "GatherElements", 1)
        hidden = input_of(gather, 0)
        ir.convenience.replace_all_uses_with(gather.outputs[0], hidden, replace_graph_outputs=True)
        graph.inputs.remove(index)
        common.RemoveUnusedNodesPass()(model)
        for each in graph:
            for value in each.outputs:
                if value.shape is not None and positions in value.shape.dims:
                    value.shape = ir.Shape([tokens if dim == positions else dim for dim in value.shape])
        return ir.passes.PassResult(model, modified=True)


def _only_reader(value: ir.Value, op_type: str, index: int) -> ir.Node:
    uses = list(value.uses())
    found = ", ".join(node.op_type for node, _ in uses) or "no reader"
    if len(uses) != 1 or not is_op(uses[0][0], op_type) or uses[0][1] != index:
        raise ir.passes.PreconditionError(
            f"'{value.name}': found {found}; expected one {op_type}; run this pass on the traced head"
        )
    return uses[0][0]
