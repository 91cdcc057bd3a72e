"""Lowers the dialect's Linear with integer weights to ONNX Runtime's MatMulNBits.

Shapes: O output features, I input features.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from nemotron_formats.tensors import EncodedWeight
from nemotron_formats.weights import GroupedIntegers

from nemotron_graphs.ops import DOMAIN
from nemotron_graphs.passes.matching import (
    CONTRIB,
    add_cast,
    add_node,
    dtype_of,
    input_of,
    nodes_of,
    onnx_dtype,
    produced_by,
    size_of,
    take_place,
)

__all__ = ["LowerLinearToMatMulNBitsPass"]


class LowerLinearToMatMulNBitsPass(ir.passes.InPlacePass):
    """Replaces projections whose weights the bundle holds as integer codes and scales.

    Args:
        weights: name of a weight → its format, and the places of its codes and scales on disk.
        accuracy_level: how the kernel may treat activations: 0 leaves them, 4 makes them int8.

    Rules:
        1. ``Linear(x, w)`` → ``MatMulNBits(x, codes, scales)`` where ``w`` is a graph input of ``weights``, or a Cast
           of it;
        2. ``Linear(x, w, b)`` → ``MatMulNBits(x, codes, scales, , , b)`` likewise;
        3. where x is no float32, the scales are cast to its dtype, which the node asks for;
        4. codes and scales become graph inputs, one of each however many nodes read them, to be bound like any weight.

    Postcondition: every weight of ``weights`` was found. What else reads such a weight (the lookup of a tied embedding)
    keeps it; any other Linear is left to the passes that follow.

    Raises:
        PreconditionError: a weight in a format that is no :class:`GroupedIntegers`, or operands of other shapes.
        PostconditionError: a weight that no Linear reads.
    """

    def __init__(self, weights: Mapping[str, EncodedWeight], accuracy_level: int) -> None:
        self.weights = weights
        self.accuracy_level = accuracy_level

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        operands: dict[str, tuple[ir.Value, ir.Value]] = {}
        for node in nodes_of(graph, "Linear", DOMAIN):
            weight = input_of(node, 1)
            cast = produced_by(weight, "Cast")
            stored = weight if cast is None else input_of(cast, 0)
            name = stored.name or ""
            if not stored.is_graph_input() or name not in self.weights:
                continue
            encoded = self.weights[name]
            O, I = size_of(weight, 0), size_of(weight, 1)  # noqa: E741
            weight_format = _checked_format(name, encoded, O, I)
            if name not in operands:
                codes, scales = _add_inputs(graph, encoded)
                if dtype_of(weight) != ir.DataType.FLOAT:
                    scales = add_cast(graph, node, scales, dtype_of(weight), name=f"{scales.name}/cast")
                operands[name] = codes, scales
            attributes = {
                "K": I,
                "N": O,
                "bits": weight_format.bits,
                "block_size": weight_format.group_size,
                "accuracy_level": self.accuracy_level,
            }
            bias = [None, None, *node.inputs[2:]] if len(node.inputs) > 2 else []
            product = add_node(
                graph, node, "MatMulNBits", [node.inputs[0], *operands[name], *bias],
                [ir.AttrInt64(key, number) for key, number in attributes.items()],
                name=f"{node.outputs[0].name}/product", domain=CONTRIB,
            )  # fmt: skip
            take_place(graph, node, product)
        if missing := sorted(set(self.weights) - set(operands)):
            raise ir.passes.PostconditionError(
                f"encoded weights that no Linear reads: found {', '.join(missing)}; expected none; "
                "lower other passes' projections after this one"
            )
        if operands:
            model.opset_imports[CONTRIB] = 1
        return ir.passes.PassResult(model, bool(operands))


def _checked_format(name: str, encoded: EncodedWeight, O: int, I: int) -> GroupedIntegers:  # noqa: E741
    """The format of a weight [O, I], whose operands have the shapes that it says."""
    if not isinstance(encoded.format, GroupedIntegers):
        raise ir.passes.PreconditionError(
            f"weight '{name}': found format {encoded.format.name}; expected integers in groups; "
            "choose a target whose projections take that format"
        )
    for operand in encoded.format.operands(O, I):
        found = encoded.operands[operand.name].shape
        if tuple(found) != operand.shape:
            raise ir.passes.PreconditionError(
                f"weight '{name}': found {operand.name} of shape {list(found)}; expected {list(operand.shape)}; "
                "quantize it again"
            )
    return encoded.format


def _add_inputs(graph: ir.Graph, encoded: EncodedWeight) -> tuple[ir.Value, ir.Value]:
    """Codes and scales as inputs of the graph."""
    codes, scales = (
        ir.Value(name=entry.name, shape=ir.Shape(entry.shape), type=ir.TensorType(onnx_dtype(entry)))
        for entry in (encoded.operands["codes"], encoded.operands["scales"])
    )
    graph.inputs.extend((codes, scales))
    return codes, scales
