"""Replaces the dialect's ops by their portable bodies of standard ops."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx.parser
import onnx_ir as ir
import onnx_ir.passes.common as common

from nemotron_graphs.ops import DOMAIN, OPS
from nemotron_graphs.ops.definition import Attribute

__all__ = ["InlineDialectOpsPass"]


class InlineDialectOpsPass(ir.passes.InPlacePass):
    """Inlines dialect nodes.

    Rules:
        1. a node of an op in ``ops`` (all of the dialect where None) is replaced by the op's function body for the
           optional inputs and the attributes that the node has;
        2. dialect nodes of that body are replaced likewise;
        3. its outputs keep their names and shapes.
    """

    def __init__(self, ops: Collection[str] | None = None) -> None:
        self.ops = frozenset(OPS if ops is None else ops)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        bodies = _Bodies(model.opset_imports[""])
        wanted = [n for n in model.graph if n.domain == DOMAIN and n.op_type in self.ops]
        for node in wanted:
            nodes, results = bodies.expand(node.op_type, node.inputs, node.attributes)
            ir.convenience.replace_nodes_and_values(model.graph, node, [node], nodes, node.outputs, results)
        if wanted and not any(node.domain == DOMAIN for node in model.graph):
            model.opset_imports.pop(DOMAIN, None)
        if wanted:
            # copies of a body have its names
            common.NameFixPass()(model)
        return ir.passes.PassResult(model, bool(wanted))


class _Bodies:
    """Function bodies, parsed once for each set of optional inputs, and copies of them.

    onnx-ir's own inliner looks through the whole graph for every node, which takes a graph of 96 layers three quarters
    of a minute; bodies without subgraphs need no more than a copy.
    """

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._parsed: dict[tuple[str, frozenset[str], frozenset[tuple[str, Attribute]]], ir.Function] = {}

    def expand(
        self, op_type: str, inputs: Sequence[ir.Value | None], attributes: Mapping[str, ir.Attr]
    ) -> tuple[list[ir.Node], list[ir.Value]]:
        """Nodes that compute a dialect op from ``inputs``, and its results."""
        op = OPS[op_type]
        given = dict(zip((i.name for i in op.inputs), inputs, strict=False))
        present = frozenset(i.name for i in op.inputs if i.optional and given.get(i.name) is not None)
        values_of = op.attributes_of({name: attribute.value for name, attribute in attributes.items()})
        function = self._function(op_type, present, values_of)
        values: dict[ir.Value, ir.Value | None] = {value: given[value.name or ""] for value in function.inputs}
        nodes: list[ir.Node] = []
        for inner in function:
            arguments = [None if value is None else values[value] for value in inner.inputs]
            if inner.domain == DOMAIN:
                made, results = self.expand(inner.op_type, arguments, inner.attributes)
                nodes += made
            else:
                copy = ir.Node("", inner.op_type, arguments, inner.attributes.values(), num_outputs=len(inner.outputs))
                nodes.append(copy)
                results = list(copy.outputs)
            for old, new in zip(inner.outputs, results, strict=True):
                new.name = old.name
                values[old] = new
        found = [values[value] for value in function.outputs]
        assert all(value is not None for value in found)
        return nodes, [value for value in found if value is not None]

    def _function(self, op_type: str, present: frozenset[str], attributes: dict[str, Attribute]) -> ir.Function:
        key = (op_type, present, frozenset(attributes.items()))
        if key not in self._parsed:
            text = OPS[op_type].function_text(self._opset, present, attributes)
            self._parsed[key] = ir.serde.deserialize_function(onnx.parser.parse_function(text))
        return self._parsed[key]
