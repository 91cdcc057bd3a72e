"""Replaces the lengths of sequences by ONNX Runtime GenAI's attention mask."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common

from nemotron_graphs.passes.matching import CONTRIB, add_cast, add_constant, add_node, nodes_of, shape_of

__all__ = ["GenaiAttentionMaskPass"]

_SEQLENS, _TOTAL = 5, 6  # where GroupQueryAttention has seqlens_k and total_sequence_length
_SECOND_DIM = (ir.AttrInt64("start", 1), ir.AttrInt64("end", 2))  # of a Shape


class GenaiAttentionMaskPass(ir.passes.InPlacePass):
    """Replaces ``query_start`` and ``query_length`` by ``attention_mask`` int64 [batch, total_tokens].

    A sequence's mask counts its tokens, those of this run included: ``n = ReduceSum(attention_mask, 1)``, wherever
    its zeros are. GenAI pads a batch of prompts on the right and appends a column of ones per decode step.

    Rules:
        1. every GroupQueryAttention takes ``seqlens_k = int32(n - 1)`` and, as ``total_sequence_length``, the mask's
           width: a shape, which a GPU's host knows without asking the device;
        2. what else reads query_start (positions of a rotation that the kernel does not take) reads
           ``n - min(tokens, n)``;
        3. both inputs vanish.

    Preconditions: the graph's attention is GroupQueryAttention, and nothing else reads query_length.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        attentions = nodes_of(graph, "GroupQueryAttention", CONTRIB)
        if not attentions:
            raise ir.passes.PreconditionError(
                "found no GroupQueryAttention; expected one per layer; run FormGroupQueryAttentionPass first"
            )
        inputs = {v.name: v for v in graph.inputs}
        input_ids, start, length = (inputs[name] for name in ("input_ids", "query_start", "query_length"))
        mask = ir.Value(
            name="attention_mask",
            shape=ir.Shape([shape_of(input_ids)[0], "total_tokens"]),
            type=ir.TensorType(ir.DataType.INT64),
        )
        graph.inputs.insert(graph.inputs.index(start), mask)
        first = graph[0]
        total, seqlens, width = _lengths(graph, first, mask)
        for node in attentions:
            node.replace_input_with(_SEQLENS, seqlens)
            node.replace_input_with(_TOTAL, width)
        ir.convenience.replace_all_uses_with(start, _start(graph, first, input_ids, total))
        common.RemoveUnusedNodesPass()(model)
        if length.uses():
            readers = ", ".join(node.op_type for node, _ in length.uses())
            raise ir.passes.PreconditionError(
                f"query_length: found {readers} as its readers; expected GroupQueryAttention alone; "
                "choose a target that takes lengths"
            )
        graph.inputs.remove(start)
        graph.inputs.remove(length)
        return ir.passes.PassResult(model, modified=True)


def _lengths(graph: ir.Graph, first: ir.Node, mask: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """n int64 [batch], seqlens_k int32 [batch], total_sequence_length int32 scalar; before the first node."""
    for old in graph:  # the names are the old lengths' too
        for value in old.outputs:
            if value.name in ("seqlens_k", "total_sequence_length"):
                value.name = f"lengths/{value.name}"
    axis = add_constant(graph, first, [1], name="mask/axis")
    one = add_constant(graph, first, 1, name="mask/one")
    total = add_node(graph, first, "ReduceSum", [mask, axis], [ir.AttrInt64("keepdims", 0)], name="mask/tokens")
    last = add_node(graph, first, "Sub", [total, one], name="mask/last")
    seqlens = add_cast(graph, first, last, ir.DataType.INT32, name="seqlens_k")
    width = add_node(graph, first, "Shape", [mask], _SECOND_DIM, name="mask/width")
    scalar = add_node(graph, first, "Squeeze", [width], name="mask/width_scalar")
    return total, seqlens, add_cast(graph, first, scalar, ir.DataType.INT32, name="total_sequence_length")


def _start(graph: ir.Graph, first: ir.Node, input_ids: ir.Value, total: ir.Value) -> ir.Value:
    """Tokens in each sequence's cache, int64 [batch]: of a padded prompt all n tokens are new."""
    tokens = add_node(graph, first, "Shape", [input_ids], _SECOND_DIM, name="mask/new_tokens")
    new = add_node(graph, first, "Min", [tokens, total], name="mask/new")
    return add_node(graph, first, "Sub", [total, new], name="mask/start")
