"""How passes find nodes, say why a fusion does not apply, and put new nodes in the place of old ones."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, TypeGuard

import numpy as np
import onnx_ir as ir
from nemotron_formats.dtypes import DTYPES
from nemotron_formats.tensors import TensorEntry

from nemotron_graphs.ops import DOMAIN

__all__ = [
    "CONTRIB",
    "FusionPass",
    "NoMatch",
    "add_cast",
    "add_constant",
    "add_node",
    "cast_output",
    "dtype_of",
    "input_of",
    "is_op",
    "nodes_of",
    "only_reader",
    "onnx_dtype",
    "produced_by",
    "producer",
    "require",
    "shape_of",
    "size_of",
    "take_place",
]

# the domain of ONNX Runtime's own ops
CONTRIB = "com.microsoft"


class NoMatch(Exception):  # noqa: N818 (no error: the graph stays as it is)
    """A fusion does not apply to a node; the message says why."""


class FusionPass(ir.passes.InPlacePass):
    """A pass that puts one node in the place of several.

    It looks at each candidate once, so that its time is linear in the number of nodes. It does not know how many nodes
    a model should have: whoever does compares that with ``found``, and shows ``missed`` where it is fewer.

    Attributes:
        forms: op type of what it forms; a few words where that has no op of its own.
        domain: its domain, which the model imports once a node is formed.
        anchor: op type and domain of the nodes at which a match begins.
        found: how many candidates the last run fused.
        missed: one line for each of the others: the node, and why it stays.
    """

    forms: ClassVar[str]
    domain: ClassVar[str] = DOMAIN
    anchor: ClassVar[tuple[str, str]]

    def __init__(self) -> None:
        self.found = 0
        self.missed: list[str] = []

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.found, self.missed = 0, []
        self.begin(model.graph)
        for node in [node for node in model.graph if self.is_candidate(node)]:
            try:
                self.fuse(model.graph, node)
            except NoMatch as reason:
                self.missed.append(f"{node.op_type} '{node.outputs[0].name}': {reason}")
            else:
                self.found += 1
        if self.found:
            model.opset_imports.setdefault(self.domain, 1)
        return ir.passes.PassResult(model, bool(self.found))

    def begin(self, graph: ir.Graph) -> None:
        """Prepares what all nodes of a graph share."""

    def is_candidate(self, node: ir.Node) -> bool:
        """Whether a node is looked at: any anchor, unless a subclass says more."""
        return is_op(node, *self.anchor)

    @abstractmethod
    def fuse(self, graph: ir.Graph, node: ir.Node) -> None:
        """Fuses a candidate.

        Raises:
            NoMatch: the graph, which is then unchanged, does not have what the fusion needs.
        """


def require(condition: object, reason: str) -> None:
    """Raises NoMatch for that reason where the condition does not hold."""
    if not condition:
        raise NoMatch(reason)


def is_op(node: ir.Node | None, op_type: str, domain: str = "") -> TypeGuard[ir.Node]:
    """Whether there is a node, and it is of that op."""
    return node is not None and node.op_type == op_type and node.domain == domain


def nodes_of(graph: ir.Graph, op_type: str, domain: str = "") -> list[ir.Node]:
    """Its nodes of one op."""
    return [node for node in graph if is_op(node, op_type, domain)]


def produced_by(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node | None:
    """The node that computes a value, where it is of that op."""
    node = None if value is None else value.producer()
    return node if is_op(node, op_type, domain) else None


def producer(value: ir.Value | None, op_type: str, domain: str = "") -> ir.Node:
    """The node that computes a value; NoMatch where it is not of that op."""
    node = None if value is None else value.producer()
    if not is_op(node, op_type, domain):
        name = "an input that is left out" if value is None else f"'{value.name}'"
        raise NoMatch(f"{name} comes from {node.op_type if node else 'no node'}, not {op_type}")
    return node


def only_reader(value: ir.Value) -> ir.Node:
    """The one node that reads a value, at one place; NoMatch where others read it, or the graph gives it."""
    readers = [node for node, _ in value.uses()]
    if len(readers) != 1 or value.is_graph_output():
        found = [*(node.op_type for node in readers), *(["the graph's output"] if value.is_graph_output() else [])]
        raise NoMatch(f"'{value.name}' is read by {', '.join(found) or 'nothing'}, not by one node alone")
    return readers[0]


def input_of(node: ir.Node, index: int) -> ir.Value:
    """An input that every node of this op has."""
    value = node.inputs[index]
    assert value is not None
    return value


def shape_of(value: ir.Value) -> ir.Shape:
    """The shape of a value that has one."""
    assert value.shape is not None
    return value.shape


def size_of(value: ir.Value, axis: int) -> int:
    """A dim that is a number."""
    size = shape_of(value)[axis]
    assert isinstance(size, int)
    return size


def onnx_dtype(entry: TensorEntry) -> ir.DataType:
    """The dtype that a tensor is stored in."""
    return ir.DataType(DTYPES[entry.dtype_name].onnx)


def dtype_of(value: ir.Value) -> ir.DataType:
    """The dtype of a value that has one."""
    assert value.dtype is not None
    return value.dtype


def add_node(
    graph: ir.Graph,
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Sequence[ir.Attr] = (),
    *,
    name: str,
    shape: Iterable[int | ir.SymbolicDim] | None = None,
    dtype: ir.DataType | None = None,
    domain: str = "",
) -> ir.Value:
    """Inserts a node of one output before another; gives the output."""
    node = ir.Node(domain, op_type, inputs, attributes)
    value = node.outputs[0]
    value.name = name
    if shape is not None:
        value.shape = ir.Shape(shape)
    if dtype is not None:
        value.type = ir.TensorType(dtype)
    graph.insert_before(before, node)
    return value


def add_constant(graph: ir.Graph, before: ir.Node, number: int | Sequence[int], *, name: str) -> ir.Value:
    """Inserts an int64 constant before a node."""
    tensor = ir.AttrTensor("value", ir.tensor(np.array(number, np.int64)))
    return add_node(graph, before, "Constant", [], [tensor], name=name)


def add_cast(graph: ir.Graph, before: ir.Node, value: ir.Value, dtype: ir.DataType, *, name: str) -> ir.Value:
    """Inserts a Cast before a node; gives the value in another dtype."""
    to = ir.AttrInt64("to", dtype)
    return add_node(graph, before, "Cast", [value], [to], name=name, shape=value.shape, dtype=dtype)


def cast_output(graph: ir.Graph, node: ir.Node, dtype: ir.DataType, suffix: str) -> None:
    """Declares that a node gives ``dtype``; a Cast gives its readers what they had, under the old name."""
    inner = node.outputs[0]
    cast = ir.Node("", "Cast", [None], [ir.AttrInt64("to", dtype_of(inner))])
    graph.insert_after(node, cast)
    outer = cast.outputs[0]
    outer.name, outer.shape, outer.type = inner.name, inner.shape, inner.type
    ir.convenience.replace_all_uses_with(inner, outer, replace_graph_outputs=True)
    inner.name, inner.type = f"{inner.name}/{suffix}", ir.TensorType(dtype)
    # last, or the Cast would read itself
    cast.replace_input_with(0, inner)


def take_place(graph: ir.Graph, node: ir.Node, new: ir.Value) -> None:
    """Puts a value in the place of a node's output, whose name, shape and dtype it gets, and removes the node."""
    ir.convenience.replace_nodes_and_values(graph, node, [node], [], node.outputs, [new])
