"""Gives a symbolic dim a number."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["FixDimPass"]


class FixDimPass(ir.passes.InPlacePass):
    """Fixes one dim of the whole graph.

    Args:
        symbol: the dim.
        size: what it becomes.

    Rule: wherever a value's shape has the symbol, it has the number; shape computations follow when they are
    canonicalised and folded.
    """

    def __init__(self, symbol: str, size: int) -> None:
        self.symbol, self.size = symbol, size

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
        modified = False
        for value in values:
            if value.shape is None:
                continue
            dims = [self.size if self._is_symbol(dim) else dim for dim in value.shape]
            if dims != list(value.shape):
                value.shape = ir.Shape(dims)
                modified = True
        return ir.passes.PassResult(model, modified)

    def _is_symbol(self, dim: int | ir.SymbolicDim) -> bool:
        return isinstance(dim, ir.SymbolicDim) and dim.value == self.symbol
