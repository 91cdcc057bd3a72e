"""Traced parts → one graph: embedding, the decoder layer stamped once per layer, head.

A Nemotron's layers differ in their weights alone, so tracing one and stamping it makes the cost of a trace
independent of depth and width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass

from nemotron_export.tracing.exporter import IR_VERSION, OPSET_IMPORTS

__all__ = ["GraphBuilder"]


class GraphBuilder:
    """Grows one flat graph out of copies of traced parts."""

    def __init__(self) -> None:
        self._graph = ir.Graph([], [], nodes=[], opset_imports=dict(OPSET_IMPORTS), name="nemotron")
        self._weights: dict[str, ir.Value] = {}

    def input(self, name: str, dtype: ir.DataType, dims: Sequence[int | str]) -> ir.Value:
        """Declares a graph input."""
        value = ir.Value(name=name, shape=ir.Shape(list(dims)), type=ir.TensorType(dtype))
        self._graph.inputs.append(value)
        return value

    def stamp(
        self, part: ir.Graph, inputs: Sequence[ir.Value], weights: Mapping[str, str], prefix: str
    ) -> list[ir.Value]:
        """Copies a part's nodes into the graph.

        Args:
            part: the traced graph; its inputs are data inputs, then weights.
            inputs: the values that take the place of its data inputs, in order.
            weights: name in the part → name in the checkpoint. A name met before is shared: that is how tied
                weights stay one.
            prefix: put before the name of every value that the part makes.

        Returns:
            The copies of the part's outputs.
        """
        copies: dict[ir.Value, ir.Value] = dict(zip(part.inputs, inputs, strict=False))
        for value in part.inputs[len(inputs) :]:
            assert value.name
            name = weights[value.name]
            like = ir.Value(name=name, shape=_copy(value.shape), type=value.type)
            copies[value] = self._weights.setdefault(name, like)
        for node in part:
            outputs = [
                ir.Value(name=f"{prefix}{v.name}", shape=_copy(v.shape), type=v.type, const_value=v.const_value)
                for v in node.outputs
            ]
            copies.update(zip(node.outputs, outputs, strict=True))
            self._graph.append(
                ir.Node(
                    node.domain,
                    node.op_type,
                    [None if v is None else copies[v] for v in node.inputs],
                    node.attributes.values(),
                    outputs=outputs,
                )
            )
        return [copies[v] for v in part.outputs]

    def finish(self, outputs: Mapping[str, ir.Value]) -> ir.Model:
        """Names the outputs and gives the model; the weights become its last inputs."""
        for name, value in outputs.items():
            value.name = name
            self._graph.outputs.append(value)
        self._graph.inputs.extend(self._weights.values())
        model = ir.Model(self._graph, ir_version=IR_VERSION)
        # parts that were traced apart may use a name twice
        NameFixPass()(model)
        return model


def _copy(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else ir.Shape(list(shape))
