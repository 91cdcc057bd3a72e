"""Gives every token its logits, as ONNX Runtime GenAI expects."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

__all__ = ["GenaiFullLogitsPass"]


class GenaiFullLogitsPass(ir.passes.InPlacePass):
    """Removes ``logits_index``: norm and head run on all tokens.

    Rules:
        1. ``GatherElements<axis=1>(hidden, Expand(Unsqueeze(logits_index)))`` becomes ``hidden``;
        2. the dim of the chosen positions becomes the dim of the tokens wherever it stands;
        3. the input vanishes.

    Precondition: that GatherElements alone reads logits_index, through Unsqueeze and Expand.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        index = next(v for v in graph.inputs if v.name == "logits_index")
        input_ids = next(v for v in graph.inputs if v.name == "input_ids")
        assert index.shape is not None
        assert input_ids.shape is not None
        positions, tokens = index.shape[1], input_ids.shape[1]
        gather = _only_reader(_only_reader(_only_reader(index, "Unsqueeze", 0), "Expand", 0), "GatherElements", 1)
        node = gather.producer()
        assert node is not None
        hidden = node.inputs[0]
        assert hidden is not None
        ir.convenience.replace_all_uses_with(gather, hidden, replace_graph_outputs=True)
        graph.inputs.remove(index)
        common.RemoveUnusedNodesPass()(model)
        for each in graph:
            for value in each.outputs:
                if value.shape is not None and positions in value.shape.dims:
                    value.shape = ir.Shape([tokens if dim == positions else dim for dim in value.shape])
        return ir.passes.PassResult(model, modified=True)


def _only_reader(value: ir.Value, op_type: str, index: int) -> ir.Value:
    uses = list(value.uses())
    found = ", ".join(node.op_type for node, _ in uses) or "no reader"
    if len(uses) != 1 or (uses[0][0].domain, uses[0][0].op_type, uses[0][1]) != ("", op_type, index):
        raise ir.passes.PreconditionError(
            f"'{value.name}': found {found}; expected one {op_type}; run this pass on the traced head"
        )
    return uses[0][0].outputs[0]
