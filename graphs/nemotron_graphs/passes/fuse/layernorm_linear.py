"""Forms LayerNormLinear out of a norm, the projection behind it, and relu² behind that."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN

__all__ = ["FormLayerNormLinearPass"]


class FormLayerNormLinearPass(ir.passes.InPlacePass):
    """Fuses LayerNorm1P into the projection that reads it.

    Args:
        kernels: last part of a module's name → the node's attribute ``kernel``; ``head`` for any other.

    Rules, per ``Linear(LayerNormalization(x, Add(w_norm, 1), b_norm), w[, b])``:
        1. the nodes become ``LayerNormLinear(x, w_norm, b_norm, w[, b])``, whose weight's name gives ``kernel``;
        2. where ``Relu`` and ``Mul`` with itself follow, and nothing else reads what is between, they go inside
           (``activation`` is ``relu_squared``);
        3. where ``Relu`` is followed by anything else (a layer that squares in fp32), the nodes stay;
        4. where the norm has other readers too, it stays for them; a gamma that is no sum with one stays as it is.
    """

    def __init__(self, kernels: Mapping[str, str]) -> None:
        self.kernels = kernels

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        linears = [n for n in model.graph if (n.domain, n.op_type) == (DOMAIN, "Linear")]
        formed = [self._form(model.graph, node) for node in linears]
        return ir.passes.PassResult(model, any(formed))

    def _form(self, graph: ir.Graph, linear: ir.Node) -> bool:
        norm = _standard(linear.inputs[0], "LayerNormalization")
        if norm is None or norm.attributes.get_int("axis", -1) != -1 or len(norm.inputs) != 3:
            return False
        norm_weight = _weight_of_gamma(norm.inputs[1])
        tail = _relu_squared(linear)
        if norm_weight is None or tail is None:
            return False
        weight = linear.inputs[1]
        assert weight is not None
        module = (weight.name or "").removesuffix(".weight").rsplit(".", 1)[-1]
        node = ir.Node(
            DOMAIN,
            "LayerNormLinear",
            [norm.inputs[0], norm_weight, norm.inputs[2], *linear.inputs[1:]],
            [
                ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5)),
                ir.AttrString("activation", "relu_squared" if tail else "none"),
                ir.AttrString("output", "same"),
                ir.AttrString("kernel", self.kernels.get(module, "head")),
            ],
        )
        replaced = [*reversed(tail), linear]
        old, new = replaced[0].outputs[0], node.outputs[0]
        new.name, new.shape, new.type = old.name, old.shape, old.type
        ir.convenience.replace_nodes_and_values(graph, linear, replaced, [node], [old], [new])
        if not norm.outputs[0].uses():
            graph.remove(norm, safe=True)
        return True


def _standard(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and (node.domain, node.op_type) == ("", op_type) else None


def _weight_of_gamma(gamma: ir.Value | None) -> ir.Value | None:
    """w of ``Add(w, 1)``; None for any other value."""
    node = _standard(gamma, "Add")
    if node is None:
        return None
    weight, one = node.inputs
    tensor = None if one is None else ir.convenience.get_const_tensor(one)
    return weight if tensor is not None and np.all(tensor.numpy().astype(np.float32) == 1) else None


def _relu_squared(linear: ir.Node) -> list[ir.Node] | None:
    """``Relu`` and ``Mul`` behind a projection; nothing without a Relu; None where another node follows the Relu."""
    uses = [node for node, _ in linear.outputs[0].uses()]
    relus = [node for node in uses if (node.domain, node.op_type) == ("", "Relu")]
    if not relus:
        return []
    relu = relus[0]
    readers = [node for node, _ in relu.outputs[0].uses()]
    squared = len(readers) == 2 and readers[0] is readers[1] and readers[0].op_type == "Mul" and not readers[0].domain
    return [relu, readers[0]] if squared and len(uses) == 1 else None
