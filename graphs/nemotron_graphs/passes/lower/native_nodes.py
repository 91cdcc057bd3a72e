"""What the passes to TensorRT's native layers have in common: heads in front of tokens."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.passes.nodes import add_node

__all__ = ["HEADS_FIRST", "heads_first"]

# [B, S, heads, D] to [B, heads, S, D] and back
HEADS_FIRST = (0, 2, 1, 3)


def heads_first(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """[B, S, heads, D] as [B, heads, S, D]: what a Transpose in front had, else a new Transpose."""
    producer = value.producer()
    if producer is not None and (producer.domain, producer.op_type) == ("", "Transpose"):
        source = producer.inputs[0]
        if tuple(producer.attributes.get_ints("perm", ())) == HEADS_FIRST and source is not None:
            return source
    shape = None if value.shape is None else [value.shape[i] for i in HEADS_FIRST]
    perm = ir.AttrInt64s("perm", HEADS_FIRST)
    return add_node(
        graph, before, "Transpose", [value], [perm], name=f"{value.name}/heads_first", shape=shape, dtype=value.dtype
    )
