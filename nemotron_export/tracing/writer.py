"""Writes ONNX IR nodes for the nodes of an FX graph: names by module path, shapes by the caller's dims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from nemotron_formats.dtypes import DTYPES

__all__ = ["Arg", "GraphWriter"]

Arg = Any  # an ir.Value, a number, a list of them or None


class GraphWriter:
    """Grows one graph.

    Args:
        wrapper: the prefix of the module paths, which names do without.
        dims: torch's symbol → the dim's name.
    """

    def __init__(self, wrapper: str, dims: Mapping[str, str]) -> None:
        self.nodes: list[ir.Node] = []
        self._wrapper, self._dims = wrapper, dims
        self._path, self._result = "", torch.empty(0)
        self._counts: dict[str, int] = {}

    def input(self, name: str, like: torch.Tensor) -> ir.Value:
        """A graph input with a fake tensor's shape and dtype."""
        return ir.Value(name=name, shape=self._shape(like), type=ir.TensorType(_ir_dtype(like.dtype)))

    def enter(self, node: torch.fx.Node) -> None:
        """Says which FX node the next nodes are for: their module path and the result's shape."""
        stack = list(node.meta.get("nn_module_stack", {}).values())
        path = stack[-1][0] if stack else ""
        # values that torch made for its own use carry a note in place of a path
        self._path = "" if path.startswith("_") else path.removeprefix(self._wrapper).removeprefix(".")
        self._result = node.meta["val"]

    def result_dims(self) -> list[int | ir.SymbolicDim]:
        """The dims of the FX node's result."""
        return list(self._shape(self._result))

    def node(
        self, op_type: str, inputs: Sequence[ir.Value | None], *, domain: str = "", **attributes: int | float
    ) -> ir.Value:
        """Appends a node; its output is called ``<module path>.<op>``, with a number from the second on."""
        made = [
            ir.AttrFloat32(name, value) if isinstance(value, float) else ir.AttrInt64(name, value)
            for name, value in attributes.items()
        ]
        node = ir.Node(domain, op_type, list(inputs), made, num_outputs=1)
        base = f"{self._path}.{op_type}" if self._path else op_type
        count = self._counts[base] = self._counts.get(base, 0) + 1
        node.outputs[0].name = base if count == 1 else f"{base}_{count}"
        self.nodes.append(node)
        return node.outputs[0]

    def cast(self, value: ir.Value, dtype: torch.dtype) -> ir.Value:
        """The value in another dtype; itself where it has that already."""
        wanted = _ir_dtype(dtype)
        return value if value.dtype == wanted else self.node("Cast", [value], to=int(wanted))

    def finish(self, value: ir.Value) -> None:
        """Gives the FX node's value its shape and dtype."""
        if isinstance(self._result, torch.Tensor):
            value.shape, value.type = self._shape(self._result), ir.TensorType(_ir_dtype(self._result.dtype))
        else:
            value.shape, value.type = ir.Shape([]), ir.TensorType(ir.DataType.INT64)

    def constant(self, array: np.ndarray) -> ir.Value:
        """A constant of the array's dtype."""
        return self._constant(ir.tensor(array))

    def constant_like(self, value: Arg, like: ir.Value) -> ir.Value:
        """``value`` where it is one already, else a scalar constant of another value's dtype."""
        if isinstance(value, ir.Value):
            return value
        assert like.dtype is not None
        return self._constant(ir.tensor(np.array(value).astype(like.dtype.numpy())))

    def _constant(self, tensor: Any) -> ir.Value:
        value = self.node("Constant", [])
        node = value.producer()
        assert node is not None
        node.attributes["value"] = ir.AttrTensor("value", tensor)
        value.shape, value.type = ir.Shape(tensor.shape), ir.TensorType(tensor.dtype)
        return value

    def _shape(self, tensor: torch.Tensor) -> ir.Shape:
        return ir.Shape([int(d) if isinstance(d, int) else self._dims.get(str(d), str(d)) for d in tensor.shape])


def _ir_dtype(dtype: torch.dtype) -> ir.DataType:
    return ir.DataType(DTYPES[str(dtype).removeprefix("torch.")].onnx)
