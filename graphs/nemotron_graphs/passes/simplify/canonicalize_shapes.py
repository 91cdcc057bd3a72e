"""Reads every dynamic dim from a graph input, so that equal shape computations become one."""

from __future__ import annotations

import onnx_ir as ir

from nemotron_graphs.passes.matching import add_constant, add_node, nodes_of, take_place

__all__ = ["CanonicalizeShapesPass"]


# neighbouring dims of a value: numbers and symbols
_Dims = tuple[int | str | None, ...]


class CanonicalizeShapesPass(ir.passes.InPlacePass):
    """Rewrites Shape nodes.

    Rules, for ``y = Shape<start, end>(x)`` with x's shape known:
        1. dims that are all numbers become a Constant;
        2. others are read from the first graph input that has them as neighbours, where that is not x already.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        homes: dict[_Dims, tuple[ir.Value, int]] = {}
        for value in model.graph.inputs:
            dims = _dims(value)
            for start in range(len(dims)):
                for end in range(start + 1, len(dims) + 1):
                    homes.setdefault(dims[start:end], (value, start))
        modified = False
        for node in nodes_of(model.graph, "Shape"):
            modified |= _rewrite(model.graph, node, homes)
        return ir.passes.PassResult(model, modified)


def _dims(value: ir.Value) -> _Dims:
    return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape or ())


def _rewrite(graph: ir.Graph, node: ir.Node, homes: dict[_Dims, tuple[ir.Value, int]]) -> bool:
    source = node.inputs[0]
    if source is None or source.shape is None:
        return False
    dims = _dims(source)
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(dims))
    wanted = dims[start:end]
    numbers = [dim for dim in wanted if isinstance(dim, int)]
    name = f"{node.outputs[0].name}/canonical"
    if not wanted or None in wanted:
        return False
    if len(numbers) == len(wanted):
        new = add_constant(graph, node, numbers, name=name)
    elif wanted in homes:
        home, axis = homes[wanted]
        if home is source:
            return False
        dims_read = [ir.AttrInt64("start", axis), ir.AttrInt64("end", axis + len(wanted))]
        new = add_node(graph, node, "Shape", [home], dims_read, name=name)
    else:
        return False
    take_place(graph, node, new)
    return True
