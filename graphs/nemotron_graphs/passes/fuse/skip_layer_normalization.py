"""Forms ONNX Runtime's SkipLayerNormalization out of a residual sum and the LayerNormalization that reads it."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.passes.matching import CONTRIB, FusionPass, input_of, producer, require, shape_of

__all__ = ["FormSkipLayerNormalizationPass"]


class FormSkipLayerNormalizationPass(FusionPass):
    """Adds and normalises in one node, which gives the sum too.

    Precondition: comes last: a pass that names values would name the two results that are left out.

    Rules, per ``LayerNormalization(Add(x, y), gamma, beta)`` over the last axis of [B, S, hidden]:
        1. the two nodes become ``SkipLayerNormalization(x, y, gamma, beta)`` with the same epsilon, at the norm's
           place; its fourth result takes the sum's name and readers. gamma stays (``weight + 1`` for LayerNorm1P);
        2. where the operands differ in shape (a broadcast), the rank is not 3, the axis is another, there is no beta,
           or the sum is read before the norm, the nodes stay.
    """

    forms = "SkipLayerNormalization"
    domain = CONTRIB
    anchor = ("LayerNormalization", "")

    def begin(self, graph: ir.Graph) -> None:
        self._place = {node: index for index, node in enumerate(graph)}

    def fuse(self, graph: ir.Graph, node: ir.Node) -> None:
        add = producer(node.inputs[0], "Add")
        self._check(node, add)
        new = ir.Node(
            CONTRIB,
            self.forms,
            [*add.inputs, *node.inputs[1:3]],
            [ir.AttrFloat32("epsilon", node.attributes.get_float("epsilon", 1e-5))],
            num_outputs=4,
        )
        self._place[new] = self._place[node]
        # mean and deviation are not computed
        new.outputs[1].name = new.outputs[2].name = ""
        old, results = (node.outputs[0], add.outputs[0]), (new.outputs[0], new.outputs[3])
        ir.convenience.replace_nodes_and_values(graph, node, [node, add], [new], old, results)

    def _check(self, norm: ir.Node, add: ir.Node) -> None:
        x, y = input_of(add, 0), input_of(add, 1)
        require(x.shape is not None and x.shape == y.shape, f"{x.shape} is added to {y.shape}")
        require(len(shape_of(x)) == 3 and norm.attributes.get_int("axis", -1) in (-1, 2), "not over the last of 3 axes")
        require(len(norm.inputs) == 3 and norm.inputs[2] is not None, "it has no beta")
        require(not any(value.uses() for value in norm.outputs[1:]), "its mean or deviation is read")
        early = [user for user, _ in add.outputs[0].uses() if self._place[user] < self._place[norm]]
        require(not early, f"the sum is read before it by {', '.join(user.op_type for user in early)}")
