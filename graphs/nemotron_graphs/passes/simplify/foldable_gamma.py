"""Lets ONNX Runtime compute the norms' gammas once, at load."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.passes.matching import add_cast, add_node, dtype_of, input_of, is_op, produced_by, take_place

__all__ = ["FoldableGammaPass"]

_LOW = (ir.DataType.BFLOAT16, ir.DataType.FLOAT16)
_WIDE = ir.DataType.FLOAT


class FoldableGammaPass(ir.passes.InPlacePass):
    """Adds a constant to a low-precision parameter in float32, and rounds once.

    ONNX Runtime folds constants with its CPU kernels alone, and has no such Add: gamma = weight + 1 would be a kernel
    per norm and step. The bits are the same: the sum of two numbers of at most 11 significant bits is rounded to them
    once either way, for float32 holds what matters of it.

    Rules:
        1. ``Add(parameter [n], scalar constant)`` in bfloat16 or float16 becomes Cast, Add, Cast;
        2. so does ``Add(Cast(parameter [n]), scalar constant)``, of a parameter that is stored in another dtype: the
           first Cast stays, for the parameter is rounded to the run dtype before it is added to;
        3. another dtype, another shape, or an operand that any other node computes stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        found = [(node, parts) for node in model.graph if (parts := _parts(node)) is not None]
        constants: dict[float, ir.Value] = {}
        for node, (parameter, number) in found:
            if number not in constants:
                attribute = ir.AttrFloat32("value_float", number)
                constants[number] = add_node(
                    model.graph, node, "Constant", [], [attribute], name=f"foldable/{number:g}", shape=[], dtype=_WIDE
                )
            _rewrite(model.graph, node, parameter, constants[number])
        return ir.passes.PassResult(model, modified=bool(found))


def _parts(node: ir.Node) -> tuple[ir.Value, float] | None:
    """The parameter and the constant of a sum that fits; else None."""
    if not is_op(node, "Add"):
        return None
    for parameter, other in (node.inputs, node.inputs[::-1]):
        if parameter is None or other is None or not _is_parameter(parameter) or parameter.dtype not in _LOW:
            continue
        fixed = parameter.shape is not None and len(parameter.shape) == 1 and isinstance(parameter.shape[0], int)
        number = ir.convenience.get_const_tensor(other)
        if fixed and number is not None and number.size == 1:
            return parameter, float(number.numpy().astype("float32").item())
    return None


def _is_parameter(value: ir.Value) -> bool:
    """Whether a value is given, not computed, or is given and cast."""
    cast = produced_by(value, "Cast")
    given = value if cast is None else input_of(cast, 0)
    return given.producer() is None


def _rewrite(graph: ir.Graph, node: ir.Node, parameter: ir.Value, constant: ir.Value) -> None:
    name = node.outputs[0].name
    others = [value for value in node.inputs if value is not None and value is not parameter]
    wide = add_cast(graph, node, parameter, _WIDE, name=f"{name}/wide")
    total = add_node(graph, node, "Add", [wide, constant], name=f"{name}/sum", shape=parameter.shape, dtype=_WIDE)
    take_place(graph, node, add_cast(graph, node, total, dtype_of(parameter), name=f"{name}/narrow"))
    for value in others:
        if not value.uses() and value.is_initializer():
            assert value.name is not None
            del graph.initializers[value.name]
