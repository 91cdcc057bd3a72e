"""Gives the likeliest tokens as an output of their own, so that the logits need not be copied to the host."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.passes.matching import shape_of

__all__ = ["GreedyTokensPass"]


class GreedyTokensPass(ir.passes.InPlacePass):
    """Adds the output ``tokens`` int64 [batch, positions] after ``logits`` [batch, positions, values].

    Rules:
        1. ``tokens = ArgMax(logits)`` over the last axis, the lowest index of equal ones; it is the last output;
        2. a graph whose first output has another name (hidden states) stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        logits = graph.outputs[0]
        if logits.name != "logits" or any(value.name == "tokens" for value in graph.outputs):
            return ir.passes.PassResult(model, modified=False)
        attributes = {"axis": -1, "keepdims": 0, "select_last_index": 0}
        node = ir.Node("", "ArgMax", [logits], [ir.AttrInt64(name, value) for name, value in attributes.items()])
        tokens = node.outputs[0]
        tokens.name, tokens.shape = "tokens", ir.Shape(shape_of(logits)[:-1])
        tokens.type = ir.TensorType(ir.DataType.INT64)
        graph.append(node)
        graph.outputs.append(tokens)
        return ir.passes.PassResult(model, modified=True)
