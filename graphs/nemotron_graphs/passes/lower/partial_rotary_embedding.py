"""Lowers rotations to ONNX's RotaryEmbedding, which TensorRT has a layer for."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.lower.native_nodes import heads_first, tokens_first
from nemotron_graphs.passes.matching import add_node, input_of, nodes_of, size_of

__all__ = ["LowerPartialRotaryEmbeddingPass"]


class LowerPartialRotaryEmbeddingPass(ir.passes.InPlacePass):
    """Needs opset 23 or later.

    Rule: ``PartialRotaryEmbedding(x, cos, sin, position_ids)``, x [B, S, H, D] and R lanes rotated, becomes
    ``Transpose(RotaryEmbedding<rotary_embedding_dim=R>(Transpose(x), Gather(cos, position_ids), Gather(sin,
    position_ids)))``: the layer takes the angles of the tokens, and heads before tokens.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        nodes = nodes_of(model.graph, "PartialRotaryEmbedding", DOMAIN)
        for node in nodes:
            _lower(model.graph, node)
        return ir.passes.PassResult(model, bool(nodes))


def _lower(graph: ir.Graph, node: ir.Node) -> None:
    x, cos, sin, position_ids = (input_of(node, index) for index in range(4))
    name, axis = node.outputs[0].name, ir.AttrInt64("axis", 0)
    angles = [
        add_node(graph, node, "Gather", [table, position_ids], [axis], name=f"{name}/{kind}", dtype=cos.dtype)
        for kind, table in (("cos", cos), ("sin", sin))
    ]
    x_BHSD = heads_first(graph, node, x)
    rotated = add_node(
        graph, node, "RotaryEmbedding", [x_BHSD, *angles], [ir.AttrInt64("rotary_embedding_dim", 2 * size_of(cos, 1))],
        name=f"{name}/rotated", shape=x_BHSD.shape, dtype=x.dtype,
    )  # fmt: skip
    tokens_first(graph, node, rotated)
