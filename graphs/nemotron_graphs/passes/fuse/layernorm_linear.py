"""Forms LayerNormLinear out of a norm, the projection that reads it, and relu² after that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.matching import FusionPass, is_op, only_reader, produced_by, producer, require

__all__ = ["FormLayerNormLinearPass"]


class FormLayerNormLinearPass(FusionPass):
    """Fuses LayerNorm1P into the projection that reads it.

    Rules, per ``Linear(LayerNormalization(x, Add(w_norm, 1), b_norm), w[, b])``:
        1. the nodes become ``LayerNormLinear(x, w_norm, b_norm, w[, b])``;
        2. where ``Relu`` and ``Mul`` with itself follow, and nothing else reads what is between, they go inside
           (``activation`` is ``relu_squared``);
        3. where ``Relu`` is followed by anything else (an MLP that squares in fp32), the nodes stay;
        4. where the norm has other readers too, it stays for them; a gamma that is no sum with one stays as it is.
    """

    forms = "LayerNormLinear"
    anchor = ("Linear", DOMAIN)

    def is_candidate(self, node: ir.Node) -> bool:
        """Other projections (of attention, of the MLP's squares) read no norm."""
        return super().is_candidate(node) and produced_by(node.inputs[0], "LayerNormalization") is not None

    def fuse(self, graph: ir.Graph, node: ir.Node) -> None:
        norm = producer(node.inputs[0], "LayerNormalization")
        require(norm.attributes.get_int("axis", -1) == -1, "the norm is over another axis than the last")
        require(len(norm.inputs) == 3, "the norm has no bias")
        norm_weight = _weight_of_gamma(norm.inputs[1])
        activation = _relu_squared(node)
        new = ir.Node(
            DOMAIN,
            self.forms,
            [norm.inputs[0], norm_weight, norm.inputs[2], *node.inputs[1:]],
            [
                ir.AttrFloat32("epsilon", norm.attributes.get_float("epsilon", 1e-5)),
                ir.AttrString("activation", "relu_squared" if activation else "none"),
                ir.AttrString("output", "same"),
            ],
        )
        replaced = [*reversed(activation), node]
        ir.convenience.replace_nodes_and_values(graph, node, replaced, [new], replaced[0].outputs, new.outputs)
        if not norm.outputs[0].uses():
            graph.remove(norm, safe=True)


def _weight_of_gamma(gamma: ir.Value | None) -> ir.Value | None:
    """w of ``Add(w, 1)``."""
    weight, one = producer(gamma, "Add").inputs
    tensor = None if one is None else ir.convenience.get_const_tensor(one)
    require(tensor is not None and np.all(tensor.numpy().astype(np.float32) == 1), "gamma is not a weight plus one")
    return weight


def _relu_squared(linear: ir.Node) -> list[ir.Node]:
    """``Relu`` and ``Mul`` after a projection; none where no Relu follows."""
    if not any(is_op(node, "Relu") for node, _ in linear.outputs[0].uses()):
        return []
    relu = only_reader(linear.outputs[0])
    readers = [node for node, _ in relu.outputs[0].uses()]
    squared = len(readers) == 2 and readers[0] is readers[1] and is_op(readers[0], "Mul")
    require(squared, f"its Relu is read by {', '.join(node.op_type for node in readers)}, not by one Mul")
    return [relu, readers[0]]
