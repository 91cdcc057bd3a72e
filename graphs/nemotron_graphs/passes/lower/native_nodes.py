"""What the passes to TensorRT's native layers have in common: heads before tokens, and tokens before heads again."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.passes.matching import add_node, input_of, produced_by, take_place

__all__ = ["heads_first", "tokens_first"]

# [B, S, heads, D] to [B, heads, S, D] and back
_SWAP = (0, 2, 1, 3)


def heads_first(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """[B, S, heads, D] as [B, heads, S, D]: what a Transpose that made it reads, else a new Transpose."""
    transpose = produced_by(value, "Transpose")
    if transpose is not None and tuple(transpose.attributes.get_ints("perm", ())) == _SWAP:
        return input_of(transpose, 0)
    shape = None if value.shape is None else [value.shape[i] for i in _SWAP]
    perm = ir.AttrInt64s("perm", _SWAP)
    return add_node(
        graph, before, "Transpose", [value], [perm], name=f"{value.name}/heads_first", shape=shape, dtype=value.dtype
    )


def tokens_first(graph: ir.Graph, node: ir.Node, result_BHSD: ir.Value) -> None:
    """Puts [B, heads, S, D], transposed to [B, S, heads, D], in the place of a node's output."""
    perm = ir.AttrInt64s("perm", _SWAP)
    name = f"{node.outputs[0].name}/tokens_first"
    take_place(graph, node, add_node(graph, node, "Transpose", [result_BHSD], [perm], name=name))
