"""Small graphs written as ONNX's text, run before and after a pass."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
from nemotron_graphs import passes

__all__ = ["assert_same", "node_of", "ops", "parse", "random_feed", "run"]

HEADER = '<ir_version: 10, opset_import: ["": 21, "nemotron": 1]>'
# ONNX's text takes no dots in names
DOTS = {"_proj_": "_proj.", "layer_": "layer.", "norm_": "norm."}


def parse(text: str, **shapes: list[int | str]) -> ir.Model:
    """A graph, names with dots, and shapes of its values (of dtype float)."""
    model = ir.from_onnx_text(f"{HEADER}\n{text}")
    for value in [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]:
        if value.name in shapes:
            value.shape, value.type = ir.Shape(shapes[value.name]), ir.TensorType(ir.DataType.FLOAT)
    for value in model.graph.inputs:
        assert value.name
        for plain, dotted in DOTS.items():
            value.name = value.name.replace(plain, dotted)
    return model


def ops(model: ir.Model) -> list[str]:
    """The types of its nodes, in order."""
    return [node.op_type for node in model.graph]


def node_of(model: ir.Model, op_type: str) -> ir.Node:
    """The only node of a type."""
    (node,) = (node for node in model.graph if node.op_type == op_type)
    return node


def random_feed(model: ir.Model, **given: np.ndarray) -> dict[str, np.ndarray]:
    """Normal numbers for the inputs that are not given; b is 2 and s is 3."""
    rng = np.random.default_rng(0)
    feed = dict(given)
    for value in model.graph.inputs:
        assert value.name
        assert value.shape is not None
        shape = [{"b": 2, "s": 3}.get(str(dim), dim) for dim in value.shape]
        feed.setdefault(value.name, rng.normal(size=shape).astype(np.float32))  # type: ignore[arg-type]
    return feed


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Outputs of ONNX Runtime, the dialect's ops inlined and unused inputs left out."""
    passes.InlineDialectOpsPass()(model)
    wanted = {value.name for value in model.graph.inputs if value.uses()}
    passes.DropUnusedInputsPass()(model)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: value for name, value in feed.items() if name in wanted})


def assert_same(after: ir.Model, before: ir.Model, feed: dict[str, np.ndarray]) -> None:
    """Both graphs give the same, nearly."""
    for found, expected in zip(run(after, feed), run(before, feed), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
