"""Turns the row contract's lengths into ONNX Runtime GenAI's attention mask."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

__all__ = ["GenaiAttentionMaskPass"]

_SEQLENS, _TOTAL = 5, 6  # where GroupQueryAttention has seqlens_k and total_sequence_length


class GenaiAttentionMaskPass(ir.passes.InPlacePass):
    """Replaces ``query_start`` and ``query_length`` by ``attention_mask`` int64 [batch, total_tokens].

    A row's mask counts its tokens, those of this run included: ``n = ReduceSum(attention_mask, 1)``, wherever its
    zeros stand. GenAI pads a batch of prompts on the right and appends a column of ones per decode step.

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
        attentions = [n for n in graph if (n.domain, n.op_type) == ("com.microsoft", "GroupQueryAttention")]
        if not attentions:
            raise ir.passes.PreconditionError(
                "found no GroupQueryAttention; expected one per layer; run FormGroupQueryAttentionPass first"
            )
        inputs = {v.name: v for v in graph.inputs}
        input_ids, start, length = (inputs[name] for name in ("input_ids", "query_start", "query_length"))
        assert input_ids.shape is not None
        mask = ir.Value(
            name="attention_mask",
            shape=ir.Shape([input_ids.shape[0], "total_tokens"]),
            type=ir.TensorType(ir.DataType.INT64),
        )
        graph.inputs.insert(graph.inputs.index(start), mask)
        total, seqlens, width = _lengths(graph, mask)
        for node in attentions:
            node.replace_input_with(_SEQLENS, seqlens)
            node.replace_input_with(_TOTAL, width)
        common.RemoveUnusedNodesPass()(model)
        if length.uses():
            readers = ", ".join(node.op_type for node, _ in length.uses())
            raise ir.passes.PreconditionError(
                f"query_length: found {readers} as its readers; expected GroupQueryAttention alone; "
                "choose a target that keeps the row contract"
            )
        if start.uses():
            ir.convenience.replace_all_uses_with(start, _start(graph, input_ids, total))
        graph.inputs.remove(start)
        graph.inputs.remove(length)
        return ir.passes.PassResult(model, modified=True)


def _lengths(graph: ir.Graph, mask: ir.Value) -> tuple[ir.Value, ir.Value, ir.Value]:
    """n int64 [batch], seqlens_k int32 [batch], total_sequence_length int32 scalar; in front of all nodes."""
    axis, one = _constant([1], "mask/axis"), _constant(1, "mask/one")
    total = _node("ReduceSum", [mask, axis.outputs[0]], "mask/tokens", keepdims=0)
    last = _node("Sub", [total.outputs[0], one.outputs[0]], "mask/last")
    seqlens = _node("Cast", [last.outputs[0]], "seqlens_k", to=ir.DataType.INT32)
    width = _node("Shape", [mask], "mask/width", start=1, end=2)
    scalar = _node("Squeeze", [width.outputs[0]], "mask/width_scalar")
    width_32 = _node("Cast", [scalar.outputs[0]], "total_sequence_length", to=ir.DataType.INT32)
    nodes = [axis, one, total, last, seqlens, width, scalar, width_32]
    for old in graph:  # the names are the old lengths' too
        for value in old.outputs:
            if value.name in ("seqlens_k", "total_sequence_length"):
                value.name = f"rows/{value.name}"
    graph.insert_before(graph[0], nodes)
    return total.outputs[0], seqlens.outputs[0], width_32.outputs[0]


def _start(graph: ir.Graph, input_ids: ir.Value, total: ir.Value) -> ir.Value:
    """Tokens in each row's cache, int64 [batch]: of a padded prompt all n tokens are new."""
    tokens = _node("Shape", [input_ids], "mask/new_tokens", start=1, end=2)
    new = _node("Min", [tokens.outputs[0], total], "mask/new")
    start = _node("Sub", [total, new.outputs[0]], "mask/start")
    producer = total.producer()
    assert producer is not None
    graph.insert_after(producer, [tokens, new, start])
    return start.outputs[0]


def _constant(value: int | list[int], name: str) -> ir.Node:
    node = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(np.array(value, np.int64)))])
    node.outputs[0].name = name
    return node


def _node(op_type: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Node:
    node = ir.Node("", op_type, inputs, [ir.AttrInt64(key, int(value)) for key, value in attributes.items()])
    node.outputs[0].name = name
    return node
