"""Forms ONNX Runtime's SkipLayerNormalization out of a residual sum and the LayerNormalization behind it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

__all__ = ["FormSkipLayerNormalizationPass"]


class FormSkipLayerNormalizationPass(ir.passes.InPlacePass):
    """Adds and normalises in one node, which gives the sum too.

    Precondition: comes last: a pass that names values would name the two results that are left out.

    Rules, per ``LayerNormalization(Add(x, y), gamma, beta)`` over the last axis of [B, S, hidden]:
        1. the two nodes become ``SkipLayerNormalization(x, y, gamma, beta)`` with the same epsilon, at the norm's
           place; its fourth result takes the sum's name and readers. gamma stays (``weight + 1`` for LayerNorm1P);
        2. where the operands differ in shape (a broadcast), the rank is not 3, the axis is another, there is no beta,
           or the sum is read before the norm, the nodes stay.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        place = {node: index for index, node in enumerate(graph)}
        norms = [n for n in graph if (n.domain, n.op_type) == ("", "LayerNormalization")]
        formed = [_form(graph, node, place) for node in norms]
        if any(formed):
            model.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, any(formed))


def _form(graph: ir.Graph, norm: ir.Node, place: dict[ir.Node, int]) -> bool:
    total = norm.inputs[0]
    add = None if total is None else total.producer()
    if total is None or add is None or not _fits(norm, add, place):
        return False
    fused = ir.Node(
        "com.microsoft",
        "SkipLayerNormalization",
        [*add.inputs, *norm.inputs[1:3]],
        [ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5))],
        num_outputs=4,
    )
    place[fused] = place[norm]
    # mean and deviation are not computed
    fused.outputs[1].name = fused.outputs[2].name = ""
    old = norm.outputs[0]
    graph.insert_before(norm, fused)
    for new, previous in ((fused.outputs[0], old), (fused.outputs[3], total)):
        name, new.shape, new.type = previous.name, previous.shape, previous.type
        previous.name, new.name = f"{name}/unfused", name
        ir.convenience.replace_all_uses_with(previous, new, replace_graph_outputs=True)
    graph.remove([norm, add], safe=True)
    return True


def _fits(norm: ir.Node, add: ir.Node, place: Mapping[ir.Node, int]) -> bool:
    x, y = (*add.inputs, None)[:2]
    if (add.domain, add.op_type) != ("", "Add") or x is None or y is None or x.shape is None or x.shape != y.shape:
        return False
    if len(norm.inputs) < 3 or norm.inputs[2] is None or any(value.uses() for value in norm.outputs[1:]):
        return False
    if len(x.shape) != 3 or norm.attributes.get_int("axis", -1) not in (-1, 2):
        return False
    return all(place[user] >= place[norm] for user, _ in add.outputs[0].uses())
