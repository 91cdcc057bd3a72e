"""Lowers rotations to ONNX's RotaryEmbedding, which TensorRT has a layer for."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.lower.native_nodes import HEADS_FIRST, heads_first
from nemotron_graphs.passes.nodes import add_node, take_place

__all__ = ["LowerPartialRotaryEmbeddingPass"]


class LowerPartialRotaryEmbeddingPass(ir.passes.InPlacePass):
    """Needs opset 23 or later.

    Rule: ``PartialRotaryEmbedding(x, cos, sin, position_ids)``, x [B, S, H, D] and R lanes rotated, becomes
    ``Transpose(RotaryEmbedding<rotary_embedding_dim=R>(Transpose(x), Gather(cos, position_ids), Gather(sin,
    position_ids)))``: the layer takes the angles of the tokens, and heads in front of tokens.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = [n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, "PartialRotaryEmbedding")]
        for node in nodes:
            _lower(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    x, cos, sin, position_ids = node.inputs
    assert x is not None
    assert cos is not None
    assert cos.shape is not None
    half = cos.shape[1]
    if not isinstance(half, int):
        raise ir.passes.PreconditionError(f"'{cos.name}': found {cos.shape}; expected a known width; trace it so")
    name = node.outputs[0].name
    axis = ir.AttrInt64("axis", 0)
    angles = [
        add_node(graph, node, "Gather", [table, position_ids], [axis], name=f"{name}/{kind}", dtype=cos.dtype)
        for kind, table in (("cos", cos), ("sin", sin))
    ]
    x_BHSD = heads_first(graph, node, x)
    rotated = add_node(
        graph, node, "RotaryEmbedding", [x_BHSD, *angles], [ir.AttrInt64("rotary_embedding_dim", 2 * half)],
        name=f"{name}/rotated", shape=x_BHSD.shape, dtype=x.dtype,
    )  # fmt: skip
    perm = ir.AttrInt64s("perm", HEADS_FIRST)
    take_place(graph, node, add_node(graph, node, "Transpose", [rotated], [perm], name=f"{name}/tokens_first"))
