"""What the passes to TensorRT's native layers have in common: heads in front of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

__all__ = ["HEADS_FIRST", "add_node", "heads_first", "take_place"]

# [B, S, heads, D] to [B, heads, S, D] and back
HEADS_FIRST = (0, 2, 1, 3)


def add_node(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Sequence[ir.Attr] = (),
    *,
    name: str,
    shape: Iterable[int | ir.SymbolicDim] | None = None,
    dtype: ir.DataType | None = None,
) -> ir.Value:
    """Inserts a node of one output in front of another; gives the output."""
    node = ir.Node("", op_type, inputs, attributes)
    value = node.outputs[0]
    value.name = name
    if shape is not None:
        value.shape = ir.Shape(shape)
    if dtype is not None:
        value.type = ir.TensorType(dtype)
    graph.insert_before(before, node)
    return value


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


def take_place(graph: ir.Graph, node: ir.Node, new: ir.Value) -> None:
    """Puts a value in the place of a node's output, whose name, shape and dtype it gets, and removes the node."""
    old = node.outputs[0]
    name, shape, type_ = old.name, old.shape, old.type
    old.name = f"{name}/dialect"
    new.name, new.shape, new.type = name, shape, type_
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
