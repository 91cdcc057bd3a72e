"""The auxiliary graph of a language model: the top-k candidates of a decode step, found where the logits are.

Shapes: B sequences, V vocabulary, C candidates, R parts of the vocabulary, N tokens of a part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir

from nemotron_graphs.passes.matching import dtype_of, size_of
from nemotron_graphs.targets.lowering import Lowered, LoweredGraph

__all__ = ["CANDIDATES_FILE", "add_candidates", "candidate_graph"]

CANDIDATES_FILE = "candidates.onnx"
# a GPU gives each row of a TopK to one block of threads: parts of a row are searched side by side
_MAX_PARTS = 32
# a part is searched for as many tokens as the row: short ones would leave nothing out
_MIN_PART = 4

_FLOAT, _INT = ir.DataType.FLOAT, ir.DataType.INT64
_Dims = Sequence[int | str]


def add_candidates(lowered: Lowered, count: int) -> Lowered:
    """The lowered graph of a language model, and next to it the graph of its ``count`` likeliest tokens."""
    model = lowered.main.model
    logits = model.graph.outputs[0]
    assert logits.name == "logits", "a language model's graph"
    vocab_size = size_of(logits, -1)
    count = min(count, vocab_size)
    graph = LoweredGraph(candidate_graph(vocab_size, count, dtype_of(logits), model), CANDIDATES_FILE)
    session = {**lowered.session, "candidates": {"graph": CANDIDATES_FILE, "count": count}}
    return replace(lowered, session=session, graphs={**lowered.graphs, "candidates": graph})


def candidate_graph(vocab_size: int, count: int, dtype: ir.DataType, like: ir.Model) -> ir.Model:
    """The graph, of ops alone that ONNX Runtime has CUDA kernels for.

    Inputs: ``logits`` [B, 1, V] in ``dtype``, ``temperature`` float32 [1]. Outputs: ``candidate_logits``
    float32 [B, C], the largest, descending; ``candidate_ids`` int64 [B, C], their tokens; ``mass`` float32 [B], the sum
    over all V tokens of exp((logit - largest) / temperature), which no logit makes overflow.

    Args:
        vocab_size: V.
        count: C, at most V.
        dtype: float32 or float16.
        like: whose opset and IR version it has.
    """
    assert 1 <= count <= vocab_size
    made = _Made()
    logits = ir.Value(name="logits", shape=ir.Shape(["batch", 1, vocab_size]), type=ir.TensorType(dtype))
    temperature = ir.Value(name="temperature", shape=ir.Shape([1]), type=ir.TensorType(_FLOAT))
    wide = logits
    if dtype != _FLOAT:
        to_float = ir.AttrInt64("to", _FLOAT)
        wide = made.node("Cast", [logits], "wide", ["batch", 1, vocab_size], attributes=[to_float])
    rows_BV = made.reshape(wide, [vocab_size], "rows")
    largest, ids = _largest(made, rows_BV, vocab_size, count)
    first = made.node("Slice", [largest, *(made.ints(f"first/{i}", [i]) for i in (0, 1, 1))], "first", ["batch", 1])
    scores = made.node("Div", [rows_BV, temperature], "scores", ["batch", vocab_size])
    top = made.node("Div", [first, temperature], "top", ["batch", 1])
    below = made.node("Sub", [scores, top], "below", ["batch", vocab_size])
    weights = made.node("Exp", [below], "weights", ["batch", vocab_size])
    mass = made.node(
        "ReduceSum", [weights, made.ints("mass/axis", [1])], "mass", ["batch"], attributes=[ir.AttrInt64("keepdims", 0)]
    )
    graph = ir.Graph(
        [logits, temperature], [largest, ids, mass], nodes=made.nodes, initializers=made.constants, name="candidates",
        opset_imports={"": like.opset_imports[""]},
    )  # fmt: skip
    return ir.Model(graph, ir_version=like.ir_version, producer_name=like.producer_name)


def _largest(made: _Made, rows_BV: ir.Value, vocab_size: int, count: int) -> tuple[ir.Value, ir.Value]:
    """Logits and tokens: of parts of the rows first, then among what these left."""
    parts = _parts(vocab_size, count)
    if parts == 1:
        return made.top_k(rows_BV, count, ("candidate_logits", "candidate_ids"), ["batch", count])
    length, left = vocab_size // parts, parts * count
    parts_BRN = made.reshape(rows_BV, [parts, length], "parts")
    largest_BRC, places_BRC = made.top_k(parts_BRN, count, ("part_logits", "part_places"), ["batch", parts, count])
    starts_R1 = made.constant("starts", np.arange(0, vocab_size, length)[:, None])
    ids_BRC = made.node("Add", [places_BRC, starts_R1], "part_ids", ["batch", parts, count], dtype=_INT)
    flat_ids = made.reshape(ids_BRC, [left], "left_ids", dtype=_INT)
    flat_logits = made.reshape(largest_BRC, [left], "left_logits")
    largest, places = made.top_k(flat_logits, count, ("candidate_logits", "places"), ["batch", count])
    axis = ir.AttrInt64("axis", 1)
    ids = made.node(
        "GatherElements", [flat_ids, places], "candidate_ids", ["batch", count], attributes=[axis], dtype=_INT
    )
    return largest, ids


def _parts(vocab_size: int, count: int) -> int:
    """The most equal parts, a power of two, that are worth it."""
    parts = _MAX_PARTS
    while parts > 1 and (vocab_size % parts or vocab_size // parts < _MIN_PART * count):
        parts //= 2
    return parts


class _Made:
    """Nodes and constants as they are made."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.constants: list[ir.Value] = []

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], name: str, dims: _Dims, *, dtype: ir.DataType = _FLOAT,
        attributes: Sequence[ir.Attr] = (),
    ) -> ir.Value:  # fmt: skip
        """The output of a new node."""
        node = ir.Node("", op_type, inputs, attributes, name=name)
        self.nodes.append(node)
        return _describe(node.outputs[0], name, dims, dtype)

    def top_k(self, value: ir.Value, count: int, names: tuple[str, str], dims: _Dims) -> tuple[ir.Value, ir.Value]:
        """Values and places of the largest along the last axis, descending."""
        last = ir.AttrInt64("axis", -1)
        node = ir.Node("", "TopK", [value, self.ints(f"{names[0]}/k", [count])], [last], num_outputs=2, name=names[0])
        self.nodes.append(node)
        values, places = node.outputs
        return _describe(values, names[0], dims, _FLOAT), _describe(places, names[1], dims, _INT)

    def reshape(self, value: ir.Value, dims: Sequence[int], name: str, dtype: ir.DataType = _FLOAT) -> ir.Value:
        """[batch, ``dims``]; the batch is copied."""
        shape = self.ints(f"{name}/shape", [0, *dims])
        return self.node("Reshape", [value, shape], name, ["batch", *dims], dtype=dtype)

    def ints(self, name: str, numbers: Sequence[int]) -> ir.Value:
        """A constant int64 list."""
        return self.constant(name, np.array(numbers, np.int64))

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """An initializer."""
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
        self.constants.append(value)
        return value


def _describe(value: ir.Value, name: str, dims: _Dims, dtype: ir.DataType) -> ir.Value:
    value.name, value.shape, value.type = name, ir.Shape(dims), ir.TensorType(dtype)
    return value
