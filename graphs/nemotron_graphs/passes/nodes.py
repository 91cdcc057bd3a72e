"""How passes put nodes in front of others, and values in the place of others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

__all__ = ["add_node", "take_place"]


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
    domain: str = "",
) -> ir.Value:
    """Inserts a node of one output in front of another; gives the output."""
    node = ir.Node(domain, op_type, inputs, attributes)
    value = node.outputs[0]
    value.name = name
    if shape is not None:
        value.shape = ir.Shape(shape)
    if dtype is not None:
        value.type = ir.TensorType(dtype)
    graph.insert_before(before, node)
    return value


def take_place(graph: ir.Graph, node: ir.Node, new: ir.Value) -> None:
    """Puts a value in the place of a node's output, whose name, shape and dtype it gets, and removes the node."""
    old = node.outputs[0]
    name, shape, type_ = old.name, old.shape, old.type
    old.name = f"{name}/dialect"
    new.name, new.shape, new.type = name, shape, type_
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
