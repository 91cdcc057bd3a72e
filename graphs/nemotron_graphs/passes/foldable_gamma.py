"""Lets ONNX Runtime compute the norms' gammas once, at load."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["FoldableGammaPass"]

_LOW = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)


class FoldableGammaPass(ir.passes.InPlacePass):
    """Adds a constant to a low-precision parameter in float32, and rounds once.

    ONNX Runtime folds constants with its CPU kernels alone, and has no such Add: gamma = weight + 1 would be a kernel
    per norm and step. The bits are the same: the sum of two numbers of at most 11 significant bits is rounded to them
    once either way, for float32 holds what matters of it.

    Rules:
        1. ``Add(parameter [n], scalar constant)`` in bfloat16 or float16 becomes Cast, Add, Cast;
        2. another dtype, another shape, or an operand that a node computes stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [(node, parts) for node in model.graph if (parts := _parts(node)) is not None]
        constants: dict[float, ir.Value] = {}
        for node, (parameter, number) in found:
            if number not in constants:
                constant = ir.Node("", "Constant", [], [ir.AttrFloat32("value_float", number)])
                constants[number] = _typed(constant, f"foldable/{number:g}", [])
                model.graph.insert_before(node, constant)
            _rewrite(model.graph, node, parameter, constants[number])
        return ir.passes.PassResult(model, modified=bool(found))


def _parts(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The parameter and the constant of a sum that fits; else None."""
    if (node.domain, node.op_type) != ("", "Add"):
        return None
    for parameter, other in (node.inputs, node.inputs[::-1]):
        if parameter is None or other is None or parameter.producer() is not None or parameter.dtype not in _LOW:
            continue
        fixed = parameter.shape is not None and len(parameter.shape) == 1 and isinstance(parameter.shape[0], int)
        number = ir.convenience.get_const_tensor(other)
        if fixed and number is not None and number.size == 1:
            return parameter, float(number.numpy().astype("float32").item())
    return None


def _rewrite(graph: ir.Graph, node: ir.Node, parameter: ir.Value, constant: ir.Value) -> None:
    gamma, shape, dtype = node.outputs[0], parameter.shape, parameter.dtype
    assert shape is not None
    assert dtype is not None
    wide = ir.Node("", "Cast", [parameter], [ir.AttrInt64("to", ir.DataType.FLOAT)])
    total = ir.Node("", "Add", [_typed(wide, f"{gamma.name}/wide", shape), constant])
    narrow = ir.Node("", "Cast", [_typed(total, f"{gamma.name}/sum", shape)], [ir.AttrInt64("to", dtype)])
    new = narrow.outputs[0]
    new.name, new.shape, new.type = gamma.name, shape, ir.TensorType(dtype)
    for made in (wide, total, narrow):
        graph.insert_before(node, made)
    gamma.replace_all_uses_with(new)
    others = [value for value in node.inputs if value is not None and value is not parameter]
    graph.remove(node, safe=True)
    for value in others:
        if not value.uses() and value.is_initializer():
            assert value.name is not None
            del graph.initializers[value.name]


def _typed(node: ir.Node, name: str, shape: ir.Shape | list[int]) -> ir.Value:
    value = node.outputs[0]
    value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
    return value
